"""Laws of whole rows that are known exactly: -log p, the entropy, and the law of each site given some of the others.

A law is a sum over a hidden state: of a chain of states, one for each site, by the forward and the backward recursion
(Rabiner 1989, doi 10.1109/5.18626), scaled at each site; or of one state of the whole row by a plain sum. The exact
denoiser of masked diffusion (arXiv 2406.04329) follows: the law of x_i given the sites that are shown.
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

    @abstractmethod
    def log_prob(self, x: Int64[Tensor, "b n"]) -> Float64[Tensor, " b"]:
        """log p(x), nats; -inf for rows that the law excludes."""

    @abstractmethod
    def log_posterior(self, z: Int64[Tensor, "b n"]) -> Float64[Tensor, "b n v"]:
        """log p(x_i = v | the sites of z that are not V): the exact denoiser. At a site that is shown: 0 at what it
        shows, -inf elsewhere."""

    @abstractmethod
    def log_next(self, x: Int64[Tensor, "b n"]) -> Float64[Tensor, "b n v"]:
        """log p(x_i = v | x_1 .. x_{i-1}); behind a beginning that the law excludes: uniform. V: a site that is not
        known."""

    def _checked(self, z: Int64[Tensor, "b n"], largest: int) -> Int64[Tensor, "b n"]:
        if z.shape[1] != self.num_sites:
            raise ValueError(f"rows have {z.shape[1]} sites, the law is of {self.num_sites}; give rows of its length")
        if z.numel() and (int(z.min()) < 0 or int(z.max()) > largest):
            raise ValueError(f"ids lie in {int(z.min())}..{int(z.max())}; the law knows 0..{largest}")
        return z

    def _one_hot(self, z: Int64[Tensor, "b n"]) -> Float64[Tensor, "b n v"]:
        """1 at what a site shows; a masked one shows nothing."""
        return torch.nn.functional.one_hot(z, self.num_classes + 1)[..., :-1].double()

    def _at_shown(self, z: Tensor, log_p: Tensor) -> Tensor:
        """log_p, with what is shown in its place."""
        return torch.where((z == self.num_classes)[..., None], log_p, self._one_hot(z).log())


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

    def log_prob(self, x: Int64[Tensor, "b n"]) -> Float64[Tensor, " b"]:
        return self._forward(self._evidence(self._checked(x, self.num_classes - 1)))[1]

    def log_posterior(self, z: Int64[Tensor, "b n"]) -> Float64[Tensor, "b n v"]:
        """See KnownLaw. Sites that are drawn at once may come to contradict each other, and what the law excludes has
        no posterior; then each symbol that is shown may be a slip, of probability 1e-6 and in favour of any other, and
        most of them are believed."""
        evidence = self._evidence(self._checked(z, self.num_classes))
        predicted, log_p = self._forward(evidence)
        excluded = torch.isneginf(log_p)
        if bool(excluded.any()):
            slipped = torch.where((z < self.num_classes)[..., None], (1 - _SLIP) * evidence + _SLIP, evidence)
            evidence = torch.where(excluded[:, None, None], slipped, evidence)
            predicted, _ = self._forward(evidence)
        return self._at_shown(z, _log_normalised(self._marginals(predicted, evidence)))

    def log_next(self, x: Int64[Tensor, "b n"]) -> Float64[Tensor, "b n v"]:
        predicted, _ = self._forward(self._evidence(x))
        return _log_normalised(torch.stack([before @ self.emission for before in predicted], 1))

    def _evidence(self, z: Tensor) -> Tensor:
        """Float64[b, n, V]: the factor that a site brings to each symbol; of a masked site 1 to all."""
        return torch.where((z == self.num_classes)[..., None], 1.0, self._one_hot(z))

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

    def _marginals(self, predicted: list[Tensor], evidence: Tensor) -> Tensor:
        """p(x_i = v | evidence of the other sites), Float64[b, n, V], but for a factor of each site."""
        behind = torch.ones_like(predicted[0])  # p(evidence behind i | h_i), but for a factor of the row
        found = []
        for i in reversed(range(self.num_sites)):
            found.append((predicted[i] * behind) @ self.emission)
            behind = (behind * (evidence[:, i] @ self.emission.T)) @ self.transition.T
            behind = behind / behind.amax(-1, keepdim=True)
        return torch.stack(found[::-1], 1)


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

    def log_prob(self, x: Int64[Tensor, "b n"]) -> Float64[Tensor, " b"]:
        return self._log_joint(self._checked(x, self.num_classes - 1)).logsumexp(-1)

    def log_posterior(self, z: Int64[Tensor, "b n"]) -> Float64[Tensor, "b n v"]:
        h = self._log_joint(self._checked(z, self.num_classes)).softmax(-1)
        found = (h @ self.law.flatten(1)).reshape(len(z), self.num_sites, self.num_classes)
        return self._at_shown(z, _log_normalised(found))

    def log_next(self, x: Int64[Tensor, "b n"]) -> Float64[Tensor, "b n v"]:
        one_hot, log_law = self._one_hot(x), self.law.log()
        joint = self.weight.log().expand(len(x), -1)
        found = []
        for i in range(self.num_sites):
            found.append(joint.softmax(-1) @ self.law[:, i])
            joint = joint + one_hot[:, i] @ log_law[:, i].T
        return _log_normalised(torch.stack(found, 1))

    def _log_joint(self, z: Tensor) -> Tensor:
        """Float64[b, S]: log of weight[h] and of what is shown, given h."""
        return self.weight.log() + self._one_hot(z).flatten(1) @ self.law.log().flatten(1).T


def _log_normalised(weight: Float64[Tensor, "b n v"]) -> Float64[Tensor, "b n v"]:
    """The logs of the shares; uniform where all is 0."""
    total = weight.sum(-1, keepdim=True)
    uniform = torch.full_like(weight, -math.log(weight.shape[-1]))
    return torch.where(total > 0, (weight / torch.where(total > 0, total, 1.0)).log(), uniform)
