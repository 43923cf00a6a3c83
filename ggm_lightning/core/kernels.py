"""Triton kernels of core/fused.py, with its equation numbers: cross-entropies of rows of logits, and Blackout's loss.

Rules they follow: what is loaded becomes float32 at once; addresses are masked against a padded width, only values
against V, so that rows are read 128 bits at a time for odd V, too; sums over columns have one owner each, not atomics,
so that a result is the same in every run; no functions of CUDA's libraries, so that Triton's interpreter runs them all.

Source of the two passes over a row (running maximum and sum, then the gradient): online softmax, arXiv 1805.02867.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

ROW_BLOCK = 8192  # columns at a time
_FEW_WARPS, _MANY_WARPS = 8, 32
_LONG_ROW = 16384  # columns
_SUM_ROWS, _SUM_COLUMNS = 32, 128
SITE_BLOCK = 1024


@triton.jit
@no_type_check
def _write_gradient(
    z_row, g_row, B, W, y, c, lse, mean, w_y, V, PADDED, BLOCK: tl.constexpr, BIAS: tl.constexpr, RATES: tl.constexpr
):
    """c dL/dz of one row, zeros in the padding. The row is read for the last time, what is written not soon again."""
    for start in range(0, PADDED, BLOCK):
        v = start + tl.arange(0, BLOCK)
        z = tl.load(z_row + v, mask=v < PADDED, other=0.0, eviction_policy="evict_first").to(tl.float32)
        if BIAS:
            z += tl.load(B + v, mask=v < PADDED, other=0.0)
        p = tl.where(v < V, tl.exp(z - lse), 0.0)
        if RATES:
            w = tl.load(W + v, mask=v < PADDED, other=0.0)
            p = p * (w_y + w - mean)
        g = c * (p - tl.where(v == y, w_y, 0.0))
        tl.store(g_row + v, g.to(g_row.dtype.element_ty), mask=v < PADDED, eviction_policy="evict_first")


@triton.jit
@no_type_check
def _log_sum_exp(z_row, B, W, V, PADDED, BLOCK: tl.constexpr, BIAS: tl.constexpr, RATES: tl.constexpr):
    """(log-sum-exp of one row, sum_v w_v p_v or 0). Each entry takes one exponential: of the maximum so far and the new
    entry one is the larger, whose exponential is 1."""
    lane = tl.arange(0, BLOCK)
    top = tl.full([BLOCK], -1.0e38, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    weighted = tl.zeros([BLOCK], tl.float32)
    for start in range(0, PADDED, BLOCK):
        v = start + lane
        z = tl.load(z_row + v, mask=v < PADDED, other=0.0, eviction_policy="evict_last").to(tl.float32)
        if BIAS:
            z += tl.load(B + v, mask=v < PADDED, other=0.0)
        z = tl.where(v < V, z, -float("inf"))
        rise = z - top
        smaller = tl.exp(-tl.abs(rise))
        shrink = tl.where(rise > 0, smaller, 1.0)
        e = tl.where(rise > 0, 1.0, smaller)
        total = total * shrink + e
        if RATES:
            w = tl.load(W + v, mask=v < PADDED, other=0.0)
            weighted = weighted * shrink + e * w
        top = tl.where(rise > 0, z, top)
    highest = tl.max(top, 0)
    scale = tl.exp(top - highest)
    sum_e = tl.sum(total * scale, 0)
    return highest + tl.log(sum_e), tl.sum(weighted * scale, 0) / sum_e


@triton.jit
@no_type_check
def row_kernel(
    Z,
    stride,
    TARGET,
    C,
    B,
    W,
    NATS,
    LSE,
    G,
    V,
    PADDED,
    BLOCK: tl.constexpr,
    BIAS: tl.constexpr,
    RATES: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    """One row: nats, log-sum-exp, and the gradient of the logits times the row's weight.

    A row is read twice, but from memory once: of long rows each multiprocessor has a single one under way (32 warps),
    132 of 200 kB on an H100, which its 50 MB of L2 hold until the second look.
    """
    row = tl.program_id(0).to(tl.int64)
    z_row = Z + row * stride
    lse, mean = _log_sum_exp(z_row, B, W, V, PADDED, BLOCK, BIAS, RATES)
    y = tl.load(TARGET + row)
    c = tl.load(C + row)
    z_y = tl.load(z_row + y).to(tl.float32)
    if BIAS:
        z_y += tl.load(B + y)
    log_p = z_y - lse
    w_y = 1.0
    if RATES:
        w_y = tl.load(W + y)
        nats = mean - w_y * (1.0 + log_p)  # eq. (2)
    else:
        nats = -log_p  # eq. (1)
    tl.store(NATS + row, nats)
    tl.store(LSE + row, lse)
    if GRADIENT:
        _write_gradient(z_row, G + row * stride, B, W, y, c, lse, mean, w_y, V, PADDED, BLOCK, BIAS, RATES)


@triton.jit
@no_type_check
def class_kernel(Z, stride, B, LSE, C, OUT, K, V, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BIAS: tl.constexpr):
    """sum_r c_r p_rv, added to OUT: the first part of eq. (3). One program owns a block of columns."""
    v = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros([COLUMNS], tl.float32)
    bias = sums
    if BIAS:
        bias = tl.load(B + v, mask=v < V, other=0.0)
    for start in range(0, K, ROWS):
        r = start + tl.arange(0, ROWS)
        here = r < K
        # the columns of the padding are read and thrown away: the stride is a multiple of COLUMNS / 2
        inside = here[:, None] & (v < stride)[None, :]
        z = tl.load(Z + r[:, None].to(tl.int64) * stride + v[None, :], mask=inside, other=0.0).to(tl.float32)
        z += bias[None, :]
        lse = tl.load(LSE + r, mask=here, other=0.0)
        c = tl.load(C + r, mask=here, other=0.0)
        p = tl.where(here[:, None] & (v < V)[None, :], tl.exp(z - lse[:, None]), 0.0)
        sums += tl.sum(c[:, None] * p, 0)
    before = tl.load(OUT + v, mask=v < V, other=0.0)
    tl.store(OUT + v, before + sums, mask=v < V)


def rows(
    logits: Float[Tensor, "k padded"],
    v: int,
    targets: Int[Tensor, " k"],
    c: Float[Tensor, " k"],
    bias: Float[Tensor, " padded"] | None,
    class_weight: Float[Tensor, " padded"] | None,
    gradient: Float[Tensor, "k padded"] | None,
    d_class: Float[Tensor, " v"] | None,
) -> Float[Tensor, " k"]:
    """Nats per row, eqs. (1), (2), of z = logits + bias; writes c_r dL/dz into `gradient` (zeros in the padding) and
    adds eq. (3) to d_class.

    The first v columns of `logits` count; what stands behind them does not matter.
    """
    nats, lse = torch.empty_like(c), torch.empty_like(c)
    if not len(c):
        return nats
    stride, width = logits.stride(0), logits.shape[1]
    row_kernel[(len(c),)](
        logits,
        stride,
        targets,
        c,
        c if bias is None else bias,
        c if class_weight is None else class_weight,
        nats,
        lse,
        logits if gradient is None else gradient,
        v,
        width,
        BLOCK=min(ROW_BLOCK, triton.next_power_of_2(width)),
        BIAS=bias is not None,
        RATES=class_weight is not None,
        GRADIENT=gradient is not None,
        num_warps=_MANY_WARPS if width >= _LONG_ROW else _FEW_WARPS,
    )
    if d_class is not None:
        grid = (triton.cdiv(v, _SUM_COLUMNS),)
        b = c if bias is None else bias
        sizes = {"ROWS": _SUM_ROWS, "COLUMNS": _SUM_COLUMNS}
        class_kernel[grid](logits, stride, b, lse, c, d_class, len(c), v, **sizes, BIAS=bias is not None)
        z_y = logits.gather(1, targets[:, None])[:, 0]
        log_p = z_y - lse if bias is None else z_y + bias[targets] - lse
        d_class.index_add_(0, targets, -c * (1 + log_p))
    return nats


@triton.jit
@no_type_check
def softplus_kernel(RAW, X0, XT, SCALE, G, NATS, PER, BLOCK: tl.constexpr, GRADIENT: tl.constexpr):
    """Blackout's loss of a block of sites of one example and its gradient, eq. (5)."""
    example = tl.program_id(0)  # a GPU has 2^31 of these, and 65,535 of the other
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = j < PER
    i = example.to(tl.int64) * PER + j
    o = tl.load(RAW + i, mask=here, other=0.0).to(tl.float32)
    m = (tl.load(X0 + i, mask=here, other=0).to(tl.int32) - tl.load(XT + i, mask=here, other=0).to(tl.int32)).to(
        tl.float32
    )
    scale = tl.load(SCALE + example)
    t = tl.exp(-tl.abs(o))
    u = 1.0 + t
    # log(1 + t) without the rounding of 1 + t; a plain log(u) loses three digits near t = 1e-4
    log1p = tl.where(u == 1.0, t, tl.log(u) * (t / tl.where(u == 1.0, 1.0, u - 1.0)))
    y = tl.maximum(o, 0.0) + log1p
    sigma = tl.where(o >= 0, 1.0, t) / u
    low = o < -15.0
    safe = tl.where(low, 1.0, y)
    log_y = tl.where(low, o - 0.5 * t, tl.log(safe))
    ratio = tl.where(low, 1.0 - 0.5 * t, sigma / safe)
    log_y = tl.where(m > 0, log_y + tl.log(scale), 0.0)
    nats = tl.where(here, scale * y - m * log_y, 0.0)
    tl.store(NATS + example * tl.num_programs(1) + tl.program_id(1), tl.sum(nats, 0))
    if GRADIENT:
        tl.store(G + i, (scale * sigma - m * ratio).to(G.dtype.element_ty), mask=here)


def softplus_rows(
    raw: Float[Tensor, "b n"],
    x0: Int[Tensor, "b n"],
    xt: Int[Tensor, "b n"],
    scale: Float[Tensor, " b"],
    gradient: Float[Tensor, "b n"] | None,
) -> Float[Tensor, " b"]:
    """Sum over the sites of eq. (5), float64; writes its gradient into `gradient`. All contiguous."""
    b, n = raw.shape
    blocks = triton.cdiv(n, SITE_BLOCK)
    nats = torch.empty(b, blocks, dtype=torch.float32, device=raw.device)
    if raw.numel():
        out = raw if gradient is None else gradient
        softplus_kernel[(b, blocks)](
            raw, x0, xt, scale, out, nats, n, BLOCK=SITE_BLOCK, GRADIENT=gradient is not None, num_warps=4
        )
    return nats.double().sum(1)
