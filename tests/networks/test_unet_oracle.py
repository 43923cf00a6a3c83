"""networks/unet.py and networks/uvit.py against the official JAX networks, which lay images out as [b, h, w, c]."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from ggm_lightning.networks import conditioning
from ggm_lightning.networks.unet import UNet
from ggm_lightning.networks.uvit import UViT

DATA = Path(__file__).parents[1] / "data"
ORACLE = np.load(DATA / "md4_oracle_net.npz")
OFFICIAL = json.loads((DATA / "md4_oracle_net_params.json").read_text())
LABELS = 2


def official_names(network: nn.Module) -> dict[str, list[str]]:
    """Official names of each of our parameters; three where ours stacks queries, keys and values."""
    ours, names = dict(network.named_parameters()), {}
    uvit, bare = isinstance(network, UViT), network.condition.empty
    root = "UNet5DWrapper_0/UNet_0"
    norm_name = "CondGroupNorm" if uvit else "GroupNorm"

    def layer(name: str, *theirs: str) -> None:
        for our_part, their_part in (("weight", "kernel"), ("bias", "bias")):
            if f"{name}.{our_part}" in ours:
                names[f"{name}.{our_part}"] = [f"{their}/{their_part}" for their in theirs]

    def norm(name: str, theirs: str) -> None:
        layer(f"{name}.modulation.dense", f"{theirs}/Dense_0")
        inner = f"{theirs}/GroupNorm_0" if uvit else theirs
        if f"{name}.weight" in ours:
            names[f"{name}.weight"] = [f"{inner}/scale"]
        if f"{name}.bias" in ours:
            names[f"{name}.bias"] = [f"{inner}/bias"]

    def block(name: str, number: int) -> None:
        theirs = f"{root}/ResBlock_{number}"
        for i in range(2):
            norm(f"{name}.norm{i + 1}", f"{theirs}/{norm_name}_{i}")
            layer(f"{name}.conv{i + 1}", f"{theirs}/Conv_{i}")
        layer(f"{name}.add", f"{theirs}/Dense_0")
        layer(f"{name}.skip", f"{theirs}/Dense_{0 if uvit or bare else 1}")

    layer("condition.mlp.0", "CondEmbedding_0/dense0")
    layer("condition.mlp.2", "CondEmbedding_0/Dense_0")
    names["trunk.embedding.weight"] = ["Embed_0/embedding"]
    layer("trunk.conv_in", f"{root}/Conv_0")
    layer("trunk.conv_out", f"{root}/Conv_1")
    norm("trunk.norm", f"{root}/{norm_name}_0")
    middle, n = (0 if uvit else 2), len(network.trunk.down)
    for i in range(n):
        block(f"trunk.down.{i}", i)
        block(f"trunk.up.{i}", n + middle + i)
    block(f"trunk.up.{n}", n + middle + n)
    if uvit:
        _name_dit(network, layer, names, f"{root}/DiT_0")
    else:
        block("trunk.middle.block1", n)
        block("trunk.middle.block2", n + 1)
        norm("trunk.middle.norm", f"{root}/SelfAttention_0/GroupNorm_0")
        attention = f"{root}/SelfAttention_0/MultiHeadDotProductAttention_0"
        layer("trunk.middle.attention.qkv", *(f"{attention}/{part}" for part in ("query", "key", "value")))
        layer("trunk.middle.attention.out", f"{attention}/out")
    return names


def _name_dit(network: UViT, layer, names: dict[str, list[str]], root: str) -> None:
    names["trunk.middle.positions"] = [f"{root}/pos_embed"]
    layer("trunk.middle.embed", f"{root}/x_embedder/proj")
    layer("trunk.middle.out", f"{root}/final_layer/linear")
    layer("trunk.middle.modulation.dense", f"{root}/final_layer/Dense_0")
    if network.condition.empty:
        names["trunk.middle.norm.weight"] = [f"{root}/final_layer/RMSNorm_0/scale"]
    for i in range(len(network.trunk.middle.blocks)):
        name, theirs = f"trunk.middle.blocks.{i}", f"{root}/blocks_{i}"
        layer(f"{name}.attention.qkv", *(f"{theirs}/attn/w{part}" for part in "qkv"))
        layer(f"{name}.attention.out", f"{theirs}/attn/wo")
        layer(f"{name}.feed_forward.up", f"{theirs}/mlp/fc1")
        layer(f"{name}.feed_forward.down", f"{theirs}/mlp/fc2")
        layer(f"{name}.modulation.dense", f"{theirs}/Dense_0")
        if network.condition.empty:
            names[f"{name}.attention_norm.weight"] = [f"{theirs}/RMSNorm_0/scale"]
            names[f"{name}.feed_forward_norm.weight"] = [f"{theirs}/RMSNorm_1/scale"]


def official_parameters(network: nn.Module) -> tuple[dict[str, Tensor], list[tuple[str, list[int]]]]:
    """The oracle's parameters under our names, and their official names with shapes (axes of length 1 left out).

    The k-th in the order of the official names is RandomState(1000 + k), drawn in the official layout: kernels are
    [in, out] and [kh, kw, in, out].
    """
    names = official_names(network)
    numbers = {theirs: k for k, theirs in enumerate(sorted(theirs for several in names.values() for theirs in several))}
    drawn, shapes = {}, {}
    for name, parameter in network.named_parameters():
        if name == "condition.label_table.weight":
            continue
        parts = []
        for theirs in names.pop(name):
            part = parameter.detach()[: len(parameter) // (3 if "qkv" in name else 1)]
            kernel = theirs.endswith("kernel")
            shape = part.permute(*range(2, part.dim()), 1, 0).shape if kernel else part.shape
            numpy_part = np.random.RandomState(1000 + numbers[theirs]).standard_normal(tuple(shape)) * 0.1
            shapes[theirs] = [length for length in shape if length != 1]
            part = torch.from_numpy(numpy_part)
            parts.append(part.permute(-1, -2, *range(part.dim() - 2)) if kernel else part)
        drawn[name] = torch.cat(parts)
    assert not names, f"names of parameters that are not there: {sorted(names)}"
    return drawn, sorted(shapes.items())


def oracle_network(config: str) -> nn.Module:
    kw = OFFICIAL[config]["config"]["kw"]
    shared = {"num_classes": kw["vocab_size"], "shape": (3, 4, 4), "feature_dim": kw["feature_dim"]}
    if config == "unet":
        return UNet(num_layers=kw["n_layers"], **shared)
    sizes = {"num_dit_layers": kw["n_dit_layers"], "dit_width": kw["dit_hidden_size"], "dit_heads": kw["dit_num_heads"]}
    return UViT(num_layers=kw["n_layers"], **sizes, **shared)


# XLA's float32 exp(-k ln(1e4) / (dim/2 - 1)), in steps of float32 from the nearest number. The float64 oracle computes
# its time embedding in float32 too; 1000 t is so fast that this alone moves logits by 1e-5.
XLA_STEPS = {
    32: [0, 0, 1, 2, 1, 0, 3, 3, 3, 1, 0, 1, 5, 5, 5, -1],
    64: [0, -1, 0, 0, 0, 0, 0, -1, 0, 0, 1, -1, 0, 0, -3, -1, 0, 1, 0, 2, 3, -4, -3, -1, 0, 0, 1, -4, -5, -4, -2, -1],
}


def official_time_embedding(t: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    nearest = np.exp(np.arange(dim // 2) * (-np.log(1e4) / (dim // 2 - 1))).astype(np.float32)
    frequencies = (nearest.view(np.int32) + np.array(XLA_STEPS[dim], dtype=np.int32)).view(np.float32)
    angles = (t.numpy() * 1000).astype(np.float32)[:, None] * frequencies
    waves = np.concatenate([np.sin(angles.astype(np.float64)), np.cos(angles.astype(np.float64))], axis=1)
    return torch.from_numpy(waves.astype(np.float32)).to(dtype)


@pytest.fixture
def _official_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(conditioning, "time_embedding", official_time_embedding)


def to_official(logits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[b, (c h w), v] -> [b, h, w, c, v]."""
    return rearrange(logits, "b (c h w) v -> b h w c v", c=shape[0], h=shape[1])


