"""Bounds over a data set: float64 sums, standard errors, any division into batches and ranks."""

from __future__ import annotations

import math

import pytest
import torch

from ggm_lightning.metrics.likelihood import Likelihood, error_of_states

N = 5


def values(seed: int = 0, count: int = 101) -> torch.Tensor:
    return 3 + torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_units_and_standard_errors() -> None:
    nats, metric = values(), Likelihood(N)
    metric.update(nats)
    result = metric.compute()
    mean, stderr = nats.mean().item(), (nats.std() / math.sqrt(len(nats))).item()
    assert result["nelbo"].item() == pytest.approx(mean, rel=1e-12)
    assert result["nelbo_stderr"].item() == pytest.approx(stderr, rel=1e-9)
    assert result["bpd"].item() == pytest.approx(mean / N / math.log(2), rel=1e-12)
    assert result["bpd_stderr"].item() == pytest.approx(stderr / N / math.log(2), rel=1e-9)
    assert result["ppl"].item() == pytest.approx(math.exp(mean / N), rel=1e-12)
    assert result["ppl_stderr"].item() == pytest.approx(math.exp(mean / N) * stderr / N, rel=1e-9)
    assert "ppl" not in Likelihood(N, perplexity=False).compute()


def test_uneven_batches_and_ranks_weigh_every_example_once() -> None:
    nats, whole = values(), Likelihood(N)
    whole.update(nats)
    ranks = [Likelihood(N), Likelihood(N)]
    for i, part in enumerate(nats.split(7)):  # the last of 15 batches has 3 examples; one rank has a batch more
        ranks[i % 2].update(part)
    for name in ("total", "total_of_squares", "count"):  # what torchmetrics does across ranks: dist_reduce_fx="sum"
        setattr(ranks[0], name, getattr(ranks[0], name) + getattr(ranks[1], name))
    for name, value in whole.compute().items():
        assert ranks[0].compute()[name].item() == pytest.approx(value.item(), rel=1e-12), name
    means = torch.stack([part.mean() for part in nats.split(7)])
    assert means.mean().item() != pytest.approx(nats.mean().item(), rel=1e-6)  # control: a mean of batch means differs


def test_sums_are_float64_whatever_comes_in() -> None:
    metric = Likelihood(N)
    for _ in range(100):
        metric.update(torch.full((1000,), 16_777_217.0, dtype=torch.float64))
    assert metric.compute()["nelbo"].item() == 16_777_217.0  # float32 sums would stop at 2^24 of these
    half = Likelihood(N)
    half.update(torch.tensor([1.0, 2.0], dtype=torch.bfloat16))
    assert half.total.dtype == torch.float64


def test_one_example_has_no_standard_error_and_reset_forgets() -> None:
    metric = Likelihood(N)
    metric.update(torch.tensor([2.0]))
    assert metric.compute()["nelbo_stderr"] == 0
    metric.reset()
    metric.update(torch.tensor([4.0]))
    assert metric.compute()["nelbo"] == 4


# ------------------------------------------------------------------ bounds that are none


def collected(nats: torch.Tensor) -> Likelihood:
    metric = Likelihood(N)
    metric.update(nats)
    return metric


def test_a_negative_upper_bound_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the bound is -3\.\d+ ± .* over 101 rows, but an upper bound .* negative"):
        collected(-values()).compute()
    assert collected(values()).compute()["nelbo"] > 3  # control


def test_noise_below_zero_is_no_mistake() -> None:
    """The standard error over the rows decides: rows of mean -0.5 and deviation 2 may well be a bound of 0."""
    noise = torch.randn(101, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    noise = (noise - noise.mean()) / noise.std() * 2
    error = 2 / math.sqrt(101)
    assert collected(noise - 2.9 * error).compute()["nelbo"] < 0
    with pytest.raises(ValueError, match="cannot be negative"):
        collected(noise - 3.1 * error).compute()


def test_one_row_and_rounding_pass() -> None:
    assert collected(torch.tensor([-312.0])).compute()["nelbo"] == -312  # nothing is known of its noise
    assert collected(torch.full((7,), -1e-5)).compute()["nelbo"] < 0  # certain data, by float32
    with pytest.raises(ValueError, match="cannot be negative"):
        collected(torch.full((7,), -1e-2)).compute()
    assert math.isnan(collected(torch.full((7,), math.nan)).compute()["nelbo"])  # the guard's matter, not this one


@pytest.mark.parametrize("trend", [0.0, 40.0])
@pytest.mark.parametrize("num_samples", [2, 4, 16])
def test_error_of_states_leaves_out_what_changes_with_the_time(trend: float, num_samples: int) -> None:
    """53 rows, measured 300 times anew; nats rise with t by 40, in each row a little differently, and early states have
    the most noise. The spread is known to 4 %. Control: as if the times were independent, the error is far off."""
    rng = torch.Generator().manual_seed(num_samples)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=rng, dtype=torch.float64)

    level, slope = 10 * drawn(53, 1), trend * (1 + 0.2 * (drawn(53, 1) - 0.5))
    means, errors, independent = [], [], []
    for _ in range(300):
        t = (torch.arange(num_samples) + drawn(53, 1)) / num_samples  # one place in all parts
        nats = level + slope * t + (2 + 3 * (1 - t)) * (drawn(53, num_samples) - 0.5)
        means.append(float(nats.mean()))
        errors.append(error_of_states(nats))
        independent.append(float(nats.var(1).mean() / num_samples / 53) ** 0.5)
    spread = float(torch.tensor(means).std())
    printed, plain = (float(torch.tensor(one).square().mean().sqrt()) for one in (errors, independent))
    assert 0.88 < spread / printed < 1.12
    assert (plain > 1.5 * spread) == (trend > 0)


def test_one_row_or_one_state_tells_no_error_of_states() -> None:
    assert error_of_states(torch.zeros(1, 4)) is None
    assert error_of_states(torch.zeros(4, 1)) is None
