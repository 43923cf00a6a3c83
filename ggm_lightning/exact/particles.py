"""The exact law of what the particle filter of sampling/particles.py fills in, by enumeration, for 2 particles and in
the limit of many.

Known sites take values y, the others u. A reverse step is three tables, from the model's `reverse_law` and the process:

    bridge   q(y_s | y_t, y_0)     Float64[Y, Y]
    weight   p(y_s | u_t, y_t)     Float64[Y, U, Y]
    move     p(u_s | u_t, y_t)     Float64[Y, U, U]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ggm_lightning.core import births, death, times
from ggm_lightning.exact.chains import when
from ggm_lightning.exact.states import Known, all_states, product
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.markov import MarkovDiffusion


@dataclass
class Tables:
    """Of one step, as in the module's docstring."""

    bridge: Tensor
    weight: Tensor
    move: Tensor


@dataclass
class Chain:
    """start_y Float64[Y], start_u Float64[U]: the law of both at the end; `steps`: the tables, one by one; clean: the
    numbers Int64[V^unknown] of the u without a mask."""

    start_y: Tensor
    start_u: Tensor
    steps: Iterator[Tables]
    clean: Tensor


def _states(num_values: int, known: Known) -> tuple[Tensor, Tensor, Tensor]:
    """(all values of the known sites, of the others, Int64[Y U, n] all states, y first)."""
    given = known[1]
    ys, us = all_states(num_values, int(given.sum())), all_states(num_values, int((~given).sum()))
    full = torch.zeros(len(ys), len(us), len(given), dtype=torch.int64)
    full[:, :, given], full[:, :, ~given] = ys[:, None], us
    return ys, us, full.flatten(0, 1)


def deaths(model: Blackout, sampler: str, num_steps: int, known: Known) -> Chain:
    """Of Blackout."""
    V, (values, given) = model.num_classes, known
    ys, us, full = _states(V, known)
    path = [*death.observation_times(num_steps, model.t_end).flip(0).tolist(), 0.0]

    def binomial(pi: float, trials: Tensor) -> Tensor:
        return births.binomial_table(torch.tensor([pi], dtype=torch.float64), model.cap)[0][trials]

    def steps() -> Iterator[Tables]:
        for t, s in itertools.pairwise(path):
            at = when(t, s, full)
            per_site = model.reverse_law(full, at[0], at[1], sampler=sampler).probs()
            pi = float(death.bridge_probability(at[0, :1], at[1, :1]))
            gained = torch.arange(V) - ys[..., None]
            q = binomial(pi, (values[given] - ys).clamp(min=0)).gather(-1, gained.clamp(min=0))
            yield _tables(per_site, product(torch.where(gained >= 0, q, 0.0), ys), ys, us, given)

    start_y = product(binomial(math.exp(-model.t_end), values[given])[None], ys)[0]
    black = (us == 0).all(-1).double()
    return Chain(start_y, black, steps(), torch.arange(len(us)))


def markov(model: MarkovDiffusion, num_steps: int, known: Known) -> Chain:
    """Of MarkovDiffusion, on its default grid."""
    values, given = known
    ys, us, full = _states(model.process.num_states, known)

    def steps() -> Iterator[Tables]:
        for t, s in itertools.pairwise(times.sampling_grid(num_steps, model.grids[0])):
            at = when(t, s, full)
            per_site = model.reverse_law(full, at[0], at[1]).probs()
            step = model.process.step(*(model.tau(time[: len(ys)]) for time in at))
            q = step.bridge(ys, values[given].expand(len(ys), -1)).exp()
            yield _tables(per_site, product(q, ys), ys, us, given)

    ended = model.process.transition(model.tau(torch.ones(1, dtype=torch.float64)))[0].T[values[given]]
    prior = model.prior_law.expand(1, us.shape[1], -1)
    clean = torch.nonzero((us < model.num_classes).all(-1))[:, 0]
    return Chain(product(ended[None], ys)[0], product(prior, us)[0], steps(), clean)


def _tables(per_site: Tensor, bridge: Tensor, ys: Tensor, us: Tensor, given: Tensor) -> Tables:
    weight = product(per_site[:, given], ys).reshape(len(ys), len(us), len(ys))
    move = product(per_site[:, ~given], us).reshape(len(ys), len(us), len(us))
    return Tables(bridge, weight, move)


def law_of_two(chain: Chain, weighted: bool = True) -> Tensor:
    """Float64[V^unknown], of u at the end with 2 particles: the joint law of y and both particles, step by step.

    Of normalised weights (w, 1 - w) systematic resampling makes the first particle both with probability
    max(0, 2w - 1), the second max(0, 1 - 2w), and keeps both otherwise. `weighted`: False leaves the weights out.
    """
    p = chain.start_y[:, None, None] * chain.start_u[:, None] * chain.start_u
    for step in chain.steps:
        after = torch.zeros_like(p)
        for y, s in torch.nonzero((step.bridge > 0) & (p.flatten(1).sum(1) > 0)[:, None]).tolist():
            w, move = step.weight[y, :, s], step.move[y]
            total = w[:, None] + w
            share = torch.where(total > 0, w[:, None] / torch.where(total > 0, total, 1.0), 0.5)
            share = share if weighted else torch.full_like(share, 0.5)
            reached = p[y] * step.bridge[y, s]
            twice_first = (reached * (2 * share - 1).clamp(min=0)).sum(1)
            twice_second = (reached * (1 - 2 * share).clamp(min=0)).sum(0)
            both = reached * (1 - (2 * share - 1).abs())
            after[s] += move.T @ both @ move + (move.T * (twice_first + twice_second)) @ move
        p = after
    p = p.sum(0)
    return ((p.sum(0) + p.sum(1)) / 2)[chain.clean]


def law_of_many(chain: Chain) -> Tensor:
    """Float64[V^unknown], of u at the end with ever more particles: the filter's law given the path of y, averaged over
    all paths. Counts that only die have T^c of them, c the sum of the known counts; other processes Y^T."""
    y = torch.nonzero(chain.start_y > 0)[:, 0]
    p, u = chain.start_y[y], chain.start_u.expand(len(y), -1)
    for step in chain.steps:
        path, s = torch.nonzero(step.bridge[y] > 0, as_tuple=True)
        fits = u[path] * step.weight[y[path], :, s]
        total = fits.sum(1, keepdim=True)
        fits = torch.where(total > 0, fits / torch.where(total > 0, total, 1.0), u[path])
        u = torch.einsum("pu,puv->pv", fits, step.move[y[path]])
        p, y = p[path] * step.bridge[y[path], s], s
    return (p @ u)[chain.clean]


def law_of_one(chain: Chain) -> Tensor:
    """Float64[V^unknown], without particles."""
    p = chain.start_y[:, None] * chain.start_u
    for step in chain.steps:
        p = torch.einsum("yu,ys,yuv->sv", p, step.bridge, step.move)
    return p.sum(0)[chain.clean]
