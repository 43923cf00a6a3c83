"""What networks/latent_encoder.py promises: hidden inputs, normalisation in all modes and on two ranks, freezing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing import spawn

from ggm_lightning.networks.latent_encoder import CoordinateNorm, LatentEncoder

B, N, V, S, C = 3, 5, 7, 2, 4
EPS = 1e-5


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny(**changes) -> LatentEncoder:
    sizes = {"feature_dim": 6, "num_heads": 3, "num_layers": 2, "num_latents": S, "latent_dim": C}
    network = LatentEncoder(V, **(sizes | changes))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network


def ids(rows: int = B) -> Tensor:
    return torch.randint(V, (rows, N))


# Encoding


@pytest.mark.parametrize("normalise", ["coordinate", "sphere", "none"])
@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_every_token_reaches_every_latent(normalise: str, mlp: str):
    encoder = tiny(normalise=normalise, mlp=mlp).double()
    x = ids()
    latent = encoder(x)
    assert latent.shape == (B, S, C)
    for site in range(N):
        changed = x.clone()
        changed[:, site] = (changed[:, site] + 1) % V
        assert ((encoder(changed) - latent).abs().amax(-1) > 1e-4).all()


def test_a_latent_of_a_chunk_is_one_map_of_its_own_positions():
    """Of 3 chunks of 5 positions: the map's weights of one position reach no other chunk's, and the blocks alone carry
    what stands elsewhere. Control: the queries' latents change all together."""
    encoder = tiny(num_latents=3, chunk=5, normalise="none").double()
    assert encoder.queries is None
    assert encoder.project.weight.shape == (C, 5 * encoder.width)
    x, seen = torch.randint(V, (B, 15)), []
    encoder.final_norm.register_forward_hook(lambda module, inputs, out: seen.append(out))
    raw = encoder.raw(x)
    by_hand = torch.stack([seen[0][:, 5 * s : 5 * s + 5].flatten(1) @ encoder.project.weight.T for s in range(3)], 1)
    torch.testing.assert_close(raw, by_hand, rtol=0, atol=1e-12)
    for block in encoder.blocks:
        for parameter in block.parameters():
            parameter.data.zero_()
    changed = x.clone()
    changed[:, 7] = (changed[:, 7] + 1) % V
    moved = (encoder.raw(changed) - encoder.raw(x)).abs().amax((0, 2))
    assert moved.gt(1e-4).tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"reads 3 chunks of 5 positions, the rows have 13; set num_latents and chunk"):
        encoder.raw(x[:, :13])
    with pytest.raises(ValueError, match="chunk is 0; it must be at least 1"):
        tiny(chunk=0)
    alone = tiny(num_latents=3, chunk=5, normalise="none", num_layers=0)
    assert (alone.raw(changed) - alone.raw(x)).abs().amax((0, 2)).gt(1e-4).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="num_layers is 0"):
        tiny(num_layers=0)


def test_positions_and_slots_differ():
    encoder = tiny(normalise="none")
    x = torch.arange(N).expand(B, -1)
    assert (encoder(x.flip(1)) - encoder(x)).abs().max() > 1e-2
    assert (encoder(x)[:, 0] - encoder(x)[:, 1]).abs().max() > 1e-2
    image = torch.randint(V, (B, 2, 3))
    assert torch.equal(encoder(image), encoder(image.flatten(1)))


def test_hidden_tokens_cannot_be_told():
    encoder = tiny(normalise="none").eval()
    x, hidden = ids(), torch.zeros(B, N, dtype=torch.bool)
    assert torch.equal(encoder(x, hidden), encoder(x))
    hidden[0, 2] = hidden[1, :] = True
    changed = torch.where(hidden, (x + 1) % V, x)
    assert torch.equal(encoder(changed, hidden), encoder(x, hidden))
    assert (encoder(changed) - encoder(x))[:2].abs().amax((1, 2)).min() > 1e-3, "seen where it is not hidden"
    assert torch.equal(encoder(x, hidden)[2], encoder(x)[2])
    # hidden is an embedding of zero: a token whose embedding is zero looks the same
    encoder.embedding.weight.data[0] = 0
    blank = torch.where(hidden, 0, x)
    assert torch.equal(encoder(blank), encoder(x, hidden))


