"""The exact law of what each sampler fills in, Float64[9], by enumeration of its states through `reverse_law`.

Each function follows the sampler's loop with the known sites of infilling_law.py. Only states of positive probability
are asked for, as in a run of the sampler.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ggm_lightning.core import births, death, times
from ggm_lightning.models.base import Family
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.diladd import DiLADD
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.lddm import FujiLDDM
from ggm_lightning.models.lddm_base import LatentFamily
from ggm_lightning.models.markov import MarkovDiffusion
from ggm_lightning.models.md4 import MD4
from ggm_lightning.sampling import latent as latent_first
from tests.models.infilling_law import KNOWN, UNKNOWN, VALUES, N, V, cell

GRID = torch.linspace(-7, 7, 351, dtype=torch.float64)  # the narrowest step of the latent has a deviation above .06


def product(per_site: Tensor, states: Tensor, sites: Tensor) -> Tensor:
    """P(row -> state) Float64[b, states] of independent sites Float64[b, n, values]; sites that are not named move with
    probability 1 to what the state says (a known site is put back)."""
    return per_site[:, sites][:, torch.arange(len(sites)), states[:, sites]].prod(-1)


def filled_states(num_values: int) -> Tensor:
    """All states whose known sites have their values, Int64[num_values^2, n]."""
    states = VALUES.expand(num_values ** len(UNKNOWN), N).clone()
    states[:, UNKNOWN] = torch.tensor(list(itertools.product(range(num_values), repeat=len(UNKNOWN))))
    return states


def all_states(num_values: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(num_values), repeat=N)))


def when(t: float, s: float, rows: Tensor) -> Tensor:
    return torch.tensor([[t], [s]], dtype=torch.float64).expand(2, len(rows))


def in_cells(p: Tensor, states: Tensor) -> Tensor:
    """Float64[9]; what ends with another value at a known site, or unfinished, is lost and seen in the sum."""
    done = ((states == VALUES) | ~KNOWN).all(-1) & (states < V).all(-1)
    return torch.zeros(V ** len(UNKNOWN), dtype=torch.float64).index_add(0, cell(states[done]), p[done])


def masked_law(model: MD4 | GenMD4, num_steps: int) -> Tensor:
    """Sampler ancestral, on the family's own grid."""
    states = filled_states(V + 1)
    p = torch.zeros(len(states), dtype=torch.float64)
    p[-1] = 1.0
    for t, s in itertools.pairwise(times.sampling_grid(num_steps, model.grids[0])):
        live = p > 0
        rows = states[live]
        p = p[live] @ product(model.reverse_law(rows, *when(t, s, rows)).probs().detach(), states, UNKNOWN)
    if isinstance(model, GenMD4):
        return in_cells(p, states)
    # MD4's schedule leaves a mask with probability eps: drawn from the network at t = 0
    everywhere = torch.ones(states.shape, dtype=torch.bool)
    mu = model.logits_at(states, when(0, 0, states)[0], None, everywhere).softmax(-1).reshape(*states.shape, V)
    shown = nn.functional.one_hot(states.clamp(max=V - 1), V).double()
    clean = filled_states(V)
    return in_cells(p @ product(torch.where((states == V)[..., None], mu, shown), clean, UNKNOWN), clean)


def ggm_law(model: GGM, sampler: str, size: int = 1) -> Tensor:
    """With the model's own number of rounds of ReDeNoise."""
    states, pi = filled_states(V), model.log_pi.exp()
    p = product(pi.expand(1, N, V), states, UNKNOWN)[0]
    path = model.sweeps.grid(size) + model.redenoise * model.sweeps.grid(size, first_sweeps=1)
    for t, s in itertools.pairwise(path):
        if s > t:
            a = model.sweeps.survival_at(torch.tensor([s]))[..., None]
            per_site = a * nn.functional.one_hot(states, V) + (1 - a) * pi
        else:
            at = when(t, s, states).long()
            per_site = model.reverse_law(states, *at, sampler=sampler, known=KNOWN.expand(len(states), N)).probs()
        p = p @ product(per_site, states, UNKNOWN)
    return in_cells(p, states)


