"""Integrals over continuous time, and rates as limits of short steps: neither supposes how alpha bends.

integral    Gauss-Legendre with 8 nodes in each piece, halved until both halves together say what the piece said  (1)
over_time   the same in v, t = 8 v^4 in the first half of the time and t = 1 - 8 (1 - v)^4 in the second: slopes may
            be infinite at both ends                                                                              (2)
limit       E(h) = E(0) + c_1 h + c_2 h^2 + ...  of the steps h, h/2, h/4, without c_1 and c_2 (Richardson)       (3)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

_NODES = 8
_AGREE = 1e-7  # of a piece and its halves
_MOST = 400  # pieces; what disagrees then is said as the error
STEPS = (1.0, 0.5, 0.25)


def integral(
    f: Callable[[float], Tensor], edges: Sequence[float], agree: float = _AGREE, most: int = _MOST
) -> tuple[Tensor, float]:
    """(integral of f from the first edge to the last, how far it may be off), eq. (1).

    Args:
        f: Float64[k] of one time; each of the k is integrated by itself.
        edges: of the pieces that are begun with, rising.
        agree: how near a piece and its halves have to be.
        most: pieces that are halved; how far those that are left then are from their halves counts as the error.
    """

    def of_piece(a: float, b: float) -> Tensor:
        return torch.stack([weight * f(a + node * (b - a)) for node, weight in _UNIT]).sum(0) * (b - a)

    waiting = [(a, b, of_piece(a, b)) for a, b in itertools.pairwise(edges)]
    total, error, halved = torch.zeros_like(waiting[0][2]), 0.0, 0
    while waiting:
        a, b, whole = waiting.pop()
        middle = (a + b) / 2
        first, second = of_piece(a, middle), of_piece(middle, b)
        apart = float((first + second - whole).abs().max())
        halved += 1
        if apart > agree and halved < most and a < middle < b:
            waiting += [(a, middle, first), (middle, b, second)]
        else:
            total, error = total + first + second, error + apart
    return total, error


def over_time(f: Callable[[float], Tensor], edges: Sequence[float]) -> tuple[Tensor, float]:
    """`integral`, by eq. (2)."""
    begin, length = edges[0], edges[-1] - edges[0]

    def bent(v: float) -> Tensor:
        end = min(v, 1 - v)  # how far from the nearer one
        share = 8 * end**4 if v <= 0.5 else 1 - 8 * end**4
        return 32 * end**3 * length * f(begin + share * length)

    def unbent(t: float) -> float:
        share = (t - begin) / length
        return (share / 8) ** 0.25 if share <= 0.5 else 1 - ((1 - share) / 8) ** 0.25

    return integral(bent, sorted({0.5, *map(unbent, edges)}))


def _of_unit() -> list[tuple[float, float]]:
    """(node, weight) of Gauss-Legendre on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(_NODES)
    return [(float(t), float(weight)) for t, weight in zip((x + 1) / 2, w / 2, strict=True)]


_UNIT = _of_unit()


def limit(values: Sequence[Tensor]) -> Tensor:
    """E(0) of E at the three STEPS, eq. (3); where one is infinite: the last."""
    of_h, of_half, of_quarter = values
    once, again = 2 * of_half - of_h, 2 * of_quarter - of_half
    found = (4 * again - once) / 3
    return torch.where(found.isfinite(), found, of_quarter)
