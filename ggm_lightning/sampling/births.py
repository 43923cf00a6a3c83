"""The sampler of Blackout diffusion, arXiv 2305.11089: images are born out of black, see core/births.py."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ggm_lightning.core import births, death
from ggm_lightning.core.categorical import PLAIN, Sharpening
from ggm_lightning.sampling.contract import Denoises
from ggm_lightning.sampling.sampler import Run, Sampler, Step


class Dies(Denoises, Protocol):
    """A model of counts that die out; its times are the process's own."""

    t_end: float

    def reverse_law(
        self,
        zt: Tensor,
        t: Tensor,
        s: Tensor,
        label: Tensor | None = None,
        sharpening: Sharpening = PLAIN,
        sampler: str | None = None,
    ) -> Any: ...


class Births(Sampler):
    """num_steps network calls: that many times on the logit grid from t_end to t_0, any number, then 0.

    Known sites follow the death process of their value: thinned at t_end, bridged from step to step. The others see
    them only as they are at the time, so that early births know little of them.

    Args:
        kernel: of the births, see core/births.py.
    """

    only_where_offered = True

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel

    def start(self, run: Run) -> Tensor:
        if self.kernel == "rounded":
            warnings.warn(births.ROUNDED_BIAS, stacklevel=2)
        z = run.model.prior_sample(run.request.num_samples)
        if run.request.clamp is None:
            return z
        values, known = (part.flatten(1) for part in run.request.clamp)
        self._cap = int(values.max()) if values.numel() else 0
        uniform = partial(run.request.uniform(run.model.num_sites), step=run.request.num_steps + 1)
        thinned = death.thin(values, run.request.times(_end(run))[0], uniform("known"), self._cap)
        return torch.where(known, thinned, z.flatten(1)).reshape(z.shape)

    def steps(self, run: Run) -> Sequence[Step]:
        path = [*death.observation_times(run.request.num_steps, _end(run)).flip(0).tolist(), 0.0]
        return list(pairwise(path))

    def move(self, run: Run) -> None:
        model, request = cast(Dies, run.model), run.request
        law = model.reverse_law(run.shaped(run.z), run.t, run.s, request.label, request.sharpening, self.kernel)
        born = law.draw(run.uniform)
        if request.clamp is not None:
            values, known = (part.flatten(1) for part in request.clamp)
            state = torch.where(known, run.z, 0)
            pi = death.bridge_probability(run.t, run.s)
            born = torch.where(known, death.bridge(values, state, pi, run.uniform("known"), self._cap), born)
        run.z = born


def _end(run: Run) -> float:
    return cast(Dies, run.model).t_end
