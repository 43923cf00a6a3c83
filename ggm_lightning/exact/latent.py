"""LDDM by enumeration and quadrature: exact networks for a latent of one number, its bound, its samplers' laws.

The latent of x is code(x), the noisy latent z_t = sqrt(alpha) code + sqrt(1 - alpha) e (models/lddm.py, eq. (1)). Means
over e are Gauss-Hermite sums; a sampler's density of z is carried on GRID.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ggm_lightning.core import gaussian, times
from ggm_lightning.core.schedules import Schedule
from ggm_lightning.exact.integral import integral
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.networks import Exact
from ggm_lightning.exact.states import Known, all_states, masks, product, with_known
from ggm_lightning.models.diladd import DiLADD
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM
from ggm_lightning.models.lddm_base import LatentFamily
from ggm_lightning.sampling import latent as latent_first

_nodes, _weights = np.polynomial.hermite_e.hermegauss(96)
NODES, WEIGHTS = torch.from_numpy(_nodes), torch.from_numpy(_weights / _weights.sum())
GRID = torch.linspace(-7, 7, 351, dtype=torch.float64)  # a step of the latent must be wider than .06
SPACING = float(GRID[1] - GRID[0])


class Code(nn.Module):
    """The encoder: row i of `clean` Int64[S, n] has the one number code[i]."""

    num_latents, latent_dim = 1, 1

    def __init__(self, clean: Tensor, code: Tensor) -> None:
        super().__init__()
        self.clean, self.code = clean, code

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        row = (x.flatten(1)[:, None] == self.clean).all(-1).int().argmax(-1)
        return self.code[row].reshape(-1, 1, 1)


def linear_code(law: JointLaw) -> Tensor:
    """A code Float64[V^n] of mean 0 and variance 1 that tells all states apart."""
    direction = torch.tensor([(-0.8) ** site for site in range(law.num_sites)], dtype=torch.float64)
    code = law.x.double() @ direction
    code = code - law.p @ code
    return code / (law.p @ code**2).sqrt()


class Joint(Exact):
    """The joint network's exact answer: log P(x_n = v | z_t, latent) and E[code | z_t, latent].

    Args:
        code: Float64[V^n]. schedule: of the latent.
    """

    num_latents, latent_dim = 1, 1

    def __init__(self, law: JointLaw, code: Tensor, schedule: Schedule) -> None:
        super().__init__(law)
        self.code, self.schedule = code, schedule
        live = law.p > 0
        self._x, self._log_p, self._code, self._one_hot = law.x[live], law.log_p[live], code[live], law.one_hot[live]

    def posterior(self, z: Tensor, latent: Tensor, latent_time: Tensor) -> Tensor:
        """p(x | z_t, latent), Float64[b, states that can be]: normalised in logs, for latents far out."""
        signal, noise = (f(latent_time.double())[:, None] for f in (self.schedule.alpha, self.schedule.masked_fraction))
        weight = self._log_p - 0.5 * (latent.double().flatten(1) - signal.sqrt() * self._code) ** 2 / noise
        agrees = ((z[:, None] == self._x) | (z[:, None] == self.law.num_classes)).all(-1)
        return torch.where(agrees, weight, -1e30).softmax(-1)  # equal weights of a state that cannot be

    def forward(
        self, z: Tensor, t: Tensor, label: Tensor | None = None, *, latent: Tensor, latent_time: Tensor
    ) -> tuple[Tensor, Tensor]:
        p = self.posterior(z.flatten(1), latent, latent_time)
        marginals = (p @ self._one_hot.flatten(1)).reshape(len(p), self.law.num_sites, self.law.num_classes)
        # never log 0: far out in a latent's tail what is right may be less than the smallest number
        return marginals.clamp(min=1e-300).log(), (p @ self._code).reshape(-1, 1, 1)


class Latent(Joint):
    """The latent's own denoiser: E[code | latent], without tokens."""

    def forward(  # type: ignore[override]
        self, latent: Tensor, latent_time: Tensor, label: Tensor | None = None
    ) -> Tensor:
        masked = torch.full((len(latent), self.law.num_sites), self.law.num_classes)
        return (self.posterior(masked, latent, latent_time) @ self._code).reshape(-1, 1, 1)


