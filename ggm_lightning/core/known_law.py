"""Laws of whole rows that are known exactly: -log p, the entropy, and the law of each site given some of the others.

What is seen of a row is evidence, Float[b, n, V] >= 0: the factor that site i brings to the value v. A site that shows
v has 1 at v and 0 elsewhere, a masked one has 1 everywhere. Both kinds of laws below are sums over a hidden state h:

    p(evidence) = sum_h p(h) prod_i sum_v p(x_i = v | h) evidence_i(v)                                          eq. (1)

For a chain of hidden states by the forward and the backward recursion (Rabiner 1989, doi 10.1109/5.18626), scaled at
each site, for one hidden state of the whole row by a plain sum. The exact denoiser of masked diffusion
(arXiv 2406.04329) follows: the law of x_i given the sites that are shown.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

Entropy = Callable[[], tuple[float, float]]

_SLIP = 1e-6  # of a symbol, in rows that the law excludes: see `KnownLaw.log_posterior`


def shown(z: Int64[Tensor, "b n"], num_classes: int) -> Float64[Tensor, "b n v"]:
    """The evidence of a state z in 0..V, where V is a masked site."""
    one_hot = torch.nn.functional.one_hot(z, num_classes + 1)[..., :num_classes].double()
    return torch.where((z == num_classes)[..., None], 1.0, one_hot)


class KnownLaw(ABC):
    """A law of rows x in {0..V-1}^n.

    Args:
        num_sites: n.
        num_classes: V.
        entropy: gives (H(x) in nats per row, its standard error: 0 where it is exact). It is called when it is needed.
    """

    def __init__(self, num_sites: int, num_classes: int, entropy: Entropy) -> None:
        self.num_sites, self.num_classes = num_sites, num_classes
        self.entropy = entropy

    def log_prob(self, x: Int64[Tensor, "b n"]) -> Float64[Tensor, " b"]:
        """log p(x), nats; -inf for rows that the law excludes."""
        return self.log_evidence(shown(self._checked(x, self.num_classes - 1), self.num_classes))

    def log_posterior(self, z: Int64[Tensor, "b n"]) -> Float64[Tensor, "b n v"]:
        """log p(x_i = v | the sites of z that are not V): the exact denoiser. At a site that is shown: 0 at what it
        shows, -inf elsewhere.

        Several sites that are drawn at once may come to contradict each other. What the law excludes has no posterior;
        then each shown symbol may be a slip, of probability 1e-6 and any other symbol instead, and most of them are
        believed.
        """
        evidence = shown(self._checked(z, self.num_classes), self.num_classes)
        excluded = torch.isneginf(self.log_evidence(evidence))
        if bool(excluded.any()):
            slipped = evidence * (1 - _SLIP) + _SLIP / self.num_classes
            soft = torch.where((evidence == 1).all(-1, keepdim=True), 1.0, slipped)
            evidence = torch.where(excluded[:, None, None], soft, evidence)
        found = self.marginals(evidence)
        hidden = (z == self.num_classes)[..., None]
        return torch.where(hidden, found, shown(z, self.num_classes).log())

    def _checked(self, z: Int64[Tensor, "b n"], largest: int) -> Int64[Tensor, "b n"]:
        if z.shape[1] != self.num_sites:
            raise ValueError(f"rows have {z.shape[1]} sites, the law is of {self.num_sites}; give rows of its length")
        if z.numel() and (int(z.min()) < 0 or int(z.max()) > largest):
            raise ValueError(f"ids lie in {int(z.min())}..{int(z.max())}; the law knows 0..{largest}")
        return z

    @abstractmethod
    def log_evidence(self, evidence: Float64[Tensor, "b n v"]) -> Float64[Tensor, " b"]:
        """log of eq. (1), nats."""

    @abstractmethod
    def marginals(self, evidence: Float64[Tensor, "b n v"]) -> Float64[Tensor, "b n v"]:
        """log p(x_i = v | evidence of all sites), normalised over v."""

    @abstractmethod
    def log_next(self, x: Int64[Tensor, "b n"]) -> Float64[Tensor, "b n v"]:
        """log p(x_i = v | x_1 .. x_{i-1}); behind a beginning that the law excludes: uniform."""


class HiddenChain(KnownLaw):
    """A chain of hidden states h_1 .. h_n, each of which says a symbol:

        h_1 ~ initial,  h_{i+1} ~ transition[h_i],  x_i ~ emission[h_i]

    Args:
        initial: Float64[S]. transition: Float64[S, S], rows sum to 1. emission: Float64[S, V], rows sum to 1.
    """

    def __init__(
        self,
        initial: Float64[Tensor, " s"],
        transition: Float64[Tensor, "s s"],
        emission: Float64[Tensor, "s v"],
        num_sites: int,
        entropy: Entropy,
    ) -> None:
        super().__init__(num_sites, emission.shape[1], entropy)
        self.initial, self.transition, self.emission = initial, transition, emission

    def _forward(self, evidence: Tensor) -> tuple[list[Tensor], Tensor]:
        """(p(h_i | evidence before i) for each i, Float64[b, S]; log p(evidence) Float64[b]). Where the evidence is
        excluded the former are 0 from there on."""
        before = self.initial.expand(len(evidence), -1)
        predicted, log_p = [], torch.zeros(len(evidence), dtype=torch.float64)
        for i in range(self.num_sites):
            predicted.append(before)
            joint = before * (evidence[:, i] @ self.emission.T)
            mass = joint.sum(-1)
            log_p = log_p + mass.log()
            before = (joint / torch.where(mass > 0, mass, 1.0)[:, None]) @ self.transition
        return predicted, log_p

    def log_evidence(self, evidence: Float64[Tensor, "b n v"]) -> Float64[Tensor, " b"]:
        return self._forward(evidence)[1]

    def marginals(self, evidence: Float64[Tensor, "b n v"]) -> Float64[Tensor, "b n v"]:
        predicted, _ = self._forward(evidence)
        behind = torch.ones_like(predicted[0])  # p(evidence behind i | h_i), but for a factor of the row
        found = []
        for i in reversed(range(self.num_sites)):
            others = (predicted[i] * behind) @ self.emission
            found.append(others * evidence[:, i])
            behind = (behind * (evidence[:, i] @ self.emission.T)) @ self.transition.T
            behind = behind / behind.amax(-1, keepdim=True)
        return _log_normalised(torch.stack(found[::-1], 1))

    def log_next(self, x: Int64[Tensor, "b n"]) -> Float64[Tensor, "b n v"]:
        predicted, _ = self._forward(shown(x, self.num_classes))
        return _log_normalised(torch.stack([before @ self.emission for before in predicted], 1))


class Mixture(KnownLaw):
    """Sites that are independent given one hidden state of the whole row:

        p(x) = sum_h weight[h] prod_i law[h, i, x_i]

    Args:
        weight: Float64[S], sums to 1. law: Float64[S, n, V], all of it above 0.
    """

    def __init__(self, weight: Float64[Tensor, " s"], law: Float64[Tensor, "s n v"], entropy: Entropy) -> None:
        super().__init__(law.shape[1], law.shape[2], entropy)
        if not bool((law > 0).all()):
            raise ValueError("law: some symbol has probability 0; take HiddenChain, or raise it above 0")
        self.weight, self.law = weight, law

    def _log_joint(self, evidence: Tensor) -> Tensor:
        """Float64[b, S]: log weight[h] + log p(evidence | h)."""
        total = self.weight.log().expand(len(evidence), -1)
        for i in range(self.num_sites):
            total = total + (evidence[:, i] @ self.law[:, i].T).log()
        return total

    def log_evidence(self, evidence: Float64[Tensor, "b n v"]) -> Float64[Tensor, " b"]:
        return self._log_joint(evidence).logsumexp(-1)

    def marginals(self, evidence: Float64[Tensor, "b n v"]) -> Float64[Tensor, "b n v"]:
        joint = self._log_joint(evidence)
        found = []
        for i in range(self.num_sites):
            own = (evidence[:, i] @ self.law[:, i].T).log()
            found.append((joint - own).softmax(-1) @ self.law[:, i] * evidence[:, i])
        return _log_normalised(torch.stack(found, 1))

    def log_next(self, x: Int64[Tensor, "b n"]) -> Float64[Tensor, "b n v"]:
        evidence = shown(x, self.num_classes)
        joint = self.weight.log().expand(len(x), -1)
        found = []
        for i in range(self.num_sites):
            found.append(joint.softmax(-1) @ self.law[:, i])
            joint = joint + (evidence[:, i] @ self.law[:, i].T).log()
        return _log_normalised(torch.stack(found, 1))


def _log_normalised(weight: Float64[Tensor, "b n v"]) -> Float64[Tensor, "b n v"]:
    """The logs of the shares; uniform where all is 0."""
    total = weight.sum(-1, keepdim=True)
    uniform = torch.full_like(weight, -math.log(weight.shape[-1]))
    return torch.where(total > 0, (weight / torch.where(total > 0, total, 1.0)).log(), uniform)
