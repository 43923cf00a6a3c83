"""What networks/latent.py promises: sizes, start, two streams that hear each other, times, positions, precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from einops import rearrange
from torch import Tensor

from ggm_lightning.networks.latent import JointDenoiser, LatentDenoiser, non_embedding_parameters
from ggm_lightning.networks.transformer import Transformer

CONFIGURATIONS = Path(__file__).parents[2] / "configs" / "network"

B, N, V, S, C = 2, 5, 7, 3, 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randomise(network: torch.nn.Module) -> torch.nn.Module:
    """Fills the kernels that start at zero, which would hide nearly every mistake."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def joint(**changes) -> JointDenoiser:
    sizes = {"feature_dim": 6, "num_heads": 3, "num_layers": 2, "num_latents": S, "latent_dim": C}
    return randomise(JointDenoiser(V, **(sizes | changes)))


def alone(**changes) -> LatentDenoiser:
    sizes = {"feature_dim": 6, "num_heads": 3, "num_layers": 2, "num_latents": S, "latent_dim": C}
    return randomise(LatentDenoiser(**(sizes | changes)))


def batch(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        "z": torch.randint(V + 1, (B, N)),
        "t": torch.tensor([0.23, 0.71], dtype=dtype),
        "latent": torch.randn(B, S, C, dtype=dtype),
        "latent_time": torch.tensor([0.41, 0.87], dtype=dtype),
    }


# Size and start


@pytest.mark.parametrize(
    ("sizes", "condition_dim", "published", "blocks", "all_of_it"),
    [
        ((64, 12, 12), 128, (184.3e6, 92.1e6), (184_227_840, 92_113_920), (187_241_888, 94_929_824)),  # B
        ((16, 2, 4), 16, (126e3, None), (125_696, 62_848), (139_408, 75_472)),  # XXS
        ((16, 4, 4), 32, (None, 249e3), (497_152, 248_576), (540_928, 288_128)),  # XS
    ],
)
def test_blocks_have_the_published_sizes(sizes, condition_dim, published, blocks, all_of_it):
    """The published figures are those of the blocks: with these sizes of the condition they fit to the last digit, up
    to the norms' weights, which ours do not have because adaLN has them (1,536 of 7.7 million in a block of B). The
    last column adds, at 32 numbers per latent, the ways in and out and the embeddings of the times."""
    with torch.device("meta"):
        networks = (
            JointDenoiser(V, *sizes, condition_dim=condition_dim),
            LatentDenoiser(*sizes, condition_dim=condition_dim),
        )
    for network, figure, count, total in zip(networks, published, blocks, all_of_it, strict=True):
        assert sum(parameter.numel() for parameter in network.blocks.parameters()) == count
        assert non_embedding_parameters(network) == total
        assert figure is None or count == pytest.approx(figure, rel=3e-3)


@pytest.mark.parametrize(
    ("name", "num_classes", "expected"),
    [
        ("lddm_owt", 50257, 264_437_408),
        ("lddm_text8", 27, 187_284_128),
        ("lddm_sawtooth", 2, 139_568),
        ("lddm_tiny", 97, 545_960),
    ],
)
def test_shipped_files_give_these_counts(name: str, num_classes: int, expected: int):
    piece = yaml.safe_load((CONFIGURATIONS / f"{name}.yaml").read_text())["model"]["init_args"]["network"]
    assert piece["class_path"] == f"{JointDenoiser.__module__}.{JointDenoiser.__name__}"
    with torch.device("meta"):
        network = JointDenoiser(num_classes, **piece["init_args"])
        latent = torch.zeros(B, network.num_latents, network.latent_dim)
        logits, prediction = network(torch.zeros(B, N, dtype=torch.long), None, None, latent, torch.zeros(B))
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
    assert logits.shape == (B, N, num_classes)
    assert prediction.shape == latent.shape