# ------------------------------------------------------------------ the bound


def mean_of(
    term: Callable[..., Tensor], model: LatentFamily, law: JointLaw, t: Tensor, latent_at: Tensor | None = None
) -> Tensor:
    """E over x_t and z_t of `term` (a method of the model, called as terms(x, zt, t, latent)) at each time:
    Float64[len(t), V^n]. latent_at: the latent's times, where they are not the tokens'."""
    times = zip(t, t if latent_at is None else latent_at, strict=True)
    return torch.stack([_at(term, model, law, when, at) for when, at in times])


def _at(term: Callable[..., Tensor], model: LatentFamily, law: JointLaw, when: Tensor, latent_at: Tensor) -> Tensor:
    w = model.schedule.masked_fraction(when)
    hidden = masks(law.num_sites)
    probability = torch.where(hidden, w, 1 - w).prod(-1)
    shape = (len(law.x), len(hidden), len(NODES))
    x = law.x[:, None, None].expand(*shape, law.num_sites).reshape(-1, law.num_sites)
    hidden = hidden[None, :, None].expand(*shape, law.num_sites).reshape(-1, law.num_sites)
    e, z0, at = NODES.expand(shape).reshape(-1, 1, 1), model.encode(x), model.clock.time(latent_at.expand(len(x)))
    signal, noise = (f(at)[:, None, None] for f in (model.latent_schedule.alpha, model.latent_schedule.masked_fraction))
    zt = torch.where(hidden, law.num_classes, x)
    x, zt = x.reshape(-1, *model.shape), zt.reshape(-1, *model.shape)
    nats = term(x, zt, when.expand(len(x)), signal.sqrt() * z0 + noise.sqrt() * e).double().reshape(shape)
    nats = torch.where((probability > 0)[None, :, None], nats, 0.0)
    return (probability[:, None] * WEIGHTS * nats).sum((1, 2))


def levels(count: int | None) -> Tensor:
    """1/T, ..., 1."""
    return torch.arange(1, (count or 0) + 1, dtype=torch.float64) / (count or 1)


def bound(model: FujiLDDM | SeqLDDM, law: JointLaw) -> tuple[Tensor, float]:
    """(eqs. (4) to (6) for every x, Float64[V^n], nats; how far the integrals over time may be off)."""
    if isinstance(model, FujiLDDM):
        parts = [_over_times(model.terms, model, law, model.num_timesteps)]
    else:
        zero = torch.zeros(1, dtype=torch.float64)
        tokens = _over_times(model.terms, model, law, model.num_timesteps, latent_at=zero)
        parts = [tokens, _over_times(model.latent_terms, model, law, model.num_latent_timesteps)]
    total = model.prior_nats(law.x.reshape(-1, *model.shape))
    for nats, _ in parts:
        total = total + nats
    return total, sum(apart for _, apart in parts)


def _over_times(
    term: Callable[..., Tensor], model: LatentFamily, law: JointLaw, count: int | None, latent_at: Tensor | None = None
) -> tuple[Tensor, float]:
    """(the mean of `mean_of` over the levels, or its integral over [0, 1], Float64[V^n]; how far it may be off)."""
    if count is not None:
        t = levels(count)
        return mean_of(term, model, law, t, None if latent_at is None else latent_at.expand(len(t))).mean(0), 0.0

    def at(t: float) -> Tensor:
        return mean_of(term, model, law, torch.tensor([t], dtype=torch.float64), latent_at)[0].detach()

    def of_both_ends(v: float) -> Tensor:
        """t = v^2 / 2 and t = 1 - v^2 / 2 together: the SNR of gaussian.Sqrt falls to 0 as a root does, and its slope,
        which the latent's term has as a factor, has no end at t = 1."""
        return v * (at(v**2 / 2) + at(1 - v**2 / 2))

    return integral(of_both_ends, (0.0, 1.0), agree=1e-6)  # each time is dear; the halves are off by 1e-8


# ------------------------------------------------------------------ the laws of samplers


def normal(x: Tensor, mean: Tensor, std: Tensor | float) -> Tensor:
    """The density of N(mean, std^2)."""
    return torch.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))


