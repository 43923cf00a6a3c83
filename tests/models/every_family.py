"""Each family with tiny transformers that take labels: for what must hold in all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ggm_lightning.core.schedules import Linear
from ggm_lightning.models.autoregressive import AutoregressiveModel
from ggm_lightning.models.base import Family
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.diladd import DiLADD
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM
from ggm_lightning.models.lddm_stages import Recipe
from ggm_lightning.models.markov import MarkovDiffusion
from ggm_lightning.models.md4 import MD4
from ggm_lightning.networks.hollow import HollowTransformer
from ggm_lightning.networks.latent import JointDenoiser, LatentDenoiser
from ggm_lightning.networks.latent_encoder import LatentEncoder
from ggm_lightning.networks.transformer import Transformer

V, N, LABELS = 7, 5, 3
_SMALL = {"feature_dim": 8, "num_heads": 2, "num_layers": 1}
_LATENT = {"num_latents": 2, "latent_dim": 3}
_BLACKOUT = {"num_timesteps": 20, "t_end": 10.0}
_COUNTS = {"output": "distribution", "loss": "cross_entropy", "network_input": "counts", "time_input": "unit"}


def _transformer(**options: object) -> nn.Module:
    return Transformer(V, num_labels=LABELS, **_SMALL, **options)


def _joint() -> tuple[nn.Module, nn.Module]:
    return JointDenoiser(V, num_labels=LABELS, **_SMALL, **_LATENT), LatentEncoder(V, **_SMALL, **_LATENT)


def _latent() -> nn.Module:
    return LatentDenoiser(num_labels=LABELS, **_SMALL, **_LATENT)


def _ar(**more: object) -> Family:
    return AutoregressiveModel(_transformer(time_features="none", causal=True), V, (N,), **more)


def _ggm(**more: object) -> Family:
    return GGM(_transformer(visited_bits=True), V, (N,), num_sweeps=3, block_size=2, **more)


def _all_sites(**more: object) -> Family:
    network = HollowTransformer(V, num_labels=LABELS, **_SMALL)
    return GGM(network, V, (N,), num_sweeps=3, order="random", **more)


def _diladd(**more: object) -> Family:
    joint, _ = _joint()
    encoder = LatentEncoder(V, normalise="none", **_SMALL, **_LATENT)
    prior = MD4(Transformer(5, num_labels=LABELS, **_SMALL), 5, (2,), schedule=Linear(0.1))
    return DiLADD(joint, encoder, prior, V, (N,), num_codes=5, schedule=Linear(0.1), **more)


FAMILIES: dict[str, Callable[..., Family]] = {
    "md4": lambda **more: MD4(_transformer(), V, (N,), schedule=Linear(0.1), **more),
    "genmd4": lambda **more: GenMD4(_transformer(), V, (N,), **more),
    "ggm": _ggm,
    "ggm, whole blocks": lambda **more: _ggm(hide="block", **more),
    "ggm, all sites": _all_sites,
    "fuji": lambda **more: FujiLDDM(*_joint(), V, (N,), schedule=Linear(0.1), independent_clocks=True, **more),
    "seq, stage 1": lambda **more: SeqLDDM(*_joint(), _latent(), V, (N,), recipe=Recipe(stage1_steps=10**6), **more),
    "seq": lambda **more: SeqLDDM(*_joint(), _latent(), V, (N,), schedule=Linear(0.1), **more),
    "diladd": _diladd,
    "blackout": lambda **more: Blackout(_transformer(), V, (N,), **{**_BLACKOUT, **_COUNTS, **more}),
    "ar": _ar,
    "markov": lambda **more: MarkovDiffusion(_transformer(), V, (N,), num_timesteps=10, **more),
}


def small(name: str, **more: object) -> Family:
    """With every parameter filled, so that everything matters."""
    torch.manual_seed(0)
    model = FAMILIES[name](**more)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model