def test_what_the_vocabulary_decides_is_not_counted():
    small, large = joint(), randomise(JointDenoiser(101, 6, 3, 2, S, C))
    width = small.width
    assert non_embedding_parameters(small) == non_embedding_parameters(large)
    assert sum(p.numel() for p in small.parameters()) - non_embedding_parameters(small) == (2 * V + 1) * width
    plain = Transformer(V, feature_dim=6, num_heads=3, num_layers=2)
    assert sum(p.numel() for p in plain.parameters()) - non_embedding_parameters(plain) == (2 * V + 1) * width


@pytest.mark.parametrize("mlp", ["gelu", "glu"])
def test_starts_with_zeros_and_blocks_that_do_nothing(mlp: str):
    network = JointDenoiser(V, 6, 3, 2, S, C, mlp=mlp)
    inputs = batch()
    logits, prediction = network(**inputs)
    assert logits.shape == (B, N, V)
    assert prediction.shape == (B, S, C)
    assert (logits == 0).all()
    assert (prediction == 0).all()
    tokens, latents = torch.randn(B, N, 18), torch.randn(B, S, 18)
    after = network.blocks[0](tokens, latents, torch.randn(B, 6), *network._tables(tokens))
    assert torch.equal(after[0], tokens)
    assert torch.equal(after[1], latents)
    assert (LatentDenoiser(6, 3, 2, S, C, mlp=mlp)(inputs["latent"], inputs["latent_time"]) == 0).all()
    awake = joint(mlp=mlp)(**inputs)
    assert min(part.abs().max() for part in awake) > 1e-2


# Use


@pytest.mark.parametrize("changes", [{}, {"time_features": "t"}, {"num_labels": 3}, {"latent_positions": "slots"}])
def test_head_of_streams_is_forward(changes: dict):
    network, inputs = joint(**changes), batch()
    features, prediction = network.streams(**inputs)
    logits, again = network(**inputs)
    assert features.shape == (B, N, network.width)
    assert torch.equal(network.head(features), logits)
    assert torch.equal(prediction, again)


def test_positions_are_flattened():
    network, inputs = joint(), batch()
    z = torch.randint(V + 1, (B, 2, 3))
    image, flat = network(**inputs | {"z": z}), network(**inputs | {"z": rearrange(z, "b i j -> b (i j)")})
    assert torch.equal(image[0], flat[0])
    assert torch.equal(image[1], flat[1])


@pytest.mark.parametrize("latent_positions", ["rotary", "slots", "aligned"])
def test_the_streams_hear_each_other(latent_positions: str):
    network, inputs = joint(latent_positions=latent_positions), batch()
    inputs["latent"].requires_grad_()
    logits, prediction = network(**inputs)
    (seen,) = torch.autograd.grad(logits.square().sum(), inputs["latent"])
    assert (seen.abs().amax(-1) > 1e-4).all(), "every latent reaches the logits"
    changed = inputs["z"].clone()
    changed[:, 2] = (changed[:, 2] + 1) % (V + 1)
    other = network(**inputs | {"z": changed})[1]
    assert ((other - prediction).abs().amax((1, 2)) > 1e-4).all(), "every token reaches the latent"


def test_streams_have_weights_of_their_own():
    network, inputs = joint(), batch()
    before = network(**inputs)
    with torch.no_grad():
        network.blocks[-1].latents.feed_forward.down.weight.zero_()
    after = network(**inputs)
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])


def test_one_attention_over_both_streams():
    """Equal weights on both sides make a block of the concatenation, whatever the border between them."""
    network = joint(num_layers=1)
    block = network.blocks[0]
    block.latents.load_state_dict(block.tokens.state_dict())
    x, condition = torch.randn(B, N + S, network.width), torch.randn(B, 6)
    tables = network._tables(x[:, :N])
    whole = block.tokens(x, condition, *tables)
    parts = torch.cat(block(x[:, :N], x[:, N:], condition, *tables), dim=1)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
    separate = torch.cat([block.tokens(x[:, :N], condition, *(table[:N] for table in tables)), whole[:, N:]], dim=1)
    assert (separate - whole).abs().max() > 1e-3


