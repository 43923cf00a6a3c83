"""How a family's noise moves a site: all that has to be known of it to enumerate its states and to undo it by Bayes.

    q(z_t | x)        = prod_n reach_t[n, z_n, x_n]
    q(z_s | z_t, x)   is proportional to reach_s[n, z_s, x] step[n, z_t, z_s], site by site
    p(z_s_n | z_t)    = sum over x of p(x | z_t) q(z_s_n | z_t_n, x_n), what an exact `reverse_law` says of site n

`of(model)` is the one of a family of this package and of every family with a mask and one schedule. For noise of your
own, derive from Noise and give it to `prove(model, noise=...)`.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ggm_lightning.core import births, death, noise, vector_masking
from ggm_lightning.core.schedules import Schedule
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.states import Known, all_states, product
from ggm_lightning.models.base import Family
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.markov import MarkovDiffusion

Nodes = tuple[Tensor, Tensor]


class Noise(ABC):
    """A process that moves every site by itself. Times are the ones that the model's `terms` takes.

    Attributes:
        num_states: values of a noisy site, S.
    """

    num_states: int

    @abstractmethod
    def reach(self, t: float) -> Tensor:
        """P(z_t = a | x = o) at each site, Float64[n, S, V] [site, a, o]."""

    @abstractmethod
    def step(self, s: float, t: float) -> Tensor:
        """P(z_t = a | z_s = b) at each site, s < t, Float64[n, S, S] [site, a, b]."""

    @abstractmethod
    def pairs(self) -> list[tuple[float, float]]:
        """A few (t, s), s < t, at which one reverse step is looked at; near to each other in continuous time."""

    def steps(self) -> list[tuple[float, float]]:
        """A few (t, s) of any length, for `reverse_law`."""
        return [(t, 0.6 * t) if t - s < 1e-3 * t else (t, s) for t, s in self.pairs()]

    def share(self, t: float, s: float) -> float:
        """What the step from t to s counts in the mean of `terms` over all times: in continuous time t - s."""
        return t - s

    def nodes(self) -> Nodes | None:
        """(times Float64[k], weights Float64[k]): the mean of `terms` is the weighted sum. None: it is the integral
        from the first of `edges` to the last."""
        return None

    def edges(self) -> list[float]:
        """Of the pieces of time with which the integral begins; they are halved where it needs more."""
        return [0.0, 0.05, 0.25, 0.5, 0.75, 1.0]

    def last(self) -> float:
        """The time at which sampling begins."""
        return 1.0

    def when(self, t: float, rows: int) -> Tensor:
        """t for each row, as the model takes it."""
        return torch.full((rows,), t, dtype=torch.float64)

    def corrupted(self, model: Family, x: Tensor, t: float, seed: int) -> Tensor:
        """What the model's own `corrupt` makes of x at t."""
        u = noise.uniform("prove corrupt", seed=seed, step=0, row=torch.arange(len(x)), num_sites=model.num_sites)
        corrupt: Callable[..., Tensor] = model.corrupt  # type: ignore[assignment]
        return corrupt(x, self.when(t, len(x)), u)


def alike(matrix: Tensor, num_sites: int) -> Tensor:
    """The same at every site, Float64[n, ...]."""
    return matrix.expand(num_sites, *matrix.shape)


