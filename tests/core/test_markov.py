"""Any finite process: transitions, reverse generator and map; the closed forms of core/death.py and masking.py."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ggm_lightning.core import births, death, markov, masking, schedules
from ggm_lightning.core.births import BirthLaw
from ggm_lightning.core.markov import Process

V = 6
ZERO = torch.zeros(1, dtype=torch.float64)


def at(t: float) -> Tensor:
    return torch.tensor([t], dtype=torch.float64)


def random_process(seed: int) -> tuple[Process, Tensor]:
    rng = np.random.RandomState(seed)
    L = markov.from_rates(torch.from_numpy(rng.exponential(size=(V, V))))
    return Process(L), torch.from_numpy(rng.dirichlet(np.ones(V)))


def mix21() -> Tensor:
    """.4 Bin(20, .15) + .4 Bin(20, .8) + .1 at 0 + .1 at 10."""
    n = np.arange(21)
    choose = np.array([math.comb(20, int(k)) for k in n], dtype=float)
    q = 0.4 * choose * 0.15**n * 0.85 ** (20 - n) + 0.4 * choose * 0.8**n * 0.2 ** (20 - n)
    q[0] += 0.1
    q[10] += 0.1
    return torch.from_numpy(q / q.sum())


@pytest.mark.parametrize("t", [0.0, 1e-6, 0.3, 7.0, 200.0])
def test_transition_is_the_matrix_exponential(t: float) -> None:
    process, _ = random_process(0)
    K = process.transition(at(t))[0]
    np.testing.assert_allclose(K, torch.linalg.matrix_exp(process.L * t), atol=1e-12)
    assert (K >= 0).all()
    assert (K.sum(0) - 1).abs().max() < 1e-14


def test_small_entries_are_accurate_too() -> None:
    """Twenty deaths in a time of 1e-3 have probability 1e-60."""
    K = Process(markov.pure_death(21)).transition(at(1e-3))[0]
    assert float(K[0, 20]) == pytest.approx((-math.expm1(-1e-3)) ** 20, rel=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_reverse_generator_of_a_random_chain(seed: int) -> None:
    """R is the derivative of the exact reverse map: to 1e-10, by differentiating the map through the exponential."""
    process, p0 = random_process(seed)
    t, p_t = at(0.7), process.marginal(p0, at(0.7))
    R = process.reverse_rates(p_t)[0]

    def map_down(s: Tensor) -> Tensor:
        return process.reverse_map(p0, t, s)[0]

    # at s = t itself the exponential has no derivative to take (its number of halvings changes): from just below
    derivative = torch.autograd.functional.jacobian(map_down, at(0.7 - 1e-3))[..., 0]
    below = process.reverse_rates(process.marginal(p0, at(0.7 - 1e-3)))[0]
    assert (derivative + below @ map_down(at(0.7 - 1e-3))).abs().max() < 1e-10  # dP/ds = -R_s P
    assert (R.sum(0)).abs().max() < 1e-12
    assert (R @ p_t[0] + process.L @ p_t[0]).abs().max() < 1e-12  # the law runs backwards

    wrong = process.L * p_t[0][:, None] / p_t[0]  # rates of the forward jumps: the transpose forgotten
    wrong = wrong - torch.diag(wrong.diagonal())
    wrong = wrong - torch.diag(wrong.sum(0))
    assert (wrong @ p_t[0] + process.L @ p_t[0]).abs().max() > 1e-3


def test_reverse_map_brings_the_law_back_and_composes() -> None:
    process, p0 = random_process(1)
    t, u, s = at(1.3), at(0.9), at(0.2)
    p_t, p_s = process.marginal(p0, t)[0], process.marginal(p0, s)[0]
    down = process.reverse_map(p0, t, s)[0]
    assert (down @ p_t - p_s).abs().max() < 1e-13
    in_two = process.reverse_map(p0, u, s)[0] @ process.reverse_map(p0, t, u)[0]
    assert (in_two - down).abs().max() < 1e-13
    euler = torch.eye(V).double() + (t - s) * process.reverse_rates(p_t[None])[0]
    assert (euler @ p_t - p_s).abs().max() > 1e-3  # control: one step of the rates is no exact map


def test_averages_of_the_conditional_laws() -> None:
    process, p0 = random_process(2)
    t, s = at(0.8), at(0.3)
    K = process.transition(t)[0]
    posterior = (K * p0 / (K @ p0)[:, None]).T  # p(o | x_t) [o, x_t]
    by_bridge = (process.bridge(t, s)[0] * posterior.T[None]).sum(-1)
    assert (by_bridge - process.reverse_map(p0, t, s)[0]).abs().max() < 1e-13
    R = process.reverse_rates(process.marginal(p0, t))[0]
    state = torch.arange(V)
    averaged = process.posterior_mean_rates(posterior.T, t.expand(V), state).T
    assert (averaged - (R - torch.diag(R.diagonal()))).abs().max() < 1e-12
    assert (process.posterior_mean_rates(p0.expand(V, V), t.expand(V), state).T - averaged).abs().max() > 1e-2


def test_pure_death_is_core_death() -> None:
    p0, t, s = mix21(), at(0.9), at(0.35)
    process = Process(markov.pure_death(21))
    K = process.transition(t)[0]
    thinned = births.binomial_table(death.survival(t), 20)[0].T
    assert (K - thinned).abs().max() < 1e-13

    posterior = K * p0 / (K @ p0)[:, None]  # [x_t, o]
    x = torch.arange(21)
    y = (posterior * x).sum(1) - x
    R = process.reverse_rates((K @ p0)[None])[0]
    rate = death.birth_rate(y[None], t)[0]
    assert (torch.diagonal(R, -1) - rate[:-1]).abs().max() < 1e-10
    assert (R - torch.diag(R.diagonal()) - torch.diag(torch.diagonal(R, -1), -1)).abs().max() < 1e-12

    law = BirthLaw(x[None], y[None], death.bridge_probability(t, s), 20, "posterior", posterior[None].log())
    assert (law.probs()[0].T - process.reverse_map(p0, t, s)[0]).abs().max() < 1e-12
    mean_only = BirthLaw(x[None], y[None], death.bridge_probability(t, s), 20, "capped")
    assert (mean_only.probs()[0].T - process.reverse_map(p0, t, s)[0]).abs().max() > 1e-2


def test_absorbing_is_core_masking() -> None:
    p0 = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    t, s = at(0.9), at(0.35)  # masking runs in alpha = e^-t, the linear schedule has alpha = 1 - t'
    linear = schedules.Linear(0.0)
    reveal = linear.reveal_probability(1 - torch.exp(-t), 1 - torch.exp(-s))
    zt = torch.arange(4)[:, None]
    law = masking.MaskedLaw(
        zt, torch.where(zt == 3, reveal, 0.0), lambda sites: p0.log().expand(int(sites.sum()), 3), mask_id=3
    )
    reverse = Process(markov.absorbing(3)).reverse_map(torch.cat([p0, ZERO]), t, s)[0]
    assert (law.probs()[:, 0].T - reverse).abs().max() < 1e-13
    weight = masking.continuous_weight(linear, 1 - torch.exp(-t)) * torch.exp(-t)  # d(1 - alpha)/dt = e^-t
    R = Process(markov.absorbing(3)).reverse_rates(Process(markov.absorbing(3)).marginal(torch.cat([p0, ZERO]), t))[0]
    assert (R[:3, 3] - weight * p0).abs().max() < 1e-13


def test_other_processes_forget_what_they_should() -> None:
    for L in (markov.uniform(V), markov.discretised_gaussian(V)):
        assert (Process(L).transition(at(400.0))[0] - 1 / V).abs().max() < 1e-12
        assert (L - L.T).abs().max() < 1e-15
    L = markov.birth_death(torch.ones(V).double(), torch.arange(V).double())
    poisson = torch.tensor([1 / math.factorial(k) for k in range(V)], dtype=torch.float64)
    assert (Process(L).transition(at(100.0))[0] - (poisson / poisson.sum())[:, None]).abs().max() < 1e-12


def reverse_drift_error(h: float) -> float:
    """Largest |reverse drift of the lattice - Anderson's| where the law lives, for dx = -x dt + sqrt(2) dW."""
    x = torch.arange(-round(6 / h), round(6 / h) + 1, dtype=torch.float64) * h
    process, t = Process(markov.lattice(-x, 1.0, h)), at(0.4)
    p0 = torch.exp(-((x - 0.8) ** 2) / (2 * 0.3))
    p_t = process.marginal(p0 / p0.sum(), t)
    R = process.reverse_rates(p_t)[0]
    up, down = torch.diagonal(R, -1)[1:], torch.diagonal(R, 1)[:-1]
    mean, variance = 0.8 * math.exp(-0.4), 0.3 * math.exp(-0.8) + 1 - math.exp(-0.8)
    inner = x[1:-1]
    anderson = inner - 2 * (inner - mean) / variance  # -f + 2 D d/dx ln p_t
    near = inner.abs() < 2
    return float((h * (up - down) - anderson)[near].abs().max())


def test_the_lattice_approaches_gaussian_diffusion_with_order_two() -> None:
    errors = [reverse_drift_error(h) for h in (0.2, 0.1, 0.05)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders[0] > 1.7
    assert orders[1] == pytest.approx(2, abs=0.1)
    assert errors[-1] < 0.01


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Process(torch.zeros(2, 3).double()), "square"),
        (lambda: Process(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]).double()), "negative"),
        (lambda: Process(torch.tensor([[-1.0, 1.0], [0.5, -0.5]]).double()), "column"),
        (lambda: markov.lattice(torch.full((3,), 9.0).double(), 1.0, 1.0), "finer lattice"),
        (lambda: markov.discretised_gaussian(4, 0.0), "positive"),
        (lambda: random_process(0)[0].transition(at(-1.0)), "forward"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
