"""How well hidden sites are filled in: the share that is right, and the bound on -log p(hidden | known).

Which sites are hidden is a function of (seed, row, site): the same rows of a data set have the same sites hidden for
every model, sampler and batch size, and of patterns of one kind a larger share hides the sites of a smaller one, too.

    random    sites here and there, exactly round(share n) of them (1 at least)
    span      neighbours: of a row one stretch; of a picture or of codes a box of all channels, whose sides are
              round(sqrt(share)) of the picture's
    end       the last sites of the row, which is all that an autoregressive model fills in

The share that is right is that of drawn values: a model of the true law is not right everywhere, and less so at a
higher temperature. The bound does not depend on the sampler: see sampling/conditional.py, also for who has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ggm_lightning.core import noise
from ggm_lightning.sampling import conditional
from ggm_lightning.sampling.contract import Denoises

PATTERNS = ("random", "span", "end")
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
_STREAM = "hidden sites"

# (values Int64[b, *s], known Bool[b, *s], row Int64[b], label Int64[b] or None) -> filled Int64[b, *s]
Fill = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Infilling:
    """What was measured of one pattern and share.

    Attributes:
        pattern, share: see the module. hidden: sites of each row that were hidden. rows: how many were filled in.
        accuracy: the share of the hidden sites that are right, mean over the rows, and its standard error.
        guess: the same of a filling by the value that is the most frequent in these rows, for comparison.
        distance: of classes that are amounts, the mean distance from the truth in levels; else None.
        nats: the bound in nats per hidden site, and its standard error; None where the model has none.
    """

    pattern: str
    share: float
    hidden: int
    rows: int
    accuracy: float
    accuracy_stderr: float
    guess: float
    distance: float | None = None
    distance_stderr: float | None = None
    nats: float | None = None
    nats_stderr: float | None = None


def check(pattern: str, share: float) -> None:
    """Raises ValueError for what is no pattern or no share."""
    if pattern not in PATTERNS:
        raise ValueError(f"pattern is '{pattern}'; choose {' or '.join(PATTERNS)}")
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; the share of hidden sites lies in (0, 1]")


def hidden_sites(
    pattern: str, share: float, shape: tuple[int, ...], row: Int64[Tensor, " b"], seed: int = 0
) -> Bool[Tensor, " b *s"]:
    """The sites that are hidden in the rows with these numbers; see the module."""
    check(pattern, share)
    n = math.prod(shape)
    count = max(1, round(share * n))
    if pattern == "end":
        return (torch.arange(n, device=row.device) >= n - count).expand(len(row), n).reshape(-1, *shape)
    if pattern == "random":
        u = noise.uniform(_STREAM, seed=seed, step=0, row=row, num_sites=n)
        return (u.argsort(1).argsort(1) < count).reshape(-1, *shape)
    # where it stands is a share of the places there are, so that wider spans lie around narrower ones
    u = noise.uniform(_STREAM, seed=seed, step=1, row=row, num_sites=2)
    if len(shape) == 1:
        return _stretch(u[:, 0], count, n)
    height, width = shape[-2:]
    side = math.sqrt(share)
    inside = _stretch(u[:, 0], max(1, round(side * height)), height)[:, :, None]
    inside = inside & _stretch(u[:, 1], max(1, round(side * width)), width)[:, None]
    return inside.reshape(len(row), *[1] * (len(shape) - 2), height, width).expand(len(row), *shape)


def _stretch(u: Float64[Tensor, " b"], count: int, length: int) -> Bool[Tensor, "b n"]:
    first = torch.floor(u * (length - count + 1)).long()[:, None]
    site = torch.arange(length, device=u.device)
    return (first <= site) & (site < first + count)


def measure(
    model: Denoises,
    x: Int64[Tensor, " b *s"],
    row: Int64[Tensor, " b"],
    pattern: str,
    share: float,
    fill: Fill | None,
    label: Tensor | None = None,
    ordered: bool = False,
    num_samples: int = 4,
    seed: int = 0,
    batch_size: int = 64,
    bound: bool = True,
) -> Infilling:
    """The rows x, whose numbers in their data set are `row`, with some sites hidden and filled in again.

    Args:
        fill: fills in; None measures the bound alone, and the accuracy is nan.
        ordered: whether classes are amounts.
        num_samples: states of each row for the bound.
        batch_size: rows at once; it changes nothing but rounding.
        bound: whether the bound is measured, where the model has one.
    """
    hidden = hidden_sites(pattern, share, tuple(x.shape[1:]), row, seed)
    right, far, nats = [], [], []
    has_bound = bound and conditional.lacking(model) is None
    for part in torch.arange(len(x), device=x.device).split(batch_size):
        values, known, own = x[part], ~hidden[part], None if label is None else label[part]
        if fill is not None:
            filled = fill(values, known, row[part], own)
            right.append(_mean_over(filled == values, ~known))
            far.append(_mean_over((filled - values).abs(), ~known))
        if has_bound:
            found = conditional.bound(model, values, known, None, own, num_samples, seed, row[part])
            nats.append(found / hidden[part].flatten(1).sum(1))
    accuracy, accuracy_stderr = mean_and_error(right)
    distance, distance_stderr = mean_and_error(far) if ordered else (None, None)
    of_bound = mean_and_error(nats) if nats else (None, None)
    guess = float((x == x.flatten().mode().values)[hidden].double().mean())
    count = int(hidden[0].sum())
    return Infilling(
        pattern, share, count, len(x), accuracy, accuracy_stderr, guess, distance, distance_stderr, *of_bound
    )


def _mean_over(values: Tensor, sites: Bool[Tensor, " b *s"]) -> Float64[Tensor, " b"]:
    weight = sites.flatten(1).double()
    return (values.flatten(1).double() * weight).sum(1) / weight.sum(1)


def mean_and_error(parts: list[Tensor]) -> tuple[float, float]:
    """(mean over the rows of all parts, its standard error: nan for a single row)."""
    if not parts:
        return math.nan, math.nan
    values = torch.cat(parts).double().cpu()
    return float(values.mean()), float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