# Normalisation


def test_training_normalises_each_coordinate_by_its_batch():
    encoder, x = tiny().double(), ids(11)
    raw, latent = encoder.raw(x), encoder(x)
    by_hand = (raw - raw.mean(0)) / (raw.var(0, correction=0) + EPS).sqrt()
    torch.testing.assert_close(latent, by_hand, rtol=0, atol=1e-12)
    assert latent.mean(0).abs().max() < 1e-12
    wrong = (raw - raw.mean((0, 1))) / (raw.var((0, 1), correction=0) + EPS).sqrt()  # slots together
    assert (wrong - latent).abs().max() > 1e-2


def test_evaluation_uses_running_statistics():
    norm = CoordinateNorm(S, C).double()
    rows, batches = 7, torch.randn(40, 7, S, C, dtype=torch.float64) * 3 + 2
    mean, variance = torch.zeros(S, C, dtype=torch.float64), torch.ones(S, C, dtype=torch.float64)
    for batch in batches:
        norm(batch)
        mean = 0.9 * mean + 0.1 * batch.mean(0)
        variance = 0.9 * variance + 0.1 * batch.var(0, correction=1)
    norm.eval()
    x = torch.randn(rows, S, C, dtype=torch.float64)
    torch.testing.assert_close(norm(x), (x - mean) / (variance + EPS).sqrt(), rtol=0, atol=1e-12)
    assert (norm.train()(x.clone()) - norm.eval()(x)).abs().max() > 1e-2


def test_gradients_pass_through_the_statistics():
    norm = CoordinateNorm(S, C).double()
    x = torch.randn(B, S, C, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, x)


def test_a_frozen_encoder_does_not_look_at_the_batch():
    encoder, x = tiny().double(), ids(11)
    raw = encoder.raw(x).detach()
    encoder.set_statistics(raw.mean(0), raw.std(0))
    stored = [buffer.clone() for buffer in encoder.buffers()]
    for mode in (True, False):
        encoder.train(mode)
        torch.testing.assert_close(encoder(x), (raw - raw.mean(0)) / (raw.var(0) + EPS).sqrt(), rtol=0, atol=1e-12)
        for row in (slice(0, 1), slice(3, 5)):  # a row alone also works, which has no statistics of its own
            torch.testing.assert_close(encoder(x[row]), encoder(x)[row], rtol=0, atol=1e-12)
    assert all(torch.equal(before, after) for before, after in zip(stored, encoder.buffers(), strict=True))


def test_being_fixed_survives_the_checkpoint():
    encoder, x = tiny(), ids(11)
    encoder.set_statistics(torch.full((S, C), 0.3), torch.full((S, C), 2.0))
    again, fresh = tiny().train(), tiny().train()
    fresh.load_state_dict(tiny().state_dict())
    again.load_state_dict(encoder.state_dict())
    assert again.norm.is_fixed
    assert not fresh.norm.is_fixed
    assert torch.equal(again(x), encoder(x))
    assert (again(x).mean(0)).abs().max() > 1e-2, "its batch's own statistics are not used"
    again.load_state_dict(fresh.state_dict())
    assert not again.norm.is_fixed


def test_sphere_gives_coordinates_of_size_one():
    encoder, x = tiny(normalise="sphere"), ids()
    latent, raw = encoder(x), encoder.raw(x)
    torch.testing.assert_close(latent.square().mean(-1), torch.ones(B, S), rtol=0, atol=1e-5)
    torch.testing.assert_close(latent, C**0.5 * raw / raw.norm(dim=-1, keepdim=True), rtol=0, atol=1e-5)
    plain = tiny(normalise="none")
    assert torch.equal(plain(x), plain.raw(x))


