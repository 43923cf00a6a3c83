"""An enumerable law on {0..V-1}^N, its Bayes-optimal denoiser as a network, and exact sums over corrupted states."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, nn


class ExactLaw(nn.Module):
    """P as a table of shape (V,) * N; as a network it returns log P(x_n = v | visible sites), for any time.

    Ids 0..V-1 are visible values, V is the mask.
    """

    def __init__(self, table: np.ndarray) -> None:
        super().__init__()
        self.table = torch.from_numpy(table)
        self.num_sites, self.num_classes = table.ndim, table.shape[0]
        n, v = self.num_sites, self.num_classes
        self.x = torch.tensor(list(itertools.product(range(v), repeat=n)))
        self.log_p = self.table.flatten().log()
        self.p = self.table.flatten()
        self.states = torch.tensor(list(itertools.product(range(v + 1), repeat=n)))
        posterior = torch.zeros(len(self.states), n, v, dtype=torch.float64)
        for i, state in enumerate(self.states):
            agrees = ((state == self.x) | (state == v)).all(-1)
            weight = torch.where(agrees, self.p, 0.0)
            for value in range(v):
                posterior[i, :, value] = (weight[:, None] * (self.x == value)).sum(0)
            posterior[i] /= weight.sum().clamp(min=1e-300)
        self.log_posterior = posterior.log()

    @classmethod
    def random(cls, num_sites: int, num_classes: int, seed: int) -> ExactLaw:
        rng = np.random.RandomState(seed)
        flat = rng.dirichlet(0.5 * np.ones(num_classes**num_sites))
        return cls(flat.reshape((num_classes,) * num_sites))

    @classmethod
    def independent(cls, num_sites: int, num_classes: int, seed: int) -> ExactLaw:
        rng = np.random.RandomState(seed)
        table = np.ones(())
        for _ in range(num_sites):
            table = np.multiply.outer(table, rng.dirichlet(np.ones(num_classes)))
        return cls(table)

    @property
    def entropy(self) -> float:
        return float(-(self.p * self.log_p).sum())

    def index(self, z: Tensor) -> Tensor:
        base = self.num_classes + 1
        return (z * base ** torch.arange(self.num_sites - 1, -1, -1)).sum(-1)

    def forward(self, z: Tensor, t: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        return self.log_posterior[self.index(z)]


class Uniform(nn.Module):
    """The predictor that knows nothing: equal logits."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, z: Tensor, t: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        return torch.zeros(*z.shape, self.num_classes, dtype=torch.float64)


def masks(num_sites: int) -> Tensor:
    """All 2^N masks, Bool[2^N, N]."""
    return torch.tensor(list(itertools.product([False, True], repeat=num_sites)))


def quadrature(pieces: int = 28, nodes: int = 20, first: float = 1e-7) -> tuple[Tensor, Tensor]:
    """Nodes and weights of a piecewise Gauss-Legendre rule on [0, 1], pieces log-spaced towards 0."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    edges = np.concatenate([[0.0], np.logspace(np.log10(first), 0, pieces + 1)])
    half = (edges[1:] - edges[:-1]) / 2
    t = (edges[:-1] + half)[:, None] + half[:, None] * x
    return torch.from_numpy(t.ravel()), torch.from_numpy((half[:, None] * w).ravel())