PRIOR = normal(GRID, torch.zeros(1, dtype=torch.float64), 1.0) * SPACING
Moved = Callable[[Tensor, Tensor, float, float], Tensor]


def _when(t: float, s: float, count: int) -> tuple[Tensor, Tensor]:
    at = torch.tensor([[t], [s]], dtype=torch.float64).expand(2, count)
    return at[0], at[1]


def _states(model: LatentFamily, known: Known | None) -> Tensor:
    values = model.num_classes + 1
    return all_states(values, model.num_sites) if known is None else with_known(values, known)


def _unknown(model: LatentFamily, known: Known | None) -> Tensor:
    everywhere = torch.arange(model.num_sites)
    return everywhere if known is None else everywhere[~known[1]]


def _evolved(mass: Tensor, states: Tensor, grid: str, num_steps: int, moved: Moved) -> Tensor:
    """Mass [state, latent] after all steps; moved(rows, mass of one state, t, s) says where that state's mass goes."""
    for t, s in itertools.pairwise(times.sampling_grid(num_steps, grid)):
        after = torch.zeros_like(mass)
        for i in mass.amax(1).gt(1e-300).nonzero()[:, 0]:
            after += moved(states[i].expand(mass.shape[1], -1), mass[i], t, s)
        mass = after
    return mass


def _clean(model: LatentFamily, p: Tensor, states: Tensor) -> Tensor:
    """Float64[V^n]; what is unfinished is lost and seen in the sum."""
    done = (states < model.num_classes).all(-1)
    law = torch.zeros(model.num_classes**model.num_sites, dtype=torch.float64)
    places = model.num_classes ** torch.arange(model.num_sites - 1, -1, -1)
    return law.index_add(0, (states[done] * places).sum(-1), p[done])


def law_of_ddpm(model: FujiLDDM, num_steps: int, grid: str | None = None, known: Known | None = None) -> Tensor:
    """FUJI's sampler ddpm, Float64[V^n]: the joint mass on all states x GRID."""
    states, unknown = _states(model, known), _unknown(model, known)
    start = torch.zeros(len(states), len(GRID), dtype=torch.float64)
    start[-1] = PRIOR

    def moved(rows: Tensor, mass: Tensor, t: float, s: float) -> Tensor:
        law = model.joint_law(
            rows.reshape(-1, *model.shape), *_when(t, s, len(rows)), latent=GRID.reshape(-1, 1, 1), sampler="ddpm"
        )
        found = product(law.tokens.probs(), states, unknown).T * mass  # [state', z_t]
        if s == 0:  # in the last step the latent has done its work
            return found
        return found @ (normal(GRID[:, None], law.latent.mean[:, 0, 0], law.latent.std) * SPACING).T

    return _clean(model, _evolved(start, states, grid or model.grids[0], num_steps, moved).sum(1), states)


def latents(model: LatentFamily, kind: str, steps: int) -> tuple[Tensor, Tensor]:
    """(values, mass) of the cleanest latent: on GRID, or for the deterministic ddim at the images of GRID; of Di-LADD
    those of its codes, whose law is exact."""
    if isinstance(model, DiLADD):
        codes = torch.arange(model.num_codes)
        mass = model.prior.network(torch.tensor([[model.num_codes]]))[0, 0].exp()
        return model.codebook.entries(codes)[:, 0].double(), mass
    z, mass = GRID, PRIOR
    masked = torch.full((len(GRID), *model.shape), model.num_classes)
    for t, s in itertools.pairwise(times.sampling_grid(steps, "uniform")):
        law = latent_first.latent_step(model, masked, z.reshape(-1, 1, 1), *_when(t, s, len(z)), None, kind)
        mean = law.mean[:, 0, 0]
        if kind == "ddim":
            z = mean
        else:
            mass = normal(GRID[:, None], mean, law.std) * SPACING @ mass
    return z, mass


def likelihood_of_known(model: LatentFamily, z: Tensor, known: Known) -> Tensor:
    """p(known tokens | latent), one after the other."""
    values, given = known
    total = torch.ones(len(z), dtype=torch.float64)
    state = torch.full((len(z), model.num_sites), model.num_classes)
    zero = torch.zeros(len(z), dtype=torch.float64)
    for site in torch.nonzero(given)[:, 0].tolist():
        asked = torch.zeros(len(z), model.num_sites, dtype=torch.bool)
        asked[:, site] = True
        logits = model.predict(state.reshape(-1, *model.shape), zero, z.reshape(-1, 1, 1), zero, None)[0](asked)
        total *= logits.softmax(-1)[:, values[site]]
        state[:, site] = values[site]
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