def blackout_law(model: Blackout, sampler: str, num_steps: int) -> Tensor:
    """Known sites are thinned at t_end and bridged from step to step."""
    states, cap = all_states(V), V - 1

    def thinned(pi: float, trials: Tensor) -> Tensor:
        """Binomial(trials, pi), Float64[b, n, V]."""
        return births.binomial_table(torch.tensor([pi], dtype=torch.float64), cap)[0][trials]

    black = nn.functional.one_hot(torch.zeros(1, N, dtype=torch.int64), V).double()
    start = torch.where(KNOWN[:, None], thinned(math.exp(-model.t_end), VALUES[None]), black)
    p = product(start, states, torch.arange(N))[0]
    path = [*death.observation_times(num_steps, model.t_end).flip(0).tolist(), 0.0]
    for t, s in itertools.pairwise(path):
        live = p > 0
        rows = states[live]
        at = when(t, s, rows)
        born = model.reverse_law(rows, *at, sampler=sampler).probs()
        pi = float(death.bridge_probability(at[0, :1], at[1, :1]))
        gained = torch.arange(V) - rows[..., None]
        bridge = thinned(pi, (VALUES - rows).clamp(min=0)).gather(-1, gained.clamp(min=0))
        known = torch.where(gained >= 0, bridge, 0.0)
        p = p[live] @ product(torch.where(KNOWN[:, None], known, born), states, torch.arange(N))
    return in_cells(p, states)


def markov_law(model: MarkovDiffusion, num_steps: int) -> Tensor:
    """Known sites follow the bridge of their own value."""
    states = all_states(model.process.num_states)
    ended = model.process.transition(model.tau(torch.ones(1, dtype=torch.float64)))[0].T[VALUES]
    start = torch.where(KNOWN[:, None], ended, model.prior_law)
    p = product(start[None], states, torch.arange(N))[0]
    for t, s in itertools.pairwise(times.sampling_grid(num_steps, model.grids[0])):
        live = p > 0
        rows = states[live]
        known = VALUES.expand(len(rows), N), KNOWN.expand(len(rows), N)
        law = model.reverse_law(rows, *when(t, s, rows), known=known)
        p = p[live] @ product(law.probs(), states, torch.arange(N))
    return in_cells(p, states)


def normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return torch.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))


SPACING = float(GRID[1] - GRID[0])
PRIOR = normal(GRID, torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)) * SPACING


Moved = Callable[[Tensor, Tensor, float, float], Tensor]


def evolved(mass: Tensor, states: Tensor, grid: str, num_steps: int, moved: Moved) -> Tensor:
    """Mass [state, latent] after all steps; moved(rows, mass of one state, t, s) says where that state's mass goes."""
    for t, s in itertools.pairwise(times.sampling_grid(num_steps, grid)):
        after = torch.zeros_like(mass)
        for i in mass.amax(1).gt(0).nonzero()[:, 0]:
            after += moved(states[i].expand(mass.shape[1], N), mass[i], t, s)
        mass = after
    return mass


def fuji_law(model: FujiLDDM, num_steps: int) -> Tensor:
    """Sampler ddpm: the joint mass on 16 states x GRID."""
    states = filled_states(V + 1)
    start = torch.zeros(len(states), len(GRID), dtype=torch.float64)
    start[-1] = PRIOR

    def moved(rows: Tensor, mass: Tensor, t: float, s: float) -> Tensor:
        law = model.joint_law(rows, *when(t, s, rows), latent=GRID.reshape(-1, 1, 1), sampler="ddpm")
        found = product(law.tokens.probs(), states, UNKNOWN).T * mass  # [state', z_t]
        if s == 0:  # in the last step the latent has done its work
            return found
        return found @ (normal(GRID[:, None], law.latent.mean[:, 0, 0], law.latent.std) * SPACING).T

    return in_cells(evolved(start, states, model.grids[0], num_steps, moved).sum(1), states)


def latents(model: LatentFamily, kind: str, steps: int) -> tuple[Tensor, Tensor]:
    """(values, mass) of the cleanest latent: on GRID, or for the deterministic ddim at the images of GRID; of Di-LADD
    those of its codes, whose law is exact."""
    if isinstance(model, DiLADD):
        codes = torch.arange(model.num_codes)
        mass = model.prior.network(torch.tensor([[model.num_codes]]))[0, 0].exp()
        return model.codebook.entries(codes)[:, 0].double(), mass
    z, mass = GRID, PRIOR
    masked = torch.full((len(GRID), N), V)
    for t, s in itertools.pairwise(times.sampling_grid(steps, "uniform")):
        law = latent_first.latent_step(model, masked, z.reshape(-1, 1, 1), *when(t, s, z), None, kind)
        mean = law.mean[:, 0, 0]
        if kind == "ddim":
            z = mean
        else:
            mass = normal(GRID[:, None], mean, law.std) * SPACING @ mass
    return z, mass


