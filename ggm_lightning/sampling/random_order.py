"""Samplers of GGM with order: random (arXiv 2405.17035): each sweep goes through its sites in an order of its own,
drawn for each row, in blocks of one network call each.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ggm_lightning.core import watch
from ggm_lightning.core.arguments import whole_number
from ggm_lightning.core.categorical import PLAIN, Sharpening
from ggm_lightning.core.sweeps import Sweeps
from ggm_lightning.sampling.contract import Denoises
from ggm_lightning.sampling.corrected import sites_drawn_anew
from ggm_lightning.sampling.sampler import Run, Sampler
from ggm_lightning.sampling.sweeping import Sweeping, Visits


class RandomVisits(Visits, Protocol):
    """A model whose network says something of all sites in one call, whatever the order of the visits."""

    corrector_steps: int
    levels: bool
    train_sweeps: tuple[int, ...]

    def reverse_law(
        self,
        zt: Tensor,
        t: Tensor,
        s: Tensor,
        label: Tensor | None = None,
        sharpening: Sharpening = PLAIN,
        sampler: str | None = None,
        known: Tensor | None = None,
        order: Tensor | None = None,
    ) -> Any: ...

    def gibbs_law(
        self, z: Tensor, sites: Tensor, label: Tensor | None = None, sharpening: Sharpening = PLAIN
    ) -> Any: ...


class KnowsSweeps(Protocol):
    """A model as `check_sweeps` sees it.

    Attributes:
        levels: whether its network knows any number of sweeps.
    """

    levels: bool

    @property
    def sweeps(self) -> Sweeps: ...


class RandomOrder(Sweeping):
    """From X_T to 0 block by block, with a clamp `redenoise` times one sweep up and down again, and then
    `corrector_steps` calls of parallel Gibbs.

    kernel heat_bath and gated: blocks of one site, exact. parallel: gated, num_steps // R blocks per sweep of any size;
    its error is of order 1/R and falls with smaller blocks. Known sites are the last ones that a sweep would visit: the
    network takes them for as little noised as the sweep allows, so that the error of infilling vanishes with
    `redenoise`; with levels it takes them for clean. Only rows in which a site of the block is unknown are sent to the
    network.

    Args:
        kernel: heat_bath, gated or parallel.
        num_sweeps: R, any number for a model with levels. None: the model's own; with levels and sampler parallel one
            sweep for each step, up to the most that the model was trained with.
    """

    def __init__(self, kernel: str, num_sweeps: int | None = None) -> None:
        super().__init__(kernel)
        self.num_sweeps = None if num_sweeps is None else whole_number("num_sweeps", num_sweeps, 1)

    def check(self, model: Denoises) -> None:
        super().check(model)
        if self.num_sweeps is not None:
            check_sweeps(cast(RandomVisits, model), self.num_sweeps)

    def largest_block(self, model: Visits) -> int:
        return model.num_sites

    def path(self, run: Run) -> list[tuple[int, int]]:
        """A corrector's step stays at 0."""
        return [*super().path(run), *[(0, 0)] * cast(RandomVisits, run.model).corrector_steps]

    def costs(self, run: Run, num_steps: int) -> list[int]:
        """Network calls: none upwards, and none where the sites of the block are known in all rows."""
        self._num_free = (~run.known).sum(1)
        most = int(self._num_free.max())
        self._costs = [int(s <= t and s % run.model.num_sites < most) for t, s in self._path]
        return self._costs

    def move(self, run: Run) -> None:
        model = cast(RandomVisits, run.model)
        t, s = self._path[run.step]
        if s > t:
            up = torch.full((len(run.z),), s, device=run.z.device)
            run.put(model.corrupt(run.shaped(run.z), up, run.uniform).flatten(1))
            return
        if t > s and t % model.num_sites == 0:  # a sweep begins
            self._order = (run.uniform("order") + run.known).argsort(1)
        if not self._costs[run.step]:
            return
        rows = torch.arange(len(run.z), device=run.z.device)
        if run.request.clamp is not None:
            rows = torch.nonzero(self._num_free > s % model.num_sites)[:, 0]
        watch.narrow(rows)
        law = self._undone(run, rows, t, s) if t > s else self._corrected(run, rows)
        run.put(run.z.index_copy(0, rows, law.draw(partial(run.uniform, rows=rows))))

    def _undone(self, run: Run, rows: Tensor, t: int, s: int) -> Any:
        """The law of these rows before the visits s..t - 1."""
        model, request = cast(RandomVisits, run.model), run.request
        first, last = (torch.full((len(rows),), time, device=rows.device) for time in (s, t))
        known = None if request.clamp is None else request.clamp[1][rows]
        z, label, order = run.shaped(run.z[rows]), request.labels(rows), self._order[rows]
        return model.reverse_law(z, last, first, label, request.sharpening, self.kernel, known, order)

    def _corrected(self, run: Run, rows: Tensor) -> Any:
        """Of parallel Gibbs: an eighth of the sites, drawn for each row, unknown ones first."""
        model, request = cast(RandomVisits, run.model), run.request
        sites = sites_drawn_anew(run, rows, run.uniform)
        return model.gibbs_law(run.shaped(run.z[rows]), sites, request.labels(rows), request.sharpening)


def check_sweeps(model: KnowsSweeps, num_sweeps: int) -> None:
    """ValueError where the model's network knows no chain of so many sweeps."""
    own = model.sweeps.num_sweeps
    if num_sweeps != own and not model.levels:
        raise ValueError(
            f"num_sweeps is {num_sweeps}, but the network was trained for {own} sweeps alone; leave num_sweeps out, or "
            "train with levels: true"
        )


def sweeps_of(model: RandomVisits, sampler: Sampler, num_steps: int) -> int:
    """R of a run, see RandomOrder; with any other sampler the model's own."""
    own = model.sweeps.num_sweeps
    if not isinstance(sampler, RandomOrder):
        return own
    if sampler.num_sweeps is not None:
        return sampler.num_sweeps
    if model.levels and sampler.kernel == "parallel":
        return min(num_steps, max(model.train_sweeps))
    return own
