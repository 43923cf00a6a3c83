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
from ggm_lightning.sampling.particles import Filtered
from ggm_lightning.sampling.request import Request
from ggm_lightning.sampling.sampler import Run, Step


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


class Births(Filtered):
    """num_steps network calls: that many times on the logit grid from t_end to t_0, any number, then 0.

    Known sites follow the death process of their value: thinned at t_end, bridged from step to step. The others see
    them only as they are at the time, so that early births know little of them. With particles what is known chooses
    among K states at every step, by the probability of its next counts, and the error falls with K and the steps:

        w^k  proportional to  product over known sites of p(y_s | x_t^k)                 sampling/particles.py, eq. (2)

    Args:
        kernel: of the births, see core/births.py.
        particles: K, for infilling: each step sends K times the rows. 1 is the sampler without them.
    """

    only_where_offered = True

    def __init__(self, kernel: str, particles: int = 1) -> None:
        super().__init__(particles)
        self.kernel = kernel

    def check(self, model: Denoises) -> None:
        super().check(model)
        if self.particles > 1 and self.kernel not in births.WITH_PROBABILITIES:
            raise ValueError(
                f"particles is {self.particles}, but sampler '{self.name}' gives some counts no probability; take "
                f"sampler {' or '.join(births.WITH_PROBABILITIES)}"
            )

    def start(self, run: Run) -> Tensor:
        if self.kernel == "rounded":
            warnings.warn(births.ROUNDED_BIAS, stacklevel=2)
        z = run.model.prior_sample(run.request.num_samples)
        self.begin(run)
        if run.request.clamp is None:
            return z
        if self._particles is not None:
            return self._particles.spread(self._with_known(run, self._particles.rows, z))
        return self._with_known(run, run.request, z)

    def _with_known(self, run: Run, request: Request, z: Tensor) -> Tensor:
        """z at t_end, with what is known thinned."""
        assert request.clamp is not None
        values, known = (part.flatten(1) for part in request.clamp)
        self._cap = int(values.max()) if values.numel() else 0
        uniform = partial(request.uniform(run.model.num_sites), step=request.num_steps + 1)
        thinned = death.thin(values, request.times(_end(run))[0], uniform("known"), self._cap)
        return torch.where(known, thinned, z.flatten(1)).reshape(z.shape)

    def steps(self, run: Run) -> Sequence[Step]:
        path = [*death.observation_times(run.request.num_steps, _end(run)).flip(0).tolist(), 0.0]
        return list(pairwise(path))

    def move(self, run: Run) -> None:
        model, request = cast(Dies, run.model), run.request
        if self._particles is not None:
            self._particles.enter(run)
        law = model.reverse_law(run.shaped(run.z), run.t, run.s, request.label, request.sharpening, self.kernel)
        if request.clamp is None:
            run.z = law.draw(run.uniform)
            return
        values, known = (part.flatten(1) for part in request.clamp)
        state = torch.where(known, run.z, 0)
        pi = death.bridge_probability(run.t, run.s)
        if self._particles is None:
            bridged = death.bridge(values, state, pi, run.uniform("known"), self._cap)
        else:
            first, u = self._particles.first, self._particles.uniform(run, "known")
            bridged = self._particles.spread(death.bridge(first(values), first(state), first(pi), u, self._cap))
            log_p = law.log_prob(torch.where(known, bridged, run.z))
            law = law.taken(self._particles.ancestors(run, log_p))
        run.z = torch.where(known, bridged, law.draw(run.uniform))


def _end(run: Run) -> float:
    return cast(Dies, run.model).t_end
