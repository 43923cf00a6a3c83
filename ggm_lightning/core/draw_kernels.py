"""Triton kernels that draw: a class per row of logits, and the survivors of counts. Rules as in core/kernels.py.

    class     the first v with sum_{w <= v} e_w > u sum_w e_w,  e_v = exp((z_v - max z) / temperature), zero outside the
              nucleus {v: e_v >= threshold}; sums of blocks are float64, u is one float64 per row              (1)
    survivors x_t ~ Binomial(x_0, p): 32 coins per word are thrown bit by bit, by comparing the binary expansions of
              32 uniforms with that of p; a coin is decided at the first bit that differs                      (2)

The threshold is found by eight-way search over the bits of (max z - z) / temperature, 3 at a time: no sort. Coins come
from Philox at (row, site, word, bits) under a key, so a count is a function of where it is drawn. Sources: Philox,
Salmon et al. 2011, doi 10.1145/2063384.2063405; counts, arXiv 2305.11089.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

COLUMN_BLOCK = 2048
SITE_BLOCK = 512
BITS = 48  # of a probability: deaths of probability 3e-7, the smallest published, are right to 1e-8 of it
_WORD = tl.constexpr(32)
_SEARCHES = tl.constexpr(11)  # of 3 bits: 31 bits


@triton.jit
@no_type_check
def _distance(z_row, v, V, WIDTH, top, temperature):
    """(max z - z) / temperature >= 0, and infinite outside the row."""
    z = tl.load(z_row + v, mask=v < WIDTH, other=0.0).to(tl.float32)
    return tl.where(v < V, (top - z) / temperature, float("inf"))


@triton.jit
@no_type_check
def _cut(z_row, V, WIDTH, top, temperature, top_p, BLOCK: tl.constexpr):
    """Bits of the largest distance that the nucleus holds."""
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, WIDTH, BLOCK):
        total += tl.exp(-_distance(z_row, start + lane, V, WIDTH, top, temperature))
    goal = top_p * tl.sum(total, 0)
    low = tl.full([1], 0, tl.int32)
    step = tl.full([1], 1 << 28, tl.int32)
    for _ in range(_SEARCHES):
        a1 = tl.zeros([BLOCK], tl.float32)
        a2 = tl.zeros([BLOCK], tl.float32)
        a3 = tl.zeros([BLOCK], tl.float32)
        a4 = tl.zeros([BLOCK], tl.float32)
        a5 = tl.zeros([BLOCK], tl.float32)
        a6 = tl.zeros([BLOCK], tl.float32)
        a7 = tl.zeros([BLOCK], tl.float32)
        for start in range(0, WIDTH, BLOCK):
            d = _distance(z_row, start + lane, V, WIDTH, top, temperature)
            e = tl.exp(-d)
            above = d.to(tl.int32, bitcast=True) - low
            a1 += tl.where(above < step, e, 0.0)
            a2 += tl.where(above < 2 * step, e, 0.0)
            a3 += tl.where(above < 3 * step, e, 0.0)
            a4 += tl.where(above < 4 * step, e, 0.0)
            a5 += tl.where(above < 5 * step, e, 0.0)
            a6 += tl.where(above < 6 * step, e, 0.0)
            a7 += tl.where(above < 7 * step, e, 0.0)
        short = (tl.sum(a1, 0) < goal).to(tl.int32) + (tl.sum(a2, 0) < goal).to(tl.int32)
        short += (tl.sum(a3, 0) < goal).to(tl.int32) + (tl.sum(a4, 0) < goal).to(tl.int32)
        short += (tl.sum(a5, 0) < goal).to(tl.int32) + (tl.sum(a6, 0) < goal).to(tl.int32)
        short += (tl.sum(a7, 0) < goal).to(tl.int32)
        low += short * step
        step = tl.maximum(step // 8, 1)
    return low


@triton.jit
@no_type_check
def draw_kernel(Z, stride, U, OUT, V, WIDTH, temperature, top_p, BLOCK: tl.constexpr, NUCLEUS: tl.constexpr):
    """One row, eq. (1)."""
    row = tl.program_id(0).to(tl.int64)
    z_row = Z + row * stride
    lane = tl.arange(0, BLOCK)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    unknown = tl.zeros([BLOCK], tl.int32)
    for start in range(0, WIDTH, BLOCK):
        v = start + lane
        z = tl.load(z_row + v, mask=v < WIDTH, other=0.0).to(tl.float32)
        z = tl.where(v < V, z, float("-inf"))
        unknown = tl.where(z != z, 1, unknown)
        highest = tl.maximum(highest, z)
    top = tl.max(highest, 0)
    # core/watch.py's codes of a row that is no law
    fault = tl.where(top == float("inf"), 2, tl.where(top == float("-inf"), 3, 0))
    fault = tl.where(tl.max(unknown, 0) > 0, 1, fault)
    cut = tl.full([1], 0x7F7FFFFF, tl.int32)  # the largest finite number
    if NUCLEUS:
        cut = _cut(z_row, V, WIDTH, top, temperature, top_p, BLOCK)
    total = tl.zeros([1], tl.float64)
    for start in range(0, WIDTH, BLOCK):
        d = _distance(z_row, start + lane, V, WIDTH, top, temperature)
        e = tl.where(d.to(tl.int32, bitcast=True) <= cut, tl.exp(-d), 0.0)
        total += tl.sum(e.to(tl.float64), 0)
    goal = tl.load(U + row) * total
    seen = tl.zeros([1], tl.float64)
    before = tl.zeros([1], tl.float64)
    block = tl.zeros([1], tl.int32)
    for start in range(0, WIDTH, BLOCK):
        d = _distance(z_row, start + lane, V, WIDTH, top, temperature)
        e = tl.where(d.to(tl.int32, bitcast=True) <= cut, tl.exp(-d), 0.0)
        mass = tl.sum(e.to(tl.float64), 0)
        # the last block that holds anything and begins at or before the goal: also where u total rounds to total
        here = tl.where(seen <= goal, mass, 0.0) > 0
        block = tl.where(here, start, block)
        before = tl.where(here, seen, before)
        seen += mass
    v = block + lane
    d = _distance(z_row, v, V, WIDTH, top, temperature)
    e = tl.where(d.to(tl.int32, bitcast=True) <= cut, tl.exp(-d), 0.0).to(tl.float64)
    begins = before + tl.cumsum(e, 0) - e
    drawn = tl.max(tl.where(tl.where(begins <= goal, e, 0.0) > 0, v, 0), 0)
    tl.store(OUT + row, tl.where(fault > 0, -fault, drawn).to(tl.int64))


def draw(
    logits: Float[Tensor, "k v"], u: Float64[Tensor, " k"], temperature: float, top_p: float
) -> Int64[Tensor, " k"]:
    """categorical.draw in float32, a program per row; minus core/watch.py's code where a row is no law."""
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    v, stride = logits.shape[1], logits.stride(0)
    out = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    # rows that are padded to 128 bits are read in whole vectors
    whole = -(-v // 16) * 16
    width = whole if stride % 16 == 0 and stride >= whole else v
    if len(logits):
        draw_kernel[(len(logits),)](
            logits, stride, u, out, v, width, temperature, top_p, BLOCK=COLUMN_BLOCK, NUCLEUS=top_p < 1, num_warps=8
        )
    return out


@triton.jit
@no_type_check
def _ones(x):
    """How many bits are set."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    x = x + (x >> 8)
    return (x + (x >> 16)) & 0x3F


@triton.jit
@no_type_check
def _flip(p, bit, r, undecided, heads):
    """One more bit of the 32 uniforms r against p's: smaller is heads."""
    zero = undecided * 0
    ones = zero - 1
    full = zero - ((p >> bit) & 1).to(tl.uint32)
    return undecided & (full ^ r ^ ones), heads | (undecided & full & (r ^ ones))


@triton.jit
@no_type_check
def thin_kernel(X0, P, MIDDLE, ROW, XT, INPUT, PER, key, BLOCK: tl.constexpr, NUM_BITS: tl.constexpr):
    """A block of sites of one example, eq. (2); P holds p 2^NUM_BITS."""
    example = tl.program_id(0)  # a GPU has 2^31 of these, and 65,535 of the other
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = j < PER
    i = example.to(tl.int64) * PER + j
    n = tl.load(X0 + i, mask=inside, other=0).to(tl.int32)
    p = tl.load(P + example)
    site = j.to(tl.uint32)
    zero = site * 0
    row = zero + tl.load(ROW + example).to(tl.uint32)
    count = tl.zeros([BLOCK], tl.int32)
    words = (tl.max(n, 0) + 31) // _WORD
    for word in range(0, words):
        live = tl.minimum(tl.maximum(n - _WORD * word, 0), _WORD)
        some = ((zero + 1) << tl.minimum(live, 31).to(tl.uint32)) - 1
        undecided = tl.where(live == 32, zero - 1, some)
        heads = zero
        bit = NUM_BITS - 1
        # about half the coins of a block are decided by each bit
        while (tl.max((undecided > 0).to(tl.int32), 0) > 0) & (bit > 0):
            r0, r1, r2, r3 = tl.philox(key, site, row, zero + word, zero + bit)
            undecided, heads = _flip(p, bit, r0, undecided, heads)
            undecided, heads = _flip(p, bit - 1, r1, undecided, heads)
            undecided, heads = _flip(p, bit - 2, r2, undecided, heads)
            undecided, heads = _flip(p, bit - 3, r3, undecided, heads)
            bit -= 4
        count += _ones(heads).to(tl.int32)
    tl.store(XT + i, count.to(XT.dtype.element_ty), mask=inside)
    centred = count.to(tl.float32) - tl.load(MIDDLE + example)
    tl.store(INPUT + i, centred.to(INPUT.dtype.element_ty), mask=inside)


def thin(
    x0: Int[Tensor, "b n"],
    p: Float64[Tensor, " b"],
    middle: Float64[Tensor, " b"],
    row: Int64[Tensor, " b"],
    key: int,
    dtype: torch.dtype,
) -> tuple[Int[Tensor, "b n"], Float[Tensor, "b n"]]:
    """(x_t ~ Binomial(x0, p), x_t - middle in `dtype`), with one p per example, right to 2^-48. A count is a function
    of key, `row` and its site."""
    b, n = x0.shape
    x0 = x0.contiguous()
    xt, centred = torch.empty_like(x0), torch.empty(b, n, dtype=dtype, device=x0.device)
    # a p of exactly 1 has no binary expansion below 1: 2^48 - 1 differs by 2^-48
    scaled = torch.round(p * 2.0**BITS).long().clamp(max=(1 << BITS) - 1)
    if x0.numel():
        grid = (b, triton.cdiv(n, SITE_BLOCK))
        thin_kernel[grid](
            x0, scaled, middle.float(), row, xt, centred, n, key, BLOCK=SITE_BLOCK, NUM_BITS=BITS, num_warps=4
        )
    return xt, centred
