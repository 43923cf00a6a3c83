"""Diffusion by any process is exact by enumeration: bound, sampler, infilling; MD4 is its absorbing case.

Each test runs with both readings of the logits: the exact denoiser then says another thing, the numbers are the same.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ggm_lightning.core import markov, schedules
from ggm_lightning.exact import chains
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.networks import Equal, Masked, Reached
from ggm_lightning.exact.states import all_states
from ggm_lightning.models.markov import MarkovDiffusion
from ggm_lightning.models.md4 import MD4

V = 3
P0 = np.array([0.15, 0.6, 0.25])
RING = [[0.0, 0.0, 1.3, 0.2], [0.7, 0.0, 0.0, 0.0], [0.0, 0.4, 0.0, 0.9], [0.3, 0.0, 0.1, 0.0]]  # one state more
PROCESSES = ["uniform", "absorbing", "gaussian", RING]


@pytest.fixture(autouse=True, params=["prior", "posterior"])
def parametrisation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every model here is built with it."""
    monkeypatch.setattr("tests.models.test_markov_exact.READING", request.param)
    return request.param


READING = "prior"


def model_of(table: np.ndarray, process: object, **kwargs: object) -> MarkovDiffusion:
    """Of a law of n sites, with its exact network."""
    options = {"parametrisation": READING} | kwargs
    network = Reached(
        JointLaw(table), lambda t: model.process.transition(model.tau(t)), options["parametrisation"] == "posterior"
    )
    model = MarkovDiffusion(network, V, (table.ndim,), process=process, **options)
    return model


def states(model: MarkovDiffusion) -> Tensor:
    return all_states(model.process.num_states, model.num_sites)


def bound(model: MarkovDiffusion) -> Tensor:
    """E of nelbo over x_t for every x, Float64[V^n]."""
    x, z = all_states(V, model.num_sites), states(model)
    total = torch.zeros(len(x), dtype=torch.float64)
    rows, zt = x.repeat_interleave(len(z), 0), z.repeat(len(x), 1)
    for k in range(1, model.num_timesteps + 1):
        t = torch.full((len(rows),), k / model.num_timesteps, dtype=torch.float64)
        K = model.process.transition(model.tau(t[:1]))[0]
        q = K[zt, rows].prod(-1)
        nats = torch.zeros_like(q)
        nats[q > 0] = model.terms(rows[q > 0], zt[q > 0], t[q > 0])
        total += (q * nats).reshape(len(x), len(z)).sum(1)
    return total / model.num_timesteps + model.prior(x)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("num_timesteps", [1, 3, 8])
def test_one_site_is_exact_at_any_number_of_steps(process: object, num_timesteps: int) -> None:
    """E bound = entropy + KL(p_1 || prior)."""
    model = model_of(P0, process, num_timesteps=num_timesteps, t_end=3.0)
    p0 = torch.zeros(model.process.num_states, dtype=torch.float64)
    p0[:V] = model.network.law.p
    p1 = model.process.marginal(p0, torch.tensor([3.0], dtype=torch.float64))[0]
    entropy = -float(torch.xlogy(p0, p0).sum())
    prior_gap = float((p1 * (torch.log(p1) - torch.log(model.prior_law))).sum())
    assert float(model.network.law.p @ bound(model)) == pytest.approx(entropy + prior_gap, abs=1e-10)
    worse = model_of(np.array([0.2, 0.5, 0.3]), process, num_timesteps=num_timesteps, t_end=3.0)
    assert float(model.network.law.p @ bound(worse)) > entropy + prior_gap + 1e-3


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_equal_logits_begin_at_n_ln_v(process: object, parametrisation: str) -> None:
    """They say that every x is equally likely, and with prior nothing else: the bound is -log p of that law for every x
    at any number of steps. Control: read as p(x_0 | x_t) they forget what x_t tells (an absorbed one tells nothing)."""
    options = {"num_timesteps": 5, "t_end": 3.0, "parametrisation": parametrisation}
    model = MarkovDiffusion(Equal(V), V, (2,), process=process, **options)
    nats = bound(model)
    if parametrisation == "prior" or process == "absorbing":
        assert (nats - 2 * math.log(V)).abs().max() < 1e-10
    else:
        assert float(nats.min()) > 2 * math.log(V) + 0.5


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_one_site_is_drawn_exactly(process: object) -> None:
    model = model_of(P0, process, t_end=40.0)
    for num_steps in (1, 4, 20):
        law = chains.markov(model, num_steps)
        assert (law - model.network.law.p).abs().max() < 1e-6
        assert abs(1 - float(law.sum())) < 1e-12  # nothing ends in a state that is no class


TWO = JointLaw.random(2, V, seed=4).p.reshape(V, V).numpy()


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_two_sites_approach_the_law_as_the_steps_shrink(process: object) -> None:
    distances, gaps = [], []
    for steps in (8, 16, 32):
        model = model_of(TWO, process, num_timesteps=steps, t_end=8.0)
        law = chains.markov(model, steps)
        distances.append(0.5 * float((law - model.network.law.p).abs().sum()))
        gaps.append(float(model.network.law.p @ (bound(model) + model.network.law.p.log())))
    assert 1.6 < distances[0] / distances[1] < 2.6
    assert 1.6 < distances[1] / distances[2] < 2.6
    assert gaps[0] > gaps[1] > gaps[2] > 0


