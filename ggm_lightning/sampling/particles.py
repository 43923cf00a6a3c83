"""Filling in by sequential Monte Carlo: K copies of each row, the particles, which what is known chooses among.

For families in which noise moves every site by itself, and a sampler whose known sites follow the noise of their own
values. Let y be the known sites and u the others. The values y_0 give a path, the noise being the same whatever u is:

    y_T, .., y_s, .., y_1     ~ q(y_T | y_0) and the bridges q(y_s | y_t, y_0), one path for all particles of a row  (1)

With the path given, the model's own chain p(u_s, y_s | u_t, y_t) = p(u_s | u_t, y_t) p(y_s | u_t, y_t) is a hidden
Markov model with y as its observations, and the particle filter is

    w^k      proportional to p(y_s | u_t^k, y_t), the product over the known sites of the reverse step's law         (2)
    a^k      K ancestors, drawn with w (systematic resampling), before the step, as w does not depend on u_s         (3)
    u_s^k    ~ p(u_s | u_t^{a^k}, y_t)                                                                               (4)

and at the end one of the particles. As K grows, u_0 has the law p(u_0 | y_0, .., y_T) of the chain of T steps, averaged
over paths. What is approximate: K is finite; and the paths come from q(. | y_0), where the model's own p(. | y_0) is
meant. The two are the same for an exact network in the limit of many steps, as noise on y knows nothing of u; then
u_0 ~ p(u_0 | y_0). Without the weights (K = 1) the values drawn at u never pay for not fitting to y.

Source: the particle filter of SMC-Diff, arXiv 2206.04119, here for discrete processes. Particle 0 of a row has the
row's own noise, the others that of core/noise.py's `copies`.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from ggm_lightning.core import noise, watch
from ggm_lightning.core.arguments import whole_number
from ggm_lightning.sampling.request import Request
from ggm_lightning.sampling.sampler import Run, Sampler


def systematic(log_w: Tensor, u: Tensor) -> Tensor:
    """Int64[b, K], ancestors in rising order: particle i of weight w_i has K w_i of them in the mean, rounded up or
    down. log_w Float64[b, K], of each row one at least above -inf; u Float64[b, 1] in (0, 1)."""
    count = log_w.shape[1]
    mass = (log_w - log_w.amax(1, keepdim=True)).exp().cumsum(1)
    places = (torch.arange(count, device=u.device) + u) / count * mass[:, -1:]
    return torch.searchsorted(mass, places, right=True).clamp(max=count - 1)


class Particles:
    """The particles of one run: the run's request is widened from b rows to b K, those of a row next to each other.

    Args:
        run: of the sampler, before its first step.
        count: K, at least 2.

    Raises ValueError where nothing is known: there is nothing to choose by.
    """

    def __init__(self, run: Run, count: int) -> None:
        self.count, self.rows = count, run.request
        if self.rows.clamp is None:
            raise ValueError(f"particles is {count}, but no values are known (clamp); leave it out, or fill in")
        self._lost = torch.zeros(self.rows.num_samples, dtype=torch.bool, device=self.rows.row.device)
        run.request = self._widened(self.rows)

    def _widened(self, rows: Request) -> Request:
        label = None if rows.label is None else self.spread(rows.label)
        assert rows.clamp is not None
        clamp = self.spread(rows.clamp[0]), self.spread(rows.clamp[1])
        row = noise.copies(rows.row, self.count)
        return replace(rows, num_samples=len(row), label=label, clamp=clamp, row=row)

    def spread(self, values: Tensor) -> Tensor:
        """[b K, ...]: what is one for all particles of a row."""
        return values.repeat_interleave(self.count, 0)

    def first(self, values: Tensor) -> Tensor:
        """[b, ...]: the first particle of each row."""
        return values[:: self.count]

    def enter(self, run: Run) -> None:
        """A step begins: faults are reported by the numbers of the rows."""
        watch.at(run.step, self.spread(self.rows.row))

    def uniform(self, run: Run, stream: str) -> Tensor:
        """Float64[b, n], with the rows' own noise."""
        return self.rows.uniform(run.model.num_sites)(stream, step=run.first_step + run.step)

    def ancestors(self, run: Run, log_p: Tensor) -> Tensor:
        """Int64[b K], which particle each one continues, eq. (3); log_p Float64[b K, n]: of each known site's next
        value, eq. (2). Where no particle can have them all are kept, and `keep` warns."""
        log_w = torch.where(run.known, log_p, 0.0).sum(1).reshape(-1, self.count)
        lost = (log_w == -torch.inf).all(1)
        self._lost = self._lost | lost
        u = self.rows.uniform(1)("ancestor", step=run.first_step + run.step)
        chosen = systematic(torch.where(lost[:, None], 0.0, log_w), u)
        return (chosen + self.count * torch.arange(len(chosen), device=chosen.device)[:, None]).flatten()

    def keep(self, run: Run) -> None:
        """The end: one particle of each row, all alike, and the run's request as it was."""
        u = self.rows.uniform(1)("particle", step=run.first_step + run.step)[:, 0]
        chosen = (u * self.count).long().clamp(max=self.count - 1)
        run.z = run.z[chosen + self.count * torch.arange(len(chosen), device=chosen.device)]
        run.request = self.rows
        lost = int(self._lost.sum())
        if lost:
            warnings.warn(
                f"{lost} of {len(chosen)} rows: at some step none of the {self.count} particles could have the known "
                "values, and all were kept; give more particles or steps",
                stacklevel=2,
            )


class Filtered(Sampler):
    """Base of the samplers that may fill in by particles.

    Args:
        particles: K, for infilling: each step sends K times the rows. 1 is the sampler without them.
    """

    def __init__(self, particles: int = 1) -> None:
        self.particles = whole_number("particles", particles, 1)
        self._particles: Particles | None = None

    def begin(self, run: Run) -> None:
        """The first thing that `start` does: from here on the run has K rows for each one."""
        self._particles = None if self.particles == 1 else Particles(run, self.particles)

    def state(self, run: Run) -> Tensor:
        z = run.z if self._particles is None else self._particles.first(run.z)
        return run.shaped(z)

    def finish(self, run: Run) -> Tensor:
        if self._particles is not None:
            self._particles.keep(run)
        return super().finish(run)
