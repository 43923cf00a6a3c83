"""Sums and products of numbers that are given by their logarithms, where -inf stands for 0.

A law whose classes are 760 nats apart cannot be written as probabilities: e^-760 is 0 in float64, and its logarithm an
infinite bound. Here such numbers stay logarithms. A sum of zeros alone is 0, log -inf, and its gradient is 0, where
torch's own functions give NaN: nothing is known of the slope there, but the finite rows beside it must keep theirs.
What is NaN stays NaN.

They serve the bounds of GGM (arXiv 2405.17035), of Blackout and of any finite Markov process (arXiv 2305.11089).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_ENTRIES = 1 << 22  # terms formed at once by log_matmul: 32 MB in float64


def log_sum(x: Float[Tensor, "*k v"]) -> Float[Tensor, "*k"]:
    """log sum_v e^{x_v} along the last axis."""
    impossible = (x == -torch.inf).all(-1)
    return torch.where(impossible, -torch.inf, torch.logsumexp(torch.where(impossible[..., None], 0.0, x), -1))


def log_add(x: Float[Tensor, "*#s"], y: Float[Tensor, "*#s"]) -> Float[Tensor, "*s"]:
    """log(e^x + e^y)."""
    impossible = (x == -torch.inf) & (y == -torch.inf)
    total = torch.logaddexp(torch.where(impossible, 0.0, x), torch.where(impossible, 0.0, y))
    return torch.where(impossible, -torch.inf, total)


def log_normalised(x: Float[Tensor, "*k v"]) -> Float[Tensor, "*k v"]:
    """log softmax along the last axis; a row in which no class is possible stays -inf: it has no law."""
    impossible = (x == -torch.inf).all(-1, keepdim=True)
    return torch.where(impossible, -torch.inf, torch.log_softmax(torch.where(impossible, 0.0, x), -1))


def divergence(q: Float[Tensor, "*k v"], log_p: Float[Tensor, "*k v"]) -> Float[Tensor, "*k"]:
    """KL(q || p) along the last axis, nats, with 0 log 0 = 0; inf where p is 0 and q is not. No gradient in q."""
    return torch.where(q > 0, q * (q.log() - log_p), 0.0).sum(-1)


def log_matmul(a: Float[Tensor, "b n k"], m: Float[Tensor, "b m k"]) -> Float[Tensor, "b n m"]:
    """log sum_k e^{a_nk + m_mk}: a product of matrices, every sum scaled by its own largest term. All b n m k terms are
    formed, a chunk at a time, and once more for the gradient, which is in a alone and of first order."""
    return _LogMatmul.apply(a, m)


class _LogMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, m: Tensor) -> Tensor:
        out = torch.cat([_scaled_sum(part[:, :, None] + m[:, None]) for part in a.split(_rows(m), 1)], 1)
        ctx.save_for_backward(a, m, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        a, m, out = ctx.saved_tensors
        finite = torch.where(out == -torch.inf, torch.inf, out)  # e^-inf: a sum of zeros has no gradient
        parts = zip(a.split(_rows(m), 1), finite.split(_rows(m), 1), d_out.split(_rows(m), 1), strict=True)
        return torch.cat([_shares(part[:, :, None] + m[:, None], y, d) for part, y, d in parts], 1), None


def _rows(m: Tensor) -> int:
    return max(1, _CHUNK_ENTRIES // m.numel())


def _scaled_sum(terms: Tensor) -> Tensor:
    """log_sum, overwriting its terms."""
    top = terms.amax(-1, keepdim=True)
    top = torch.where(top == -torch.inf, 0.0, top)
    return terms.sub_(top).exp_().sum(-1).log_() + top[..., 0]


def _shares(terms: Tensor, total: Tensor, d: Tensor) -> Tensor:
    """sum over m of d_m e^{terms_mk - total_m}, overwriting the terms."""
    return terms.sub_(total[..., None]).exp_().mul_(d[..., None]).sum(2)
