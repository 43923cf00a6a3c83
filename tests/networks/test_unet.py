"""What networks/unet.py promises, and what networks/uvit.py promises alike: size, start, layout, dropout, precision."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import yaml
from einops import rearrange
from torch import Tensor, nn

from ggm_lightning.networks.unet import AttentionMiddle, GroupNorm, ResBlock, UNet
from ggm_lightning.networks.uvit import DiT, DiTBlock, UViT

CONFIGURATIONS = Path(__file__).parents[2] / "configs" / "network"

B, C, H, W, V, D = 2, 3, 5, 7, 11, 64
NETWORKS = [UNet, UViT]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny(kind: type = UNet, randomise: bool = True, **changes) -> nn.Module:
    """A small network; `randomise` fills the kernels that start at zero, which would hide nearly every mistake."""
    sizes = {"num_layers": 2, "feature_dim": D}
    if kind is UViT:
        sizes |= {"num_layers": 1, "num_dit_layers": 2, "dit_width": 12, "dit_heads": 3}
    network = kind(**{"num_classes": V, "shape": (C, H, W), **sizes, **changes})
    for parameter in network.parameters() if randomise else ():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def batch(shape: tuple[int, ...] = (C, H, W)) -> tuple[Tensor, Tensor]:
    return torch.randint(V + 1, (B, *shape)), torch.tensor([0.23, 0.71])


# Size


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "kind", "shape", "expected"),
    [
        ("md4_cifar10", UNet, (3, 32, 32), 28_427_520),
        ("md4_imagenet64", UViT, (3, 64, 64), 198_279_680),
    ],
)
def test_shipped_files_give_the_parameter_counts_of_the_paper(name: str, kind: type, shape: tuple, expected: int):
    piece = yaml.safe_load((CONFIGURATIONS / f"{name}.yaml").read_text())["model"]["init_args"]["network"]
    assert piece["class_path"] == f"{kind.__module__}.{kind.__name__}"
    with torch.device("meta"):
        network = kind(256, **piece["init_args"])  # the default shape is the paper's
        logits = network(torch.zeros(B, *shape, dtype=torch.long), torch.zeros(B))
    assert count(network) == expected
    assert logits.shape == (B, shape[0] * shape[1] * shape[2], 256)


@pytest.mark.parametrize(("num_labels", "expected"), [(0, 204_595_712), (1000, 205_113_856)])
def test_the_model_of_the_samples_has_the_official_count(num_labels: int, expected: int):
    with torch.device("meta"):
        network = UViT(256, num_layers=8, num_dit_layers=20, num_labels=num_labels)
    null_class = 256 if num_labels else 0  # the row that the official network lacks
    assert count(network) == expected + null_class


@pytest.mark.parametrize("num_labels", [0, 10])
def test_labels_cost_what_they_cost_officially(num_labels: int):
    """A table (with our null class), and twice the inputs of the first Dense."""
    d = 128
    with torch.device("meta"):
        network = UNet(256, num_labels=num_labels)
    assert count(network) == 28_427_520 + ((num_labels + 1) * d + d * 4 * d if num_labels else 0)


# Start


@pytest.mark.parametrize("changes", [{}, {"num_labels": 3}, {"time_features": "none"}])
@pytest.mark.parametrize("kind", NETWORKS)
def test_starts_with_zero_logits(kind: type, changes: dict):
    """So the first bound is V-sided dice: exactly 8 bits per dimension for V = 256."""
    network = tiny(kind, randomise=False, **changes)
    logits = network(*batch())
    assert (logits == 0).all()
    assert torch.equal(logits.log_softmax(-1), torch.full_like(logits, 1 / V).log())
    nn.init.normal_(network.trunk.conv_out.weight)
    assert (network(*batch()) != 0).any()  # the layer before is alive


@pytest.mark.parametrize("modulated", [False, True])
def test_blocks_start_as_their_skip(modulated: bool):
    x, condition = torch.randn(B, D, H, W), torch.randn(B, 13)
    same = ResBlock(D, D, 13, modulated)
    assert same.skip is None
    assert torch.equal(same(x, condition), x)
    wider = ResBlock(D, 2 * D, 13, modulated)
    assert torch.equal(wider(x, condition), wider.skip(x))


def test_initial_laws():
    """Deviations within 3% (the smallest kernel has 8,192 entries: standard error 0.7%), cut at two deviations."""
    network = tiny(UNet, randomise=False, num_classes=257, num_labels=129)
    block, middle = network.trunk.up[0], network.trunk.middle
    laws = [
        (network.trunk.embedding.weight, D),
        (network.condition.label_table.weight, D),
        (network.trunk.conv_in.weight, 9 * C * D),
        (network.trunk.down[0].conv1.weight, 9 * D),
        (block.conv1.weight, 9 * 2 * D),
        (block.skip.weight, 2 * D),
        (middle.attention.qkv.weight, D),
        (middle.attention.out.weight, D),
    ]
    for kernel, fan_in in laws:
        assert kernel.std().item() == pytest.approx(fan_in**-0.5, rel=0.03)
    for kernel, fan_in in laws[2:]:
        assert kernel.abs().max() <= 2 * fan_in**-0.5 / 0.8796
    zeros = [block.conv2.weight, block.add.weight, network.trunk.conv_out.weight]
    zeros += [parameter for name, parameter in network.named_parameters() if name.endswith("bias")]
    assert not any(zero.any() for zero in zeros)
    assert (network.trunk.norm.weight == 1).all()


# Layout


@pytest.mark.parametrize("shape", [(C, H, W), (1, 2, 13), (5, 1, 3)])
@pytest.mark.parametrize("kind", NETWORKS)
def test_any_size(kind: type, shape: tuple):
    z, t = batch(shape)
    assert tiny(kind, shape=shape)(z, t).shape == (B, shape[0] * shape[1] * shape[2], V)


@pytest.mark.parametrize("kind", NETWORKS)
def test_two_axes_are_one_channel(kind: type):
    z, t = batch((H, W))
    grey, one = tiny(kind, shape=(H, W)), tiny(kind, shape=(1, H, W))
    one.load_state_dict(grey.state_dict())
    assert torch.equal(grey(z, t), one(z[:, None], t))


def test_sites_are_in_the_order_of_the_shape():
    """Without norms and middle, a changed pixel is felt as far as four 3 x 3 windows reach, around its own place."""
    network = tiny(num_layers=0, shape=(C, 29, 31)).double()
    network.trunk.middle = Pass()
    for module in network.modules():
        if isinstance(module, GroupNorm):
            module.forward = lambda x, condition: x
    z, t = batch((C, 29, 31))
    other = z.clone()
    other[:, 1, 17, 11] = (other[:, 1, 17, 11] + 1) % V
    changed = (network(z, t.double()) != network(other, t.double())).any(-1).any(0)
    rows, columns = rearrange(changed, "(c h w) -> c h w", c=C, h=29)[1].nonzero(as_tuple=True)
    reach = 4  # conv_in, two in the one block, conv_out
    assert (rows.min(), rows.max()) == (17 - reach, 17 + reach)
    assert (columns.min(), columns.max()) == (11 - reach, 11 + reach)


class Pass(nn.Module):
    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return x


def test_logits_of_a_channel_come_from_its_own_kernels():
    network = tiny().double()
    z, t = batch()
    t = t.double()
    plain = network(z, t)
    network.trunk.conv_out.bias.data[V : 2 * V] += torch.arange(V)
    added = rearrange(network(z, t) - plain, "b (c n) v -> c b n v", c=C)
    torch.testing.assert_close(added[1], torch.arange(V).expand_as(added[1]).double(), rtol=0, atol=1e-12)
    assert (added[0] == 0).all()
    assert (added[2] == 0).all()


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_channel_is_seen(kind: type):
    network = tiny(kind)
    z, t = batch()
    for channel in range(C):
        other = z.clone()
        other[:, channel] = (other[:, channel] + 1) % V
        assert (network(other, t) - network(z, t)).abs().max() > 1e-4
    assert (network(z.flip(1), t) - network(z, t)).abs().max() > 1e-4


# Use


@pytest.mark.parametrize("kind", NETWORKS)
def test_time_and_label_are_heard(kind: type):
    z, t = batch()
    network = tiny(kind, num_labels=3)
    label, null = torch.tensor([0, 2]), torch.full((B,), 3)
    assert torch.equal(network(z, t), network(z, t, null))
    assert (network(z, t, label) - network(z, t)).abs().amax((1, 2)).min() > 1e-4
    assert (network(z, t) - network(z, 1 - t)).abs().max() > 1e-4
    deaf = tiny(kind, time_features="none")
    assert torch.equal(deaf(z, t), deaf(z, None))
    only_label = tiny(kind, time_features="none", num_labels=3)
    assert (only_label(z, None, label) - only_label(z, None)).abs().amax((1, 2)).min() > 1e-4


@pytest.mark.parametrize("changes", [{"num_labels": 3}, {"time_features": "none"}])
@pytest.mark.parametrize("kind", NETWORKS)
def test_gradients_reach_every_parameter(kind: type, changes: dict):
    """But for what a softmax or a norm takes out again: the bias of the keys."""
    z, t = batch()
    network = tiny(kind, **changes).double()
    label = torch.tensor([0, 2]) if network.num_labels else None
    logits = network(z, t.double(), label)
    (logits.logsumexp(-1) - logits[..., 0]).sum().backward()
    for name, parameter in network.named_parameters():
        gradient = parameter.grad
        if name.endswith("qkv.bias"):
            queries, keys, values = gradient.chunk(3)
            assert keys.abs().max() < 1e-12 * values.abs().max()
            gradient = torch.stack([queries, values])
        elif name == "condition.label_table.weight":
            assert not gradient[[1, 3]].any()  # labels that did not occur
            gradient = gradient[[0, 2]]
        elif name == "trunk.embedding.weight":
            gradient = gradient[z.unique()]
        assert gradient.flatten(1).abs().amax(-1).min() > 0 if gradient.dim() > 1 else gradient.abs().max() > 0, name


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_network_wakes_within_five_steps(kind: type):
    """At the start only the last convolution has a gradient; each step then opens further kernels that were zero."""
    z, t = batch()
    network = tiny(kind, randomise=False, num_labels=3).double()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    awake = []
    for _ in range(6):
        optimizer.zero_grad()
        network(z, t.double(), torch.tensor([0, 2])).log_softmax(-1)[..., 0].mean().neg().backward()
        awake.append({name for name, parameter in network.named_parameters() if parameter.grad.any()})
        optimizer.step()
    assert awake[0] == {"trunk.conv_out.weight", "trunk.conv_out.bias"}
    assert "trunk.conv_in.weight" in awake[1]
    assert awake[5] == {name for name, _ in network.named_parameters()}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_a_row_alone_is_the_row_in_the_batch(kind: type, dtype: torch.dtype, tolerance: float):
    """Up to the order of sums, relative to the largest logit."""
    z, t = batch()
    network = tiny(kind).eval().to(dtype)
    together = network(z, t)
    atol = tolerance * together.abs().max().item()
    for row in range(B):
        torch.testing.assert_close(network(z[row : row + 1], t[row : row + 1])[0], together[row], rtol=0, atol=atol)
    assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.parametrize("time_features", ["t", "none"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_dropout_acts_in_training_only(kind: type, time_features: str):
    z, t = batch()
    network, sure = (tiny(kind, dropout=rate, time_features=time_features) for rate in (0.4, 0.0))
    sure.load_state_dict(network.state_dict())
    assert not torch.equal(network(z, t), network(z, t))
    torch.manual_seed(1)
    first = network(z, t)
    torch.manual_seed(1)
    assert torch.equal(network(z, t), first)
    network.eval()
    assert torch.equal(network(z, t), sure(z, t))


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_rate_reaches_every_part_that_drops(kind: type):
    """All but the U-Net's attention, which officially drops nothing."""
    network = tiny(kind, dropout=0.3)
    rates = {name: module.dropout for name, module in network.named_modules() if hasattr(module, "dropout")}
    assert len(rates) == (3 + 2 * 3 if kind is UViT else 7 + 1)  # residual blocks, and what stands between them
    assert {name for name, rate in rates.items() if rate != 0.3} == (
        {"trunk.middle.attention"} if kind is UNet else set()
    )


