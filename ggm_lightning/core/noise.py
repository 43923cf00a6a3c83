"""Counter-based uniforms: every random number is a function of where it is used, not of a generator's history.

u = f(seed, stream, step, row, site). `stream` names the purpose ("mask", "time", "token", ...), `step` the optimiser or
sampling step, `row` the example (its index in the global batch or in the data set), `site` the position within it.
So two ranks with B rows equal one rank with 2B, a resumed run equals an undisturbed one, and a row drawn alone equals
the same row drawn in a batch.

The hash is SplitMix64's finaliser (Steele, Lea, Flood 2014, doi 10.1145/2660193.2660195), applied once per
coordinate, in int64 tensor operations that wrap modulo 2^64 on every device.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(h: Tensor, k: int) -> Tensor:
    """Logical (unsigned) right shift; torch's own keeps the sign."""
    return (h >> k) & ((1 << (64 - k)) - 1)


def _mix(h: Tensor) -> Tensor:
    h = (h ^ _shift_right(h, 30)) * _MIX_1
    h = (h ^ _shift_right(h, 27)) * _MIX_2
    return h ^ _shift_right(h, 31)


def _absorb(h: Tensor, counter: Tensor) -> Tensor:
    """One more coordinate of the counter, by broadcasting. Mixing before adding keeps (a, b) apart from (b, a)."""
    return _mix(_mix(h) + (counter.to(torch.int64) + 1) * _GOLDEN)


_WORD = (1 << 64) - 1


def _mixed(h: int) -> int:
    """`_mix` of an integer in [0, 2^64)."""
    h = ((h ^ (h >> 30)) * _MIX_1) & _WORD
    h = ((h ^ (h >> 27)) * _MIX_2) & _WORD
    return h ^ (h >> 31)


def _absorbed(h: int, counter: int) -> int:
    """`_absorb` of integers."""
    return _mixed((_mixed(h) + (counter + 1) * _GOLDEN) & _WORD)


def key_of(stream: str, seed: int, step: int) -> int:
    """What all rows and sites of a draw share, a signed 64-bit integer: a number of the host's, which no device is ever
    asked for or waited for."""
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed is {seed}; it must fit into 64 bits")
    h = zlib.crc32(stream.encode())
    for counter in (seed, step):
        h = _absorbed(h, counter)
    return h - (1 << 64) if h >> 63 else h


def _bits(stream: str, seed: int, step: int, row: Tensor, num_sites: int) -> Tensor:
    key = torch.tensor(key_of(stream, seed, step))  # 0-dim, on the CPU: a scalar to every device
    site = torch.arange(num_sites, device=row.device)
    return _absorb(_absorb(key, row)[:, None], site)


@cache
def _triton_noise() -> ModuleType | None:
    """The Triton kernel, or None where Triton is missing (core/fused.py says so once)."""
    try:
        from ggm_lightning.core import noise_kernels
    except ImportError:
        return None
    return noise_kernels


def uniform(stream: str, *, seed: int, step: int, row: Int64[Tensor, " b"], num_sites: int) -> Float64[Tensor, "b n"]:
    """Uniforms strictly inside (0, 1), on `row`'s device: (k + 1/2) / 2^52 with k the top 52 bits of the hash. On
    a GPU with Triton one kernel, the same numbers."""
    kernels = _triton_noise() if row.is_cuda and row.dtype == torch.int64 else None
    if kernels is not None:
        return kernels.uniform(key_of(stream, seed, step), row, num_sites)
    return (_shift_right(_bits(stream, seed, step, row, num_sites), 12).to(torch.float64) + 0.5) * 2.0**-52


def copies(row: Int64[Tensor, " b"], count: int) -> Int64[Tensor, " c"]:
    """Row numbers of `count` copies of each row, next to each other: the first is the row itself, copy k a hash of
    (row, k), whatever `count` is. So copies have noise of their own, in every stream and step."""
    copy = torch.arange(count, device=row.device)
    hashed = _absorb(_absorb(torch.tensor(zlib.crc32(b"copy")), row)[:, None], copy)
    return torch.where(copy > 0, hashed, row[:, None]).flatten()


def integer_seed(stream: str, *, seed: int, step: int, row: int = 0) -> int:
    """A seed in [0, 2^63) for generators that are not ours (dropout, a library)."""
    h = key_of(stream, seed, step) & _WORD
    for counter in (row, 0):
        h = _absorbed(h, counter)
    return h >> 1


@dataclass(frozen=True)
class StepNoise:
    """The noise of one training step, for the rows `row` Int64[b] of its global batch of `total` rows."""

    seed: int
    step: int
    row: Tensor
    total: int

    def uniform(self, stream: str, num_sites: int) -> Tensor:
        """Float64[b, num_sites]."""
        return uniform(stream, seed=self.seed, step=self.step, row=self.row, num_sites=num_sites)


def normal(stream: str, *, seed: int, step: int, row: Int64[Tensor, " b"], num_sites: int) -> Float64[Tensor, "b n"]:
    """Standard normal numbers: the inverse of the normal distribution function at `uniform`, in float64 (so at most
    8.2 in size), a function of the same counters on every device."""
    return torch.special.ndtri(uniform(stream, seed=seed, step=step, row=row, num_sites=num_sites))
