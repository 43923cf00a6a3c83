"""Blackout is exact where it should be, and off by what the specification says elsewhere: by enumeration, through the
public `terms`, `reverse_law`, `reconstruction` and `prior`; figures from independent numpy programs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

from ggm_lightning.core import births, death
from ggm_lightning.exact.states import total_variation
from ggm_lightning.models.blackout import Blackout
from tests.models.count_law import Counts, img256, laws, model_of, sampler_law

LAWS = laws()
# total variation to the law after T = 10, 100, 1000 steps with the exact y
TABLE = {
    ("mix21", "poisson"): (0.29533, 0.03393, 0.00338),
    ("mix21", "rounded"): (0.42676, 0.09002, 0.07195),
    ("mix21", "stochastic"): (0.36521, 0.04040, 0.00398),
    ("mix21", "capped"): (0.29821, 0.03307, 0.00332),
    ("even21", "poisson"): (0.25088, 0.04353, 0.00457),
    ("even21", "rounded"): (0.32561, 0.07293, 0.06224),
    ("even21", "stochastic"): (0.32732, 0.04630, 0.00468),
    ("even21", "capped"): (0.22309, 0.04342, 0.00458),
    ("bern0.3", "poisson"): (0.02138, 0.00223, 0.00022),
    ("bern0.3", "rounded"): (0.30000, 0.30000, 0.30000),
    ("bern0.3", "stochastic"): (6.4e-8, 6.4e-8, 6.4e-8),
    ("bern0.3", "capped"): (6.4e-8, 6.4e-8, 6.4e-8),
}
BITS = {"mix21": 3.87073, "even21": 2.95292, "bern0.3": 0.88129}
# bits of the T-step bound with the exact y
BOUNDS = {
    ("mix21", "poisson", 1000): 3.88224,
    ("mix21", "poisson", 100): 3.98658,
    ("mix21", "capped", 1000): 3.88335,
    ("even21", "poisson", 1000): 2.97391,
    ("even21", "poisson", 100): 3.15742,
    ("even21", "capped", 1000): 2.97402,
    ("bern0.3", "poisson", 1000): 0.88168,
    ("bern0.3", "poisson", 100): 0.88515,
    ("bern0.3", "capped", 1000): 0.88129,
}


@pytest.fixture(params=["prior", "posterior"])
def both_readings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the logits of output distribution, by every model and exact network of a test."""
    monkeypatch.setattr(Counts, "parametrisation", request.param)


@pytest.mark.parametrize("num_steps", [10, 100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "sampler"), TABLE)
def test_law_of_the_samplers(name: str, sampler: str, num_steps: int) -> None:
    law = Counts(LAWS[name])
    got = total_variation(sampler_law(law, num_steps, sampler), law.p)
    assert got == pytest.approx(TABLE[name, sampler][[10, 100, 1000].index(num_steps)], abs=1e-4)


@pytest.mark.parametrize(
    ("sampler", "num_steps", "expected"),
    [
        ("poisson", 10, 0.33206),
        ("poisson", 20, 0.17836),
        ("capped", 10, 0.33904),
        ("capped", 20, 0.18076),
        pytest.param("rounded", 10, 0.37943, marks=pytest.mark.slow),
        pytest.param("poisson", 100, 0.03974, marks=pytest.mark.slow),
        pytest.param("capped", 100, 0.03940, marks=pytest.mark.slow),
    ],
)
def test_law_of_the_samplers_on_bytes(sampler: str, num_steps: int, expected: float) -> None:
    law = Counts(img256())
    assert total_variation(sampler_law(law, num_steps, sampler), law.p) == pytest.approx(expected, abs=1e-4)


@pytest.mark.usefixtures("both_readings")
@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("num_steps", [1, 3, 10, 100])
def test_posterior_and_bridge_is_exact_at_any_number_of_steps(name: str, num_steps: int) -> None:
    law = Counts(LAWS[name], "distribution")
    assert total_variation(sampler_law(law, num_steps, "posterior"), law.p) < 1e-6  # what starting at 0 costs
    if name != "bern0.3":
        assert total_variation(sampler_law(law, num_steps, "capped"), law.p) > 0.03


def test_the_rounded_sampler_never_draws_a_one_from_a_coin_of_point_three() -> None:
    law = Counts(LAWS["bern0.3"])
    model = model_of(law)
    with pytest.warns(UserWarning, match="biased"):
        assert int(model.sample(2000, 50, sampler="rounded").x.sum()) == 0
    ones = float(model.sample(20_000, 50).x.double().mean())
    assert abs(ones - 0.3) < 4 * math.sqrt(0.21 / 20_000)


