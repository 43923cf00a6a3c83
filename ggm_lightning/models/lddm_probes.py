"""What is asked of LDDM's latent at a validation (arXiv 2510.18114; the measures are derived here).

    gain       -log p(x | x_t, z of another row) + log p(x | x_t, its own z), weighed as in the bound             (1)
    without    the same with z = 0 in the place of another row's: what the latent saves is at most either         (2)
    right      p(x_i | all masked, z_1), z_1 the encoder's own latent at its cleanest level: the mean over sites
               is the share of tokens that one step from it gets right; chance: from another row's latent         (3)

The last two tell a useless latent from a good one that cannot be predicted: in the bound both are bad.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from ggm_lightning.core import losses, noise, times
from ggm_lightning.metrics.latent import LatentUse, Probe, does_not_pay
from ggm_lightning.models import lddm_stages as stages
from ggm_lightning.models.lddm_stages import Recipe
from ggm_lightning.models.readout import Readout

_PROBED = 8  # validation batches on which the use of the latent is measured, five more network calls each
_COLLAPSED_BELOW = 0.01  # nats per example; less is a collapsed latent
_SITES = 4096  # looked at in (3), of each batch
_ENTRIES = 1 << 22  # logits formed at once: 16 MB in float32


class Probed(Protocol):
    """A LatentFamily, as far as its latent is probed."""

    num_classes: int
    num_sites: int

    def prior_sample(self, num_samples: int) -> Tensor: ...
    def on_grid(self, t: Tensor) -> Tensor: ...
    def decoder_time(self, t: Tensor) -> Tensor: ...
    def encode(self, x: Tensor) -> Tensor: ...
    def corrupt(self, x: Tensor, t: Tensor, u: Tensor) -> Tensor: ...
    def noised(self, z0: Tensor, t: Tensor, stream: str, seed: int, step: int, row: Tensor) -> Tensor: ...
    def token_terms(self, x: Tensor, zt: Tensor, t: Tensor, latent: Tensor, label: Tensor | None) -> Tensor: ...
    def predict(
        self, zt: Tensor, t: Tensor, latent: Tensor, latent_time: Tensor, label: Tensor | None
    ) -> tuple[Readout, Tensor]: ...


class Watch(nn.Module):
    """The use of the latent over a validation, and what is said of it, once in a run each.

    Args:
        num_coordinates, num_sites, num_classes: see LatentUse.
    """

    def __init__(self, num_coordinates: int, num_sites: int, num_classes: int) -> None:
        super().__init__()
        self.metric = LatentUse(num_coordinates, num_sites, num_classes)
        self._probed = 0
        self._said: set[str] = set()

    def add(self, x: Tensor, raw: Tensor | None, parts: tuple[Tensor, Tensor], probe: Callable[[], Probe]) -> None:
        """A batch; `probe` is called in the first few."""
        asked = self._probed < _PROBED and len(parts[0]) > 1
        self._probed += asked
        self.metric.update(x, raw, *parts, probe() if asked else None)

    def taken(self) -> dict[str, Tensor]:
        """The figures of this validation; the next one begins anew."""
        use, self._probed = self.metric.compute(), 0
        self.metric.reset()
        return use

    def lines(self, use: dict[str, Tensor], recipe: Recipe, step: int) -> list[str]:
        """What has to be said at this step and has not been said yet."""
        found = {}
        if step >= max(1, recipe.stage1_steps // 2) and float(use["latent_mi"]) < _COLLAPSED_BELOW:
            found["use"] = stages.collapsed(recipe, use["latent_mi"], use["latent_std"])
        line = does_not_pay(float(use["bpd_latent"]), float(use["latent_saves"]))
        if line is not None and step > recipe.stage1_steps:
            found["cost"] = line
        new = [line for what, line in found.items() if what not in self._said]
        self._said |= found.keys()
        return new


def probability_of_truth(answer: Readout, x: Tensor, num_classes: int) -> Tensor:
    """Float[m]: of up to 4,096 sites, evenly spaced over the rows, the probability of their tokens x Int64[b, n]."""
    flat = x.flatten()
    count = min(_SITES, len(flat))
    index = torch.arange(count, device=x.device) * len(flat) // count
    found = []
    for part in index.split(max(1, _ENTRIES // num_classes)):
        nats = losses.cross_entropy(answer.at(part), flat[part])
        found.append(torch.exp(-nats))
    return torch.cat(found)


def of_rows(model: Probed, x: Tensor, label: Tensor | None, seed: int, row: Tensor) -> Probe:
    """Eqs. (1) to (3) of two rows or more, at one time per row."""
    t = model.on_grid(times.stratified_per_row(seed=seed, row=row, num_samples=1)[0])
    u = noise.uniform("eval mask", seed=seed, step=0, row=row, num_sites=model.num_sites)
    zt, z0 = model.corrupt(x, t, u), model.encode(x)
    own, other = (model.noised(z, model.decoder_time(t), "eval latent", seed, 0, row) for z in (z0, z0.roll(1, 0)))
    nats = [model.token_terms(x, zt, t, latent, label) for latent in (own, other, torch.zeros_like(own))]
    masked, first, clean = model.prior_sample(len(x)), torch.ones_like(t), torch.zeros_like(t)
    shares = []
    for z in (z0, z0.roll(1, 0)):
        latent = model.noised(z, clean, "eval oracle latent", seed, 0, row)
        answer, _ = model.predict(masked, first, latent, clean, label)
        shares.append(probability_of_truth(answer, x.flatten(1), model.num_classes))
    return Probe(nats[1] - nats[0], nats[2] - nats[0], *shares)
