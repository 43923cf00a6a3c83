"""The death process: times, thinning, bridge, weights, losses; against independent formulas and official numbers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom, poisson
from torch import Tensor

from ggm_lightning.core import births, counting, death, noise
from ggm_lightning.core.births import BirthLaw

SETS = {"cifar": (15.0, 255), "mnist": (10.0, 1)}
ROW = torch.arange(3)


@pytest.fixture(scope="module")
def arrays(oracles: Path) -> np.lib.npyio.NpzFile:
    return np.load(oracles / "blackout_oracle.npz")


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", SETS)
def test_times_weights_and_bridge_are_the_published_ones(arrays: np.lib.npyio.NpzFile, name: str) -> None:
    t_end, _ = SETS[name]
    closed = death.observation_times(1000, t_end)
    published = torch.from_numpy(arrays[f"{name}_obs_times"])
    np.testing.assert_allclose(closed, published, rtol=1e-5)  # the published ones come from a bisection
    weights = {f"{name}_inst_weights": lambda t, s: 1000 * death.instantaneous_weight(t, s)}
    weights[f"{name}_bb_p_all"] = death.bridge_probability
    if name == "cifar":
        weights["cifar_fin_weights"] = death.finite_time_weight
    for times, rtol in ((closed, 5e-4), (published, 1e-12)):
        before = torch.cat([f64(0.0), times[:-1]])
        for key, weight in weights.items():
            np.testing.assert_allclose(weight(times, before), arrays[key], rtol=rtol)
    # control: differences of probabilities that were rounded to float32
    p = torch.exp(-published.float())
    before = torch.cat([torch.ones(1), p[:-1]])
    assert np.abs(((before - p) / (1 - p)).numpy() / arrays[f"{name}_bb_p_all"] - 1).max() > 5e-3


def test_the_grid_is_even_in_the_logit() -> None:
    t = death.observation_times(1000, 15.0)
    steps = death.logit_of(t).diff()
    assert (steps + 0.0300300294).abs().max() < 1e-9
    assert float(t[0]) == pytest.approx(3.0590e-7, rel=1e-4)
    assert float(death.death_probability(t[:1])) == pytest.approx(1 / (1 + math.exp(14.9999996941)), rel=1e-12)
    f = torch.linspace(-30, 30, 61, dtype=torch.float64)
    assert (death.logit_of(death.time_of(f)) - f).abs().max() < 1e-12
    assert death.observation_times(1, 7.0).tolist() == [7.0]
    assert float(death.bridge_probability(f64(3.0), f64(0.0))) == 1.0


@pytest.mark.parametrize("name", SETS)
def test_the_published_noise_is_reproduced_count_by_count(arrays: np.lib.npyio.NpzFile, name: str) -> None:
    """Same uniforms, same image, same times: the same x_t."""
    _, cap = SETS[name]
    image = arrays[f"{name}_noise_img"]
    x0 = np.rint(image * 255) if cap == 255 else image > 0.5
    times = torch.from_numpy(arrays[f"{name}_obs_times"])[torch.from_numpy(arrays[f"{name}_noise_tidx"])]
    u = torch.from_numpy(arrays[f"{name}_noise_u"].astype(np.float64)).flatten(1)
    flat = torch.from_numpy(x0.astype(np.int64)).flatten(1)
    xt = death.thin(flat, times, u, cap)
    deaths = (flat - xt).reshape(image.shape).permute(0, 3, 1, 2)
    assert np.array_equal(deaths, arrays[f"{name}_noise_target"])


@pytest.mark.parametrize("cap", [1, 7, 255])
def test_thinning_is_the_inverse_of_the_cumulative_law(cap: int) -> None:
    """F(k - 1) <= u < F(k), by scipy's F, for every count, at both ends of the times and for extreme u."""
    t = torch.cat([f64(0.0, 1e-12, 600.0), death.observation_times(14, 15.0)])
    x = torch.arange(cap + 1).repeat(60 if cap < 255 else 12)
    u = noise.uniform("test", seed=1, step=0, row=torch.arange(len(t)), num_sites=len(x))
    u[:, : cap + 1] *= 1e-6
    u[:, cap + 1 : 2 * cap + 2] = 1 - 1e-6 * u[:, cap + 1 : 2 * cap + 2]
    k = death.thin(x.expand(len(t), -1), t, u, cap).numpy()
    p = np.exp(-t.numpy())[:, None]
    assert (binom.cdf(k - 1, x.numpy(), p) <= u.numpy() + 1e-12).all()
    assert (u.numpy() <= binom.cdf(k, x.numpy(), p) + 1e-12).all()
    assert ((k >= 0) & (k <= x.numpy())).all()
    wrong = np.minimum(k + 1, x.numpy())  # control: one more survivor
    assert (binom.cdf(wrong - 1, x.numpy(), p) > u.numpy() + 1e-11).mean() > 0.2


