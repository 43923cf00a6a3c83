"""GGM (arXiv 2405.17035) told each site's own survival level, or else the sweep and which sites it has visited.

    level_j = a_{r + [sweep r has visited j]}, and 1 where site j is known;   t = 1 - a_r

By Bayes' rule p0(x_i | y) is proportional to the sum over clean x of p(x) prod_{j != i} (level_j 1[y_j = x_j] +
(1 - level_j) pi(y_j)), and p_t = a_r p0 + (1 - a_r) pi: of the chain nothing but these numbers matters. So one network
serves any number of sweeps, and known tokens are taken for what they are, clean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor

from ggm_lightning.core import noise
from ggm_lightning.core.arguments import whole_number
from ggm_lightning.core.noise import StepNoise
from ggm_lightning.core.sweeps import Sweeps
from ggm_lightning.sampling import random_order

KNOWN_ROWS = 0.25  # of the training rows with levels: those in which some tokens are known


class Levelled(Protocol):
    """A GGM, as this file sees it.

    Attributes:
        levels: whether its network takes them.
        train_sweeps, known_rows, at_sweeps: see GGM.
        _sweeps: the chain; `sweeps` is the same on the model's device.
        survival_of: a_0..a_R of R sweeps.
        other_sweeps: chains that were made, by their R.
    """

    num_sites: int
    levels: bool
    train_sweeps: tuple[int, ...]
    known_rows: float

    _sweeps: Sweeps
    survival_of: Callable[[int], Tensor]
    other_sweeps: dict[int, Sweeps]

    @property
    def sweeps(self) -> Sweeps: ...

    def at_sweeps(self, num_sweeps: int) -> AbstractContextManager[None]: ...


def inputs(model: Levelled, r: Tensor, visited: Tensor, known: Tensor | None = None) -> dict[str, Tensor]:
    """What the network is told besides the state and a label, where sweep r Int64[b] has visited the sites `visited`
    Bool[b, n]: t Float64[b], and levels Float64[b, n] or these bits. Of `known` Bool[b, *shape] a network without
    levels learns nothing."""
    chain = model.sweeps
    if not model.levels:
        return {"t": r.double() / chain.num_sweeps, "visited": visited}
    levels = chain.survival[r[:, None] + visited]
    if known is not None:
        levels = torch.where(known.flatten(1), 1.0, levels)
    return {"t": 1 - chain.survival[r], "levels": levels}


def changed_at(given: dict[str, Tensor], row: Tensor, site: Tensor) -> dict[str, Tensor]:
    """`inputs` with another level, or bit, at each place (row, site)."""
    if "levels" in given:
        levels = given["levels"].clone()
        levels[row, site] = (levels[row, site] + 0.5) % 1
        return given | {"levels": levels}
    visited = given["visited"].clone()
    visited[row, site] = ~visited[row, site]
    return given | {"visited": visited}


@contextmanager
def at_sweeps(model: Levelled, num_sweeps: int) -> Iterator[None]:
    """See GGM.at_sweeps."""
    own = model.sweeps
    if num_sweeps == own.num_sweeps:
        yield
        return
    random_order.check_sweeps(model, whole_number("num_sweeps", num_sweeps, 1))
    if num_sweeps not in model.other_sweeps:
        model.other_sweeps[num_sweeps] = Sweeps(own.order, model.survival_of(num_sweeps).to(own.order.device))
    model._sweeps = model.other_sweeps[num_sweeps].to(own.order.device)
    try:
        yield
    finally:
        model.other_sweeps[num_sweeps] = model._sweeps  # on the model's device, to stay there
        model._sweeps = own


def known_rows(levels: bool, given: float | None) -> float:
    """The share of the training rows; 0 without levels."""
    if given is not None:
        return given
    return KNOWN_ROWS if levels else 0.0


def sweeps_of_step(model: Levelled, draws: StepNoise) -> int:
    """R of a training step: one of `train_sweeps`, from the step alone, so that it is the same on every rank."""
    if not model.levels:
        return model.sweeps.num_sweeps
    number = noise.integer_seed("sweeps", seed=draws.seed, step=draws.step)
    return model.train_sweeps[number % len(model.train_sweeps)]


def known_sites(model: Levelled, draws: StepNoise) -> Tensor | None:
    """Bool[b, n]: in a share `known_rows` of the rows each site is known at a rate that is uniform on (0, 1), so that
    all numbers of known sites are equally likely; in the others none is. None: in no row."""
    if model.known_rows == 0:
        return None
    u = draws.uniform("known rows", 2)
    chosen, rate = u[:, :1] < model.known_rows, u[:, 1:]
    return chosen & (draws.uniform("known", model.num_sites) < rate)
