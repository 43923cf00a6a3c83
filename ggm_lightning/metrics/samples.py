"""Measures of drawn samples, beside real rows: the protocol that a metric of one's own follows, and three of ours.

A metric is a class that is called once per drawing, after a validation (callbacks/samples.py, `metrics`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Examples as the model sees them and as a person does.

    Attributes:
        x: Int64[b, *shape], in 0..V-1, on the CPU.
        decoded: b texts, or UInt8[b, height, width, 3] pictures.
    """

    x: Tensor
    decoded: list[str] | np.ndarray


class SampleMetric(ABC):
    """Base of all measures of samples."""

    @abstractmethod
    def measure(self, drawn: Rows, real: Rows) -> Mapping[str, float]:
        """Name -> value, of samples and of as many held-out rows; the names are logged as val/<name>.

        Every call stands for itself: what an earlier one saw is of no concern.
        """


class TokenEntropy(SampleMetric):
    """Entropy of the tokens inside a row, mean over the rows, in nats; `real` is that of the held-out rows.

        H = -sum_v (c_v / n) ln (c_v / n),   c_v the number of times that v stands in the row

    Samples of a temperature too low are drawn of few tokens: H falls while a judge's score gets better.
    """

    def measure(self, drawn: Rows, real: Rows) -> Mapping[str, float]:
        return {"token_entropy": _token_entropy(drawn.x), "token_entropy_real": _token_entropy(real.x)}


class DistinctNGrams(SampleMetric):
    """Share of the n-grams of all rows together that are distinct, for each n (arXiv 1510.03055 for n = 1, 2).

    Args:
        n: lengths.
    """

    def __init__(self, n: tuple[int, ...] = (1, 2, 3)) -> None:
        if not n or min(n) < 1:
            raise ValueError(f"DistinctNGrams: n is {n}; give lengths of at least 1, such as [1, 2, 3]")
        self.n = n

    def measure(self, drawn: Rows, real: Rows) -> Mapping[str, float]:
        values = {}
        for n in self.n:
            values[f"distinct_{n}"] = distinct_share(drawn.x, n)
            values[f"distinct_{n}_real"] = distinct_share(real.x, n)
        return values


class Duplicates(SampleMetric):
    """Share of the samples that equal an earlier sample."""

    def measure(self, drawn: Rows, real: Rows) -> Mapping[str, float]:
        return {"duplicates": repeated_share(drawn.x)}


def repeated_share(x: Int64[Tensor, " b *s"]) -> float:
    """Share of the rows that equal an earlier row."""
    return 1 - len(torch.unique(x.flatten(1), dim=0)) / len(x)


def _token_entropy(x: Int64[Tensor, " b *s"]) -> float:
    entropies = []
    for row in x.flatten(1):
        share = torch.bincount(row).double() / len(row)
        entropies.append(-float(torch.special.xlogy(share, share).sum()))
    return math.fsum(entropies) / len(entropies)


def distinct_share(x: Int64[Tensor, " b *s"], n: int) -> float:
    """Share of the n-grams of all rows together that are distinct; nan where the rows are shorter than n."""
    rows = x.flatten(1)
    if rows.shape[1] < n:
        return math.nan
    grams = rows.unfold(1, n, 1).reshape(-1, n)
    return len(torch.unique(grams, dim=0)) / len(grams)