def logits_of(network: nn.Module, z: np.ndarray, t: Tensor | None, label: Tensor | None, dtype: torch.dtype) -> Tensor:
    """On z as the official networks take it, [b, h, w, c]."""
    with torch.no_grad():
        logits = network(rearrange(torch.from_numpy(z).long(), "b h w c -> b c h w"), t, label)
    assert logits.dtype is dtype
    return to_official(logits.double(), network.trunk.shape)


def oracle_error(network: nn.Module, config: str, dtype: torch.dtype = torch.float64) -> float:
    t = torch.from_numpy(ORACLE[f"{config}__t"]).to(dtype)
    logits = logits_of(network.to(dtype).eval(), ORACLE[f"{config}__z"], t, None, dtype)
    reference = ORACLE[f"{config}__logits_f64" if dtype is torch.float64 else f"{config}__logits_f32"]
    return (logits - torch.from_numpy(reference)).abs().max().item()


def filled(config: str) -> nn.Module:
    """The oracle's network with the oracle's parameters, in double precision."""
    network = oracle_network(config).double()
    network.load_state_dict(official_parameters(network)[0])
    return network


@pytest.mark.parametrize("config", ["unet", "uvit"])
def test_every_official_parameter_has_its_place(config: str):
    shapes = official_parameters(oracle_network(config))[1]
    assert shapes == [(name, [n for n in shape if n != 1]) for name, shape in OFFICIAL[config]["params"]]