def test_deaths_near_p_1_have_their_own_probability() -> None:
    """At the first published time 255 units lose one with probability 7.8e-5: the uniforms below it, and only those."""
    t = death.observation_times(1000, 15.0)[:1]
    lost = -math.expm1(255 * math.log1p(-float(death.death_probability(t))))
    for share, expected in ((1 - 1e-9, 254), (1 + 1e-9, 255)):
        u = f64(lost * share)[None]
        assert int(death.thin(torch.tensor([[255]]), t, u, 255)) == expected
    float32 = 1 - float(torch.exp(-t.float()))
    assert abs(float32 / float(death.death_probability(t)) - 1) > 0.02  # what 1 - p in float32 would give


@pytest.mark.parametrize(("n", "p"), [(20, 0.3), (255, 0.97), (255, 1e-4), (3, 0.7), (1, 0.5), (0, 0.2), (7, 1.0)])
def test_draws_with_a_probability_for_each_site(n: int, p: float) -> None:
    u = noise.uniform("test", seed=2, step=0, row=torch.zeros(1).long(), num_sites=5000)[0]
    k = counting.binomial(torch.full((5000,), n), torch.full((5000,), p).double(), u).numpy()
    # the rarer outcome is counted: above one half, from the other end of the uniforms
    v, j, q = (u.numpy(), k, p) if p <= 0.5 else (1 - u.numpy(), n - k, 1 - p)
    assert (binom.cdf(j - 1, n, q) <= v + 1e-12).all()
    assert (v <= binom.cdf(j, n, q) + 1e-12).all()
    rate = 1 + n * p
    k = counting.poisson(torch.full((5000,), rate).double(), torch.full((5000,), 9), u).numpy()
    assert k.max() <= 9
    assert (poisson.cdf(k - 1, rate) <= u.numpy() + 1e-12).all()
    assert ((u.numpy() <= poisson.cdf(k, rate) + 1e-12) | (k == 9)).all()
    with pytest.raises(ValueError, match="rate"):
        counting.poisson(f64(800.0), torch.tensor([9]), f64(0.5))


def test_a_row_alone_is_the_row_in_a_batch() -> None:
    x = torch.randint(0, 256, (3, 50), generator=torch.Generator().manual_seed(0))
    t = f64(0.01, 0.7, 5.0)
    u = noise.uniform("test", seed=0, step=3, row=ROW, num_sites=50)
    together = death.thin(x, t, u, 255)
    for b in range(3):
        alone = noise.uniform("test", seed=0, step=3, row=ROW[b : b + 1], num_sites=50)
        assert torch.equal(death.thin(x[b : b + 1], t[b : b + 1], alone, 255), together[b : b + 1])
    other = noise.uniform("test", seed=0, step=4, row=ROW, num_sites=50)
    assert not torch.equal(death.thin(x, t, other, 255), together)


def test_bridge_joins_both_ends() -> None:
    """Thinning to t and bridging back to s is thinning to s: in law, by enumeration."""
    t, s = f64(1.1), f64(0.4)
    pi = death.bridge_probability(t, s)
    at_t = births.binomial_table(death.survival(t), 7)[0]  # [x0, x_t]
    table = births.binomial_table(pi, 7)[0]  # [m, n]
    for x0 in range(8):
        law = torch.zeros(8).double()
        for xt in range(x0 + 1):
            law[xt : x0 + 1] += at_t[x0, xt] * table[x0 - xt, : x0 - xt + 1]
        assert (law - births.binomial_table(death.survival(s), 7)[0, x0]).abs().max() < 1e-14
    x0, xt = torch.tensor([[7, 5, 0]]), torch.tensor([[2, 5, 0]])
    u = f64(0.3, 0.9, 0.2)[None]
    assert torch.equal(death.bridge(x0, xt, f64(1.0), u, 7), x0)
    assert torch.equal(death.bridge(x0, xt, f64(0.0), u, 7), xt)


