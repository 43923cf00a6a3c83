"""MD4 is exact: E1 to E7, E12 and E14 by enumeration, through the public `terms`, `reverse_law` and `finish`.

The figures quoted come from independent numpy programs (shared with the specification), at full precision.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ggm_lightning.core import schedules
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.networks import Equal, Masked
from ggm_lightning.exact.states import masks, quadrature
from ggm_lightning.models.md4 import MD4

N, V, EPS = 4, 3, 1e-4
SCHEDULES = {
    "linear": schedules.Linear,
    "cosine": schedules.Cosine,
    "poly2": lambda eps=EPS: schedules.Polynomial(2.0, eps),
    "poly3": lambda eps=EPS: schedules.Polynomial(3.0, eps),
}


@pytest.fixture(scope="module")
def law() -> JointLaw:
    return JointLaw.random(N, V, seed=0)


def md4(network: torch.nn.Module | JointLaw, schedule: schedules.Schedule, n: int = N, **kwargs: object) -> MD4:
    network = Masked(network) if isinstance(network, JointLaw) else network
    return MD4(network, V, (n,), schedule=schedule, **kwargs)


def expected_terms(model: MD4, x: Tensor, t: Tensor) -> Tensor:
    """E over z_t ~ q(. | x) of terms(x, z_t, t), by enumeration of the masks: Float64[len(t), len(x)]."""
    m = masks(model.num_sites)
    k = m.sum(-1)
    z = torch.where(m[:, None, :], model.mask_id, x)  # [masks, x, n]
    rows_x = x.expand_as(z).reshape(-1, model.num_sites)
    out = []
    for when in t:
        u = model.schedule.masked_fraction(when)
        probability = u**k * (1 - u) ** (model.num_sites - k)
        nats = model.terms(rows_x, z.reshape(-1, model.num_sites), when.expand(len(rows_x)))
        out.append((probability[:, None] * nats.reshape(len(m), len(x))).sum(0))
    return torch.stack(out)


def continuous_bound(model: MD4, x: Tensor) -> Tensor:
    t, w = quadrature()
    return (w[:, None] * expected_terms(model, x, t)).sum(0)


def discrete_bound(model: MD4, x: Tensor) -> Tensor:
    t = torch.arange(1, model.num_timesteps + 1, dtype=torch.float64) / model.num_timesteps
    return expected_terms(model, x, t).mean(0)


def information(law: JointLaw, alpha: float) -> Tensor:
    """i(x; Z) = E_{z | x} ln q(z | x) / q(z) when each site is kept with probability alpha: Float64[V^N]."""
    out = torch.zeros(len(law.x), dtype=torch.float64)
    for mask in masks(law.num_sites):
        k = int(mask.sum())
        q = (1 - alpha) ** k * alpha ** (law.num_sites - k)
        visible = law.x[:, ~mask]
        same = (visible[:, None, :] == visible[None, :, :]).all(-1)
        marginal = (same * law.p).sum(-1)
        if q > 0:
            out -= q * marginal.log()
    return out


@pytest.mark.parametrize("name", ["linear", "cosine", pytest.param("poly2", marks=pytest.mark.slow), "poly3"])
def test_e1_e4_continuous_bound_is_minus_log_p_for_every_x_and_schedule(law: JointLaw, name: str) -> None:
    """At eps = 0; what the default eps changes is measured in test_bound_gap.py."""
    bound = continuous_bound(md4(law, SCHEDULES[name](eps=0.0)), law.x)
    assert (bound + law.log_p).abs().max() < 1e-8


def test_e1_control_a_perturbed_denoiser_is_above(law: JointLaw) -> None:
    perturbed = Masked(law)
    perturbed.log_posterior *= 0.9
    bound = continuous_bound(md4(perturbed, schedules.Linear(0.0)), law.x)
    assert (law.p * (bound + law.log_p)).sum() > 1e-3  # a mean KL, ten thousand times the tolerance


def test_e2_any_order_closed_form(law: JointLaw) -> None:
    model = md4(law, schedules.Linear(0.0))
    one = torch.ones(len(law.x), dtype=torch.float64)  # the linear weight at t = 1 is 1
    total = torch.zeros(len(law.x), dtype=torch.float64)
    for mask in masks(N):
        k = int(mask.sum())
        if k:
            weight = math.factorial(k - 1) * math.factorial(N - k) / math.factorial(N)
            total += weight * model.terms(law.x, torch.where(mask, V, law.x), one)
    assert (total + law.log_p).abs().max() < 1e-10


@pytest.mark.parametrize("name", SCHEDULES)
def test_e3_with_eps_the_integral_is_an_information_difference(law: JointLaw, name: str) -> None:
    bound = continuous_bound(md4(law, SCHEDULES[name]()), law.x)
    expected = information(law, 1 - EPS) - information(law, EPS)
    assert (bound - expected).abs().max() < 1e-8


def test_e3_the_whole_bound_is_above_the_entropy_and_the_published_one_below(law: JointLaw) -> None:
    model = md4(law, schedules.Linear())
    published = float((law.p * continuous_bound(model, law.x)).sum()) + model.reconstruction_nats
    assert published - law.entropy == pytest.approx(-2.7e-4, abs=2e-5)
    assert 0 <= published + model.prior_nats - law.entropy < 2 * N * EPS * math.log(V)


def test_e5_finite_t_is_looser_and_falls_as_one_over_t(law: JointLaw) -> None:
    limit = (law.p * continuous_bound(md4(law, schedules.Linear()), law.x)).sum()
    gaps = {"linear": [], "cosine": []}
    steps = (1, 2, 5, 10, 20, 100, 1000)
    for name in gaps:
        for num_timesteps in steps:
            model = md4(law, SCHEDULES[name](), num_timesteps=num_timesteps)
            gaps[name].append(float((law.p * discrete_bound(model, law.x)).sum() - limit))
    assert all(a > b for a, b in itertools.pairwise(gaps["linear"]))
    assert all(c > line for c, line in zip(gaps["cosine"][1:], gaps["linear"][1:], strict=True))
    assert steps[-1] * gaps["linear"][-1] == pytest.approx(0.77, abs=0.01)


@pytest.mark.parametrize("num_timesteps", [1, 2, 20])
def test_e6_independent_sites_do_not_depend_on_t(num_timesteps: int) -> None:
    independent = JointLaw.independent(N, V, seed=1)
    bound = discrete_bound(md4(independent, schedules.Linear(), num_timesteps=num_timesteps), independent.x)
    assert (independent.p * bound).sum() == pytest.approx((1 - 2 * EPS) * independent.entropy, abs=1e-12)


def test_e7_uniform_predictor_pays_n_log_v_exactly() -> None:
    model = md4(Equal(V), schedules.Linear())
    x = torch.tensor([[0, 1, 2, 0], [2, 2, 2, 2]])
    bound = continuous_bound(model, x)
    assert bound.numpy() == pytest.approx((1 - 2 * EPS) * N * math.log(V), abs=1e-12)
    assert bound.numpy() + model.reconstruction_nats + model.prior_nats == pytest.approx(N * math.log(V), abs=1e-12)


def test_e12_every_term_is_non_negative() -> None:
    torch.manual_seed(0)
    logits = 5 * torch.randn((V + 1) ** N, N, V, dtype=torch.float64)
    law = JointLaw.random(N, V, seed=2)
    wild = Masked(law)
    wild.log_posterior = logits
    for t in (0.0, 1e-6, 0.3, 1.0):
        assert (expected_terms(md4(wild, schedules.Cosine()), law.x, torch.tensor([t]).double()) >= 0).all()


# ---------------------------------------------------------------------------------------------- E14: the sampler's law

SMALL = 3  # sites; (V + 1)^3 = 64 states
# (total variation to P, probability of a left-over mask), by another exact implementation
SAMPLER_LAW = {
    ("linear", "uniform", 1): (0.411755051916615, 0.000299999998),
    ("linear", "uniform", 5): (0.083011341098252, 0.000299999998),
    ("linear", "uniform", 20): (0.0208065557435266, 0.000299999998),
    ("linear", "uniform", 100): (0.00414174404760864, 0.000299999998),
    ("linear", "uniform", 400): (0.0010134886233116, 0.000299999998),
    ("linear", "cosine", 20): (0.0278085711591208, 0.000299999998),
    ("cosine", "uniform", 20): (0.0278085711591208, 0.000299999998),
    ("cosine", "uniform", 100): (0.00554750358714054, 0.000299999998),
}


def step_matrix(model: MD4, states: Tensor, t: float, s: float) -> np.ndarray:
    rows = len(states)
    when = torch.tensor([[t], [s]], dtype=torch.float64).expand(2, rows)
    law = model.reverse_law(states, when[0], when[1]).probs().numpy()  # [rows, n, V + 1]
    matrix = law[:, 0]
    for n in range(1, states.shape[1]):
        matrix = (matrix[:, :, None] * law[:, n][:, None, :]).reshape(rows, -1)
    return matrix


def sampler_law(law: JointLaw, schedule: str, grid: str, num_steps: int) -> tuple[np.ndarray, float]:
    """The exact law of x after num_steps and the probability that a mask was left over at t = 0."""
    from ggm_lightning.core.times import sampling_grid

    network = Masked(law)
    model, states = MD4(network, V, (SMALL,), schedule=SCHEDULES[schedule](), leftover="argmax"), network.states
    p = np.zeros(len(states))
    p[-1] = 1.0  # all masked is the last state
    for t, s in itertools.pairwise(sampling_grid(num_steps, grid)):
        p = p @ step_matrix(model, states, t, s)
    left = p[(states == V).any(-1).numpy()].sum()
    decoded = model.finish(states, None, None)
    x = np.zeros(len(law.x))
    np.add.at(x, (decoded * V ** torch.arange(SMALL - 1, -1, -1)).sum(-1).numpy(), p)
    return x, float(left)


@pytest.mark.parametrize(("schedule", "grid", "num_steps"), SAMPLER_LAW)
def test_e14_law_of_the_sampler(schedule: str, grid: str, num_steps: int) -> None:
    law = JointLaw.random(SMALL, V, seed=5)
    x, left = sampler_law(law, schedule, grid, num_steps)
    distance, left_expected = SAMPLER_LAW[schedule, grid, num_steps]
    assert 0.5 * np.abs(x - law.p.numpy()).sum() == pytest.approx(distance, abs=1e-10)
    assert left == pytest.approx(left_expected, abs=1e-10)


def test_e14_cosine_grid_is_the_cosine_schedule() -> None:
    law = JointLaw.random(SMALL, V, seed=5)
    by_grid, _ = sampler_law(law, "linear", "cosine", 7)
    by_schedule, _ = sampler_law(law, "cosine", "uniform", 7)
    plain, _ = sampler_law(law, "linear", "uniform", 7)
    assert np.abs(by_grid - by_schedule).max() < 1e-12
    assert np.abs(by_grid - plain).max() > 1e-3


def test_samples_follow_the_enumerated_law() -> None:
    """The drawing itself, not only its law: 40,000 samples against the exact law at 5 steps, chi-square."""
    law = JointLaw.random(SMALL, V, seed=5)
    model = MD4(Masked(law), V, (SMALL,), leftover="argmax")
    expected, _ = sampler_law(law, "linear", "uniform", 5)
    x = model.sample(40_000, 5, grid="uniform", seed=3).x
    counts = np.bincount((x * V ** torch.arange(SMALL - 1, -1, -1)).sum(-1).numpy(), minlength=V**SMALL)
    keep = expected * 40_000 > 5
    chi2 = ((counts - 40_000 * expected)[keep] ** 2 / (40_000 * expected[keep])).sum()
    dof = keep.sum() - 1
    assert chi2 < dof + 4 * math.sqrt(2 * dof)
    wrong = ((counts - 40_000 * law.p.numpy())[keep] ** 2 / (40_000 * law.p.numpy()[keep])).sum()
    assert wrong > 10 * (dof + 4 * math.sqrt(2 * dof))  # five steps are not enough to draw from P itself