@pytest.mark.parametrize("t", [1e-6, 0.01, 0.7, 5.0, 15.0])
def test_birth_rate_is_the_exact_reverse_rate(t: float) -> None:
    """(x + 1) p_t(x + 1) / p_t(x), eq. (4)."""
    law = Counts(LAWS["mix21"])
    f = float(death.logit_of(torch.tensor(t, dtype=torch.float64)))
    marginal = law.p @ law.likelihood(f)
    when = torch.full((21,), t, dtype=torch.float64)
    y, _ = model_of(law).deaths(law.x, when, model_of(law).answer(law.x, when, None))
    rate = death.birth_rate(y, when)[:-1, 0]
    expected = law.x[1:, 0] * marginal[1:] / marginal[:-1]
    # near t = 0 the network's y is a difference of means, good to 1e-15 / t
    np.testing.assert_allclose(rate, expected, rtol=max(1e-10, 1e-13 / t))


def at_all_states(model: Blackout, law: Counts, t: float) -> Tensor:
    """E of model.terms at t over x ~ law and x_t."""
    f = float(death.logit_of(torch.tensor(t, dtype=torch.float64)))
    joint = (law.p[:, None] * law.likelihood(f)).flatten()
    n = len(law.x)
    x, zt = law.x.repeat_interleave(n, 0), law.x.repeat(n, 1)
    keep = joint > 0
    x, zt = x[keep], zt[keep]
    nats = model.terms(x, zt, torch.full((len(x),), t, dtype=torch.float64))
    return (joint[keep] * nats).sum()


def ends(model: Blackout, law: Counts) -> Tensor:
    """E of reconstruction + prior."""
    f = float(death.logit_of(model.grid[1]))
    joint = (law.p[:, None] * law.likelihood(f)).flatten()
    n = len(law.x)
    keep = joint > 0
    x, zt = law.x.repeat_interleave(n, 0)[keep], law.x.repeat(n, 1)[keep]
    return (joint[keep] * model.reconstruction(x, zt)).sum() + (law.p * model.prior(law.x)).sum()


def continuous_bits(law: Counts, pieces: int = 1500, **kwargs: object) -> float:
    model = model_of(law, data_mean=float((law.p[:, None] * law.x).sum() / law.num_sites), **kwargs)
    last = death.last_logit(model.t_end)
    f = (torch.arange(pieces, dtype=torch.float64) + 0.5) / pieces * 2 * last - last
    nats = sum(at_all_states(model, law, t) for t in death.time_of(f).tolist()) / pieces
    return float(nats + ends(model, law)) / math.log(2)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n == "mix21" else []) for n in LAWS])
def test_continuous_bound_is_the_entropy(name: str) -> None:
    law = Counts(LAWS[name])
    bits = continuous_bits(law)
    assert law.entropy / math.log(2) == pytest.approx(BITS[name], abs=5e-6)
    assert bits == pytest.approx(law.entropy / math.log(2), abs=1e-5)


@pytest.mark.usefixtures("both_readings")
@pytest.mark.parametrize("output", ["softplus", "scaled", "distribution"])
def test_the_bound_does_not_depend_on_the_parameterisation(output: str) -> None:
    law, other = Counts(LAWS["mix21"]), Counts(LAWS["mix21"], output)
    assert continuous_bits(other, pieces=40) == pytest.approx(continuous_bits(law, pieces=40), abs=1e-6)


