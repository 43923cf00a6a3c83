"""Samplers of chains that move a few sites at a time (GGM, arXiv 2405.17035): along a path of chain times, down by the
reverse kernel, up by noise (ReDeNoise), with known sites left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Protocol, cast

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from ggm_lightning.core import watch
from ggm_lightning.core.categorical import PLAIN, Sharpening
from ggm_lightning.core.sweeps import Sweeps
from ggm_lightning.sampling.contract import Denoises
from ggm_lightning.sampling.sampler import Run, Sampler, Step

KERNELS = ("heat_bath", "gated", "parallel")
PARALLEL_HEAT_BATH = (
    "sites drawn at once, each ignoring its present token, never reach the model's law (27-state example: total "
    "variation over .36 at any number of sweeps); use 'parallel'"
)

HIDDEN_BLOCK = (
    "sampler 'parallel' with hide: block does not converge in sweeps: within a block sites are independent (law of 4 "
    "sites, blocks of 2: total variation .19 with 1 sweep, .21 with 16; hide: own .19 and .02); set hide: own, or give "
    "more steps, which makes blocks smaller, or take sampler 'heat_bath' or 'gated'"
)


class Visits(Denoises, Protocol):
    """A model that visits its sites in sweeps; its times count visits."""

    block_size: int
    hide: str
    redenoise: int

    @property
    def sweeps(self) -> Sweeps: ...

    def corrupt(self, x: Tensor, t: Tensor, uniform: Callable[[str], Tensor]) -> Tensor: ...

    def reverse_law(
        self,
        zt: Tensor,
        t: Tensor,
        s: Tensor,
        label: Tensor | None = None,
        sharpening: Sharpening = PLAIN,
        sampler: str | None = None,
        known: Tensor | None = None,
    ) -> Any: ...


def visits_at_once(num_steps: int, sweeps: Sweeps, block_size: int) -> int:
    """Sites per step of "parallel": what cuts a sweep into num_steps // R blocks, at most `block_size`."""
    n, num_sweeps = sweeps.num_sites, sweeps.num_sweeps
    if num_steps < num_sweeps:
        raise ValueError(f"num_steps is {num_steps}; sampler 'parallel' needs one for each of the {num_sweeps} sweeps")
    size = -(-n // min(num_steps // num_sweeps, n))
    if size > block_size:
        raise ValueError(
            f"num_steps {num_steps} means blocks of {size} sites, but the model was trained with block_size "
            f"{block_size}; give at least {num_sweeps * sweeps.num_blocks(block_size)}"
        )
    return size


class Sweeping(Sampler):
    """From X_T to 0 visit by visit, and with a clamp `redenoise` times one sweep up and down again. Steps whose sites
    are known cost nothing: only rows in which a visited site is unknown are sent to the network.

    kernel heat_bath, exact: a visited site is drawn from p_t, one network call each. gated, exact at the same cost: it
    is kept with probability 1 - eta. parallel: gated in blocks of one sweep, all sites of a block from the same state;
    num_steps // R blocks per sweep. With hide: own, one call per site, its error is of order 1/R. With hide: block, one
    call per block, it does not converge in sweeps, and a warning says so.

    Args:
        kernel: heat_bath, gated or parallel.
    """

    unit = "call"
    only_where_offered = True

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        self.takes_num_steps = kernel == "parallel"

    def largest_block(self, model: Visits) -> int:
        """Sites that "parallel" may draw at once."""
        return model.block_size

    def start(self, run: Run) -> Tensor:
        model = cast(Visits, run.model)
        self._size = 1
        if self.kernel == "parallel":
            self._size = visits_at_once(run.request.num_steps, model.sweeps, self.largest_block(model))
            if model.hide == "block" and self._size > 1:
                rank_zero_warn(HIDDEN_BLOCK)
        return super().start(run)

    def steps(self, run: Run) -> Sequence[Step]:
        self._path = self.path(run)
        return [(float(t), float(s)) for t, s in self._path]

    def path(self, run: Run) -> list[tuple[int, int]]:
        """Chain times (t, s) of each step, s > t for one sweep up. They do not depend on which sites are known, so that
        a row has the same steps in any batch."""
        model = cast(Visits, run.model)
        times = model.sweeps.grid(self._size)
        if run.request.clamp is not None:
            times = times + model.redenoise * model.sweeps.grid(self._size, first_sweeps=1)
        return list(pairwise(times))

    def costs(self, run: Run, num_steps: int) -> list[int]:
        """Network calls: none upwards, and none where the visited sites are known in all rows."""
        model = cast(Visits, run.model)
        order, free = model.sweeps.order.tolist(), (~run.known.all(0)).tolist()
        self._costs = []
        for t, s in self._path:
            first = s % model.num_sites
            asked = s < t and any(free[site] for site in order[first : first + t - s])
            calls = t - s if model.hide == "own" else 1
            self._costs.append(calls if asked else 0)
        return self._costs

    def move(self, run: Run) -> None:
        model, request = cast(Visits, run.model), run.request
        t, s = self._path[run.step]
        when = torch.tensor([t, s], device=run.z.device)[:, None].expand(2, len(run.z))
        if s > t:
            run.put(model.corrupt(run.shaped(run.z), when[1], run.uniform).flatten(1))
            return
        if not self._costs[run.step]:
            return
        rows = torch.arange(len(run.z), device=run.z.device)
        known = None
        if request.clamp is not None:
            visited = model.sweeps.order[s % model.num_sites :][: t - s]
            rows = torch.nonzero(~run.known[:, visited].all(1))[:, 0]
            known = request.clamp[1][rows]
        watch.narrow(rows)
        z, label = run.shaped(run.z[rows]), request.labels(rows)
        law = model.reverse_law(z, when[0][rows], when[1][rows], label, request.sharpening, self.kernel, known)
        run.put(run.z.index_copy(0, rows, law.draw(partial(run.uniform, rows=rows))))
