"""The latent's process: T5 (identities), clocks and weights, against formulas written out here."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ggm_lightning.core import gaussian, masking, noise, times
from ggm_lightning.core.gaussian import LatentClock
from ggm_lightning.core.schedules import Linear, Polynomial, Schedule

SCHEDULES: dict[str, Schedule] = {
    "sqrt": gaussian.Sqrt(),
    "linear": Linear(),
    "cosine": gaussian.SquaredCosine(),
    "power": Polynomial(2.0),
    "leads": gaussian.LatentLeads(3.0, eps=1e-4),
}
# abar^2 = (1 - 2e-4) g(t) + 1e-4
RAW = {
    "sqrt": lambda t: math.sqrt(1 - t),
    "linear": lambda t: 1 - t,
    "cosine": lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2,
    "power": lambda t: 1 - t**2,
    "leads": lambda t: (1 - t) ** 3,
}
TIMES = torch.tensor([0.0, 1e-9, 0.013, 0.3, 0.77, 0.999, 1.0], dtype=torch.float64)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_the_stated_functions(name: str) -> None:
    schedule = SCHEDULES[name]
    expected = [(1 - 2e-4) * RAW[name](float(t)) + 1e-4 for t in TIMES]
    assert schedule.alpha(TIMES).tolist() == pytest.approx(expected, abs=1e-14)
    assert (schedule.alpha(TIMES) + schedule.masked_fraction(TIMES)).tolist() == pytest.approx([1.0] * 7, abs=1e-15)
    inner = TIMES[2:-1].clone().requires_grad_()
    (slope,) = torch.autograd.grad(schedule.alpha(inner).sum(), inner)
    torch.testing.assert_close(schedule.dalpha(inner.detach()), slope, rtol=1e-9, atol=1e-12)
    back = schedule.inverse(schedule.masked_fraction(TIMES[2:-1]))
    torch.testing.assert_close(back, TIMES[2:-1], rtol=1e-9, atol=1e-12)
    (snr_slope,) = torch.autograd.grad(gaussian.snr(schedule, inner).sum(), inner)
    torch.testing.assert_close(gaussian.snr_rate(schedule, inner.detach()), -snr_slope, rtol=1e-8, atol=1e-12)
    found = gaussian.time_at(schedule, schedule.log_snr(TIMES[2:-1]))
    torch.testing.assert_close(found, TIMES[2:-1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_t5_the_ddpm_step_is_the_posterior_and_its_kl_the_snr_weight(name: str) -> None:
    schedule = SCHEDULES[name]
    s, t = doubles(0.02, 0.4, 0.9), doubles(0.1, 0.55, 1.0)
    a_t, a_s, v_t, v_s = schedule.alpha(t), schedule.alpha(s), schedule.masked_fraction(t), schedule.masked_fraction(s)
    z, z0 = (torch.randn(3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    law = gaussian.step("ddpm", schedule, z, z0, t, s)
    # by conditioning the Gaussian pair (z_s, z_t) given z_0: z_t = r z_s + noise
    r = (a_t / a_s).sqrt()
    gain = r * v_s / v_t
    wide = [x[:, None, None] for x in (gain, r, a_s.sqrt())]
    mean = wide[2] * z0 + wide[0] * (z - wide[1] * wide[2] * z0)
    assert (law.mean - mean).abs().max() <= 1e-12
    assert (law.std**2 - (v_s - gain**2 * v_t)).abs().max() <= 1e-12
    weight = (a_s.sqrt() * (1 - a_t / a_s) / v_t) ** 2 / (2 * law.std**2)
    drop = gaussian.snr_drop(schedule, s, t)
    assert (weight / (0.5 * drop) - 1).abs().max() <= 1e-12
    assert (drop / (gaussian.snr(schedule, s) - gaussian.snr(schedule, t)) - 1).abs().max() <= 1e-9
    off = gaussian.step("ddpm", schedule, z, z0, t, s * 0.9).std
    assert (off - law.std).abs().min() > 1e-11  # control: another step is told apart


def test_t5_reveal_probability() -> None:
    schedule = gaussian.LatentLeads(2.0)
    t, s = doubles(1.0, 0.5, 0.1), doubles(0.5, 0.1, 0.0)
    expected = ((1 - s) ** 2 - (1 - t) ** 2) / (1 - (1 - t) ** 2)
    assert (schedule.reveal_probability(t, s) - expected).abs().max() <= 1e-12
    assert (Linear(0.0).reveal_probability(t, s) - expected).abs().max() > 1e-2


def test_t5_ddim_keeps_the_noise_and_reaches_the_prediction() -> None:
    schedule = gaussian.Sqrt(0.0)
    e, z0 = (torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    t, s = doubles(0.7, 0.99), doubles(0.2, 0.0)
    law = gaussian.step("ddim", schedule, gaussian.diffuse(schedule, z0, t, e), z0, t, s)
    assert (law.draw(torch.ones_like(e)) - gaussian.diffuse(schedule, z0, s, e)).abs().max() <= 1e-12
    assert torch.equal(law.draw(e)[1], law.mean[1])
    assert (law.mean[1] - z0[1]).abs().max() <= 1e-12
    with pytest.raises(ValueError, match="choose ddim or ddpm"):
        gaussian.step("euler", schedule, z0, z0, t, s)


def test_prior_is_the_kl_of_two_gaussians() -> None:
    schedule = Linear(0.2)
    z0 = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q = torch.distributions.Normal(math.sqrt(0.2) * z0, math.sqrt(0.8))
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(torch.zeros_like(z0), 1.0)).sum((1, 2))
    torch.testing.assert_close(gaussian.prior(schedule, z0), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("max_snr", [None, 64.0])
def test_both_ways_of_spreading_times_have_the_same_mean(name: str, max_snr: float | None) -> None:
    """sum or integral of weight x error, for the error 1/(1 + SNR) of a unit Gaussian: ln of a ratio of 1 + SNR."""
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    clock = LatentClock.to_snr(SCHEDULES[name], max_snr, None, 1)
    ends = gaussian.snr(SCHEDULES[name], clock.time(doubles(0.0, 1.0)))
    if max_snr:
        assert float(ends[0]) == pytest.approx(64, rel=1e-9)
    exact = 0.5 * float(torch.log1p(ends).diff().abs())
    t, weight = clock.importance(u)
    assert float((weight / (1 + gaussian.snr(SCHEDULES[name], clock.time(t)))).mean()) == pytest.approx(exact, rel=1e-6)
    plain = clock.weight(u) / (1 + gaussian.snr(SCHEDULES[name], clock.time(u)))
    assert float(plain.mean()) == pytest.approx(exact, rel=1e-2)  # infinite at one end for some: a slow midpoint sum


@pytest.mark.parametrize("first_level", [1, 2])
@pytest.mark.parametrize("num_levels", [1, 2, 7])
def test_levels_of_the_discrete_bound(num_levels: int, first_level: int) -> None:
    schedule = gaussian.Sqrt()
    clock = LatentClock.to_snr(schedule, 64.0, num_levels, first_level)
    t = torch.arange(1, num_levels + 1, dtype=torch.float64) / num_levels
    levels = clock.time(torch.arange(num_levels + 1, dtype=torch.float64) / num_levels)
    drop = gaussian.snr(schedule, levels[:-1]) - gaussian.snr(schedule, levels[1:])
    expected = 0.5 * drop * (torch.arange(1, num_levels + 1) >= first_level)
    torch.testing.assert_close(clock.weight(t) / num_levels, expected, rtol=1e-9, atol=1e-12)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    drawn, weight = clock.importance(u)
    summed = torch.zeros(num_levels, dtype=torch.float64)
    summed.index_add_(0, (drawn * num_levels).round().long() - 1, weight / len(u))
    torch.testing.assert_close(summed, expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(
    "schedule", [gaussian.Sqrt(0.0), Linear(0.0), Polynomial(2.0, 0.0)], ids=["sqrt", "linear", "power"]
)
def test_a_latent_that_ends_in_pure_noise_has_a_finite_bound(schedule: Schedule) -> None:
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    clock = LatentClock.to_snr(schedule, 64.0, None, 1)
    t, weight = clock.importance(u)
    # the product with the error of a unit Gaussian does not vary
    product = weight / (1 + gaussian.snr(schedule, clock.time(t)))
    torch.testing.assert_close(product, torch.full_like(product, 0.5 * math.log(65)), rtol=1e-9, atol=0)
    levels = LatentClock.to_snr(schedule, 64.0, 5, 1)
    assert float(levels.importance(u)[1].mean()) == pytest.approx(32, rel=1e-2)  # half of all that the SNR drops
    with pytest.raises(
        ValueError, match=r"max_snr is null, but the latent schedule has no noise at t = 0.*eps above 0"
    ):
        LatentClock.to_snr(schedule, None, None, 1)
    assert torch.isfinite(LatentClock.to_snr(schedule, None, 5, 2).importance(u)[1]).all()  # FUJI never comes to t = 0


def test_impossible_clocks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"max_snr is 1000000.0; the latent schedule runs from 1.0e-04 to 9999"):
        LatentClock.to_snr(gaussian.Sqrt(), 1e6, None, 1)
    with pytest.raises(ValueError, match=r"exponent is 0\.0"):
        gaussian.LatentLeads(0.0)
    with pytest.raises(ValueError, match=r"offset is -1\.0"):
        gaussian.SquaredCosine(-1.0)


@pytest.mark.parametrize("total", [1, 2, 7, 12, 512])
def test_the_second_clock_is_stratified_and_fills_the_square(total: int) -> None:
    row = torch.arange(total)
    first = times.stratified(seed=0, step=4, row=row, total=total)
    second = gaussian.independent_times(seed=0, step=4, row=row, total=total)
    gaps = second.sort().values.diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / total), rtol=0, atol=1e-12)
    alone = gaussian.independent_times(seed=0, step=4, row=row[-1:], total=total)
    assert torch.equal(alone, second[-1:])
    if total == 512:
        boxes = ((first * 8).long() * 8 + (second * 8).long()).bincount(minlength=64)
        assert boxes.min() >= 4  # 8 on average; equal orders would fill 8 to 16 of the 64 boxes
        assert ((first * 8).long() * 8 + (((first + 0.3) % 1) * 8).long()).bincount(minlength=64).min() == 0


def test_normal_numbers_are_normal_and_stand_alone() -> None:
    row = torch.arange(400)
    e = noise.normal("latent", seed=1, step=2, row=row, num_sites=500)
    n = e.numel()
    assert abs(float(e.mean())) < 4 / math.sqrt(n)
    assert abs(float(e.var()) - 1) < 4 * math.sqrt(2 / n)
    assert abs(float((e**4).mean()) - 3) < 4 * math.sqrt(96 / n)
    assert torch.equal(noise.normal("latent", seed=1, step=2, row=row[7:8], num_sites=500), e[7:8])


def test_the_token_weight_of_a_leading_latent() -> None:
    schedule = gaussian.LatentLeads(3.0)
    t = doubles(0.2, 0.7)
    expected = 3 * (1 - t) ** 2 / (1 - (1 - t) ** 3)
    torch.testing.assert_close(masking.continuous_weight(schedule, t), expected, rtol=1e-12, atol=1e-12)
