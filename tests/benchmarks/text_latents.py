"""The models of tests/benchmarks/text_families.py that have a latent: SEQ and FUJI of LDDM.

Latents are aligned with the text: each of 8 reads its own 4 characters. 35 % of the seconds are stage 1. The networks
are as wide as MD4's; what they have besides stands in their numbers of parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ggm_lightning.core.schedules import Polynomial
from ggm_lightning.models import lddm_probes
from ggm_lightning.models.base import Family
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM
from ggm_lightning.models.lddm_base import LatentFamily
from ggm_lightning.models.lddm_stages import Recipe
from ggm_lightning.networks.latent import JointDenoiser, LatentDenoiser
from ggm_lightning.networks.latent_encoder import LatentEncoder

MODELS = ("SEQ", "FUJI")
TOKEN_STEPS = (1, 2, 4, 8, 16)
STAGE1 = 0.35  # of the seconds
LATENTS, NUMBERS = 8, 16
_UNTIL_FROZEN = Recipe(stage1_steps=10**9)  # the benchmark says when: stages are shares of the seconds
_WIDE = {"feature_dim": 16, "num_heads": 4, "mlp": "geglu"}


def model_of(name: str, num_classes: int, length: int, seed: int) -> Family:
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
    for row in x.split(128):
        with model.evaluating():
            model.nelbo(row, num_samples=8)
            probe = lddm_probes.of_rows(model, row, None, 0, row.new_tensor(range(len(row))))
        watch.add(None, model.parts_of_bound, lambda probe=probe: probe)
    return {name: round(float(value), 4) for name, value in watch.taken().items() if name != "latent_std"}
