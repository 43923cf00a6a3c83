"""How varied token sequences are: in themselves, among each other, and beside the rows of the training.

A judge alone is pleased by one likely row that is drawn again and again; each figure here sees that.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor


def gram_numbers(x: Int64[Tensor, "b n"], length: int) -> Int64[np.ndarray, "b m"]:
    """A number for each run of `length` tokens, equal exactly for equal runs; m = n - length + 1.

    Numbers of shorter runs are extended by a token and numbered anew, so that nothing overflows.

    Raises ValueError for rows that are shorter.
    """
    rows = x.numpy().astype(np.int64)
    if length < 1 or rows.shape[1] < length:
        raise ValueError(f"runs of {length} tokens in rows of {rows.shape[1]}; give longer rows or shorter runs")
    classes = int(rows.max(initial=0)) + 1
    numbers = rows
    for i in range(1, length):
        extended = numbers[:, :-1] * classes + rows[:, i:]
        numbers = np.unique(extended, return_inverse=True)[1].reshape(extended.shape)
    return numbers


def entropies(x: Int64[Tensor, "b n"]) -> Float64[Tensor, " b"]:
    """Of the tokens inside each row, in nats:

    H = -sum_v (c_v / n) ln (c_v / n),   c_v the number of times that v stands in the row

    It is what papers print beside gen-ppl (arXiv 2409.02908); that of a row that is drawn again and again is normal.
    """
    found = []
    for row in x:
        share = torch.unique(row, return_counts=True)[1].double() / len(row)
        found.append(-torch.special.xlogy(share, share).sum())
    return torch.stack(found)


def distinct_share(numbers: Int64[np.ndarray, "b m"]) -> tuple[float, float]:
    """(share of all numbers that are distinct, its standard error), of `gram_numbers` (arXiv 1510.03055), or of the
    numbers of whole rows, m = 1. It falls with the number of rows: compare equal numbers only.

    The error is the jackknife's over the rows: without row i there are as many distinct ones less, as stand in that row
    alone. It is rather too large (Efron and Stein, doi 10.1214/aos/1176345462), up to twice where rows are few.
    """
    rows, width = numbers.shape
    kinds, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    place = np.repeat(np.arange(rows), width)
    inverse = inverse.ravel()
    elsewhere = np.zeros(len(kinds), dtype=bool)
    np.logical_or.at(elsewhere, inverse, place != (first // width)[inverse])
    alone = np.bincount((first // width)[~elsewhere], minlength=rows)
    share = len(kinds) / numbers.size
    if rows < 2:
        return share, math.nan
    without = (len(kinds) - alone) / (numbers.size - width)
    return share, math.sqrt((rows - 1) * float(without.var()))


def row_numbers(x: Int64[Tensor, "b n"]) -> Int64[np.ndarray, "b 1"]:
    """A number for each whole row, equal for equal rows."""
    return np.unique(x.numpy(), axis=0, return_inverse=True)[1].reshape(-1, 1)


def repeated_grams(x: Int64[Tensor, "b n"], length: int = 4) -> Float64[Tensor, " b"]:
    """Of each row the share of its runs that stood in it before (arXiv 1908.04319, seq-rep)."""
    ordered = np.sort(gram_numbers(x, length), axis=1)
    kinds = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1)
    return torch.from_numpy(1 - kinds / ordered.shape[1])


class Copies:
    """Finds rows among others: `add` them part by part.

    Attributes:
        found: Bool[b], which of the rows were seen.
    """

    def __init__(self, x: Int64[Tensor, "b n"]) -> None:
        self._rows: dict[bytes, list[int]] = {}
        self.found = torch.zeros(len(x), dtype=torch.bool)
        for i, row in enumerate(x.numpy().astype(np.int64)):
            self._rows.setdefault(row.tobytes(), []).append(i)

    def add(self, others: Int64[Tensor, "c n"]) -> None:
        for row in others.numpy().astype(np.int64):
            self.found[self._rows.get(row.tobytes(), [])] = True


def mean_and_error(values: Float64[Tensor, " b"]) -> tuple[float, float]:
    """(mean, its standard error over the rows)."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def share_and_error(found: Tensor) -> tuple[float, float]:
    """(share, its standard error) of Bool[b]."""
    return mean_and_error(found.double())
