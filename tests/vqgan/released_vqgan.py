"""Small VQGANs in exactly the form of the released ones, and pictures for them."""

from __future__ import annotations

import collections
import sys
import types
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from ggm_lightning.vqgan import files as vqgan_files
from ggm_lightning.vqgan.network import Autoencoder

OLD = "pytorch_lightning.callbacks.model_checkpoint"
DDCONFIG = {"double_z": False, "z_channels": 3, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32}
DDCONFIG |= {"ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [8], "dropout": 0.0}
LOSS = {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator", "params": {"disc_start": 0}}


def description(**change: object) -> dict:
    """The released YAML, with small sizes."""
    params = {"embed_dim": 5, "n_embed": 37, "ddconfig": {**DDCONFIG}, "lossconfig": LOSS, "monitor": "val/rec_loss"}
    return {"model": {"base_learning_rate": 4.5e-6, "target": vqgan_files.TARGET, "params": params | change}}


def network(**sizes: object) -> Autoencoder:
    torch.manual_seed(0)
    small = {"code_dim": 5, "width": 32, "multipliers": (1, 1), "num_blocks": 1, "attention_at": (8,), "latent_dim": 3}
    made = Autoencoder((3, 16, 16), 37, **(small | sizes))
    with torch.no_grad():  # entries among the latents, so that many of them occur
        z = made.latents(torch.rand(4, 3, 16, 16) * 2 - 1).movedim(1, -1).flatten(0, 2)
        made.quantize.embedding.weight.copy_(z[:37])
    return made.eval()


def released(folder: Path, extra: object = None, **sizes: object) -> Path:
    """The folder of a released model in exactly its form: keys, judges of the training, and the class as a key."""
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "ckpts").mkdir(exist_ok=True)
    (folder / vqgan_files.CONFIG).write_text(yaml.safe_dump(description()))
    weights = collections.OrderedDict(network(**sizes).state_dict())
    weights["loss.discriminator.main.0.weight"] = torch.zeros(2, 3, 4, 4)
    weights["loss.perceptual_loss.lin0.model.1.weight"] = torch.zeros(1, 64, 1, 1)
    old = types.ModuleType(OLD)
    old.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": OLD})  # type: ignore[attr-defined]
    kept = {name: sys.modules.get(name) for name in ("pytorch_lightning", "pytorch_lightning.callbacks", OLD)}
    sys.modules.update({**{name: types.ModuleType(name) for name in list(kept)[:2]}, OLD: old})
    try:
        state = {"best_model_score": torch.tensor(0.5), "best_model_path": "x.ckpt"}
        checkpoint = {"epoch": 14, "global_step": 99, "pytorch-lightning_version": "1.0.8", "state_dict": weights}
        checkpoint |= {"callbacks": {old.ModelCheckpoint: state}, "optimizer_states": [], "lr_schedulers": []}
        torch.save(checkpoint | {"extra": extra}, folder / vqgan_files.WEIGHTS)
    finally:
        for name, module in kept.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
    return folder


def picture(seed: int, width: int = 20, height: int = 16, mode: str = "RGB") -> Image.Image:
    corners = np.random.default_rng(seed).integers(256, size=(3, 3, 3)).astype(np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