@pytest.mark.parametrize("pi", [1e-4, 0.3, 1.0])
def test_closed_divergences_are_the_sums(pi: float) -> None:
    """kernel_divergence against sums over scipy's laws, every (x_t, m) with cap 7."""
    pairs = [(x, m) for x in range(8) for m in range(8 - x)]
    xt, m = (torch.tensor(part)[None] for part in zip(*pairs, strict=True))
    y = torch.minimum(0.3 + 0.61 * m.double(), 0.97 * (7 - xt))
    for kernel in ("poisson", "capped"):
        law = BirthLaw(xt, y, f64(pi), 7, kernel)
        nats = births.kernel_divergence(law, m, torch.log(y))[0]
        for (x, deaths), got, mean in zip(pairs, nats.tolist(), y[0].tolist(), strict=True):
            n = np.arange(deaths + 1)
            q, log_q = binom.pmf(n, deaths, pi), binom.logpmf(n, deaths, pi)
            room = 7 - x
            log_k = (
                poisson.logpmf(n, pi * mean) if kernel == "poisson" else binom.logpmf(n, room, pi * mean / max(room, 1))
            )
            expected = np.where(q > 0, q * (np.where(q > 0, log_q, 0.0) - log_k), 0.0).sum()
            assert got == pytest.approx(expected, abs=1e-10)
    with pytest.raises(ValueError, match="infinite"):
        births.kernel_divergence(BirthLaw(xt, y, f64(pi), 7, "rounded"), m, torch.log(y))


def test_the_loss_is_least_at_the_conditional_mean() -> None:
    m = f64(0, 1, 1, 4, 7)
    y = torch.linspace(0.1, 9, 8901, dtype=torch.float64)
    grid = y[:, None].expand(-1, len(m))
    values = death.published_loss(grid, torch.log(grid), m.expand_as(grid)).mean(1)
    assert float(y[values.argmin()]) == pytest.approx(float(m.mean()), abs=1e-3)
    assert float(death.divergence(m[1:], torch.log(m[1:]), m[1:]).abs().max()) == 0.0
    assert (death.divergence(grid, torch.log(grid), m.expand_as(grid)) >= -1e-15).all()


@pytest.mark.parametrize("raw", [-1e4, -200.0, -104.0, -88.0, -15.0, 0.0, 19.9, 20.1, 300.0])
def test_loss_and_gradient_are_finite_in_float32(raw: float) -> None:
    x = torch.tensor([raw, raw], requires_grad=True)
    m = torch.tensor([0.0, 3.0])
    loss = death.published_loss(torch.nn.functional.softplus(x), death.log_softplus(x), m)
    loss.sum().backward()
    sigma = 1 / (1 + math.exp(-raw)) if raw > -700 else 0.0
    y = math.log1p(math.exp(raw)) if raw < 30 else raw
    assert torch.isfinite(loss).all()
    # w (1 - m/y) sigma, whose limit is -m as raw falls
    ratio = sigma / y if y > 0 else 1.0
    assert x.grad.tolist() == pytest.approx([sigma, sigma - 3 * ratio], rel=1e-5, abs=1e-30)
    if raw < -110:
        naive = torch.log(torch.nn.functional.softplus(torch.tensor(raw)))
        assert not torch.isfinite(naive)  # what the published code takes the logarithm of


def test_prior() -> None:
    nats = death.prior_divergence(20, 2.0, 8.6)
    x = np.arange(21)
    for x0 in (0, 5, 20):
        q = binom.pmf(x, x0, math.exp(-2.0))
        log_k = poisson.logpmf(x, 8.6 * math.exp(-2.0))
        expected = np.where(q > 0, q * (np.log(np.maximum(q, 1e-300)) - log_k), 0.0).sum()
        assert float(nats[x0]) == pytest.approx(expected, abs=1e-12)
    assert float(death.prior_divergence(255, 15.0, 100.0).max()) < 1e-4


def test_log_transition_is_the_binomial_law_but_for_a_constant_per_count() -> None:
    t = torch.tensor([1e-6, 0.4, 15.0], dtype=torch.float64)
    xt = torch.tensor([[0, 3, 7, 12]]).expand(3, -1)
    log_q = death.log_transition(xt, t, 12)
    expected = binom.logpmf(xt[..., None], np.arange(13), death.survival(t)[:, None, None])
    expected = expected + xt[..., None].numpy() * t[:, None, None].numpy()  # without x_t ln p
    np.testing.assert_allclose(log_q, expected, rtol=1e-9, atol=1e-9)
    assert bool((log_q[:, 1, :3] == -math.inf).all())  # below x_t
    assert float(log_q[2, 0].abs().max()) < 1e-5  # nobody left, late: it tells nothing
    assert death.log_transition(xt[:1], 0 * t[:1], 12)[0, 1].tolist() == [-math.inf] * 3 + [0.0] + [-math.inf] * 9
    assert float((log_q[1, 1] - log_q[1, 0])[3:].std()) > 0.5  # control: it depends on x_0
