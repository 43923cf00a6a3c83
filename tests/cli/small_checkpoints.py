"""Checkpoints of tiny models with random weights, written as `fit` writes them, without a fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.data.toy.synthetic import MarkovChain
from ggm_lightning.models.base import Family
from ggm_lightning.rundir import building
from ggm_lightning.rundir import checkpoint as checkpoint_files

V, N = 7, 11
SOURCE = {"num_symbols": V, "length": N, "num_train": 16, "num_val": 40}
_SMALL = {"num_classes": V, "feature_dim": 8, "num_heads": 2, "num_layers": 1}


def _network(name: str = "transformer.Transformer", **options: Any) -> dict[str, Any]:
    return {"class_path": f"ggm_lightning.networks.{name}", "init_args": {**_SMALL, **options}}


_LATENT = {"num_latents": 2, "latent_dim": 3}
_JOINT = {"network": _network("latent.JointDenoiser", **_LATENT)}
_JOINT["encoder"] = _network("latent_encoder.LatentEncoder", **_LATENT)
_LATENT_NETWORK = _network("latent.LatentDenoiser", **_LATENT)
del _LATENT_NETWORK["init_args"]["num_classes"]
_COUNTS = {"num_timesteps": 20, "t_end": 10.0, "output": "distribution", "loss": "cross_entropy"}
_COUNTS |= {"network_input": "counts", "time_input": "unit"}
_MODELS = {
    "md4": ("md4.MD4", {"network": _network()}),
    "ar": ("autoregressive.AutoregressiveModel", {"network": _network(time_features="none", causal=True)}),
    "ggm": ("ggm.GGM", {"network": _network("hollow.HollowTransformer"), "order": "random", "num_sweeps": 3}),
    "genmd4": ("genmd4.GenMD4", {"network": _network()}),
    "blackout": ("blackout.Blackout", {"network": _network(), **_COUNTS}),
    "markov": ("markov.MarkovDiffusion", {"network": _network(), "num_timesteps": 10}),
    "fuji": ("lddm.FujiLDDM", {**_JOINT, "recipe": {"stage1_steps": 2}}),
    "seq": ("lddm.SeqLDDM", {**_JOINT, "latent_network": _LATENT_NETWORK, "recipe": {"stage1_steps": 2}}),
}
FAMILIES = tuple(_MODELS)


def write(path: Path, family: str, seed: int = 0, codec: Codec | None = None) -> str:
    """`family` is one of FAMILIES; the data are a Markov chain's. Returns the path."""
    class_path, init_args = _MODELS[family]
    section = {"class_path": f"ggm_lightning.models.{class_path}"}
    section["init_args"] = {**init_args, "num_classes": V, "shape": [N]}
    model: Any = building.build(section, Family)
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():  # as they are made, the logits are all 0
        weight.data = torch.randn(weight.shape, generator=generator) * 0.5
    data = {"class_path": "ggm_lightning.data.toy.synthetic.MarkovChain", "init_args": SOURCE}
    model.resolved_config = {"model": section, "data": data, "seed_everything": 0}
    model.codec = codec or MarkovChain(**SOURCE).codec
    path.parent.mkdir(parents=True, exist_ok=True)
    about = checkpoint_files.describe(model)
    torch.save({"state_dict": model.state_dict(), "global_step": 3, checkpoint_files.KEY: about}, path)
    return str(path)


def model_and_judge(folder: Path) -> Path:
    """runs/md4 and, of the same data, runs/ar in the folder."""
    write(folder / "runs" / "md4" / "last.ckpt", "md4")
    write(folder / "runs" / "ar" / "last.ckpt", "ar")
    return folder