@pytest.mark.usefixtures("_official_time")
@pytest.mark.parametrize("config", ["unet", "uvit"])
def test_logits_are_the_official_ones(config: str):
    network = filled(config)
    assert oracle_error(network, config) < 1e-6
    assert oracle_error(network, config, torch.float32) < 1e-4


def test_logits_are_the_official_ones_but_for_the_rounding_of_time():
    assert oracle_error(filled("unet"), "unet") < 1e-13  # deaf to time at 32 channels
    assert 1e-6 < oracle_error(filled("uvit"), "uvit") < 1e-4


def rows_as_columns(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images transposed: convolutions, patches and positions would show it."""
    forward = network.trunk.forward

    def transposed(z: Tensor, condition: Tensor) -> Tensor:
        return rearrange(forward(z.mT, condition), "b (c w h) v -> b (c h w) v", c=3, h=4)

    monkeypatch.setattr(network.trunk, "forward", transposed)


def channels_last(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits left in the official order, with the ids in ours."""
    forward = network.trunk.forward

    def swapped(z: Tensor, condition: Tensor) -> Tensor:
        return rearrange(forward(z, condition), "b (c h w) v -> b (h w c) v", c=3, h=4)

    monkeypatch.setattr(network.trunk, "forward", swapped)


def ids_unpermuted(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids [b, h, w, c] taken for [b, c, h, w], as a bare reshape would."""
    forward = network.trunk.forward

    def reshaped(z: Tensor, condition: Tensor) -> Tensor:
        return forward(rearrange(z, "b c h w -> b h w c").reshape(z.shape), condition)

    monkeypatch.setattr(network.trunk, "forward", reshaped)


@pytest.mark.usefixtures("_official_time")
@pytest.mark.parametrize("wrong", [rows_as_columns, channels_last, ids_unpermuted])
@pytest.mark.parametrize("config", ["unet", "uvit"])
def test_control_another_layout_fails(config: str, wrong, monkeypatch: pytest.MonkeyPatch):
    network = filled(config)
    wrong(network, monkeypatch)
    assert oracle_error(network, config) > 1e-2


@pytest.mark.usefixtures("_official_time")
@pytest.mark.parametrize("change", ["gelu", "eps", "skips"])
def test_control_another_network_fails(change: str, monkeypatch: pytest.MonkeyPatch):
    network = filled("uvit")
    if change == "gelu":
        exact = torch.nn.functional.gelu
        monkeypatch.setattr(torch.nn.functional, "gelu", lambda x, approximate: exact(x))
    elif change == "eps":
        monkeypatch.setattr("ggm_lightning.networks.unet._NORM_EPS", 1e-5)
    else:
        network.trunk.up = nn.ModuleList(reversed(network.trunk.up))
    assert oracle_error(network, "uvit") > 1e-5


# The oracle's networks have 32 channels: each group of a norm is one channel, and the norm takes out again whatever was
# added to it: in the U-Net the time, the label and most biases. Hence these sums of official logits at 64 channels, for
# (network, timed, labelled): both rows weighted by cos(k) and by cos(2k), k counting [h, w, c, v]. They were made in
# JAX 0.4.35 with the official modules (whose logits for the oracle's two networks are the oracle's bit for bit) and the
# same law of parameters; ids are RandomState(5).randint, class embeddings RandomState(6).standard_normal.
SUMS = {
    ("unet", True, False): [[0.8728318029981352, 0.5276022724265559], [1.398221561222284, 1.3518582702831652]],
    ("unet", True, True): [[0.8855526117152852, 0.35921236902788933], [1.6923173482944194, 1.3455713902435924]],
    ("unet", False, False): [[-1.061115237062927, 0.9632402712244924], [0.9613279853542255, 0.8026413179096967]],
    ("unet", False, True): [[-1.115599088316429, -0.5475226949974655], [-2.0623146582367884, 0.24981928370190634]],
    ("uvit", True, False): [[28.22507962396589, -3.8395461363621646], [5.352238564514565, -17.027126924381022]],
    ("uvit", True, True): [[29.928223594243867, 31.925613981411047], [-31.285624116053643, 6.258228544969054]],
    ("uvit", False, False): [[0.5183595991089716, 0.005213940634972047], [-0.3342844502024669, 1.1416483753789237]],
    ("uvit", False, True): [[32.39981728973366, -41.04467819962244], [-2.2223653812831587, 16.26729588622485]],
}
SIZES = {"unet": (2, 5, 3), "uvit": (2, 6, 6)}
V, WIDTH = 7, 64


def wide_network(kind: str, timed: bool, labelled: bool) -> nn.Module:
    shared = {
        "num_classes": V,
        "shape": SIZES[kind],
        "feature_dim": WIDTH,
        "time_features": "t" if timed else "none",
        "num_labels": LABELS if labelled else 0,
    }
    if kind == "unet":
        network = UNet(num_layers=2, **shared).double()
    else:
        network = UViT(num_layers=1, num_dit_layers=2, dit_width=12, dit_heads=3, **shared).double()
    parameters = official_parameters(network)[0]
    if labelled:
        embeddings = torch.from_numpy(np.random.RandomState(6).standard_normal((LABELS, WIDTH)))
        # the null class, which the official networks have not and this test does not ask for
        parameters["condition.label_table.weight"] = torch.cat([embeddings, torch.full((1, WIDTH), 9.0)])
    network.load_state_dict(parameters)
    return network.eval()


def sums_error(network: nn.Module, kind: str, timed: bool, labelled: bool) -> float:
    channels, height, width = SIZES[kind]
    z = np.random.RandomState(5).randint(0, V + 1, (2, height, width, channels))
    t = torch.tensor([0.23, 0.71], dtype=torch.float64) if timed else None
    logits = logits_of(network, z, t, torch.arange(LABELS) if labelled else None, torch.float64).flatten(1)
    k = torch.arange(logits.shape[1], dtype=torch.float64)
    sums = logits @ torch.stack([k.cos(), (2 * k).cos()]).T
    return (sums - torch.tensor(SUMS[kind, timed, labelled], dtype=torch.float64)).abs().max().item()


@pytest.mark.usefixtures("_official_time")
@pytest.mark.parametrize(("kind", "timed", "labelled"), SUMS)
def test_time_and_labels_enter_as_officially(kind: str, timed: bool, labelled: bool):
    assert sums_error(wide_network(kind, timed, labelled), kind, timed, labelled) < 1e-6


@pytest.mark.usefixtures("_official_time")
@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("change", ["time", "label"])
def test_control_deaf_networks_fail(kind: str, change: str):
    network = wide_network(kind, True, True)
    if change == "time":
        network.condition.mlp[0].weight.data[:, :WIDTH] = 0
    else:
        network.condition.label_table.weight.data[:] = 0
    assert sums_error(network, kind, True, True) > 1e-5


@pytest.mark.usefixtures("_official_time")
def test_control_shift_and_scale_exchanged_fail():
    network = wide_network("uvit", True, False)
    dense = network.trunk.norm.modulation.dense
    for parameter in (dense.weight, dense.bias):
        parameter.data = parameter.data.roll(WIDTH, dims=0)
    assert sums_error(network, "uvit", True, False) > 1e-5
