"""Whether a latent is of use: its spread before normalisation, what it costs, and what the tokens gain from it.

The bound cannot say: with optimal denoisers token term + latent term = H(x) for every encoder, a constant one included
(arXiv 2510.18114; identity derived here). So both terms are given apart, in bits per token, with what the latent has
saved at most, and with how many tokens a single step gets right from the encoder's own latent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

_SUMS = ("rows", "tokens", "latent", "pairs", "gain", "without", "asked", "right", "chance")


@dataclass(frozen=True)
class Probe:
    """What a few rows say of their latent (models/lddm_probes.py).

    Attributes:
        gain: Float[k], nats per example: the tokens' term with another row's latent less that with its own.
        without: Float[k], the same with a latent of zeros in the place of another row's.
        right: Float[m], of some sites the probability of the true token, all tokens masked, given the row's own latent.
        chance: Float[m], the same given another row's.
    """

    gain: Tensor
    without: Tensor
    right: Tensor
    chance: Tensor


class LatentUse(Metric):
    """Collects raw latents, both parts of the bound, and probes of a few rows.

    Args:
        num_coordinates: S d, of a continuous latent; 0 where there is no spread to look at.
        num_sites: N, tokens per example.
        num_classes: V.
    """

    full_state_update = False
    total: Tensor
    total_of_squares: Tensor
    rows: Tensor
    tokens: Tensor
    latent: Tensor
    pairs: Tensor
    gain: Tensor
    without: Tensor
    asked: Tensor
    right: Tensor
    chance: Tensor
    classes: Tensor

    def __init__(self, num_coordinates: int, num_sites: int, num_classes: int) -> None:
        super().__init__()
        self.bits = num_sites * math.log(2)  # nats per example in one bit per token
        zeros = torch.zeros(num_coordinates, dtype=torch.float64)
        for name in ("total", "total_of_squares"):
            self.add_state(name, zeros.clone(), dist_reduce_fx="sum")
        self.add_state("classes", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        for name in _SUMS:
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, x: Tensor, raw: Tensor | None, tokens: Tensor, latent: Tensor, probe: Probe | None) -> None:
        """x: Int64[b, *shape]. raw: Float[b, S, d]. tokens, latent: Float[b], nats per example, both parts of the
        bound."""
        self.classes += torch.bincount(x.flatten(), minlength=len(self.classes))
        if raw is not None:
            raw = raw.detach().double().flatten(1)
            self.total += raw.sum(0)
            self.total_of_squares += raw.square().sum(0)
        self.rows += len(tokens)
        self.tokens += tokens.detach().double().sum()
        self.latent += latent.detach().double().sum()
        if probe is None:
            return
        self.pairs += len(probe.gain)
        self.asked += len(probe.right)
        for name in ("gain", "without", "right", "chance"):
            setattr(self, name, getattr(self, name) + getattr(probe, name).detach().double().sum())

    def compute(self) -> dict[str, Tensor]:
        """latent_std: mean over the coordinates of the deviation over the examples. latent_mi: nats per example, mean
        gain. bpd_tokens + bpd_latent = bpd: bits per token. latent_saves: bits per token, at most: the smallest of what
        the tokens' term loses with another row's latent, with none, and if the tokens were independent of each other
        (a network that was never trained without its latent is worse than that). oracle_accuracy: share of tokens that
        one step from the encoder's own latent gets right; oracle_chance: from another row's."""
        tokens = self.tokens / self.rows / self.bits
        lost = torch.minimum(self.gain, self.without) / self.pairs / self.bits
        use = {
            "bpd_tokens": tokens,
            "bpd_latent": self.latent / self.rows / self.bits,
            "latent_saves": torch.minimum(lost, independent_bits(self.classes) - tokens).clamp(min=0),
            "latent_mi": self.gain / self.pairs,
            "oracle_accuracy": self.right / self.asked,
            "oracle_chance": self.chance / self.asked,
        }
        if self.total.numel():
            mean = self.total / self.rows
            variance = (self.total_of_squares / self.rows - mean.square()).clamp(min=0)
            use["latent_std"] = variance.sqrt().mean()
        return use


def independent_bits(counts: Tensor) -> Tensor:
    """Entropy of single tokens, bits, of counts Int64[V], with Miller and Madow's correction of few counts."""
    total, share = counts.sum(), counts.double() / counts.sum()
    nats = -torch.special.xlogy(share, share).sum() + ((counts > 0).sum() - 1) / (2 * total)
    return nats / math.log(2)


def does_not_pay(cost: float, saves: float) -> str | None:
    """A line where the latent costs more than it can have saved, both in bits per token; None where it may pay."""
    if not cost > saves:
        return None
    return f"the latent costs {cost:.3g} and saves {saves:.3g} bits per token at most: without it the bound were better"
