"""How far apart the runs of tokens of two sets of rows are."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ggm_lightning.metrics.diversity import gram_numbers


def jensen_shannon(samples: Int64[Tensor, "b n"], reference: Int64[Tensor, "b n"], length: int) -> tuple[float, float]:
    """(JS, its standard error over the rows), in bits: 0 for equal laws of runs, 1 for runs that share nothing.

        JS = (KL(P || M) + KL(Q || M)) / 2,   M = (P + Q) / 2,                                              eq. (1)

    P and Q being the shares of the runs of `length` tokens. Two sets of real rows have a JS above 0, too, the more so
    the longer the runs and the fewer the rows: read it beside that of real rows of the same number.

    The error is that of the delta method: dJS/dP_g = log2(P_g / M_g) / 2, so that a row adds the mean of that over its
    own runs.

    Raises ValueError for unequal numbers of rows, unequal lengths, or fewer than two rows.
    """
    if samples.shape != reference.shape or len(samples) < 2:
        raise ValueError(
            f"{tuple(samples.shape)} samples and a reference of {tuple(reference.shape)}: give at least two rows each, "
            "of equal count and length"
        )
    numbers = gram_numbers(torch.cat([samples, reference]), length)
    kinds, places = np.unique(numbers, return_inverse=True)
    places = places.reshape(numbers.shape)
    parts = places[: len(samples)], places[len(samples) :]
    laws = [np.bincount(part.ravel(), minlength=len(kinds)) / part.size for part in parts]
    middle = (laws[0] + laws[1]) / 2
    value, variance = 0.0, 0.0
    for part, law in zip(parts, laws, strict=True):
        gain = np.log2(np.where(law > 0, law, 1.0) / middle) / 2
        rows = gain[part].mean(1)  # every run of a row has law > 0
        value += float(rows.mean())  # eq. (1), as sum_g law_g gain_g
        variance += float(rows.var(ddof=1)) / len(rows)
    return max(value, 0.0), math.sqrt(variance)


def of_laws(p: Float64[np.ndarray, " k"], q: Float64[np.ndarray, " k"]) -> float:
    """Eq. (1) of two laws, in bits."""
    middle = (p + q) / 2
    return sum(float((law[law > 0] * np.log2(law[law > 0] / middle[law > 0])).sum()) for law in (p, q)) / 2
