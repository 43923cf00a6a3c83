"""Plans: samplers of absorbing noise that say only which masked sites are revealed, and which free ones hidden, at what
times. The loop asks the network, draws the values and puts back what is known.

    z_s = z_t, with the sites of `reveal` drawn from the network at (z_t, t) and those of `hide` masked

Only rows in which a site is revealed are sent to the network.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ggm_lightning.core import categorical, watch
from ggm_lightning.core.categorical import PLAIN, Sharpening
from ggm_lightning.sampling import arguments, guidance
from ggm_lightning.sampling.contract import Denoiser, Denoises
from ggm_lightning.sampling.sampler import Run, Sampler


@dataclass
class Sites:
    """What one step changes.

    Attributes:
        reveal: Bool[b, n], sites that get a value; those of them that are not masked are left alone.
        hide: Bool[b, n] or None, sites that are masked again; those of them that are not free are left alone.
    """

    reveal: Tensor
    hide: Tensor | None = None


class Plan(Sampler):
    """A sampler that says which sites change, for every family with a mask and one schedule for all classes.

    Attributes:
        one_site: whether at most one site of a row is revealed in a step, at which alone a network may then compute.
    """

    asks_denoiser = True
    one_site = False

    @abstractmethod
    def choose(self, run: Run) -> Sites:
        """The sites of this step. It draws no value: its own uniforms come from streams other than "value"."""

    def check(self, model: Denoises) -> None:
        super().check(model)
        if model.mask_id is None or model.schedule is None:
            raise ValueError(
                f"sampler '{self.name}' reveals masked sites, but {type(model).__name__} has no mask with one schedule "
                f"for all classes; {arguments.choice(model.samplers)}"
            )

    def start(self, run: Run) -> Tensor:
        run.denoiser = guidance.guided(run.model, run.model.denoiser(run.request), run.request)
        return super().start(run)

    def move(self, run: Run) -> None:
        sites = self.choose(run)
        z = self._revealed(run, sites.reveal & run.masked)
        if sites.hide is not None:
            z = torch.where(sites.hide & run.free, run.model.mask_id, z)
        run.put(z)

    def _revealed(self, run: Run, sites: Tensor) -> Tensor:
        """Int64[b, n]: the state, with values at these sites."""
        rows = torch.nonzero(sites.any(1))[:, 0]
        if not len(rows):
            return run.z
        if self.one_site:
            site = sites[rows].long().argmax(1)
            logits = run.logits_of_rows(rows, site[:, None])
            at = torch.arange(len(rows), device=rows.device), site
            u = run.uniform("value", 1, rows)[:, 0]
            return run.z.index_put((rows, site), run.request.sharpening.draw(logits, u, at))
        logits = run.logits(sites)
        watch.narrow(rows)  # others may have been looked at
        u = run.uniform("value", rows=rows)[sites[rows]]
        return run.z.masked_scatter(sites, run.request.sharpening.draw(logits, u, sites[rows]))

    def finish(self, run: Run) -> Tensor:
        request = run.request
        return run.model.finish(run.shaped(run.z), request.label, run.uniform, request.sharpening, run.denoiser)


class Ancestral(Plan):
    """A masked site is revealed with probability (alpha_s - alpha_t)/(1 - alpha_t), independently of the others: MD4,
    arXiv 2406.04329, eq. (6).

    Law: its error vanishes as 1/num_steps.
    """

    def choose(self, run: Run) -> Sites:
        return Sites(categorical.choose_sites(run.reveal_probability(), run.uniform("site")))


def filled(
    z: Tensor,
    mask_id: int,
    label: Tensor | None,
    denoiser: Denoiser,
    uniform: Callable[[str], Tensor] | None,
    sharpening: Sharpening = PLAIN,
) -> Tensor:
    """z Int64[b, *shape] at t = 0 with every masked site filled, all at once, from one call of the network.

    Args:
        uniform: called as uniform("value"), gives Float64[b, n]; None takes the most probable values.
    """
    left = (z == mask_id).flatten(1)
    rows = torch.nonzero(left.any(1))[:, 0]
    if not len(rows):
        return z
    zero = torch.zeros(len(rows), dtype=torch.float64, device=z.device)
    watch.narrow(rows)
    logits = denoiser(z[rows], zero, None if label is None else label[rows], left[rows], rows)
    if uniform is None:
        values = logits.argmax(-1)
    else:
        values = sharpening.draw(logits, uniform("value")[left], left[rows])
    return z.flatten(1).masked_scatter(left, values).reshape(z.shape)