def ranks(rank: int, folder: str) -> None:
    """Two unequal parts of a batch on two ranks; the loss is the sum over the ranks of weighted squares."""
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    encoder, x, weights = tiny().double(), ids(7), torch.randn(7, S, C, dtype=torch.float64)
    part = slice(0, 3) if rank == 0 else slice(3, 7)
    latent = encoder(x[part])
    (latent**3 * weights[part]).sum().backward()
    for parameter in encoder.parameters():
        dist.all_reduce(parameter.grad)
    torch.save((latent.detach(), [p.grad for p in encoder.parameters()], list(encoder.buffers())), f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_are_one_rank_with_both_batches(tmp_path: Path):
    spawn(ranks, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    torch.manual_seed(0)
    encoder, x, weights = tiny().double(), ids(7), torch.randn(7, S, C, dtype=torch.float64)
    latent = encoder(x)
    (latent**3 * weights).sum().backward()
    torch.testing.assert_close(torch.cat([first[0], second[0]]), latent.detach(), rtol=0, atol=1e-12)
    for mine, one, two in zip(encoder.parameters(), first[1], second[1], strict=True):
        torch.testing.assert_close(one, mine.grad, rtol=0, atol=1e-10 * max(1, mine.grad.abs().max().item()))
        assert torch.equal(one, two)
    for mine, one, two in zip(encoder.buffers(), first[2], second[2], strict=True):
        torch.testing.assert_close(one, mine, rtol=0, atol=1e-12)
        assert torch.equal(one, two)
    apart = tiny().double()
    apart.load_state_dict(encoder.state_dict())
    assert (apart(x[:3]) - latent[:3]).abs().max() > 1e-2, "control: statistics of one rank alone are others"


# Training


def test_dropout_acts_in_training_only():
    encoder, x = tiny(dropout=0.4, normalise="none"), ids()
    assert not torch.equal(encoder(x), encoder(x))
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))


def test_checkpointing_changes_no_gradient():
    x, gradients = ids(), []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        encoder = tiny(dropout=0.3, checkpoint_activations=checkpointed)
        torch.manual_seed(2)
        encoder(x).pow(3).sum().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])


def test_bf16_autocast_normalises_in_float32():
    encoder, x = tiny(), ids(11)
    exact = encoder.raw(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, latent = encoder.raw(x), encoder(x)
    assert rough.dtype is latent.dtype is torch.float32
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()
    assert latent.mean(0).abs().max() < 1e-5


def test_compiling_keeps_the_keys():
    encoder, idle = tiny(compile_blocks=True), tiny()
    keys = list(encoder.state_dict())
    encoder.compile_network()
    idle.compile_network()
    assert list(encoder.state_dict()) == keys == list(idle.state_dict())
    assert all(block._compiled_call_impl is not None for block in encoder.blocks)
    assert all(block._compiled_call_impl is None for block in idle.blocks)


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_dim": 5}, "feature_dim is 5.*even"),
        ({"normalise": "batch"}, "'batch'.*coordinate, sphere, none"),
        ({"mlp": "relu"}, "'relu'"),
        ({"num_latents": 0}, "num_latents is 0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
    ],
)
def test_wrong_arguments_are_named(changes: dict, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        tiny(**changes)
    assert "\n" not in str(caught.value)


def test_wrong_statistics_are_named():
    encoder, good = tiny(), torch.ones(S, C)
    with pytest.raises(ValueError, match="a single row"):
        encoder(ids(1))
    assert encoder.eval()(ids(1)).shape == (1, S, C)
    with pytest.raises(ValueError, match=r"mean has shape \[4\], the latent \[2, 4\]"):
        encoder.set_statistics(torch.ones(C), good)
    with pytest.raises(ValueError, match="std has values"):
        encoder.set_statistics(good, -good)
    with pytest.raises(ValueError, match="mean has values"):
        encoder.set_statistics(good * torch.nan, good)
    assert not encoder.norm.is_fixed
    with pytest.raises(ValueError, match=r"'sphere'.*no statistics"):
        tiny(normalise="sphere").set_statistics(good, good)
