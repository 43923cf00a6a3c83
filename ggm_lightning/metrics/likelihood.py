"""Likelihood bounds over a data set: nats per example, bits per dimension, perplexity, each with its standard error.

Sums are float64 and are added across ranks, so uneven last batches and uneven ranks weigh every example once. The
standard error is over examples (each example's own sampling noise is part of it); that of exp and of the change of
units follows by the delta method.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric


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
        """nelbo (nats per example), bpd (bits per dimension), ppl, and `_stderr` of each (0 for one example)."""
        mean = self.total / self.count  # type: ignore[arg-type]
        variance = (self.total_of_squares / self.count - mean.square()).clamp(min=0)  # type: ignore[arg-type]
        stderr = (variance / (self.count - 1).clamp(min=1)).sqrt()
        per_bit = 1 / (self.num_sites * math.log(2))
        values = {"nelbo": mean, "nelbo_stderr": stderr, "bpd": mean * per_bit, "bpd_stderr": stderr * per_bit}
        if self.perplexity:
            ppl = torch.exp(mean / self.num_sites)
            values |= {"ppl": ppl, "ppl_stderr": ppl * stderr / self.num_sites}
        return values
