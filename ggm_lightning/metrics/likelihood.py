"""Likelihood bounds over a data set: nats per example, bits per dimension, perplexity, each with its standard error.

Sums are float64 and are added across ranks, so uneven last batches and uneven ranks weigh every example once. The
standard error is over examples (each example's own sampling noise is part of it); that of exp and of the change of
units follows by the delta method.

An upper bound on -log p of discrete data cannot be negative, since p is at most 1: a mean that lies below 0 by more
than three standard errors is no bound, and an error.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64
from torch import Tensor
from torchmetrics import Metric

_ROUNDING = 1e-4  # nats per site that float32 losses times the weights of early times may be off by


def error_of_states(nats: Float64[Tensor, "n m"]) -> float | None:
    """Standard error of the mean of all nats that comes of the states that were drawn, and not of the rows; None of one
    row or of one state for each.

    Row i has m states, one from each of m equal parts of the times, all at the same place of their part:

        d_ij = y_ij - mean_j,    sigma^2 = sum (d_ij+1 - d_ij)^2 / (2 (n - 1)(m - 1))
        error^2 = (sigma^2 / m + trend^2 / (12 m^2)) / n,    trend = m / (m - 1) (mean_m - mean_1)

    What changes with t, of all rows (mean_j) or slowly within one (differences of neighbours), is no noise: each row
    has one state in each part. What is left of it is the place within the parts, uniform on [0, 1/m): the second term.
    Where rows of few sites jump from part to part, each in its own way, the error is too large.

    Args:
        nats: in the order of their times.
    """
    n, m = nats.shape
    if n < 2 or m < 2:
        return None
    part = nats.mean(0)
    steps = (nats - part).diff(dim=1)
    variance = float(steps.square().sum()) / (2 * (n - 1) * (m - 1))
    trend = float(part[-1] - part[0]) * m / (m - 1)
    return math.sqrt((variance / m + trend**2 / (12 * m**2)) / n)


class Likelihood(Metric):
    """Collects per-example bounds in nats.

    Args:
        num_sites: dimensions of one example (tokens, pixels x channels).
        perplexity: also report exp(nats per site), the text convention.
    """

    full_state_update = False

    def __init__(self, num_sites: int, perplexity: bool = True) -> None:
        super().__init__()
        self.num_sites = num_sites
        self.perplexity = perplexity
        for name in ("total", "total_of_squares", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nats: Tensor) -> None:
        """nats: Float[b], one bound per example."""
        nats = nats.detach().double()
        self.total += nats.sum()
        self.total_of_squares += nats.square().sum()
        self.count += nats.numel()

    def compute(self) -> dict[str, Tensor]:
        """nelbo (nats per example), bpd (bits per dimension), ppl, and `_stderr` of each (0 for one example).

        Raises ValueError where mean + 3 standard errors is negative by more than rounding. A single row passes: nothing
        is known of its noise, and an estimate of one row may be negative where the bound is not.
        """
        mean = self.total / self.count  # type: ignore[arg-type]
        variance = (self.total_of_squares / self.count - mean.square()).clamp(min=0)  # type: ignore[arg-type]
        stderr = (variance / (self.count - 1).clamp(min=1)).sqrt()
        self._refuse_negative(mean, stderr)
        per_bit = 1 / (self.num_sites * math.log(2))
        values = {"nelbo": mean, "nelbo_stderr": stderr, "bpd": mean * per_bit, "bpd_stderr": stderr * per_bit}
        if self.perplexity:
            ppl = torch.exp(mean / self.num_sites)
            values |= {"ppl": ppl, "ppl_stderr": ppl * stderr / self.num_sites}
        return values

    def _refuse_negative(self, mean: Tensor, stderr: Tensor) -> None:
        count = int(self.count)  # type: ignore[arg-type]
        if count < 2 or not float(mean + 3 * stderr) < -_ROUNDING * self.num_sites:
            return
        raise ValueError(
            f"the bound is {float(mean):.4g} ± {float(stderr):.2g} nats per example over {count} rows, but an upper "
            "bound on -log p of discrete data cannot be negative; look at the signs and weights in the model's nelbo"
        )
