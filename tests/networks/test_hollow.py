"""What networks/hollow.py promises: the own token and bit move nothing, all others do; a Transformer's options."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.networks.hollow import HollowTransformer
from ggm_lightning.networks.transformer import Transformer

B, N, V = 2, 5, 7

CONFIGURATIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "deep": {"num_layers": 2, "num_merges": 3},
    "swiglu, adaln": {"mlp": "swiglu", "conditioning": "adaln"},
    "geglu, labels": {"mlp": "geglu", "num_labels": 3},
    "no time": {"time_features": "none"},
    "no time, labels": {"time_features": "none", "num_labels": 3},
    "dropout": {"dropout": 0.4},
    "checkpointed": {"checkpoint_activations": True, "dropout": 0.4},
    "no bits": {"visited_bits": False},
    "flat start": {"depth_scaled_init": False},
    "levels": {"levels": True},
    "levels, checkpointed": {"levels": True, "checkpoint_activations": True, "dropout": 0.4},
}


def tiny(randomise: bool = True, **changes: object) -> HollowTransformer:
    """A small network; `randomise` fills the kernels that start at zero, which would hide nearly every mistake."""
    torch.manual_seed(0)
    sizes = {"num_classes": V, "feature_dim": 6, "num_heads": 3, "num_layers": 1, "num_merges": 2}
    network = HollowTransformer(**{**sizes, **changes})
    if randomise:
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return network


def batch(length: int = N) -> tuple[Tensor, Tensor, Tensor]:
    """(z, t, visited)."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randint(V + 1, (B, length), generator=generator)
    return z, torch.tensor([0.23, 0.71]), torch.rand(B, length, generator=generator) < 0.5


def told(network: nn.Module, visited: Tensor) -> dict[str, Tensor]:
    """The bits, or two levels in their place, or nothing."""
    if network.visited_bits:
        return {"visited": visited}
    levels = torch.where(visited, 0.3, 1.0).double()
    return {"levels": levels} if getattr(network, "levels", False) else {}


def movements(network: nn.Module, length: int = N) -> Tensor:
    """Float[n, n], how far the features at a site (column) move where token and bit, or level, of another (row)
    change."""
    z, t, visited = batch(length)
    t = t.to(next(network.parameters()))

    def answer(z: Tensor, visited: Tensor) -> Tensor:
        torch.manual_seed(7)  # the same dropout
        return network.features(z, t, None, **told(network, visited)).detach()

    base, moved = answer(z, visited), []
    for i in range(length):
        other, flipped = z.clone(), visited.clone()
        other[:, i] = (z[:, i] + 3) % (V + 1)
        flipped[:, i] = ~visited[:, i]
        moved.append((answer(other, flipped) - base).abs().amax((0, 2)))
    return torch.stack(moved)


def leaks(network: nn.Module, length: int = N) -> bool:
    return bool(movements(network, length).diagonal().any())


# ------------------------------------------------------------------ hollowness


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_site_hears_all_others_and_itself_not_by_one_bit(name: str, training: bool) -> None:
    moved = movements(tiny(**CONFIGURATIONS[name]).train(training))
    assert (moved.diagonal() == 0).all()
    others = moved[~torch.eye(N, dtype=torch.bool)]
    assert others.min() > 1e-4 * others.max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_hollow_in_any_precision_and_at_length(dtype: torch.dtype) -> None:
    """131 sites: more than one tile of any attention kernel."""
    network = tiny().to(dtype)
    z, t, visited = batch(131)
    base = network.features(z, t.to(dtype), None, visited)
    for i in (0, 1, 64, 129, 130):
        other = z.clone()
        other[:, i] = (z[:, i] + 1) % (V + 1)
        moved = (network.features(other, t.to(dtype), None, visited) - base).abs().amax((0, 2))
        assert moved[i] == 0
        assert (moved > 0).sum() > 100


def test_hollow_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moved = movements(tiny())
    assert (moved.diagonal() == 0).all()
    assert moved.sum(1).min() > 0


def test_a_single_site_hears_nothing() -> None:
    network = tiny()
    z, t, visited = batch(1)
    assert torch.equal(network(z, t, None, visited), network((z + 1) % V, t, None, ~visited))


def test_controls_that_leak_are_caught() -> None:
    """A plain transformer, and streams that are shifted the wrong way: not at all."""
    plain = Transformer(V, feature_dim=6, num_heads=3, num_layers=1, visited_bits=True)
    unshifted = tiny()
    unshifted._shifted = lambda x, end: x
    open_stream = tiny()
    for block in open_stream.forward_blocks:
        block.attention.causal = False
    assert leaks(plain)
    assert leaks(unshifted)
    assert leaks(open_stream)
    assert not leaks(tiny())


