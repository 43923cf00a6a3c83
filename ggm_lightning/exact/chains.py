"""The exact law of what a sampler draws, Float64[V^n], by enumeration of its states through `reverse_law` alone.

Each function follows one sampler's loop; with `known` it fills in: what ends unfinished, or with another value at a
known site, is lost and seen in the sum. Only states of positive probability are asked for, as in a run.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from ggm_lightning.core import births, death, times
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.noise import SweepNoise
from ggm_lightning.exact.states import Known, all_states, index, product, with_known
from ggm_lightning.models.base import Family
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.markov import MarkovDiffusion


def when(t: float, s: float, rows: Tensor) -> Tensor:
    """t and s for each row, Float64[2, b]."""
    return torch.tensor([[t], [s]], dtype=torch.float64).expand(2, len(rows))


def shaped(model: Family, rows: Tensor) -> Tensor:
    """Rows Int64[b, n] as the model takes them, Int64[b, *shape]."""
    return rows.reshape(-1, *model.shape)


def of_clean(p: Tensor, states: Tensor, num_classes: int, known: Known | None = None) -> Tensor:
    """Float64[V^n], the part of the law p on `states` that is finished and has the known values."""
    done = (states < num_classes).all(-1)
    if known is not None:
        done = done & ((states == known[0]) | ~known[1]).all(-1)
    law = torch.zeros(num_classes ** states.shape[1], dtype=torch.float64)
    return law.index_add(0, index(states[done], num_classes), p[done])


def _unknown(num_sites: int, known: Known | None) -> Tensor:
    everywhere = torch.arange(num_sites)
    return everywhere if known is None else everywhere[~known[1]]


def masked(model: Family, num_steps: int, grid: str | None = None, known: Known | None = None) -> Tensor:
    """Sampler ancestral of a family with a mask: num_steps steps, and what a schedule's floor leaves masked (not
    GenMD4's) drawn from the network at t = 0."""
    V, n = model.num_classes, model.num_sites
    states = all_states(V + 1, n) if known is None else with_known(V + 1, known)
    unknown = _unknown(n, known)
    p = torch.zeros(len(states), dtype=torch.float64)
    p[-1] = 1.0
    for t, s in itertools.pairwise(times.sampling_grid(num_steps, grid or model.grids[0])):
        live = p > 0
        rows = states[live]
        p = p[live] @ product(
            model.reverse_law(shaped(model, rows), *when(t, s, rows)).probs().detach(), states, unknown
        )
    if model.schedule is None:
        return of_clean(p, states, V, known)
    everywhere = torch.ones(states.shape, dtype=torch.bool)
    mu = (
        model.logits_at(shaped(model, states), when(0, 0, states)[0], None, everywhere)
        .softmax(-1)
        .reshape(*states.shape, V)
    )
    shown = nn.functional.one_hot(states.clamp(max=V - 1), V).double()
    clean = all_states(V, n) if known is None else with_known(V, known)
    filled = product(torch.where((states == V)[..., None], mu.double(), shown), clean, unknown)
    return of_clean(p @ filled, clean, V, known)


def sweeps(model: GGM, sampler: str, size: int = 1, known: Known | None = None) -> Tensor:
    """Of GGM (order: raster or permuted) from pi^n, with the model's rounds of ReDeNoise where something is known."""
    V, n, pi = model.num_classes, model.num_sites, model.log_pi.exp()
    states = all_states(V, n) if known is None else with_known(V, known)
    unknown = _unknown(n, known)
    p = product(pi.expand(1, n, V), states, unknown)[0]
    rounds = 0 if known is None else model.redenoise
    more: dict[str, Any] = {} if known is None else {"known": shaped(model, known[1].expand(len(states), n))}
    for t, s in itertools.pairwise(model.sweeps.grid(size) + rounds * model.sweeps.grid(size, first_sweeps=1)):
        if s > t:
            a = model.sweeps.survival_at(torch.tensor([s]))[..., None]
            per_site = a * nn.functional.one_hot(states, V) + (1 - a) * pi
        else:
            at = when(t, s, states).long()
            per_site = model.reverse_law(shaped(model, states), at[0], at[1], sampler=sampler, **more).probs()
        p = p @ product(per_site, states, unknown)
    return of_clean(p, states, V, known)


