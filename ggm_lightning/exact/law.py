"""A joint law of n sites of V classes as a table, zeros included, and Bayes' rule over all its states."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ggm_lightning.exact.states import Known, all_states, index

_MOST = 20_000  # states of a law: all of them stand in every sum


class JointLaw:
    """p(x) of x in {0..V-1}^n.

    Args:
        table: probabilities (or weights, which are normalised) of shape (V,) * n, zeros included: a tensor, an array or
            nested lists.

    Attributes:
        x: Int64[V^n, n], all states. p, log_p: Float64[V^n], log 0 = -inf. one_hot: Float64[V^n, n, V].
        num_sites, num_classes: n and V.

    Raises ValueError for a table that is no law, or one of more than 20,000 states.
    """

    def __init__(self, table: Tensor | np.ndarray | list) -> None:
        given = torch.as_tensor(table).double()
        if given.dim() < 1 or len(set(given.shape)) != 1:
            raise ValueError(f"JointLaw: the table has shape {tuple(given.shape)}; give V numbers along each of n axes")
        if given.numel() > _MOST:
            raise ValueError(f"JointLaw: {given.numel():,} states; all are enumerated, give at most {_MOST:,}")
        total = float(given.sum())
        if not bool((given >= 0).all()) or not 0 < total < float("inf"):
            raise ValueError("JointLaw: the table holds no probabilities; give finite numbers >= 0, not all 0")
        exactly = abs(total - 1) < 1e-12  # a normalised table is taken as it is, to the last bit
        self.num_sites, self.num_classes = given.dim(), given.shape[0]
        self.p = given.flatten() if exactly else given.flatten() / total
        self.log_p = self.p.log()
        self.x = all_states(self.num_classes, self.num_sites)
        self.one_hot = nn.functional.one_hot(self.x, self.num_classes).double()

    @classmethod
    def random(cls, num_sites: int, num_classes: int, seed: int = 0, zeros: float = 0.0) -> JointLaw:
        """From a Dirichlet law of parameter 1/2: some states likely, many rare. `zeros`: the share of states that then
        get probability 0."""
        rng = np.random.RandomState(seed)
        flat = rng.dirichlet(0.5 * np.ones(num_classes**num_sites))
        flat[rng.permutation(len(flat))[: int(zeros * len(flat))]] = 0.0
        return cls(flat.reshape((num_classes,) * num_sites))

    @classmethod
    def independent(cls, num_sites: int, num_classes: int, seed: int = 0) -> JointLaw:
        """A random law of sites that know nothing of each other."""
        rng = np.random.RandomState(seed)
        table = np.ones(())
        for _ in range(num_sites):
            table = np.multiply.outer(table, rng.dirichlet(np.ones(num_classes)))
        return cls(table)

    @property
    def entropy(self) -> float:
        """H = -sum p log p, nats."""
        return float(-torch.xlogy(self.p, self.p).sum())

    def index(self, x: Tensor) -> Tensor:
        """Int64[b], the number of each row of x Int64[b, n]."""
        return index(x, self.num_classes)

    def given(self, known: Known | None) -> Tensor:
        """p(x | known sites), Float64[V^n], 0 where x has other values there."""
        if known is None:
            return self.p
        values, mask = known
        weight = torch.where(((self.x == values) | ~mask).all(-1), self.p, 0.0)
        if not float(weight.sum()):
            raise ValueError("JointLaw: what is known has probability 0; choose other values")
        return weight / weight.sum()

    # ------------------------------------------------------------------ Bayes' rule

    def marginals(self, weight: Tensor) -> Tensor:
        """P(x_n = v), Float64[b, n, V], of the law on all states with these weights, Float64[b, V^n]. Where all weights
        are 0 (a state that cannot be) every class is equally likely."""
        joint = (weight @ self.one_hot.flatten(1)).reshape(-1, self.num_sites, self.num_classes)
        total = joint.sum(-1, keepdim=True)
        return torch.where(total > 0, joint / total, 1 / self.num_classes)

    def posterior(self, reach: Tensor, own: bool = True) -> Tensor:
        """P(x_n = v | z), Float64[b, n, V], of noise that moves each site by itself:

            P(x | z) = p(x) prod_n reach[n, x_n] / sum over x'

        Args:
            reach: Float64[b, n, V], P(z_n | x_n = v).
            own: False leaves the site's own factor out: P(x_n = v | all sites of z but n), what a network returns where
                the family multiplies P(z_n | x_n) in itself, or where it is hollow.
        """
        n = self.num_sites
        factors = reach[:, torch.arange(n), self.x]  # [b, V^n, n]
        if own:
            return self.marginals(self.p * factors.prod(-1))
        others = [[m for m in range(n) if m != site] for site in range(n)]
        parts = [self.marginals(self.p * factors[..., some].prod(-1))[:, site] for site, some in enumerate(others)]
        return torch.stack(parts, 1)