class MaskNoise(Noise):
    """A mask and one schedule alpha(t) for all classes; T times where the model has num_timesteps."""

    def __init__(self, schedule: Any, num_classes: int, num_sites: int, num_timesteps: int | None = None) -> None:
        self.schedule, self.V, self.n, self.T = schedule, num_classes, num_sites, num_timesteps
        self.num_states = num_classes + 1

    def masked(self, t: float) -> float:
        """u(t) = 1 - alpha(t)."""
        return float(self.schedule.masked_fraction(torch.tensor(t, dtype=torch.float64)))

    def reach(self, t: float) -> Tensor:
        u = self.masked(t)
        eye = torch.eye(self.V, dtype=torch.float64)
        return alike(torch.cat([(1 - u) * eye, torch.full((1, self.V), u, dtype=torch.float64)]), self.n)

    def step(self, s: float, t: float) -> Tensor:
        u = torch.tensor([self.masked(s), self.masked(t)], dtype=torch.float64)
        return alike(_to_mask(*u[:, None].expand(2, self.V)), self.n)

    def pairs(self) -> list[tuple[float, float]]:
        return _near(self._times((0.15, 0.5, 0.9))) if self.T is None else _on_grid(self.T)

    def nodes(self) -> Nodes | None:
        return None if self.T is None else _grid_nodes(self.T)

    def edges(self) -> list[float]:
        """Where the schedule begins to move, is on its way, and ends: a steep one does so in a short time."""
        return sorted({0.0, *self._times((1e-9, 1 / 2, 1 - 1e-9)), 1.0})

    def _times(self, fractions: Sequence[float]) -> list[float]:
        """When so much is masked, by bisection of `masked_fraction`: the schedule's own inverse may be wrong."""
        return Schedule.inverse(self.schedule, torch.tensor(fractions, dtype=torch.float64)).tolist()


def _to_mask(u_s: Tensor, u_t: Tensor) -> Tensor:
    """Float64[V + 1, V + 1] [a, b]: class v, masked at s and t with probability u_s and u_t Float64[V], is masked in
    between with (u_t - u_s) / (1 - u_s), which has its digits however short the step is; the mask stays."""
    moves = (u_t - u_s) / (1 - u_s)
    K = torch.diag(torch.cat([1 - moves, torch.ones(1, dtype=torch.float64)]))
    K[-1, :-1] = moves
    return K


def _near(times: Sequence[float]) -> list[tuple[float, float]]:
    return [(t, t - 1e-4 * t) for t in times]


