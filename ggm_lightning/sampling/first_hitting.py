"""First-hitting sampling of masked diffusion: one token per row and network call, at the very times of the continuous
process, with no grid and so no error of one.

Source: Zheng et al., arXiv 2409.02908, section 4. With n masked sites at time t, each is revealed when its own time
comes, and a site masked at t is masked at s < t with probability u(s) / u(t). The first of n comes at s where

    u(s) = u(t) U^(1/n),  U uniform on (0, 1)                                                                   (1)

at a site that is any of the n with equal probability; the value is drawn from the network at (z, s). Rows keep their
own times. What is masked when u falls below u(0) is left to `finish`, as in the other samplers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ggm_lightning.sampling.plan import Plan, Sites
from ggm_lightning.sampling.sampler import Run, Step


class FirstHitting(Plan):
    """As many steps as there are unknown sites; num_steps and grid are not used.

    Law: exact, that of infinitely many steps, for every family in which one schedule masks all classes.
    """

    one_site = True
    takes_num_steps = False

    def start(self, run: Run) -> Tensor:
        self._u = run.model.schedule.masked_fraction(run.t)  # of each row, at its own time
        self._last = run.model.schedule.masked_fraction(run.s)
        return super().start(run)

    def steps(self, run: Run) -> Sequence[Step]:
        """The times are the rows' own, see `choose`."""
        return [(1.0, 0.0)] * int(run.masked.sum(1).max())

    def choose(self, run: Run) -> Sites:
        masked, none = run.masked, torch.zeros_like(run.masked)
        self._u = next_masked_fraction(self._u, masked.sum(1), run.uniform("time", 1)[:, 0])
        row = torch.nonzero(masked.any(1) & (self._u > self._last))[:, 0]
        if not len(row):
            return Sites(none)
        site = chosen(masked[row], run.uniform("site", 1, row)[:, 0])
        run.t = run.model.schedule.inverse(self._u)
        return Sites(none.index_put((row, site), torch.ones_like(row, dtype=torch.bool)))

    def finish(self, run: Run) -> Tensor:
        # the number of steps depends on what is known in other rows, and the noise of what is left must not
        run.step = run.model.num_sites
        return super().finish(run)


def next_masked_fraction(
    u: Float64[Tensor, " b"], num_masked: Int64[Tensor, " b"], uniform: Float64[Tensor, " b"]
) -> Float64[Tensor, " b"]:
    """u(s) of the next site's time, eq. (1)."""
    return u * uniform ** (1 / num_masked.clamp(min=1))


def chosen(masked: Bool[Tensor, "k n"], uniform: Float64[Tensor, " k"]) -> Int64[Tensor, " k"]:
    """One of the True sites of each row, all with equal probability."""
    rank = masked.cumsum(-1)
    wanted = torch.floor(uniform * rank[:, -1]).long() + 1
    return torch.searchsorted(rank, wanted[:, None])[:, 0]