def _kept(model: LatentFamily, kind: str, latent_steps: int, known: Known | None) -> tuple[Tensor, Tensor]:
    """(values, mass) of the latent beside the tokens: one of infill_latents candidates where some are known."""
    z, mass = latents(model, kind, latent_steps)
    if known is None:
        return z, mass
    return z, resampled(mass, likelihood_of_known(model, z, known), model.infill_latents)


def law_of_latent_first(
    model: LatentFamily,
    kind: str,
    num_steps: int,
    latent_steps: int = latent_first.LATENT_STEPS,
    grid: str | None = None,
    known: Known | None = None,
) -> Tensor:
    """The latent by `kind` (ddim or ddpm), then the tokens: Float64[V^n]."""
    z, kept = _kept(model, kind, latent_steps, known)
    states, unknown = _states(model, known), _unknown(model, known)
    start = torch.zeros(len(states), len(z), dtype=torch.float64)
    start[-1] = kept

    def moved(rows: Tensor, mass: Tensor, t: float, s: float) -> Tensor:
        law = model.reverse_law(
            rows.reshape(-1, *model.shape), *_when(t, s, len(rows)), denoiser=model.given(z.reshape(-1, 1, 1))
        )
        return product(law.probs(), states, unknown).T * mass

    return _clean(model, _evolved(start, states, grid or model.grids[0], num_steps, moved).sum(1), states)


def law_one_by_one(model: LatentFamily, kind: str, known: Known | None = None) -> Tensor:
    """Sampler first_hitting: the latent, then one unknown token after the other, in every order. Of networks that do
    not look at the tokens' time."""
    z, kept = _kept(model, kind, latent_first.LATENT_STEPS, known)
    denoiser, rows, n, V = model.given(z.reshape(-1, 1, 1)), torch.arange(len(z)), model.num_sites, model.num_classes
    zero, states = torch.zeros(len(z), dtype=torch.float64), _states(model, known)
    unknown = _unknown(model, known).tolist()
    orders = list(itertools.permutations(unknown))
    law = torch.zeros(len(states), dtype=torch.float64)
    for i, x in enumerate(states):
        if bool((x == V).any()):
            continue
        for order in orders:
            state, p = x.expand(len(z), n).clone(), kept.clone()
            state[:, unknown] = V
            for site in order:
                logits = denoiser(state.reshape(-1, *model.shape), zero, None, torch.full((len(z), 1), site), rows)
                p = p * logits.double().softmax(-1)[:, x[site]]
                state[:, site] = x[site]
            law[i] += p.sum() / len(orders)
    return _clean(model, law, states)


def networks(law: JointLaw, code: Tensor, schedule: Schedule) -> dict[str, nn.Module]:
    """The exact ones, by the names of the families' arguments."""
    return {
        "network": Joint(law, code, schedule),
        "encoder": Code(law.x, code),
        "latent_network": Latent(law, code, schedule),
    }


def fuji(law: JointLaw, code: Tensor, schedule: Schedule | None = None, **options: object) -> FujiLDDM:
    """FUJI of this law with exact networks."""
    schedule = gaussian.Sqrt() if schedule is None else schedule
    options = {"latent_schedule": schedule, **options}
    network = Joint(law, code, schedule)
    return FujiLDDM(network, Code(law.x, code), law.num_classes, (law.num_sites,), **options)  # type: ignore[arg-type]


def seq(law: JointLaw, code: Tensor, schedule: Schedule | None = None, **options: object) -> SeqLDDM:
    """SEQ of this law with exact networks."""
    schedule = gaussian.Sqrt() if schedule is None else schedule
    options = {"latent_schedule": schedule, **options}
    networks = Joint(law, code, schedule), Code(law.x, code), Latent(law, code, schedule)
    return SeqLDDM(*networks, law.num_classes, (law.num_sites,), **options)  # type: ignore[arg-type]
