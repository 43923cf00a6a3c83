"""What networks/transformer.py promises: size, start, dropout, precision, checkpointing, compilation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from einops import rearrange
from torch import Tensor

from ggm_lightning.networks.attention import rotary_tables
from ggm_lightning.networks.transformer import Transformer, hidden_width

CONFIGURATIONS = Path(__file__).parents[2] / "configs" / "network"

B, N, V = 2, 5, 7


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny(randomise: bool = True, **changes) -> Transformer:
    """A small network; `randomise` fills the kernels that start at zero, which would hide nearly every mistake."""
    network = Transformer(**{"num_classes": V, "feature_dim": 6, "num_heads": 3, "num_layers": 2, **changes})
    if randomise:
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def batch() -> tuple[Tensor, Tensor]:
    return torch.randint(V + 1, (B, N)), torch.tensor([0.23, 0.71])


@pytest.mark.parametrize(
    ("name", "num_classes", "expected"),
    [
        ("md4_text8", 27, 88_734_272),
        ("md4_owt_small", 50257, 165_857_344),
        ("md4_owt_medium", 50257, 416_240_960),
        ("transformer_tiny", 1, 921_376),
    ],
)
def test_shipped_files_give_the_parameter_counts_of_the_paper(name: str, num_classes: int, expected: int):
    piece = yaml.safe_load((CONFIGURATIONS / f"{name}.yaml").read_text())["model"]["init_args"]["network"]
    assert piece["class_path"] == f"{Transformer.__module__}.{Transformer.__name__}"
    with torch.device("meta"):
        network = Transformer(num_classes, **piece["init_args"])
        logits = network(torch.zeros(B, N, dtype=torch.long), torch.zeros(B))
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
    assert logits.shape == (B, N, num_classes)


def test_hidden_width():
    assert [hidden_width(width) for width in (768, 1024, 16)] == [2048, 2752, 64]


def test_starts_with_zero_logits_and_blocks_that_do_nothing():
    z, t = batch()
    network = tiny(randomise=False)
    assert (network(z, t) == 0).all()
    x, condition = torch.randn(B, N, network.width), torch.randn(B, network.feature_dim)
    tables = rotary_tables(N, network.feature_dim)
    assert all(torch.equal(block(x, condition, *tables), x) for block in network.blocks)
    plain = tiny(randomise=False, conditioning="adaln")
    assert (plain(z, t) == 0).all()
    assert not any(torch.equal(block(x, condition, *tables), x) for block in plain.blocks)


def test_initial_laws():
    """Deviations within 2% (the smallest kernel has 12,288 entries: standard error 0.6%), cut at two deviations."""
    layers = 5
    network = Transformer(2003, feature_dim=64, num_heads=3, num_layers=layers, outside_embed=True, num_labels=401)
    width = network.width
    block = network.blocks[0]
    laws = [
        (network.embedding.weight, 64**-0.5, None),
        (network.condition.label_table.weight, 64**-0.5, None),
        (network.condition.mlp[0].weight, 128**-0.5, 128),
        (network.widen.weight, 64**-0.5, 64),
        (block.attention.qkv.weight, width**-0.5, width),
        (block.attention.out.weight, width**-0.5, width),
        (block.feed_forward.gate.weight, (2 / layers / width) ** 0.5, width * layers / 2),
        (block.feed_forward.down.weight, (2 / layers / 512) ** 0.5, 512 * layers / 2),
    ]
    for kernel, deviation, fan_in in laws:
        assert kernel.std().item() == pytest.approx(deviation, rel=0.02)
        if fan_in is not None:
            assert kernel.abs().max() <= 2 * fan_in**-0.5 / 0.8796
    flat = Transformer(V, feature_dim=64, num_heads=3, num_layers=1, depth_scaled_init=False)
    assert flat.blocks[0].feed_forward.gate.weight.std().item() == pytest.approx(width**-0.5, rel=0.02)
    assert not any(layer.bias.any() for layer in (network.widen, network.condition.mlp[0], network.condition.mlp[2]))


# Use


@pytest.mark.parametrize("changes", [{}, {"time_features": "none"}, {"outside_embed": True, "num_labels": 3}])
def test_head_of_features_is_forward(changes: dict):
    z, t = batch()
    network = tiny(**changes)
    assert torch.equal(network.head(network.features(z, t)), network(z, t))
    assert network(z, t).shape == (B, N, V)


@pytest.mark.parametrize("checkpoint_activations", [False, True])
@pytest.mark.parametrize(
    "changes",
    [{}, {"time_features": "none"}, {"outside_embed": True, "num_labels": 3}, {"num_layers": 1}, {"dropout": 0.4}],
)
def test_features_at_some_sites_are_those_of_all(changes: dict, checkpoint_activations: bool):
    """Values and gradients, sites in any order and twice; dropout of channels draws the same, of attention does not."""
    z, t = batch()
    network = tiny(**changes, checkpoint_activations=checkpoint_activations).double()
    for block in network.blocks:
        block.attention.dropout = 0.0
    sites = torch.tensor([[3, 0, 3], [4, 2, 1]])
    weight = torch.randn(B, 3, network.width, dtype=torch.float64)

    def answer(restricted: bool) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(5)
        network.zero_grad()
        found = network.features(z, t.double(), sites=sites if restricted else None)
        found = found if restricted else found.take_along_dim(sites[..., None], 1)
        (found * weight).sum().backward()
        return found, [p.grad.clone() for name, p in network.named_parameters() if "head" not in name]

    (some, gradients), (every, expected) = answer(True), answer(False)
    torch.testing.assert_close(some, every, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(AssertionError):  # control: the sites matter
        torch.testing.assert_close(network.features(z, t.double(), sites=sites.flip(1)), every, rtol=0, atol=1e-3)


def test_positions_are_flattened():
    z, t = torch.randint(V + 1, (B, 2, 3)), torch.tensor([0.2, 0.9])
    network = tiny()
    assert torch.equal(network(z, t), network(rearrange(z, "b i j -> b (i j)"), t))


def test_time_and_label_are_heard():
    z, t = batch()
    network = tiny(num_labels=3)
    label = torch.tensor([0, 2])
    null = torch.full((B,), 3)
    assert torch.equal(network(z, t), network(z, t, null))
    assert (network(z, t, label) - network(z, t)).abs().max() > 1e-3
    assert (network(z, t) - network(z, 1 - t)).abs().max() > 1e-3
    deaf = tiny(time_features="none")
    assert torch.equal(deaf(z, t), deaf(z, None))


def test_a_label_alone_is_the_condition_itself():
    z, _ = batch()
    network = tiny(time_features="none", num_labels=3)
    label = torch.tensor([2, 0])
    assert torch.equal(network.condition(B, None, label), network.condition.label_table.weight[label])
    assert (network(z, None, label) - network(z, None)).abs().max() > 1e-3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_a_row_alone_is_the_row_in_the_batch(dtype: torch.dtype, tolerance: float):
    """Up to the order of sums in matrix products, relative to the largest logit."""
    z, t = batch()
    network = tiny().eval().to(dtype)
    together = network(z, t)
    atol = tolerance * together.abs().max().item()
    for row in range(B):
        torch.testing.assert_close(network(z[row : row + 1], t[row : row + 1])[0], together[row], rtol=0, atol=atol)
    assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.parametrize("time_features", ["t", "none"])
def test_dropout_acts_in_training_only(time_features: str):
    z, t = batch()
    network = tiny(dropout=0.4, time_features=time_features)
    sure = tiny(time_features=time_features)
    sure.load_state_dict(network.state_dict())
    assert not torch.equal(network(z, t), network(z, t))
    network.eval()
    assert torch.equal(network(z, t), network(z, t))
    assert torch.equal(network(z, t), sure(z, t))


@pytest.mark.parametrize("time_features", ["t", "none"])
def test_branches_lose_channels_not_positions(time_features: str):
    rate, width = 0.4, 600
    block = tiny(feature_dim=200, num_layers=1, dropout=rate, time_features=time_features).blocks[0]
    gate = None if time_features == "none" else torch.ones(B, 1, width)
    added = block.residual(torch.zeros(B, N, width), torch.ones(B, N, width), gate)
    dropped = added == 0
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert not torch.equal(dropped[0], dropped[1])
    torch.testing.assert_close(added[~dropped], torch.full_like(added[~dropped], 1 / (1 - rate)))
    standard_error = (rate * (1 - rate) / (B * width)) ** 0.5
    assert abs(dropped[:, 0].double().mean().item() - rate) < 4 * standard_error


def test_embedding_drops_out_only_inside():
    z, _ = batch()
    inside, outside = tiny(dropout=0.4), tiny(dropout=0.4, outside_embed=True)
    assert (inside._embed(z) == 0).any()
    assert torch.equal(outside._embed(z), outside._embed(z))


@pytest.mark.parametrize("changes", [{}, {"time_features": "none"}, {"outside_embed": True, "num_labels": 3}])
def test_bf16_autocast(changes: dict):
    z, t = batch()
    network = tiny(**changes)
    for parameter in network.parameters():
        parameter.data.mul_(0.5)
    exact = network(z, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = network.features(z, t)
        rough = network(z, t)
    assert rough.dtype is torch.bfloat16
    assert features.dtype is torch.float32  # the residual stream and the norms stay in float32
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()
    rough.float().logsumexp(-1).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


def test_double_network_computes_in_double():
    z, t = batch()
    network = tiny().double()
    logits = network(z, t.double())
    assert logits.dtype is torch.float64
    assert 1e-12 < (logits - network.float()(z, t)).abs().max() < 1e-3


def test_checkpointing_changes_no_gradient():
    z, t = batch()
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        network = tiny(dropout=0.3, checkpoint_activations=checkpointed)
        torch.manual_seed(2)
        network(z, t).logsumexp(-1).sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])


def test_compiling_keeps_the_keys():
    network, idle = tiny(compile_blocks=True), tiny()
    keys = list(network.state_dict())
    network.compile_network()
    idle.compile_network()
    assert list(network.state_dict()) == keys == list(idle.state_dict())
    assert all(block._compiled_call_impl is not None for block in network.blocks)
    assert all(block._compiled_call_impl is None for block in idle.blocks)


@pytest.mark.slow
def test_compiled_blocks_compute_the_same():
    z, t = batch()
    network = tiny(compile_blocks=True)
    plain = network(z, t)
    network.compile_network()
    compiled = network(z, t)
    assert all(block._compiled_call_impl is not None for block in network.blocks)
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_dim": 7}, "feature_dim is 7.*even"),
        ({"feature_dim": 2}, "at least 4"),
        ({"mlp": "relu"}, "'relu'.*glu, swiglu, geglu"),
        ({"conditioning": "film"}, "'film'.*adaln_zero, adaln"),
        ({"time_features": "u"}, "'u'.*t, none"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_wrong_arguments_are_named(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_site_vectors_tell_the_sites_apart():
    """Off, nothing changes, also not what a seed gives. On, the same tokens mean something else at another site."""
    plain, off = tiny(), tiny(site_vectors=0)
    assert plain.state_dict().keys() == off.state_dict().keys()
    torch.manual_seed(5)
    first = Transformer(V, 6, 3, 2).state_dict()
    torch.manual_seed(5)
    second = Transformer(V, 6, 3, 2, site_vectors=0).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    z, t = torch.full((B, N), 3), torch.tensor([0.23, 0.71])
    assert torch.allclose(plain(z, t), plain(z, t)[:, :1].expand(-1, N, -1), atol=1e-5)
    on = tiny(site_vectors=N)
    assert (on(z, t)[:, 1:] - on(z, t)[:, :1]).abs().amax(-1).min() > 1e-2
    assert on.site_table.weight.shape == (N, 18)
    with pytest.raises(ValueError, match="site_vectors is 5, but the row has 4 sites"):
        on(z[:, :4], t)
    with pytest.raises(ValueError, match="site_vectors is -1; it must be at least 0"):
        tiny(site_vectors=-1)


def test_missing_and_unknown_inputs_are_named():
    z, t = batch()
    with pytest.raises(ValueError, match="needs the time"):
        tiny()(z, None)
    with pytest.raises(ValueError, match="num_labels"):
        tiny()(z, t, torch.tensor([0, 1]))
