"""Blackout's loss on the raw output of a network, with its gradient made in the same pass.

    L_b = sum_n y - m log y,   y = g_b softplus(o),  m = x_0 - x_t >= 0                                           (1)
    dL/do = g sigma(o) - m sigma(o) / softplus(o)                                                                 (2)

sigma / softplus tends to 1 for o -> -inf, where both underflow: below -15 it is 1 - e^o / 2, and log softplus(o) is
o - e^o / 2. The formula itself: core.death.published_loss. Source: Blackout diffusion, arXiv 2305.11089.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from ggm_lightning.core import fused
from ggm_lightning.core.losses import at_least_float32

_LOW = -15.0


def softplus_loss(
    raw: Float[Tensor, "b n"], x0: Int[Tensor, "b n"], xt: Int[Tensor, "b n"], scale: Float[Tensor, " b"]
) -> Float64[Tensor, " b"]:
    """Sum over the sites of eq. (1), float64, differentiable once in raw. One kernel on a GPU with Triton."""
    return _SoftplusLoss.apply(raw, x0, xt, scale, torch.is_grad_enabled() and raw.requires_grad)


class _SoftplusLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, raw: Tensor, x0: Tensor, xt: Tensor, scale: Tensor, needed: bool) -> Tensor:
        gradient = torch.empty_like(raw, memory_format=torch.contiguous_format) if needed else None
        kernels = fused.triton_losses() if raw.is_cuda and raw.dtype != torch.float64 else None
        if kernels is None:
            nats = _in_pytorch(raw, x0, xt, scale, gradient)
        else:
            inputs = (part.contiguous() for part in (raw, x0, xt))
            nats = kernels.softplus_rows(*inputs, scale.float(), gradient)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return nats

    @staticmethod
    def backward(ctx: Any, d_nats: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        if torch.is_grad_enabled():
            raise RuntimeError("softplus_loss has no second derivative: use core.death where create_graph=True")
        (gradient,) = ctx.saved_tensors
        return gradient * d_nats.to(gradient.dtype)[:, None], None, None, None, None


def _in_pytorch(raw: Tensor, x0: Tensor, xt: Tensor, scale: Tensor, gradient: Tensor | None) -> Tensor:
    o = at_least_float32(raw)
    m, g = (x0 - xt).to(o.dtype), scale.to(o.dtype)[:, None]
    t = torch.exp(-o.abs())
    y = o.clamp(min=0) + torch.log1p(t)
    low = o < _LOW
    safe = torch.where(low, 1.0, y)
    log_y = torch.where(low, o - t / 2, safe.log()) + g.log()
    if gradient is not None:
        sigma = torch.where(o >= 0, 1.0, t) / (1 + t)
        ratio = torch.where(low, 1 - t / 2, sigma / safe)
        gradient.copy_(g * sigma - m * ratio)
    return (g * y - torch.where(m > 0, m * log_y, 0.0)).sum(1, dtype=torch.float64)