def test_absorbing_is_md4() -> None:
    """alpha = e^-tau: the terms are those of MD4's finite-T bound where the schedules agree."""
    law = Masked(JointLaw(TWO))
    T = 6
    options = {"num_timesteps": T, "t_end": 1.0, "power": 1.0, "parametrisation": READING}
    model = MarkovDiffusion(law, V, (2,), process="absorbing", **options)
    md4 = MD4(law, V, (2,), schedule=schedules.Linear(0.0), num_timesteps=T)
    x, zt = torch.tensor([[0, 2], [1, 1], [2, 0]]), torch.tensor([[3, 2], [3, 3], [2, 3]])
    for k in range(1, T + 1):
        t = torch.full((3,), k / T, dtype=torch.float64)
        u_t, u_s = -math.expm1(-k / T), -math.expm1(-(k - 1) / T)
        reveal = (u_t - u_s) / u_t
        per_weight = md4.terms(x, zt, torch.full((3,), 1.0, dtype=torch.float64))  # weight T (1/T) / 1 = 1
        assert (model.terms(x, zt, t) - T * reveal * per_weight).abs().max() < 1e-10


@pytest.mark.parametrize(
    "process", [pytest.param(p, marks=[pytest.mark.slow] if p == "gaussian" else []) for p in PROCESSES], ids=str
)
def test_samples_rows_and_known_sites(process: object) -> None:
    model = model_of(TWO, process, t_end=8.0)
    drawn = model.sample(8000, 6, seed=1)
    expected = chains.markov(model, 6).numpy()
    counts = np.bincount(model.network.law.index(drawn.x).numpy(), minlength=V**2)
    keep = expected * 8000 > 5
    chi2 = ((counts - 8000 * expected)[keep] ** 2 / (8000 * expected[keep])).sum()
    assert chi2 < keep.sum() - 1 + 4 * math.sqrt(2 * keep.sum())
    assert drawn.network_calls == 6
    assert torch.equal(model.sample(1, 6, seed=1, row=torch.tensor([7])).x[0], drawn.x[7])
    known = model.sample(50, 6, clamp=(torch.tensor([2, 0]), torch.tensor([True, False])), trace=True)
    assert (known.x[:, 0] == 2).all()
    assert len(known.trace) == 7
    likely = int(model.network.law.p.argmax())
    nats = model.nelbo(model.network.law.x[likely].expand(3000, 2), num_samples=4, seed=3)
    assert abs(float(nats.mean() - bound(model)[likely])) < 4 * float(nats.std()) / 3000**0.5
    assert bool(torch.isfinite(model.loss(model.network.law.x)))


def test_what_a_checkpoint_of_before_means() -> None:
    """Its configuration does not name the argument: it was trained as posterior, whatever is the default now."""
    now, before = (MarkovDiffusion(Equal(V), V, (2,), **given) for given in ({}, MarkovDiffusion.defaults_before))
    assert (now.parametrisation, before.parametrisation) == ("prior", "posterior")
    zt, t = torch.tensor([[0, 2]]), torch.tensor([0.3], dtype=torch.float64)
    laws = [
        model.log_posterior(zt, t, model.process.step(model.tau(t), model.tau(t / 2))).exp() for model in (now, before)
    ]
    assert (laws[1] - 1 / V).abs().max() < 1e-12
    K = now.process.transition(now.tau(t))[0][zt[0]]
    assert (laws[0][0] - K / K.sum(1, keepdim=True)).abs().max() < 1e-12
    assert (laws[0] - laws[1]).abs().max() > 0.1


def test_matrices_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and bound: at the first use of all. Other times, as a sampler's: once for each distinct one. Too many to
    keep: the same numbers, made anew."""
    made = []
    whole = markov._exponential
    monkeypatch.setattr(markov, "_exponential", lambda L, t: made.append(len(t)) or whole(L, t))
    x = torch.tensor([[0, 1], [2, 1], [1, 1], [0, 0], [2, 2]])
    results = []
    for limit in (markov._TABLE_BYTES, 0):
        monkeypatch.setattr(markov, "_TABLE_BYTES", limit)
        model = MarkovDiffusion(Equal(V), V, (2,), num_timesteps=4)
        model.loss(x, step=0)
        made.clear()
        loss, nats = model.loss(x, step=1), model.nelbo(x, num_samples=2)
        results.append((loss, nats - model.prior(x)))
        assert bool(made) == (limit == 0)
        assert all(number <= 4 for number in made[:4])  # 5 rows, 4 times
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
    made.clear()
    times = torch.tensor([0.5, 0.25, 0.5, 0.5, 0.25], dtype=torch.float64)
    together = model.process.transition(times)
    assert made == [2]
    for t, K in zip(times, together, strict=True):
        assert (model.process.transition(t[None])[0] - K).abs().max() < 1e-14


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"process": "normal"}, "choose one of"),
        ({"process": [[0.0, 1.0], [1.0, 0.0]]}, "2 states for 3"),
        ({"process": [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]}, "negative"),
        ({"t_end": 0.0}, "t_end is 0"),
        ({"num_timesteps": 0}, "num_timesteps is 0"),
        ({"parametrisation": "x0"}, "parametrisation is 'x0'"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        model_of(P0, **({"process": "uniform"} | given))
    assert "\n" not in str(caught.value)
