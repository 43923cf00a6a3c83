"""The losses written as their formulas: the truth that faster paths (core/fused.py) are tested against.

GGM's stands beside its process, in core/glauber.py, and so does Blackout's, in core/death.py. Losses are float32 at
least, whatever the logits' dtype; float64 logits stay float64. Units: nats.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def cross_entropy(logits: Float[Tensor, "*k v"], target: Int[Tensor, "*k"]) -> Float[Tensor, "*k"]:
    """-log softmax(logits)[target] per row, nats. Logits of -inf off the target are fine: nothing is multiplied."""
    log_mu = torch.log_softmax(at_least_float32(logits), dim=-1)
    return -log_mu.gather(-1, target[..., None])[..., 0]


def sum_over_sites(values: Float[Tensor, " k"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """Sum per example of values given at the True sites of `mask` (in row-major order)."""
    per_site = torch.zeros(mask.shape, dtype=values.dtype, device=values.device)
    return per_site.masked_scatter(mask, values).sum(-1)


def masked_cross_entropy(
    logits_at_masked: Float[Tensor, "k v"], x0: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]
) -> Float[Tensor, " b"]:
    """S[b] = -sum over the masked sites n of log mu_n(x0_n), nats; logits given at the k masked sites only."""
    return sum_over_sites(cross_entropy(logits_at_masked, x0[mask]), mask)


def rate_divergence(
    logits: Float[Tensor, "k v"], target: Int[Tensor, " k"], w: Float[Tensor, " v"]
) -> Float[Tensor, " k"]:
    """-w_x (log mu_x + 1) + sum_v w_v mu_v >= 0 with x the target: the divergence of Poisson rates w_v mu_v from the
    rate w_x at x, nats times t (arXiv 2406.04329, eq. (12)). For equal w it is w times the cross-entropy."""
    log_mu = torch.log_softmax(at_least_float32(logits), dim=-1)
    w = w.to(log_mu.dtype)
    return w[target] * -(log_mu.gather(-1, target[:, None])[:, 0] + 1) + (w * log_mu.exp()).sum(-1)