def test_an_aligned_latent_stands_at_the_mean_position_of_its_chunk():
    """Of n = 15 tokens and S = 3 latents those at 2, 7 and 12, which are also tokens' own; of n = 4 and S = 2 between
    two tokens. Control: latents behind the text."""
    network = joint(latent_positions="aligned")
    cos, sin = network._tables(torch.zeros(1, 15, 1))
    for table in (cos, sin):
        assert len(table) == 15 + S
        assert torch.equal(table[15:], table[[2, 7, 12]])
    behind = joint()._tables(torch.zeros(1, 15, 1))
    assert torch.equal(behind[0][:15], cos[:15])
    assert (behind[0][15:] - cos[15:]).abs().max() > 0.1
    between = joint(latent_positions="aligned", num_latents=2)._tables(torch.zeros(1, 4, 1))[0]
    torch.testing.assert_close(between[4:, 0], torch.tensor([0.5, 2.5]).cos())


@pytest.mark.parametrize("latent_positions", ["rotary", "slots", "aligned"])
def test_slots_are_told_apart(latent_positions: str):
    """The same latent in another slot is another input; without slot vectors and positions it would not be."""
    network, inputs = joint(latent_positions=latent_positions), batch()
    swapped = inputs | {"latent": inputs["latent"].flip(1)}
    assert (network(**swapped)[0] - network(**inputs)[0]).abs().max() > 1e-3
    lone = alone(latent_positions=latent_positions)
    there, back = lone(inputs["latent"], inputs["latent_time"]), lone(swapped["latent"], inputs["latent_time"])
    assert (back.flip(1) - there).abs().max() > 1e-3


def test_without_slot_vectors_unrotated_latents_are_a_set():
    """Control: what tells slots apart is their vectors alone."""
    network, inputs = joint(latent_positions="slots"), batch()
    torch.nn.init.zeros_(network.latent_in.slots)
    swapped = inputs | {"latent": inputs["latent"].flip(1)}
    torch.testing.assert_close(network(**swapped)[0], network(**inputs)[0], rtol=0, atol=1e-5)


def test_times_and_label_are_heard():
    network, inputs = joint(time_features="t", num_labels=3), batch()
    null = network(**inputs, label=torch.full((B,), 3))
    plain = network(**inputs)
    for part in range(2):
        assert torch.equal(null[part], plain[part])
        for change in (
            {"t": 1 - inputs["t"]},
            {"latent_time": 1 - inputs["latent_time"]},
            {"label": torch.tensor([0, 2])},
        ):
            assert (network(**inputs | change)[part] - plain[part]).abs().max() > 1e-3
    deaf = joint()
    assert torch.equal(deaf(**inputs)[0], deaf(**inputs | {"t": None})[0])
    lone, label = alone(num_labels=3), torch.tensor([0, 2])
    there = lone(inputs["latent"], inputs["latent_time"])
    assert (lone(inputs["latent"], 1 - inputs["latent_time"]) - there).abs().max() > 1e-3
    assert (lone(inputs["latent"], inputs["latent_time"], label) - there).abs().max() > 1e-3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_a_row_alone_is_the_row_in_the_batch(dtype: torch.dtype, tolerance: float):
    network, lone, inputs = joint().to(dtype), alone().to(dtype), batch(dtype)
    together = *network(**inputs), lone(inputs["latent"], inputs["latent_time"])
    assert all(part.dtype is dtype for part in together)
    for row in range(B):
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        apart = *network(**one), lone(one["latent"], one["latent_time"])
        for part, whole in zip(apart, together, strict=True):
            atol = tolerance * whole.abs().max().item()
            torch.testing.assert_close(part[0], whole[row], rtol=0, atol=atol)