def likelihood_of_known(model: LatentFamily, z: Tensor) -> Tensor:
    """p(known tokens | latent), one after the other."""
    total = torch.ones(len(z), dtype=torch.float64)
    state = torch.full((len(z), N), V)
    zero = torch.zeros(len(z), dtype=torch.float64)
    for site in torch.nonzero(KNOWN)[:, 0].tolist():
        asked = torch.zeros(len(z), N, dtype=torch.bool)
        asked[:, site] = True
        logits = model.predict(state, zero, z.reshape(-1, 1, 1), zero, None)[0](asked)
        total *= logits.softmax(-1)[:, VALUES[site]]
        state[:, site] = VALUES[site]
    return total


def resampled(mass: Tensor, weight: Tensor, candidates: int) -> Tensor:
    """The law of the one of K independent candidates that is kept with probability in proportion to its weight.

    P(kept = i) = m_i K E[w_i / (w_i + S)], S the sum of K - 1 other weights; with 1/x = integral of e^{-u x} du,
    E[1 / (w_i + S)] = integral of e^{-u w_i} phi(u)^{K-1} du, phi(u) = sum_j m_j e^{-u w_j}.
    """
    if candidates == 1:
        return mass
    log_u = torch.linspace(-25, 60, 3401, dtype=torch.float64)
    u = log_u.exp()
    phi = torch.exp(-u[:, None] * weight) @ mass
    step = (log_u[1] - log_u[0]) * u * phi ** (candidates - 1)
    return mass * candidates * weight * (step @ torch.exp(-u[:, None] * weight))


def latent_first_law(
    model: LatentFamily, kind: str, num_steps: int, latent_steps: int = latent_first.LATENT_STEPS
) -> Tensor:
    """Latents, one of infill_latents candidates, then the tokens."""
    z, mass = latents(model, kind, latent_steps)
    kept = resampled(mass, likelihood_of_known(model, z), model.infill_latents)
    states = filled_states(V + 1)
    start = torch.zeros(len(states), len(z), dtype=torch.float64)
    start[-1] = kept

    def moved(rows: Tensor, mass: Tensor, t: float, s: float) -> Tensor:
        law = model.reverse_law(rows, *when(t, s, rows), denoiser=model.given(z.reshape(-1, 1, 1)))
        return product(law.probs(), states, UNKNOWN).T * mass

    return in_cells(evolved(start, states, model.grids[0], num_steps, moved).sum(1), states)


def latent_then_one_by_one(model: LatentFamily, kind: str) -> Tensor:
    """Sampler first_hitting: latents, one of infill_latents candidates, then one unknown token after the other, in
    either order. The networks here do not look at the tokens' time."""
    z, mass = latents(model, kind, latent_first.LATENT_STEPS)
    kept = resampled(mass, likelihood_of_known(model, z), model.infill_latents)
    denoiser, rows = model.given(z.reshape(-1, 1, 1)), torch.arange(len(z))
    zero = torch.zeros(len(z), dtype=torch.float64)

    def values(state: Tensor, site: int) -> Tensor:
        """p(x_site | state, z), Float64[z, V]."""
        logits = denoiser(state.expand(len(z), N), zero, None, torch.full((len(z), 1), site), rows)
        return logits.double().softmax(-1)

    total = torch.zeros(V ** len(UNKNOWN), dtype=torch.float64)
    empty = torch.where(KNOWN, VALUES, V)
    for first, second in itertools.permutations(UNKNOWN.tolist()):
        p = values(empty, first)
        for v in range(V):
            state = empty.clone()
            state[first] = v
            both = p[:, v, None] * values(state, second)
            filled = state.expand(V, N).clone()
            filled[:, second] = torch.arange(V)
            total = total.index_add(0, cell(filled), 0.5 * kept @ both)
    return total


def drawn_law(model: Family, num_steps: int, num_samples: int, **options: object) -> Tensor:
    """The frequencies of `sample`."""
    x = model.sample(num_samples, num_steps, clamp=(VALUES, KNOWN), **options).x
    assert bool((x[:, KNOWN] == VALUES[KNOWN]).all())
    return cell(x).bincount(minlength=V ** len(UNKNOWN)).double() / num_samples
