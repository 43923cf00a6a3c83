"""The models of tests/benchmarks/text_families.py that have a latent: SEQ and FUJI of LDDM, and Di-LADD.

Latents are aligned with the text: each of 8 reads its own 4 characters, each of Di-LADD's 16 codes of 512 its own 2.
Stage 1 takes 35 % of the seconds, of Di-LADD 10: its encoder, without blocks, has little to learn. (With a block that
mixes the positions the codes hold little of their own characters for as long as it is not trained, and so short a stage
1 does not train it.) The networks are as wide as MD4's; what they have besides stands in their numbers of parameters.
Di-LADD is trained once for each family of codes: MD4, the hollow GGM, an autoregressive model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ggm_lightning.core.schedules import Polynomial
from ggm_lightning.models import lddm_probes
from ggm_lightning.models.autoregressive import AutoregressiveModel
from ggm_lightning.models.base import Family
from ggm_lightning.models.diladd import DiLADD
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM
from ggm_lightning.models.lddm_base import LatentFamily
from ggm_lightning.models.lddm_stages import Recipe
from ggm_lightning.models.md4 import MD4
from ggm_lightning.networks.hollow import HollowTransformer
from ggm_lightning.networks.latent import JointDenoiser, LatentDenoiser
from ggm_lightning.networks.latent_encoder import LatentEncoder
from ggm_lightning.networks.transformer import Transformer

MODELS = ("SEQ", "FUJI", "Di-LADD AR", "Di-LADD MD4", "Di-LADD GGM")
TOKEN_STEPS = (1, 2, 4, 8, 16)
STAGE1 = {name: 0.1 if name.startswith("Di-LADD") else 0.35 for name in MODELS}  # of the seconds
LATENTS, NUMBERS = 8, 16
PLACES, CODES = 16, 512  # of Di-LADD
_UNTIL_FROZEN = Recipe(stage1_steps=10**9)  # the benchmark says when: stages are shares of the seconds
_WIDE = {"feature_dim": 16, "num_heads": 4, "mlp": "geglu"}


def prior_of(kind: str, seed: int) -> Family:
    """The law of the codes."""
    if kind == "AR":
        network = Transformer(CODES, num_layers=2, time_features="none", causal=True, **_WIDE)
        return AutoregressiveModel(network, CODES, (PLACES,), seed=seed)
    if kind == "MD4":
        return MD4(Transformer(CODES, num_layers=2, **_WIDE), CODES, (PLACES,), schedule=Polynomial(2.0), seed=seed)
    network = HollowTransformer(CODES, num_layers=1, num_merges=1, **_WIDE)
    return GGM(network, CODES, (PLACES,), loss="ce_x0", order="random", num_sweeps=4, seed=seed)


def diladd(kind: str, num_classes: int, length: int, seed: int) -> Family:
    """Two characters a code. Nothing of the input is hidden, and a code dies late: there are 512 latents in a step."""
    sizes = {"num_latents": PLACES, "latent_dim": NUMBERS}
    chunk = length // PLACES
    encoder = LatentEncoder(num_classes, num_layers=0, chunk=chunk, normalise="none", **sizes, **_WIDE)
    place = {"condition_dim": 32, "latent_positions": "aligned"}
    network = JointDenoiser(num_classes, num_layers=2, **place, **sizes, **_WIDE)
    codes = {"num_codes": CODES, "dead_below": 0.05, "encoder_hides": (0.0, 0.0)}
    common = {"schedule": Polynomial(2.0), "recipe": _UNTIL_FROZEN, "seed": seed}
    return DiLADD(network, encoder, prior_of(kind, seed), num_classes, (length,), **codes, **common)


def model_of(name: str, num_classes: int, length: int, seed: int) -> Family:
    if name.startswith("Di-LADD"):
        return diladd(name.rpartition(" ")[2], num_classes, length, seed)
    sizes = {"num_latents": LATENTS, "latent_dim": NUMBERS}
    encoder = LatentEncoder(num_classes, num_layers=2, chunk=length // LATENTS, **sizes, **_WIDE)
    joint = {"condition_dim": 32, "latent_positions": "aligned", **sizes, **_WIDE}
    common = {"schedule": Polynomial(2.0), "recipe": _UNTIL_FROZEN, "seed": seed}
    if name == "FUJI":
        network = JointDenoiser(num_classes, num_layers=3, **joint)
        return FujiLDDM(network, encoder, num_classes, (length,), independent_clocks=True, **common)
    network = JointDenoiser(num_classes, num_layers=2, **joint)
    latent = LatentDenoiser(32, 4, 3, condition_dim=32, **sizes)
    return SeqLDDM(network, encoder, latent, num_classes, (length,), **common)


def freeze(model: Family, rows: Tensor) -> None:
    """End of stage 1; `rows` are of the training part."""
    assert isinstance(model, LatentFamily)
    model.eval()
    model.freeze_encoder([rows])
    model.train()


def draws(model: Any, samples: int) -> dict[str, Callable[[], Any]]:
    """What to sample, by its name: token steps, the latent besides."""
    return {str(steps): lambda steps=steps: model.sample(samples, steps, seed=1) for steps in TOKEN_STEPS}


def of_the_latent(model: Any, x: Tensor) -> dict[str, float]:
    """Both parts of the bound of these rows and what one step from the encoder's own latent gets right."""
    watch = model.latent_use
    for row in torch.arange(len(x)).split(128):
        with model.evaluating():
            model.nelbo(x[row], num_samples=8, row=row)
            probe = lddm_probes.of_rows(model, x[row], None, 0, row)
        watch.add(x[row], None, model.parts_of_bound, lambda probe=probe: probe)
    return {name: round(float(value), 4) for name, value in watch.taken().items() if name != "latent_std"}