@pytest.mark.parametrize(("build", "mlp"), [(joint, "gelu"), (joint, "glu"), (alone, "gelu")])
def test_dropout_acts_in_training_only(build, mlp: str):
    network, inputs = build(dropout=0.4, mlp=mlp), batch()
    if isinstance(network, LatentDenoiser):
        inputs = {name: inputs[name] for name in ("latent", "latent_time")}
    first, second = (torch.cat([part.flatten() for part in network(**inputs)]) for _ in range(2))
    assert not torch.equal(first, second)
    network.eval()
    first, second = (torch.cat([part.flatten() for part in network(**inputs)]) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("build", [joint, alone])
def test_checkpointing_changes_no_gradient(build):
    inputs, gradients = batch(), []
    if build is alone:
        inputs = {name: inputs[name] for name in ("latent", "latent_time")}
    for checkpointed in (False, True):
        torch.manual_seed(1)
        network = build(dropout=0.3, checkpoint_activations=checkpointed)
        torch.manual_seed(2)
        sum(part.square().sum() for part in network(**inputs)).backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])


def test_bf16_autocast():
    network, lone, inputs = joint(), alone(), batch()
    with torch.no_grad():
        for parameter in (*network.parameters(), *lone.parameters()):
            parameter.mul_(0.5)
    exact = *network(**inputs), lone(inputs["latent"], inputs["latent_time"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = *network(**inputs), lone(inputs["latent"], inputs["latent_time"])
        features, _ = network.streams(**inputs)
    # logits may be coarse; predicted latents and features may not, for they are subtracted and summed
    assert [part.dtype for part in (*rough, features)] == [torch.bfloat16] + 3 * [torch.float32]
    for part, true in zip(rough, exact, strict=True):
        assert (part.float() - true).abs().max() < 0.05 * true.abs().max()


@pytest.mark.parametrize("build", [joint, alone])
def test_compiling_keeps_the_keys(build):
    network, idle = build(compile_blocks=True), build()
    keys = list(network.state_dict())
    network.compile_network()
    idle.compile_network()
    assert list(network.state_dict()) == keys == list(idle.state_dict())
    assert all(block._compiled_call_impl is not None for block in network.blocks)
    assert all(block._compiled_call_impl is None for block in idle.blocks)


@pytest.mark.slow
def test_compiled_blocks_compute_the_same():
    network, inputs = joint(compile_blocks=True), batch()
    plain = network(**inputs)
    network.compile_network()
    for compiled, before in zip(network(**inputs), plain, strict=True):
        torch.testing.assert_close(compiled, before, rtol=0, atol=1e-4)


# Errors


@pytest.mark.parametrize("build", [joint, alone])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_dim": 7}, "feature_dim is 7.*even"),
        ({"mlp": "relu"}, "'relu'.*gelu, glu, swiglu, geglu"),
        ({"num_latents": 0}, "num_latents is 0"),
        ({"latent_dim": 0}, "latent_dim is 0"),
        ({"latent_positions": "none"}, "'none'.*rotary, slots"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_wrong_arguments_are_named(build, changes: dict, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        build(**changes)
    assert "\n" not in str(caught.value)


def test_wrong_inputs_are_named():
    network, lone, inputs = joint(), alone(), batch()
    with pytest.raises(ValueError, match="latent= and latent_time="):
        network(inputs["z"], inputs["t"])
    with pytest.raises(ValueError, match=r"\[2, 3, 5\].*3 latents of 4"):
        network(**inputs | {"latent": torch.zeros(B, S, C + 1)})
    with pytest.raises(ValueError, match="needs the time"):
        joint(time_features="t")(**inputs | {"t": None})
    with pytest.raises(ValueError, match="num_labels"):
        network(**inputs, label=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="latent_time="):
        lone(inputs["latent"], None)
    with pytest.raises(ValueError, match="num_labels"):
        lone(inputs["latent"], inputs["latent_time"], torch.tensor([0, 1]))
