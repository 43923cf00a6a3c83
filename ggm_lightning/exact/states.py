"""States of a tiny model, all of them, and sums over them.

States are rows Int64[m, n] in lexicographic order; a law on them is Float64[m] in that order.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

_FEW = 256  # rows whose answers are computed sooner than it is found out which are equal
Known = tuple[Tensor, Tensor]  # (values Int64[n], Bool[n]): sites that are given, and what they are


def all_states(num_values: int, num_sites: int) -> Tensor:
    """Int64[num_values^n, n]."""
    return torch.tensor(list(itertools.product(range(num_values), repeat=num_sites)), dtype=torch.int64)


def index(x: Tensor, num_values: int) -> Tensor:
    """Int64[b], the number of each row of x Int64[b, n] in `all_states(num_values, n)`."""
    places = torch.arange(x.shape[1] - 1, -1, -1, device=x.device)
    return (x * num_values**places).sum(-1)


def masks(num_sites: int) -> Tensor:
    """All sets of sites, Bool[2^n, n]."""
    return torch.tensor(list(itertools.product([False, True], repeat=num_sites)))


def with_known(num_values: int, known: Known) -> Tensor:
    """The states whose known sites have their values, Int64[num_values^unknown, n]."""
    values, given = known
    free = torch.nonzero(~given)[:, 0]
    states = values.expand(num_values ** len(free), len(values)).clone()
    states[:, free] = all_states(num_values, len(free))
    return states


def product(per_site: Tensor, states: Tensor, sites: Tensor | None = None) -> Tensor:
    """P(row -> state) Float64[b, m] of sites that move independently, Float64[b, n, values].

    Args:
        states: Int64[m, n].
        sites: Int64[k], those that count; the others move with probability 1 to what the state says. None: all.
    """
    sites = torch.arange(states.shape[1]) if sites is None else sites
    return per_site[:, sites][:, torch.arange(len(sites)), states[:, sites]].prod(-1)


def total_variation(p: Tensor, q: Tensor) -> float:
    """sum |p - q| / 2, between 0 and 1."""
    return 0.5 * float((p - q).abs().sum())


def frequencies(x: Tensor, num_values: int) -> Tensor:
    """Float64[num_values^n], the share of each state among the rows of x Int64[b, *shape]."""
    flat = x.flatten(1)
    return index(flat, num_values).bincount(minlength=num_values ** flat.shape[1]).double() / len(flat)


def floor(p: Tensor, num_samples: int) -> float:
    """Mean total variation between p and the frequencies of so many exact draws from it."""
    return 0.5 * float(torch.sqrt(2 * p * (1 - p).clamp(min=0) / (math.pi * num_samples)).sum())


def standard_errors(found: Tensor, expected: Tensor, num_samples: int) -> tuple[float, int]:
    """(the largest deviation of frequencies from a law, in standard errors, the state where it is).

    States that are expected less than ten times count as one, whose number is that of the likeliest of them.
    """
    rare = expected * num_samples < 10
    place = torch.nonzero(~rare)[:, 0].tolist()
    if bool(rare.any()):
        place.append(int(torch.where(rare, (found - expected).abs(), -1.0).argmax()))
    found, expected = (torch.cat([law[~rare], law[rare].sum(0, keepdim=True)]) for law in (found, expected))
    error = (expected * (1 - expected)).clamp(min=1 / num_samples).div(num_samples).sqrt()
    deviation = ((found - expected) / error).abs()[: max(1, len(place))]
    worst = int(deviation.argmax())
    return float(deviation[worst]), place[worst]


def quadrature(pieces: int = 28, nodes: int = 20, first: float = 1e-7) -> tuple[Tensor, Tensor]:
    """Nodes and weights of a piecewise Gauss-Legendre rule on [0, 1], pieces log-spaced from `first` to 1."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    edges = np.concatenate([[0.0], np.logspace(np.log10(first), 0, pieces + 1)])
    half = (edges[1:] - edges[:-1]) / 2
    t = (edges[:-1] + half)[:, None] + half[:, None] * x
    return torch.from_numpy(t.ravel()), torch.from_numpy((half[:, None] * w).ravel())


def distinct(t: Tensor, *columns: Tensor) -> tuple[Tensor, Tensor]:
    """(first, back): one row of each kind of (t, whole numbers >= 0), and for every row its kind. Thousands of samples
    are in few states, so that an exact network has few answers to compute. Few rows are not worth the search."""
    if len(t) <= _FEW:
        every = torch.arange(len(t), device=t.device)
        return every, every
    code = t.unique(return_inverse=True)[1]
    for column in torch.cat(columns, 1).unbind(1):
        whole = column.long()
        code = code * (int(whole.max()) + 1 if len(whole) else 1) + whole
    _, back, count = code.unique(return_inverse=True, return_counts=True)
    return back.argsort(stable=True)[count.cumsum(0) - count], back
