"""What networks/ncsnpp.py promises: published size, filters equal to an independent computation, start, precision."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo
import yaml
from torch import Tensor, nn

from ggm_lightning.networks.ncsnpp import Attention, GroupNorm, NCSNpp, Pyramid, Resample, ResBlock

CONFIGURATIONS = Path(__file__).parents[2] / "configs" / "network"
B, C, H, W, D = 2, 3, 4, 12, 8
TAPS = np.array([1.0, 3.0, 3.0, 1.0]) / 8


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny(randomise: bool = True, **changes) -> NCSNpp:
    """A small network; `randomise` fills the kernels that start near zero, which would hide nearly every mistake."""
    sizes = {"shape": (C, H, W), "feature_dim": D, "multipliers": (1, 2), "num_blocks": 1, "attention_sizes": (2,)}
    network = NCSNpp(**{**sizes, "dropout": 0.0, **changes})
    for parameter in network.parameters() if randomise else ():
        nn.init.normal_(parameter, std=0.3)
    return network


def batch(shape: tuple[int, ...] = (C, H, W)) -> tuple[Tensor, Tensor]:
    return 100 * torch.randn(B, *shape), torch.tensor([3.0, 731.5])


# Size


@pytest.mark.parametrize(
    ("shape", "expected"), [((3, 32, 32), 62_693_251), ((3, 64, 64), 62_693_251), ((1, 32, 32), 62_686_337)]
)
def test_the_published_parameter_counts(shape: tuple, expected: int):
    piece = yaml.safe_load((CONFIGURATIONS / "blackout_ncsnpp.yaml").read_text())["model"]["init_args"]["network"]
    assert piece["class_path"] == f"{NCSNpp.__module__}.{NCSNpp.__name__}"
    with torch.device("meta"):
        network = NCSNpp(shape, **piece["init_args"])
        assert network(torch.zeros(B, *shape), torch.zeros(B)).shape == (B, *shape)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
    defaults = inspect.signature(NCSNpp).parameters
    assert all(tuple(np.ravel(v)) == tuple(np.ravel(defaults[k].default)) for k, v in piece["init_args"].items())
    blocks = sum(isinstance(module, ResBlock) for module in network.modules())
    attentions = sum(isinstance(module, Attention) for module in network.modules())
    assert (blocks, attentions) == (44, 6)


def test_labels_cost_one_table():
    count = [sum(p.numel() for p in tiny(num_labels=n).parameters()) for n in (0, 5)]
    assert count[1] - count[0] == 6 * 4 * D


# Filters


def resampled(row: np.ndarray, direction: str) -> np.ndarray:
    """One row: zeros are put between its pixels (up), it is convolved, every second place is kept (down)."""
    if direction == "down":
        return np.convolve(row, TAPS)[2:-1:2]
    stuffed = np.zeros(2 * len(row))
    stuffed[::2] = 2 * row  # the zeros take half of the light
    return np.convolve(stuffed, TAPS)[1:-2]


@pytest.mark.parametrize("direction", ["up", "down"])
def test_filters_equal_zero_stuffing_convolution_and_decimation(direction: str):
    x = torch.randn(B, C, H, W, dtype=torch.float64)
    found = Resample(direction)(x).numpy()
    expected = x.numpy()
    for axis in (-1, -2):
        expected = np.apply_along_axis(resampled, axis, expected, direction)
    assert found.shape == ((B, C, 2 * H, 2 * W) if direction == "up" else (B, C, H // 2, W // 2))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    shifted = np.roll(expected, 1, -1)  # control: a filter that is off by one pixel
    assert abs(found - shifted).max() > 0.1


def test_the_pyramid_is_a_convolution_of_the_filtered_image():
    """Filter and convolution in one: the image is filtered with two black pixels around, then every second place."""
    image, x = torch.randn(B, C, H, W, dtype=torch.float64), torch.randn(B, 5, H // 2, W // 2, dtype=torch.float64)
    pyramid = Pyramid(C, 5).double()
    nn.init.normal_(pyramid.conv.bias)
    wide = np.pad(image.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    blurred = wide
    for axis in (-1, -2):
        blurred = np.apply_along_axis(lambda row: np.convolve(row, TAPS, "valid"), axis, blurred)
    expected = np.zeros(x.shape)
    kernel, bias = pyramid.conv.weight.detach().numpy(), pyramid.conv.bias.detach().numpy()
    for i in range(H // 2):
        for j in range(W // 2):
            window = blurred[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            expected[:, :, i, j] = np.einsum("bchw,ochw->bo", window, kernel) + bias
    found = pyramid(image, x).detach().numpy()
    np.testing.assert_allclose(found, (expected + x.numpy()) / math.sqrt(2), atol=1e-12)


def test_an_even_surface_stays_even_inside():
    x = torch.full((1, 2, 12, 12), 7.0)
    for direction in ("up", "down"):
        assert torch.allclose(Resample(direction)(x)[..., 2:-2, 2:-2], torch.tensor(7.0))
        assert (Resample(direction)(x)[..., 0, 0] < 6.9).all()  # control: black comes in from outside


def test_filters_are_not_saved_and_keep_the_precision_under_autocast():
    assert not any("kernel" in name for name in tiny().state_dict())
    x = 200 + torch.rand(1, 2, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Resample("down")(x), Resample("down")(x.clone()))
        found = Resample("down")(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, Resample("down")(x))
    assert (found - found.bfloat16()).abs().max() > 1e-3  # control: bf16 would show


# Start


def test_starts_near_zero_and_scaled_by_the_square_root_of_two():
    network = tiny(randomise=False)
    assert network(*batch()).abs().max() < 1e-2  # of inputs of a hundred levels; y starts near ln 2
    block, x = ResBlock(D, D, 13, 0.0), torch.randn(B, D, H, W)
    assert (block(x, torch.randn(B, 13)) - x / math.sqrt(2)).abs().max() < 1e-3
    attention = Attention(D)
    assert (attention(x) - x / math.sqrt(2)).abs().max() < 1e-3
    nn.init.normal_(attention.attention.out.weight)
    assert (attention(x) - x / math.sqrt(2)).abs().max() > 0.1  # control


def test_initial_laws():
    """Uniform with variance 2/(fan in + fan out): deviations within 3% (the smallest kernel has 4,096 entries)."""
    network = tiny(randomise=False, feature_dim=64)
    block = network.middle[0]
    qkv = network.middle[1].attention.qkv.weight
    laws = [
        (network.time_mlp[0].weight, 64, 256, 1.0),
        (block.conv1.weight, 9 * 128, 9 * 128, 1.0),
        (block.add.weight, 256, 128, 1.0),
        (network.up[0].blocks[0].skip.weight, 256, 128, 1.0),
        (qkv[:128], 128, 128, 0.1),
        (network.middle[1].attention.out.weight, 128, 128, 1e-10),
        (block.conv2.weight, 9 * 128, 9 * 128, 1e-10),
        (network.conv_out.weight, 9 * 64, 9 * C, 1e-10),
    ]
    for kernel, fan_in, fan_out, scale in laws:
        deviation = math.sqrt(2 * scale / (fan_in + fan_out))
        assert kernel.std().item() == pytest.approx(deviation, rel=0.03)
        assert kernel.abs().max().item() == pytest.approx(math.sqrt(3) * deviation, rel=0.02)
    assert not any(parameter.any() for name, parameter in network.named_parameters() if name.endswith("bias"))


def test_the_time_is_an_index():
    """Sines of t exp(-k ln 1e4 / (d/2 - 1)): the published embedding of 0..999, not of t in [0, 1]."""
    network, (z, _) = tiny(), batch()
    seen = []
    network.time_mlp[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    network(z, torch.tensor([1.0, 999.0]))
    k = np.arange(D // 2)
    angles = np.outer([1.0, 999.0], 1e4 ** (-k / (D // 2 - 1)))
    np.testing.assert_allclose(seen[0], np.concatenate([np.sin(angles), np.cos(angles)], 1), atol=1e-6)


# Layout


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (C, H, W)},
        {"shape": (4, 8)},
        {"shape": (1, 8, 4), "multipliers": (1, 2, 3), "num_blocks": 2},
        {"shape": (1, 3, 5), "multipliers": (1,), "attention_sizes": (3,)},
    ],
)
def test_any_size_and_every_parameter_learns(changes: dict):
    network = tiny(**changes)
    z, t = batch(changes["shape"])
    out = network(z, t)
    assert out.shape == z.shape
    out.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert parameter.grad.abs().max() > 0, name


def test_rows_do_not_see_each_other_and_every_pixel_sees_every_other():
    network, (z, t) = tiny().double(), batch()
    z = z.double().requires_grad_()
    network(z, t)[0, 0, 0, 0].backward()
    assert not z.grad[1].any()
    assert (z.grad[0] != 0).all()  # through the attention in the middle, channels too


def test_time_and_label_are_heard():
    network, (z, t) = tiny(num_labels=3), batch()
    z = z / 100  # so large an image would drown them in a network that has learnt nothing
    base = network(z, t, torch.tensor([0, 1]))
    assert (base - network(z, t + 40, torch.tensor([0, 1]))).abs().max() > 1e-3
    assert (base - network(z, t, torch.tensor([1, 1])))[0].abs().max() > 1e-3
    assert torch.equal(base[1], network(z, t, torch.tensor([1, 1]))[1])
    assert torch.equal(network(z, t), network(z, t, torch.tensor([3, 3])))  # the null class


def test_dropout_is_where_it_should_be():
    network, (z, t) = tiny(dropout=0.5), batch()
    assert not torch.equal(network(z, t), network(z, t))
    network.eval()
    assert torch.equal(network(z, t), network(z, t))


# Precision


def test_first_and_last_layer_are_in_float32_under_autocast():
    network, (z, t) = tiny(num_blocks=2), batch()
    exact = network(z, t)
    dtypes: dict[str, torch.dtype] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | GroupNorm):
            module.register_forward_hook(lambda module, given, out, name=name: dtypes.update({name: out.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        half = network(z, t)
        half.sum().backward()
    assert half.dtype == torch.float32
    assert dtypes["conv_in"] == dtypes["conv_out"] == dtypes["norm"] == torch.float32
    assert dtypes["down.0.blocks.0.conv1"] == torch.bfloat16
    assert 0 < (half - exact).abs().max() < 0.1 * exact.abs().max()
    assert all(parameter.grad.dtype == torch.float32 for parameter in network.parameters())


def test_double():
    network, (z, t) = tiny().double(), batch()
    out = network(z.double(), t)
    assert out.dtype == torch.float64
    assert (out - network.float()(z, t)).abs().max() < 1e-3 * out.abs().max()


@pytest.mark.parametrize("asked", [False, True])
def test_compiling_changes_neither_keys_nor_values(asked: bool, monkeypatch: pytest.MonkeyPatch):
    """With the graph captured whole but run as it is: what would break a graph fails, without a compiler's minutes."""
    network, (z, t) = tiny(compile_blocks=asked), batch()
    keys, expected, compiled = list(network.state_dict()), network(z, t), []
    original = nn.Module.compile

    def captured(module: nn.Module) -> None:
        compiled.append(module)
        original(module, backend="eager", fullgraph=True)

    monkeypatch.setattr(nn.Module, "compile", captured)
    with torch._dynamo.config.patch(recompile_limit=2):  # too few for these blocks, unless it is raised
        network.compile_network()
        assert len(compiled) == (sum(isinstance(module, ResBlock) for module in network.modules()) if asked else 0)
        assert list(network.state_dict()) == keys
        assert torch.allclose(network(z, t), expected, rtol=1e-5, atol=1e-5)


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_blocks": 0}, "num_blocks is 0"),
        ({"num_labels": -1}, "num_labels is -1"),
        ({"shape": (64,)}, r"shape is \(64,\); an image network needs"),
        ({"shape": (1, 28, 28), "multipliers": (1, 2, 2, 2)}, r"28x28 cannot be halved 3 times; give fewer"),
        ({"multipliers": ()}, "multipliers are"),
        ({"feature_dim": 2}, "feature_dim is 2"),
        ({"feature_dim": 132}, "132 channels into 32 groups; give another feature_dim"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_impossible_sizes_are_refused_in_one_line(changes: dict, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        tiny(**changes)
    assert "\n" not in str(caught.value)


def test_missing_and_unknown_inputs_are_named():
    z, t = batch()
    with pytest.raises(ValueError, match="needs the time"):
        tiny()(z, None)
    with pytest.raises(ValueError, match="num_labels"):
        tiny()(z, t, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"shape \(3, 4, 12\), not \(4, 12, 3\)"):
        tiny()(z.permute(0, 2, 3, 1), t)
