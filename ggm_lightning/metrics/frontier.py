"""Samples at equal entropy: the figures that stand beside a judge's, and curves of judge against entropy compared.

A judge alone is pleased by likely tokens that repeat themselves: a lower temperature always looks better to it. So
samplers are compared where their samples are equally varied, on the curve that the temperature draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ggm_lightning.metrics.samples import distinct_share, repeated_share

Figures = dict[str, float | None]


def figures_of(x: Int64[Tensor, "b n"], bits: Float64[Tensor, " b"], varied: int | None = None) -> Figures:
    """What is said of drawn (or real) rows; None for what they are too short for.

    judge, judge_stderr: mean of `bits` and its standard error over the rows. entropy, entropy_stderr: of single tokens,
    in bits. distinct_2, distinct_4: share of the n-grams of all rows together that are distinct. duplicates: share of
    the rows that equal an earlier row.

    Args:
        x: Int64[b, n]. bits: Float64[b], -log2 p per token of each row, by the judge.
        varied: all but the judge's figures are of so many rows, the first: shares of distinct n-grams fall with the
            number of rows and can be compared at equal numbers only. None: all.

    Raises ValueError for fewer than two rows, which have no standard error.
    """
    if len(x) < 2 or (varied is not None and varied < 2):
        raise ValueError(f"figures of {len(x) if varied is None else min(len(x), varied)} rows; give at least 2")
    first = x[:varied]
    entropy, error = unigram_entropy(first)
    found = {"judge": float(bits.mean()), "judge_stderr": _stderr(bits), "entropy": entropy, "entropy_stderr": error}
    found |= {f"distinct_{n}": distinct_share(first, n) for n in (2, 4)}
    found["duplicates"] = repeated_share(first)
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def unigram_entropy(x: Int64[Tensor, "b n"]) -> tuple[float, float]:
    """(H, its standard error over the rows), bits per token, of the tokens of all rows together.

        H = -sum_v p_v log2 p_v,   p_v = n_v / (b n)

    By the delta method its error is that of the mean over the rows of -1/n sum_i log2 p_{x_i}, whose mean is H itself.
    """
    counts = torch.bincount(x.flatten()).double()
    surprise = -(counts / counts.sum()).log2()
    rows = surprise[x].mean(1)
    return float(rows.mean()), _stderr(rows)


def _stderr(values: Float64[Tensor, " b"]) -> float:
    return float(values.std() / math.sqrt(len(values)))


@dataclass(frozen=True)
class Point:
    """One cell on the plane of judge and entropy, bits per token, with standard errors."""

    entropy: float
    entropy_stderr: float
    judge: float
    judge_stderr: float


def at_entropy(curve: Sequence[Point], entropy: float) -> tuple[float, float] | None:
    """(judge, its error) where the curve has this entropy, linear between its two neighbours; None where it does not
    reach it.

    Points of one curve share their noise, so that their errors may be correlated in any way: the errors are added, and
    that of the entropy by the slope. So the error is the largest that the standard error can be.
    """
    points = sorted(curve, key=lambda point: point.entropy)
    for low, high in pairwise(points):
        if not low.entropy <= entropy <= high.entropy or low.entropy == high.entropy:
            continue
        share = (entropy - low.entropy) / (high.entropy - low.entropy)
        slope = (high.judge - low.judge) / (high.entropy - low.entropy)
        judge = low.judge + share * (high.judge - low.judge)
        error = (1 - share) * low.judge_stderr + share * high.judge_stderr
        error += abs(slope) * ((1 - share) * low.entropy_stderr + share * high.entropy_stderr)
        return judge, error
    return None


@dataclass(frozen=True)
class Compared:
    """Curves at one entropy.

    Attributes:
        entropy: at which they are compared.
        ranked: (name, judge, error), the smallest judge first.
        unreached: names of the curves that do not reach it.
    """

    entropy: float
    ranked: list[tuple[str, float, float]]
    unreached: list[str]

    @property
    def leads(self) -> list[tuple[float, float]]:
        """By how much each is ahead of the next one, and the error of that."""
        return [(next_[1] - one[1], math.hypot(one[2], next_[2])) for one, next_ in pairwise(self.ranked)]


def compared(curves: Mapping[str, Sequence[Point]], entropy: float) -> Compared | None:
    """The curves at this entropy (that of real text), or, where fewer than two reach it, at the nearest entropy that
    all of them have; None where there is none."""
    found = _at(curves, entropy)
    if len(found.ranked) >= 2:
        return found
    spans = [[point.entropy for point in curve] for curve in curves.values() if len(curve) > 1]
    if len(spans) < 2:
        return None
    low, high = max(map(min, spans)), min(map(max, spans))
    if low > high:
        return None
    return _at(curves, min(max(entropy, low), high))


def _at(curves: Mapping[str, Sequence[Point]], entropy: float) -> Compared:
    reached = {name: at_entropy(curve, entropy) for name, curve in curves.items()}
    ranked = [(name, *found) for name, found in reached.items() if found is not None]
    unreached = [name for name, found in reached.items() if found is None]
    return Compared(entropy, sorted(ranked, key=lambda one: one[1]), unreached)
