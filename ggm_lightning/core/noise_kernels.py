"""The counter-based uniforms of core/noise.py by one Triton kernel, to the bit.

A GPU would otherwise start fifteen kernels on [b, n] integers for each draw, and the step of a small network waits for
the host that starts them.

SplitMix64's finaliser, doi 10.1145/2660193.2660195, in 64-bit integers that wrap; shifts keep the sign and are masked.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float64, Int64
from torch import Tensor

SITE_BLOCK = 512


@triton.jit
@no_type_check
def _mixed(h):
    h = (h ^ ((h >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    h = (h ^ ((h >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return h ^ ((h >> 31) & 0x1FFFFFFFF)


@triton.jit
@no_type_check
def _absorbed(h, counter):
    return _mixed(_mixed(h) + (counter + 1) * -7046029254386353131)


@triton.jit
@no_type_check
def uniform_kernel(ROW, OUT, key, PER, BLOCK: tl.constexpr):
    """A block of sites of one row; `key` says stream, seed and step."""
    example = tl.program_id(0)  # the axis that may be longer than 65,535
    site = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(ROW + example)
    h = _absorbed(_absorbed(row * 0 + key, row), site.to(tl.int64))
    u = (((h >> 12) & 0xFFFFFFFFFFFFF).to(tl.float64) + 0.5) * 2.220446049250313e-16
    tl.store(OUT + example.to(tl.int64) * PER + site, u, mask=site < PER)


def uniform(key: int, row: Int64[Tensor, " b"], num_sites: int) -> Float64[Tensor, "b n"]:
    """noise.uniform of noise.key_of's key."""
    out = torch.empty(len(row), num_sites, dtype=torch.float64, device=row.device)
    if out.numel():
        grid = (len(row), triton.cdiv(num_sites, SITE_BLOCK))
        uniform_kernel[grid](row.contiguous(), out, key, num_sites, BLOCK=SITE_BLOCK, num_warps=4)
    return out