def exact_visits(law: JointLaw, noise: SweepNoise, sampler: str, known: Known) -> Tensor:
    """What GGM's heat_bath or gated (order: raster or permuted) fills in by Bayes' rule alone, without the model's
    `reverse_law`: known tokens are taken to be as noisy as the time says.

        p_s(v | others) = sum over x of p(x_i = x | other sites of z_t) P(z_s_i = v | x_i = x)
        heat_bath       z_s_i ~ p_s;    gated  z_s_i ~ p_s(v) P(z_t_i | z_s_i = v), normalised
    """
    model, sites = noise.model, torch.arange(law.num_sites)
    pi, states, unknown = model.log_pi.exp(), with_known(law.num_classes, known), _unknown(law.num_sites, known)
    p = product(pi.expand(1, law.num_sites, -1), states, unknown)[0]
    for t, s in itertools.pairwise(model.sweeps.grid(1) + model.redenoise * model.sweeps.grid(1, first_sweeps=1)):
        if s > t:
            per_site = noise.reach(s)[sites, :, states]
        else:
            others = law.posterior(noise.reach(t)[sites, states], own=False)
            step = noise.step(s, t)[sites, states]  # P(z_t_i | z_s_i = v)
            per_site = torch.einsum("bnx,nvx->bnv", others, noise.reach(s))
            moved = (noise.step(s, t) != torch.eye(law.num_classes)).flatten(1).any(1)
            if sampler == "gated":
                per_site = per_site * step / (per_site * step).sum(-1, keepdim=True)
            per_site = torch.where(moved[:, None], per_site, nn.functional.one_hot(states, law.num_classes).double())
        p = p @ product(per_site, states, unknown)
    return of_clean(p, states, law.num_classes, known)


def deaths(model: Blackout, sampler: str, num_steps: int, known: Known | None = None) -> Tensor:
    """Of Blackout: black at t_end; known sites are thinned there and bridged from step to step."""
    V, n, cap = model.num_classes, model.num_sites, model.cap
    states = all_states(V, n)

    def thinned(pi: float, trials: Tensor) -> Tensor:
        """Binomial(trials, pi), Float64[b, n, V]."""
        return births.binomial_table(torch.tensor([pi], dtype=torch.float64), cap)[0][trials]

    start = nn.functional.one_hot(torch.zeros(1, n, dtype=torch.int64), V).double()
    if known is not None:
        start = torch.where(known[1][:, None], thinned(math.exp(-model.t_end), known[0][None]), start)
    p = product(start, states)[0]
    path = [*death.observation_times(num_steps, model.t_end).flip(0).tolist(), 0.0]
    for t, s in itertools.pairwise(path):
        live = p > 0
        rows = states[live]
        at = when(t, s, rows)
        per_site = model.reverse_law(shaped(model, rows), at[0], at[1], sampler=sampler).probs()
        if known is not None:
            pi = float(death.bridge_probability(at[0, :1], at[1, :1]))
            gained = torch.arange(V) - rows[..., None]
            bridge = thinned(pi, (known[0] - rows).clamp(min=0)).gather(-1, gained.clamp(min=0))
            per_site = torch.where(known[1][:, None], torch.where(gained >= 0, bridge, 0.0), per_site)
        p = p[live] @ product(per_site, states)
    return of_clean(p, states, V, known)


def markov(model: MarkovDiffusion, num_steps: int, grid: str | None = None, known: Known | None = None) -> Tensor:
    """Of MarkovDiffusion: known sites follow the bridge of their own value."""
    n = model.num_sites
    states = all_states(model.process.num_states, n)
    start = model.prior_law.expand(1, n, -1)
    if known is not None:
        ended = model.process.transition(model.tau(torch.ones(1, dtype=torch.float64)))[0].T[known[0]]
        start = torch.where(known[1][:, None], ended, model.prior_law)[None]
    p = product(start, states)[0]
    for t, s in itertools.pairwise(times.sampling_grid(num_steps, grid or model.grids[0])):
        live = p > 0
        rows = states[live]
        at = when(t, s, rows)
        given = None if known is None else (known[0].expand(len(rows), n), known[1].expand(len(rows), n))
        p = p[live] @ product(model.reverse_law(shaped(model, rows), at[0], at[1], known=given).probs(), states)
    return of_clean(p, states, model.num_classes, known)
