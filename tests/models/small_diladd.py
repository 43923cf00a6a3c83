"""Di-LADD with tiny transformers, its codes drawn by each of three families."""

from __future__ import annotations

import torch
from torch import nn

from ggm_lightning.core.schedules import Linear
from ggm_lightning.models.autoregressive import AutoregressiveModel
from ggm_lightning.models.base import Family
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.diladd import DiLADD
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.md4 import MD4
from ggm_lightning.networks.hollow import HollowTransformer
from ggm_lightning.networks.latent import JointDenoiser
from ggm_lightning.networks.latent_encoder import LatentEncoder
from ggm_lightning.networks.transformer import Transformer

N, V, S, D, K = 6, 7, 3, 4, 5  # two sites a code
TINY = {"feature_dim": 4, "num_heads": 2, "num_layers": 1}


def prior(kind: str = "md4", labels: int = 0) -> Family:
    if kind == "ar":
        return AutoregressiveModel(Transformer(K, time_features="none", causal=True, **TINY), K, (S,))
    if kind == "ggm":
        return GGM(HollowTransformer(K, **TINY), K, (S,), loss="ce_x0", order="random", num_sweeps=2)
    if kind == "blackout":
        counts = {"output": "distribution", "loss": "cross_entropy", "network_input": "counts", "time_input": "unit"}
        return Blackout(Transformer(K, **TINY), K, (S,), num_timesteps=20, t_end=10.0, **counts)
    return MD4(Transformer(K, num_labels=labels, **TINY), K, (S,), schedule=Linear(0.1))


def small(kind: str = "md4", labels: int = 0, of_prior: int | None = None, **more: object) -> DiLADD:
    """With every parameter filled, so that everything matters. of_prior: the labels of its network, where others."""
    torch.manual_seed(0)
    sizes = {"num_latents": S, "latent_dim": D, **TINY}
    network = JointDenoiser(V, latent_positions="aligned", num_labels=labels, **sizes)
    encoder = LatentEncoder(V, chunk=N // S, normalise="none", **sizes)
    common = {"num_codes": K, "schedule": Linear(0.1), "dead_below": 0.5}
    model = DiLADD(network, encoder, prior(kind, labels if of_prior is None else of_prior), V, (N,), **(common | more))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model