def _on_grid(T: int) -> list[tuple[float, float]]:
    places = sorted({1, (T + 1) // 2, T})
    return [(k / T, (k - 1) / T) for k in places]


def _grid_nodes(T: int) -> Nodes:
    return torch.arange(1, T + 1, dtype=torch.float64) / T, torch.full((T,), 1 / T, dtype=torch.float64)


class ClassNoise(Noise):
    """GenMD4's: class v is masked with probability (1 - eps) t^{w_v}; times from first_time to 1."""

    def __init__(self, model: GenMD4) -> None:
        self.w, self.V, self.n = model.exponents().detach(), model.num_classes, model.num_sites
        self.first, self.num_states = model.first_time, model.num_classes + 1

    def masked(self, t: float) -> Tensor:
        """Float64[V]."""
        return (1 - vector_masking.EPS) * t**self.w

    def reach(self, t: float) -> Tensor:
        u = self.masked(t)
        return alike(torch.cat([torch.diag(1 - u), u[None]]), self.n)

    def step(self, s: float, t: float) -> Tensor:
        return alike(_to_mask(self.masked(s), self.masked(t)), self.n)

    def pairs(self) -> list[tuple[float, float]]:
        return _near((0.15, 0.5, 0.9))

    def edges(self) -> list[float]:
        return torch.logspace(math.log10(self.first), 0, 6, dtype=torch.float64).tolist()


class ProcessNoise(Noise):
    """MarkovDiffusion's: any rates; T times."""

    def __init__(self, model: MarkovDiffusion) -> None:
        self.model, self.n, self.V, self.T = model, model.num_sites, model.num_classes, model.num_timesteps
        self.num_states = model.process.num_states

    def _tau(self, t: float) -> Tensor:
        return self.model.tau(torch.tensor([t], dtype=torch.float64))

    def reach(self, t: float) -> Tensor:
        return alike(self.model.process.transition(self._tau(t))[0][:, : self.V], self.n)

    def step(self, s: float, t: float) -> Tensor:
        return alike(self.model.process.between(self._tau(t), self._tau(s))[0], self.n)

    def pairs(self) -> list[tuple[float, float]]:
        return _on_grid(self.T)

    def nodes(self) -> Nodes:
        return _grid_nodes(self.T)


class DeathNoise(Noise):
    """Blackout's: a count of o keeps each unit with probability e^-t; continuous times f = logit e^-t uniform in
    [-F, F], or the T - 1 of the chain."""

    def __init__(self, model: Blackout) -> None:
        self.model, self.n, self.V = model, model.num_sites, model.num_classes
        self.num_states, self.last_logit = model.num_classes, death.last_logit(model.t_end)
        self.continuous = model.bound == "continuous"

    def _thinned(self, t: float) -> Tensor:
        p = torch.tensor([math.exp(-t)], dtype=torch.float64)
        return births.binomial_table(p, self.V - 1)[0].T

    def reach(self, t: float) -> Tensor:
        return alike(self._thinned(t), self.n)

    def step(self, s: float, t: float) -> Tensor:
        return alike(self._thinned(t - s), self.n)

    def pairs(self) -> list[tuple[float, float]]:
        if self.continuous:
            return _near((0.1, 0.7, 3.0))
        grid = self.model.grid.tolist()
        return [(grid[k + 1], grid[k]) for k in sorted({1, len(grid) // 2, len(grid) - 2})]

    def share(self, t: float, s: float) -> float:
        if not self.continuous:
            return 1 / (self.model.num_timesteps - 1)
        f = death.logit_of(torch.tensor([t, s], dtype=torch.float64))
        return float(f[1] - f[0]) / (2 * self.last_logit)

    def nodes(self) -> Nodes:
        if not self.continuous:
            times = self.model.grid[2:]
            return times, torch.full_like(times, 1 / len(times))
        f = ((torch.arange(200, dtype=torch.float64) + 0.5) / 100 - 1) * self.last_logit
        return death.time_of(f), torch.full_like(f, 1 / 200)

    def last(self) -> float:
        return self.model.t_end


class SweepNoise(Noise):
    """GGM's with order: raster or permuted: visit t - 1 -> t overwrites one site by a draw of pi, or not."""

    def __init__(self, model: GGM) -> None:
        self.model, self.n, self.V = model, model.num_sites, model.num_classes
        self.num_states, self.T = model.num_classes, model.sweeps.num_steps

    def _mixed(self, keep: Tensor) -> Tensor:
        """keep I + (1 - keep) pi, Float64[n, V, V] of Float64[n]."""
        keep, pi = keep[:, None, None], self.model.log_pi.exp()[:, None]
        return keep * torch.eye(self.V, dtype=torch.float64) + (1 - keep) * pi

    def reach(self, t: float) -> Tensor:
        return self._mixed(self.model.sweeps.survival_at(torch.tensor([round(t)]))[0])

    def step(self, s: float, t: float) -> Tensor:
        earlier, later = (self.model.sweeps.survival_at(torch.tensor([round(when)]))[0] for when in (s, t))
        return self._mixed(later / earlier)

    def pairs(self) -> list[tuple[float, float]]:
        first, n, T = 1, self.n, self.T
        return [(float(t), float(t - 1)) for t in sorted({first, n, n + 1, (T + 1) // 2, T})]

    def share(self, t: float, s: float) -> float:
        return 1 / self.T

    def nodes(self) -> Nodes:
        return torch.arange(1, self.T + 1, dtype=torch.float64), torch.full((self.T,), 1 / self.T, dtype=torch.float64)

    def last(self) -> float:
        return float(self.T)

    def when(self, t: float, rows: int) -> Tensor:
        return torch.full((rows,), round(t))

    def corrupted(self, model: Family, x: Tensor, t: float, seed: int) -> Tensor:
        row = torch.arange(len(x))
        uniform = partial(noise.uniform, seed=seed, step=0, row=row, num_sites=self.n)
        return model.corrupt(x, self.when(t, len(x)), uniform)  # type: ignore[operator]


def of(model: Family) -> Noise | None:
    """That of the model; None where it is not known: a family of one's own whose noise does not mask, LDDM (tokens and
    a latent), GGM with order: random and AutoregressiveModel (no noise), which exact/proof.py enumerates otherwise."""
    n, V = model.num_sites, model.num_classes
    if isinstance(model, GGM):
        return None if model.random_order else SweepNoise(model)
    if isinstance(model, GenMD4):
        return ClassNoise(model)
    if isinstance(model, MarkovDiffusion):
        return ProcessNoise(model)
    if isinstance(model, Blackout):
        return DeathNoise(model)
    if model.mask_id is None or model.schedule is None or hasattr(model, "encoder"):
        return None
    return MaskNoise(model.schedule, V, n, getattr(model, "num_timesteps", None))


# ------------------------------------------------------------------ Bayes' rule


def forward(reach: Tensor, states: Tensor, x: Tensor) -> Tensor:
    """q(z | x), Float64[x, states], of reach Float64[n, S, V], states Int64[m, n] and x Int64[k, n]."""
    total = torch.ones(len(x), len(states), dtype=torch.float64)
    for n in range(states.shape[1]):
        total *= reach[n][states[:, n]][:, x[:, n]].T
    return total


def bridge(noise: Noise, t: float, s: float) -> Tensor:
    """q(z_s | z_t, x) at each site, Float64[n, S, V, S] [site, z_t, x, z_s]; 0 where z_t cannot come of x."""
    reach, step = noise.reach(s), noise.step(s, t)
    joint = step[:, :, None, :] * reach.transpose(1, 2)[:, None]  # [n, z_t, x, z_s]
    total = joint.sum(-1, keepdim=True)
    return torch.where(total > 0, joint / total, 0.0)


def exact_reverse(posterior: Tensor, bridges: Tensor, zt: Tensor) -> Tensor:
    """p(z_s_n | z_t) Float64[b, n, S]: the posterior Float64[b, n, V] of each site and its bridges at the states zt."""
    sites = torch.arange(zt.shape[1])
    return torch.einsum("bnv,bnvs->bns", posterior, bridges[sites, zt])


def posterior(law: Any, noise: Noise, t: float, zt: Tensor) -> Tensor:
    """P(x_n = v | z_t), Float64[b, n, V]."""
    reach = noise.reach(t)
    return law.posterior(reach[torch.arange(zt.shape[1]), zt])


def log_ratio(q: Tensor, p: Tensor) -> Tensor:
    """q log(q / p), 0 where q is 0."""
    return torch.where(q > 0, q * (q.clamp(min=1e-300).log() - p.log()), 0.0)


def with_noised(law: JointLaw, noise: Noise, known: Known, path: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(P Float64[m], states Int64[m, n]) at the end of the path, from its first time to 0, of a process in which
    a known site goes back to its own value and the others take Bayes' rule given all of z_t, site by site:

        p(z_s | z_t) = prod over known n of q(z_s_n | z_t_n, x_n)  prod over the others of p(z_s_n | z_t)
    """
    sites = torch.arange(law.num_sites)
    states = all_states(noise.num_states, law.num_sites)
    reach = noise.reach(path[0])
    others = torch.einsum("nsv,nv->ns", reach, law.marginals(law.p)[0])
    p = product(torch.where(known[1][:, None], reach[sites, :, known[0]], others)[None], states)[0]
    for t, s in itertools.pairwise(path):
        bridges = bridge(noise, t, s)
        law_of_others = exact_reverse(posterior(law, noise, t, states), bridges, states)
        per_site = torch.where(known[1][:, None], bridges[sites, states, known[0]], law_of_others)
        p = p @ product(per_site, states)
    return p, states
