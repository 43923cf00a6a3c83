"""networks/transformer.py against the official JAX network, whose logits and parameters' law are in tests/data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ggm_lightning.networks import attention, conditioning
from ggm_lightning.networks.transformer import Transformer

DATA = Path(__file__).parents[1] / "data"
ORACLE = np.load(DATA / "md4_oracle_net.npz")
OFFICIAL = json.loads((DATA / "md4_oracle_net_params.json").read_text())
CONFIGS = [name for name in OFFICIAL if name.startswith("tf_")]
LABELS = 2  # tf_cls feeds two class embeddings


def official_parameters(config: str) -> dict[str, Tensor]:
    drawn = {}
    for k, (name, shape) in enumerate(OFFICIAL[config]["params"]):
        drawn[name] = torch.from_numpy(np.random.RandomState(1000 + k).standard_normal(shape) * 0.1)
    return drawn


def our_parameters(config: str) -> dict[str, Tensor]:
    """The official parameters under our names; flax kernels are [in, out], ours [out, in]."""
    theirs = official_parameters(config)
    settings = OFFICIAL[config]["config"]
    outside, timed = settings["kw"]["outside_embed"], settings["t"]
    dense = iter(f"Transformer_0/Dense_{i}" for i in range(3))  # numbered in the order of use
    ours = {}

    def take(name: str, *sources: str) -> None:
        ours[f"{name}.weight"] = torch.cat([theirs.pop(f"{source}/kernel").T for source in sources])
        if f"{sources[0]}/bias" in theirs:
            ours[f"{name}.bias"] = theirs.pop(f"{sources[0]}/bias")

    ours["embedding.weight"] = theirs.pop("Embed_0/embedding" if outside else "Transformer_0/Embed_0/embedding")
    if outside:
        take("widen", next(dense))
    if timed:
        take("condition.mlp.0", "CondEmbedding_0/dense0")
        take("condition.mlp.2", "CondEmbedding_0/Dense_0")
        take("final_modulation.dense", next(dense))
    else:
        ours["final_norm.weight"] = theirs.pop("Transformer_0/RMSNorm_0/scale")
    take("head", next(dense))
    for i in range(settings["kw"]["n_layers"]):
        block, official = f"blocks.{i}", f"Transformer_0/TransformerBlock_{i}"
        take(f"{block}.attention.qkv", *(f"{official}/attention/w{part}" for part in "qkv"))
        take(f"{block}.attention.out", f"{official}/attention/wo")
        for part, w in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
            take(f"{block}.feed_forward.{part}", f"{official}/feed_forward/{w}")
        if timed:
            take(f"{block}.modulation.dense", f"{official}/Dense_0")
        else:
            ours[f"{block}.attention_norm.weight"] = theirs.pop(f"{official}/RMSNorm_0/scale")
            ours[f"{block}.feed_forward_norm.weight"] = theirs.pop(f"{official}/RMSNorm_1/scale")
    if "cond" in settings:
        embeddings = torch.from_numpy(ORACLE[f"{config}__cond"])
        ours["condition.label_table.weight"] = torch.cat(
            [embeddings, torch.full((1, 8), 9.0)]
        )  # the null class: unused
    assert not theirs, f"official parameters without a place here: {sorted(theirs)}"
    return ours


def official_logits(config: str, dtype: torch.dtype, **changes) -> Tensor:
    """Our network with the official parameters on the official input."""
    settings = OFFICIAL[config]["config"]
    kw = settings["kw"]
    arguments = {
        "num_classes": kw["vocab_size"],
        "feature_dim": kw["feature_dim"],
        "num_heads": kw["num_heads"],
        "num_layers": kw["n_layers"],
        "mlp": kw["mlp_type"],
        "conditioning": kw.get("cond_type", "adaln"),
        "time_features": "t" if settings["t"] else "none",
        "num_labels": LABELS if "cond" in settings else 0,
        "outside_embed": kw["outside_embed"],
    }
    network = Transformer(**{**arguments, **changes}).to(dtype).eval()
    network.load_state_dict(our_parameters(config))
    z = torch.from_numpy(ORACLE[f"{config}__z"]).long()
    t = torch.from_numpy(ORACLE[f"{config}__t"]) if settings["t"] else None
    label = torch.arange(LABELS) if "cond" in settings else None
    with torch.no_grad():
        return network(z, t, label)


def error(config: str, dtype: torch.dtype, **changes) -> float:
    reference = ORACLE[f"{config}__logits_f64" if dtype is torch.float64 else f"{config}__logits_f32"]
    return (official_logits(config, dtype, **changes).double() - torch.from_numpy(reference)).abs().max().item()


@pytest.mark.parametrize("config", CONFIGS)
def test_logits_are_the_official_ones(config: str):
    assert error(config, torch.float64) < 1e-6
    assert error(config, torch.float32) < 1e-4


def official_time_embedding(t: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """The embedding of the float64 oracle, which was itself computed in float32: XLA's exp is one step low at 1e-4."""
    assert dim == 8
    frequencies = np.exp(np.arange(4) * (-np.log(1e4) / 3)).astype(np.float32)
    frequencies[3] = np.nextafter(frequencies[3], np.float32(0))
    angles = (t.numpy().astype(np.float32) * np.float32(1000))[:, None] * frequencies
    waves = np.concatenate([np.sin(angles.astype(np.float64)), np.cos(angles.astype(np.float64))], axis=1)
    return torch.from_numpy(waves.astype(np.float32)).to(dtype)


@pytest.fixture
def _official_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(conditioning, "time_embedding", official_time_embedding)


@pytest.mark.usefixtures("_official_time")
@pytest.mark.parametrize("config", CONFIGS)
def test_logits_are_the_official_ones_to_the_last_digits_once_time_is_rounded_alike(config: str):
    assert error(config, torch.float64) < 1e-13


def half_split(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)


@pytest.mark.usefixtures("_official_time")
@pytest.mark.parametrize("config", CONFIGS)
def test_control_half_split_rotary_fails(config: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "rotate", half_split)
    assert error(config, torch.float64) > 1e-5


@pytest.mark.usefixtures("_official_time")
@pytest.mark.parametrize(("config", "wrong"), [("tf_glu_inside", "swiglu"), ("tf_swiglu_adaln", "glu")])
def test_control_another_gate_fails(config: str, wrong: str):
    assert error(config, torch.float64, mlp=wrong) > 1e-2


def test_control_exact_gelu_fails():
    """The tanh approximation differs from erf by parts in 1e10 here, far above what parity leaves."""
    network = Transformer(11, 8, 2, 2, mlp="geglu", time_features="none").double().eval()
    network.load_state_dict(our_parameters("tf_geglu_notime"))
    for block in network.blocks:
        block.feed_forward.activation = torch.nn.functional.gelu
    with torch.no_grad():
        logits = network(torch.from_numpy(ORACLE["tf_geglu_notime__z"]), None)
    assert (logits - torch.from_numpy(ORACLE["tf_geglu_notime__logits_f64"])).abs().max() > 1e-12
