"""Both LDDM families with tiny transformers."""

from __future__ import annotations

import torch
from torch import nn

from ggm_lightning.models.lddm import SeqLDDM
from ggm_lightning.networks.latent import JointDenoiser, LatentDenoiser
from ggm_lightning.networks.latent_encoder import LatentEncoder

B, N, V, S, D = 3, 5, 7, 2, 3
SIZE = {"feature_dim": 4, "num_heads": 2, "num_layers": 1, "num_latents": S, "latent_dim": D}


def small(family: type, aligned: bool = False, **more):
    """A family with tiny transformers whose zero-initialised parts are filled, so that everything matters. Aligned: a
    latent per site, at its place."""
    torch.manual_seed(0)
    size = SIZE | ({"num_latents": N} if aligned else {})
    place = {"latent_positions": "aligned"} if aligned else {}
    encoder = LatentEncoder(V, chunk=1 if aligned else None, **size)
    parts = {"network": JointDenoiser(V, **size, **place), "encoder": encoder}
    if issubclass(family, SeqLDDM):
        parts["latent_network"] = LatentDenoiser(**size)
    for part in parts.values():
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.3)
    return family(**parts, num_classes=V, shape=(N,), **more)