def test_blocks_lose_single_numbers_in_front_of_the_last_convolution():
    rate = 0.4
    block = ResBlock(D, D, None, False, rate)
    seen = []
    block.conv2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    block(torch.randn(B, D, H, W), None)
    block.eval()(torch.randn(B, D, H, W), None)
    standard_error = (rate * (1 - rate) / seen[0].numel()) ** 0.5
    assert abs((seen[0] == 0).double().mean().item() - rate) < 4 * standard_error
    assert (seen[1] != 0).all()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("changes", [{"num_labels": 3}, {"time_features": "none"}])
def test_bf16_autocast(kind: type, changes: dict):
    z, t = batch()
    network = tiny(kind, **changes)
    streams = []
    for module in network.modules():
        if isinstance(module, ResBlock | DiT | DiTBlock | AttentionMiddle | GroupNorm):
            module.register_forward_hook(lambda _, inputs, output: streams.append(output.dtype))
    exact = network(z, t)
    streams.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(z, t)
    assert rough.dtype is torch.bfloat16
    assert set(streams) == {torch.float32}  # the residual stream and the norms
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()
    rough.float().logsumexp(-1).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", NETWORKS)
def test_double_network_computes_in_double(kind: type):
    z, t = batch()
    network = tiny(kind).double()
    logits = network(z, t.double())
    assert logits.dtype is torch.float64
    assert 1e-12 < (logits - network.float()(z, t)).abs().max() < 1e-3 * logits.abs().max()