@pytest.mark.parametrize("reading", ["prior", "posterior"])
def test_equal_logits_begin_at_ln_v(reading: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They say that every count is equally likely, and with prior nothing else. Control: read as p(x_0 | x_t) they
    forget what x_t tells."""
    monkeypatch.setattr(Counts, "parametrisation", reading)
    monkeypatch.setattr(Counts, "forward", lambda self, z, f, label=None: torch.zeros(*z.shape, 5).double())
    law = Counts(np.array([0.1, 0.3, 0.2, 0.25, 0.15]), "distribution")
    nats = continuous_bits(law, pieces=300) * math.log(2)
    chain = model_of(law, bound="posterior", num_timesteps=10, data_mean=2.0)
    steps = sum(at_all_states(chain, law, t) for t in chain.grid[2:].tolist()) / 9
    steps = float(steps + ends(chain, law))
    if reading == "prior":
        assert [nats, steps] == pytest.approx([math.log(5)] * 2, abs=1e-4)
    else:
        assert min(nats, steps) > math.log(5) + 4


def test_what_a_checkpoint_of_before_means() -> None:
    """Its configuration does not name the argument: it was trained as posterior, whatever is the default now."""
    options = {"output": "distribution", "loss": "cross_entropy"}
    now, before = (Blackout(Simple(), 5, (1,), **options, **given) for given in ({}, Blackout.defaults_before))
    assert (now.parametrisation, before.parametrisation) == ("prior", "posterior")
    zt, t = torch.tensor([[1]]), torch.tensor([0.4], dtype=torch.float64)
    laws = [m.log_posterior(zt, t, torch.zeros(1, 1, 5).double()).softmax(-1)[0, 0] for m in (now, before)]
    assert laws[1].tolist() == pytest.approx([0, 0.25, 0.25, 0.25, 0.25])
    q = binom.pmf(1, np.arange(5), math.exp(-0.4))
    assert laws[0].tolist() == pytest.approx(list(q / q.sum()), rel=1e-12)


def test_a_wrong_predictor_is_above() -> None:
    law = Counts(LAWS["mix21"])
    exact = continuous_bits(law, pieces=200)
    law.forward = lambda z, f, label=None: 1.1 * Counts.forward(law, z, f, label)
    assert continuous_bits(law, pieces=200) > exact + 1e-2


@pytest.mark.parametrize(
    ("name", "kernel", "num_timesteps"),
    [pytest.param(*key, marks=[pytest.mark.slow] if key[2] == 1000 else []) for key in BOUNDS],
)
def test_bound_of_the_chain(name: str, kernel: str, num_timesteps: int) -> None:
    law = Counts(LAWS[name])
    model = model_of(law, bound=kernel, num_timesteps=num_timesteps, data_mean=float(law.p @ law.x[:, 0].double()))
    nats = sum(at_all_states(model, law, t) for t in model.grid[2:].tolist()) / (num_timesteps - 1)
    bits = float(nats + ends(model, law)) / math.log(2)
    assert bits == pytest.approx(BOUNDS[name, kernel, num_timesteps], abs=1e-5)
    assert bits >= law.entropy / math.log(2) - 1e-9


@pytest.mark.usefixtures("both_readings")
def test_bound_of_the_chain_with_the_posterior_is_the_entropy() -> None:
    law = Counts(LAWS["mix21"], "distribution")
    model = model_of(law, bound="posterior", num_timesteps=10, data_mean=float(law.p @ law.x[:, 0].double()))
    nats = sum(at_all_states(model, law, t) for t in model.grid[2:].tolist()) / 9
    assert float(nats + ends(model, law)) == pytest.approx(law.entropy, abs=1e-5)


def correlated() -> Counts:
    return Counts(0.7 * np.eye(5) / 5 + 0.3 / 25)


@pytest.mark.usefixtures("both_readings")
@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ("poisson", (0.337, 0.0402)),
        ("capped", (0.282, 0.0290)),
        ("posterior", (0.247, 0.0192)),
        ("rounded", (0.498, 0.138)),
    ],
)
def test_two_pixels_that_depend_on_each_other(sampler: str, expected: tuple[float, float]) -> None:
    law = correlated()
    law.output = "distribution" if sampler == "posterior" else "deaths"
    for num_steps, tv in zip((10, 100), expected, strict=True):
        assert total_variation(sampler_law(law, num_steps, sampler), law.p) == pytest.approx(
            tv, abs=6e-4
        )  # three digits are quoted


def test_two_pixels_continuous_bound_is_the_entropy() -> None:
    law = correlated()
    assert continuous_bits(law, pieces=400) == pytest.approx(law.entropy / math.log(2), abs=1e-5)


@pytest.mark.usefixtures("both_readings")
@pytest.mark.parametrize("sampler", ["capped", "poisson", "stochastic", "rounded", "posterior"])
@pytest.mark.filterwarnings("ignore:sampler 'rounded'")
def test_samples_follow_the_enumerated_law(sampler: str) -> None:
    """The drawing itself: 20,000 samples at 6 steps, chi-square against the exact law of the sampler."""
    law = correlated()
    law.output = "distribution" if sampler == "posterior" else "deaths"
    expected = sampler_law(law, 6, sampler).numpy()
    x = model_of(law).sample(20_000, 6, sampler=sampler, seed=1).x
    counts = np.bincount(law.index(x).numpy(), minlength=25)
    keep = expected * 20_000 > 5
    chi2 = ((counts - 20_000 * expected)[keep] ** 2 / (20_000 * expected[keep])).sum()
    dof = keep.sum() - 1
    assert chi2 < dof + 4 * math.sqrt(2 * dof)
    p = law.p.numpy()
    assert ((counts - 20_000 * p) ** 2 / (20_000 * p)).sum() > 10 * (dof + 4 * math.sqrt(2 * dof))


def test_infilling_follows_the_law_that_its_definition_gives() -> None:
    """One of two pixels known. Its own path is exact; the other's births see it only as it is at the time, so that
    the result lies between the marginal and the conditional law: enumerated, and drawn."""
    law, num_steps = correlated(), 30
    model = model_of(law)
    path = [*death.observation_times(num_steps, 15.0).flip(0).tolist(), 0.0]
    first = law.x[:, 0]
    d = torch.zeros(25, dtype=torch.float64)
    at_end = births.binomial_table(torch.tensor([math.exp(-15.0)], dtype=torch.float64), 4)[0]
    d[[0, 5, 10, 15, 20]] = at_end[3]
    for t, s in itertools.pairwise(path):
        when = torch.tensor([[t], [s]], dtype=torch.float64).expand(2, 25)
        sites = model.reverse_law(law.x, when[0], when[1]).probs()
        table = births.binomial_table(death.bridge_probability(when[0, :1], when[1, :1]), 4)[0]
        m, n = (3 - first).clamp(min=0), torch.arange(5) - first[:, None]
        known = torch.where(n >= 0, table[m].gather(1, n.clamp(min=0)), 0.0)
        d = d @ (known[:, :, None] * sites[:, 1][:, None, :]).reshape(25, 25)
    expected = d.reshape(5, 5)
    assert float(expected[3].sum()) == pytest.approx(1, abs=1e-12)
    x = model.sample(20_000, num_steps, clamp=(torch.tensor([3, 0]), torch.tensor([True, False])), seed=2).x
    assert (x[:, 0] == 3).all()
    frequency = torch.bincount(x[:, 1], minlength=5).double() / 20_000
    assert total_variation(frequency, expected[3]) < 0.012  # the expected distance of 20,000 exact draws is .005
    conditional, marginal = law.p.reshape(5, 5)[3] * 5, torch.full((5,), 0.2).double()
    assert total_variation(frequency, marginal) > 0.12
    assert total_variation(expected[3], conditional) < 0.6 * total_variation(marginal, conditional)


class Simple(nn.Module):
    """Some network: raw values that depend on the state and the time."""

    def forward(self, z: Tensor, f: Tensor, label: Tensor | None = None) -> Tensor:
        return 0.2 * z + 0.1 * f[:, None].tanh() + 1.0


@pytest.mark.parametrize("bound", ["continuous", "poisson", "capped"])
def test_nelbo_is_unbiased(bound: str) -> None:
    """10,000 rows of one count, against its exact expectation; with an early t_end, so that both ends count."""
    model = Blackout(Simple(), 8, (1,), output="scaled", bound=bound, num_timesteps=20, t_end=2.0, time_input="logit")
    x = torch.full((10_000, 1), 5)
    estimates = model.nelbo(x, num_samples=10)
    exact, without_ends = expected_nats(model, 5)
    stderr = float(estimates.std()) / 100
    assert stderr < 0.03
    assert abs(float(estimates.mean()) - exact) < 4 * stderr
    assert exact - without_ends > 40 * stderr  # control: both ends belong to it


def expected_nats(model: Blackout, x0: int) -> tuple[float, float]:
    """The expectation of nelbo of one count, with and without reconstruction and prior."""
    last = death.last_logit(model.t_end)
    path = model.grid[2:]
    if model.bound == "continuous":
        path = death.time_of((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000 * 2 * last - last)
    zt = torch.arange(x0 + 1)[:, None]
    x = torch.full_like(zt, x0)
    table = births.binomial_table(death.survival(torch.cat([path, model.grid[1:2]])), x0)[:, x0]  # P(x_t | x_0)
    total = sum(float(q @ model.terms(x, zt, t.expand(len(x)))) for q, t in zip(table, path, strict=False)) / len(path)
    return total + float(table[-1] @ model.reconstruction(x, zt)) + float(model.prior(x)[0]), total
