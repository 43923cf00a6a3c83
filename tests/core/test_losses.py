"""The plain losses: float32 at least, -inf off the target, one sum per example."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ggm_lightning.core import losses

B, N, V = 2, 5, 7


def some(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(B * N, V, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(V, (B * N,), generator=generator)


def by_hand(logits: Tensor, target: Tensor) -> Tensor:
    """-log softmax(logits)[target], entry by entry in Python's float64."""
    rows = zip(logits.double().tolist(), target.tolist(), strict=True)
    return torch.tensor([math.log(sum(math.exp(z) for z in row)) - row[y] for row, y in rows], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_losses_are_float32_whatever_the_logits_are(dtype: torch.dtype) -> None:
    """Exact for the logits as they are, to float32's rounding. Control: what bfloat16 makes of it."""
    logits, target = some(dtype)
    expected = by_hand(logits, target)
    nats = losses.cross_entropy(logits, target)
    assert nats.dtype == torch.float32
    torch.testing.assert_close(nats.double(), expected, rtol=1e-5, atol=1e-5)
    coarse = -torch.log_softmax(logits.bfloat16(), -1).gather(1, target[:, None])[:, 0]
    assert (coarse.double() - expected).abs().max() > 1e-3
    w = torch.full((V,), 2.0)  # equal rates: twice the cross-entropy
    torch.testing.assert_close(losses.rate_divergence(logits, target, w), 2 * nats, rtol=1e-5, atol=1e-5)


def test_float64_stays_float64() -> None:
    logits, target = some(torch.float64)
    nats = losses.cross_entropy(logits, target)
    assert nats.dtype == torch.float64
    torch.testing.assert_close(nats, by_hand(logits, target), rtol=1e-14, atol=1e-14)


def test_rates_cost_the_divergence_of_poisson_rates() -> None:
    """w_x log(w_x / (w_x mu_x)) - w_x + sum_v w_v mu_v, 0 where mu is certain of the target."""
    logits, target = some(torch.float64)
    w = torch.linspace(0.5, 3.0, V, dtype=torch.float64)
    mu = logits.softmax(-1)
    own = mu.gather(1, target[:, None])[:, 0]
    expected = -w[target] * own.log() - w[target] + (mu * w).sum(-1)
    torch.testing.assert_close(losses.rate_divergence(logits, target, w), expected, rtol=1e-13, atol=1e-13)
    assert float(expected.min()) > 0
    certain = torch.where(torch.arange(V) == target[:, None], 0.0, -torch.inf).double()
    assert (losses.rate_divergence(certain, target, w).abs() < 1e-14).all()


def test_sums_are_of_the_masked_sites_of_each_example() -> None:
    logits, target = some(torch.float64)
    mask = torch.tensor([[True, False, True, True, False], [False] * 5])
    rows = mask.flatten()
    nats = losses.masked_cross_entropy(logits[rows], target.reshape(B, N), mask)
    expected = by_hand(logits, target).reshape(B, N)
    torch.testing.assert_close(nats, torch.stack([expected[0, [0, 2, 3]].sum(), expected.new_zeros(())]))