@pytest.mark.parametrize("kind", NETWORKS)
def test_compiling_keeps_the_keys(kind: type):
    network, idle = tiny(kind, compile_blocks=True), tiny(kind)
    keys = list(network.state_dict())
    network.compile_network()
    idle.compile_network()
    assert list(network.state_dict()) == keys == list(idle.state_dict())
    blocks = [module for module in network.modules() if isinstance(module, ResBlock | DiTBlock)]
    assert len(blocks) == (5 if kind is UViT else 7)
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert all(module._compiled_call_impl is None for module in idle.modules())


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_compiled_blocks_compute_the_same(kind: type):
    z, t = batch()
    network = tiny(kind, compile_blocks=True, num_layers=0)
    plain = network(z, t)
    network.compile_network()
    torch.testing.assert_close(network(z, t), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 0}, "num_classes is 0.*at least 1"),
        ({"num_layers": -1}, "num_layers is -1.*at least 0"),
        ({"num_labels": -1}, "num_labels is -1.*at least 0"),
        ({"feature_dim": 48}, "feature_dim is 48.*32 groups"),
        ({"shape": (16,)}, r"shape is \(16,\).*\(c, h, w\)"),
        ({"shape": (3, 0, 4)}, r"shape is \(3, 0, 4\)"),
        ({"time_features": "u"}, "'u'.*t, none"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_wrong_arguments_are_named(kind: type, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        tiny(kind, **changes)


@pytest.mark.parametrize("kind", NETWORKS)
def test_missing_and_unknown_inputs_are_named(kind: type):
    z, t = batch()
    with pytest.raises(ValueError, match="needs the time"):
        tiny(kind)(z, None)
    with pytest.raises(ValueError, match="num_labels"):
        tiny(kind)(z, t, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"shape \(3, 5, 7\), not \(5, 7, 3\)"):
        tiny(kind)(rearrange(z, "b c h w -> b h w c"), t)


def test_groups_of_one_channel_are_deaf_and_warned_of():
    with pytest.warns(UserWarning, match="takes the time and the label out again; give 64 or more"):
        UNet(5, feature_dim=32, num_layers=0, shape=(1, 4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        UNet(5, feature_dim=64, num_layers=0, shape=(1, 4, 4))