def test_an_open_merge_is_caught() -> None:
    """The same weights, with one merge attention that lets every site ask every place of the streams."""
    network = tiny()
    attention = network.merge_blocks[0].attention

    def every(x: Tensor, streams: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return x + streams.sum((0, 2))[:, None]

    attention.forward = every
    assert leaks(network)


# ------------------------------------------------------------------ what is computed


def test_the_merge_is_attention_under_the_two_masks() -> None:
    """Against the formula with masks written out: query i sees f_0..f_i, and g_i..g_{n-1} in its own order."""
    torch.manual_seed(3)
    network = tiny()
    attention = network.merge_blocks[0].attention.double()
    width, heads = network.width, network.feature_dim
    x, f, g = torch.randn(3, B, N, width, dtype=torch.float64)
    cos, sin = torch.ones(N, heads // 2, dtype=torch.float64), torch.zeros(N, heads // 2, dtype=torch.float64)
    i = torch.arange(N)

    def one_side(keys_of: Tensor, seen: Tensor) -> Tensor:
        def split(part: Tensor) -> Tensor:
            return part.unflatten(-1, (3, heads)).transpose(1, 2)

        q = split(attention.query(x))
        k, v = (split(part) for part in attention.key_value(keys_of).chunk(2, -1))
        scores = (q @ k.transpose(-1, -2) / heads**0.5).masked_fill(~seen, -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    sides = torch.cat([one_side(f, i[:, None] >= i), one_side(g, i[:, None] <= i)], -1)
    expected = attention.out(sides)
    found = attention(x, torch.stack([f, g.flip(1)]), cos, sin)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    with pytest.raises(AssertionError):  # control: g not reversed
        torch.testing.assert_close(attention(x, torch.stack([f, g]), cos, sin), expected, rtol=0, atol=1e-2)


def test_mirrored_rows_and_streams_give_the_mirrored_answer() -> None:
    """The two ends are alike: exchange the streams' weights and turn the row round."""
    network = tiny(num_merges=1).double()
    mirrored = tiny(num_merges=1).double()
    mirrored.forward_blocks.load_state_dict(network.backward_blocks.state_dict())
    mirrored.backward_blocks.load_state_dict(network.forward_blocks.state_dict())
    width = network.width
    with torch.no_grad():
        mirrored.ends.weight.copy_(network.ends.weight.flip(0))
        mirrored.join.weight.copy_(torch.cat([network.join.weight[:, width:], network.join.weight[:, :width]], 1))
        out = network.merge_blocks[0].attention.out.weight
        mirrored.merge_blocks[0].attention.out.weight.copy_(torch.cat([out[:, width:], out[:, :width]], 1))
    z, t, visited = batch()
    turned = mirrored(z.flip(1), t.double(), None, visited.flip(1)).flip(1)
    torch.testing.assert_close(turned, network(z, t.double(), None, visited), rtol=0, atol=1e-10)
    assert (mirrored(z, t.double(), None, visited) - turned).abs().max() > 1e-3


def test_starts_with_zero_logits() -> None:
    z, t, visited = batch()
    assert (tiny(randomise=False)(z, t, None, visited) == 0).all()


@pytest.mark.parametrize("name", ["plain", "no time", "geglu, labels", "no bits", "levels"])
def test_head_of_features_is_forward_and_positions_are_flattened(name: str) -> None:
    network = tiny(**CONFIGURATIONS[name])
    z, t, visited = batch(6)
    given = told(network, visited)
    logits = network(z, t, None, **given)
    assert torch.equal(network.head(network.features(z, t, None, **given)), logits)
    assert torch.equal(network(z.reshape(B, 2, 3), t, None, **given), logits)
    assert logits.shape == (B, 6, V)


@pytest.mark.parametrize("name", ["plain", "no time", "checkpointed"])
def test_features_at_some_sites_are_those_of_all(name: str) -> None:
    """Values and gradients, sites in any order and twice."""
    network = tiny(**CONFIGURATIONS[name]).double()
    z, t, visited = batch()
    sites = torch.tensor([[3, 0, 3], [4, 2, 1]])
    weight = torch.randn(B, 3, network.width, dtype=torch.float64)

    def answer(restricted: bool) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(5)
        network.zero_grad()
        found = network.features(z, t.double(), None, visited, sites if restricted else None)
        found = found if restricted else found.take_along_dim(sites[..., None], 1)
        (found * weight).sum().backward()
        return found, [p.grad.clone() for name, p in network.named_parameters() if "head" not in name]

    (some, gradients), (every, expected) = answer(True), answer(False)
    torch.testing.assert_close(some, every, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-10)
    turned = network.features(z, t.double(), None, visited, sites.flip(1))
    assert (turned - every).abs().max() > 1e-2  # control: the sites matter


def test_time_and_label_are_heard() -> None:
    z, t, visited = batch()
    network = tiny(num_labels=3)
    label = torch.tensor([0, 2])
    assert torch.equal(network(z, t, None, visited), network(z, t, torch.full((B,), 3), visited))
    assert (network(z, t, label, visited) - network(z, t, None, visited)).abs().max() > 1e-3
    assert (network(z, 1 - t, None, visited) - network(z, t, None, visited)).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_levels_are_heard_by_all_other_sites_alone(dtype: torch.dtype) -> None:
    """The level alone, in small steps: 1 and .99 are told apart."""
    network = tiny(levels=True).to(dtype)
    z, t, _ = batch()
    levels = torch.full((B, N), 0.4, dtype=torch.float64)
    levels[:, 2] = 1.0
    base = network(z, t.to(dtype), None, levels=levels)
    levels[:, 2] = 0.99
    moved = (network(z, t.to(dtype), None, levels=levels) - base).abs().amax((0, 2))
    assert moved[2] == 0
    assert (moved > 0).sum() == N - 1
    assert base.dtype is dtype


def test_levels_begin_no_longer_than_tokens() -> None:
    fresh = HollowTransformer(V, feature_dim=16, num_heads=4, num_layers=1, num_merges=1, levels=True)
    levels = torch.linspace(0, 1, 101)[None]
    size = fresh.level_embedding(levels).pow(2).mean().sqrt()
    assert 0.3 < size / fresh.embedding.weight.pow(2).mean().sqrt() < 1.5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_a_row_alone_is_the_row_in_the_batch(dtype: torch.dtype, tolerance: float) -> None:
    z, t, visited = batch()
    network = tiny().eval().to(dtype)
    together = network(z, t, None, visited)
    atol = tolerance * together.abs().max().item()
    for row in range(B):
        part = slice(row, row + 1)
        alone = network(z[part], t[part], None, visited[part])[0]
        torch.testing.assert_close(alone, together[row], rtol=0, atol=atol)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_dropout_acts_in_training_only() -> None:
    z, t, visited = batch()
    network, sure = tiny(dropout=0.4), tiny()
    assert not torch.equal(network(z, t, None, visited), network(z, t, None, visited))
    network.eval()
    assert torch.equal(network(z, t, None, visited), sure(z, t, None, visited))


def test_bf16_autocast() -> None:
    z, t, visited = batch()
    network = tiny()
    for parameter in network.parameters():
        parameter.data.mul_(0.5)
    exact = network(z, t, None, visited)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = network.features(z, t, None, visited)
        rough = network(z, t, None, visited)
    assert rough.dtype is torch.bfloat16
    assert features.dtype is torch.float32
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()
    rough.float().logsumexp(-1).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


def test_checkpointing_changes_no_gradient_and_every_parameter_has_one() -> None:
    z, t, visited = batch()
    gradients = []
    for checkpointed in (False, True):
        network = tiny(dropout=0.3, num_labels=3, checkpoint_activations=checkpointed)
        torch.manual_seed(2)
        network(z, t, None, visited).logsumexp(-1).sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])


def test_compiling_keeps_the_keys() -> None:
    network = tiny(compile_blocks=True)
    keys = list(network.state_dict())
    network.compile_network()
    assert list(network.state_dict()) == keys
    blocks = [*network.forward_blocks, *network.backward_blocks, *network.merge_blocks]
    assert all(block._compiled_call_impl is not None for block in blocks)


@pytest.mark.slow
def test_compiled_blocks_compute_the_same_and_are_hollow() -> None:
    z, t, visited = batch()
    network = tiny(compile_blocks=True)
    plain = network(z, t, None, visited)
    network.compile_network()
    torch.testing.assert_close(network(z, t, None, visited), plain, rtol=0, atol=1e-5)
    assert not leaks(network)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_dim": 7}, "feature_dim is 7.*even"),
        ({"mlp": "relu"}, "'relu'.*glu, swiglu, geglu"),
        ({"conditioning": "film"}, "'film'.*adaln_zero, adaln"),
        ({"num_merges": 0}, "num_merges is 0; it must be at least 1"),
        ({"num_layers": 0}, "num_layers is 0; it must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_missing_and_unknown_inputs_are_named() -> None:
    z, t, visited = batch()
    with pytest.raises(ValueError, match="needs the time"):
        tiny()(z, None, None, visited)
    with pytest.raises(ValueError, match="num_labels"):
        tiny()(z, t, torch.tensor([0, 1]), visited)
    with pytest.raises(ValueError, match="visited_bits is True and the bits were not given"):
        tiny()(z, t)
    with pytest.raises(ValueError, match="visited_bits is False and the bits were given"):
        tiny(visited_bits=False)(z, t, None, visited)
    levels = visited.double()
    with pytest.raises(ValueError, match="levels is True and the sites' levels were not given"):
        tiny(levels=True)(z, t)
    with pytest.raises(ValueError, match="levels is False and the sites' levels were given"):
        tiny()(z, t, None, visited, levels)
    with pytest.raises(ValueError, match="visited_bits is False and the bits were given"):
        tiny(levels=True)(z, t, None, visited, levels)
