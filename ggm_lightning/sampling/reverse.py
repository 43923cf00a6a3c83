"""Samplers that draw every step from `reverse_law` at all sites at once: of the families in which no site is ever
finished, or in which what a site becomes decides whether it moves (GenMD4)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ggm_lightning.core import watch
from ggm_lightning.sampling.contract import Denoises
from ggm_lightning.sampling.particles import Filtered, Particles
from ggm_lightning.sampling.request import Clamp
from ggm_lightning.sampling.sampler import Run, Sampler


class Reverse(Sampler):
    """One draw from `reverse_law` per step; rows that cannot move any more are not sent.

    Law: the error vanishes with the steps where the family's docstring does not say otherwise.
    """

    def move(self, run: Run) -> None:
        run.put(self.next_state(run))

    def next_state(self, run: Run) -> Tensor:
        """Int64[b, n], before anything that is known is put back."""
        moving = run.model.moving(run.shaped(run.z))
        if moving is None:
            return self.drawn(run, torch.arange(len(run.z), device=run.z.device))
        rows = torch.nonzero(moving)[:, 0]
        return run.z.index_copy(0, rows, self.drawn(run, rows)) if len(rows) else run.z

    def drawn(self, run: Run, rows: Tensor) -> Tensor:
        """Int64[m, n], the next state of the rows Int64[m]."""
        watch.narrow(rows)
        return self.law(run, rows).draw(partial(run.uniform, rows=rows))

    def law(self, run: Run, rows: Tensor, **more: Any) -> Any:
        """`reverse_law` of these rows; `more`: what a family's takes besides."""
        z, label = run.shaped(run.z[rows]), run.request.labels(rows)
        return run.model.reverse_law(z, run.t[rows], run.s[rows], label, run.request.sharpening, **more)


class _Corrupts(Denoises, Protocol):
    def corrupt(self, x: Tensor, t: Tensor, u: Tensor) -> Tensor: ...

    def bridge_law(self, zt: Tensor, t: Tensor, s: Tensor, known: Clamp) -> Any:
        """The law of x_s at known sites, from zt Int64[b, n]; what it draws elsewhere is not used."""


class Bridged(Filtered, Reverse):
    """Known sites follow the bridge of their own value, so that the others see them only as they are at the time.

    The model's `reverse_law` takes `known` = (x_0 Int64[m, n], Bool[m, n]) and is that bridge there; its `corrupt`
    brings them to t = 1. Law: as Reverse; of infilling the error has a floor, with particles it falls with their number
    and the steps:

        w^k  proportional to  product over known sites of p(y_s | x_t^k)                 sampling/particles.py, eq. (2)

    Args:
        particles: K, for infilling: each step sends K times the rows. 1 is the sampler without them.
    """

    only_where_offered = True

    def start(self, run: Run) -> Tensor:
        rows, when = run.request, run.t
        self.begin(run)
        uniform: Callable[[str], Tensor] = partial(run.request.uniform(run.model.num_sites), step=0)
        z = run.model.prior_sample(run.request.num_samples, uniform)
        if rows.clamp is None:
            return z
        values, known = rows.clamp
        u = rows.uniform(run.model.num_sites)("known", step=0)
        at_end = cast(_Corrupts, run.model).corrupt(values, when, u)
        if self._particles is not None:
            at_end, known = self._particles.spread(at_end), self._particles.spread(known)
        return torch.where(known, at_end, z)

    def move(self, run: Run) -> None:
        run.z = self.next_state(run) if self._particles is None else self._chosen(run, self._particles)

    def _chosen(self, run: Run, particles: Particles) -> Tensor:
        """Int64[b K, n]: each particle's next state, after what is known has chosen among them."""
        particles.enter(run)
        model, request = cast(_Corrupts, run.model), run.request
        values, known = (part.flatten(1) for part in cast(Clamp, request.clamp))
        law = model.reverse_law(run.shaped(run.z), run.t, run.s, request.label, request.sharpening)
        first = particles.first
        bridge = model.bridge_law(first(run.z), first(run.t), first(run.s), (first(values), first(known)))
        bridged = particles.spread(bridge.draw(partial(particles.uniform, run)))
        log_p = law.log_prob(torch.where(known, bridged, run.z))
        law = law.taken(particles.ancestors(run, log_p))
        return torch.where(known, bridged, law.draw(run.uniform))

    def law(self, run: Run, rows: Tensor, **more: Any) -> Any:
        if run.request.clamp is not None:
            values, known = run.request.clamp
            more["known"] = values.flatten(1)[rows], known.flatten(1)[rows]
        return super().law(run, rows, **more)
