"""networks/transformer.py against the official JAX network (its logits are in tests/data), and what it promises."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor

from ggm_lightning.networks import attention, conditioning
from ggm_lightning.networks.attention import rotary_tables, rotate
from ggm_lightning.networks.conditioning import time_embedding
from ggm_lightning.networks.transformer import Transformer, hidden_width

DATA = Path(__file__).parents[1] / "data"
ORACLE = np.load(DATA / "md4_oracle_net.npz")
MISC = np.load(DATA / "md4_oracle_misc.npz")
OFFICIAL = json.loads((DATA / "md4_oracle_net_params.json").read_text())
CONFIGS = [name for name in OFFICIAL if name.startswith("tf_")]
LABELS = 2  # tf_cls feeds two class embeddings

B, N, V = 2, 5, 7


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def tiny(randomise: bool = True, **changes) -> Transformer:
    """A small network; `randomise` fills the kernels that start at zero, which would hide nearly every mistake."""
    network = Transformer(**{"num_classes": V, "feature_dim": 6, "num_heads": 3, "num_layers": 2, **changes})
    if randomise:
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def batch() -> tuple[Tensor, Tensor]:
    return torch.randint(V + 1, (B, N)), torch.tensor([0.23, 0.71])


# The official parameters


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
        take(f"{block}.feed_forward.gate_up", f"{official}/feed_forward/w1", f"{official}/feed_forward/w3")
        take(f"{block}.feed_forward.down", f"{official}/feed_forward/w2")
        if timed:
            take(f"{block}.modulation.dense", f"{official}/Dense_0")
        else:
            ours[f"{block}.attention_norm.weight"] = theirs.pop(f"{official}/RMSNorm_0/scale")
            ours[f"{block}.feed_forward_norm.weight"] = theirs.pop(f"{official}/RMSNorm_1/scale")
    if "cond" in settings:
        embeddings = torch.from_numpy(ORACLE[f"{config}__cond"])
        ours["condition.label_table.weight"] = torch.cat([embeddings, torch.full((1, 8), 9.0)])  # the null class: unused
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
