"""The one place where tokens are drawn.

Sites first, then values: a Bernoulli per site decides what changes, and only there a categorical is drawn, by the
inverse of its cumulative sum in float64 with one float64 uniform per row. That is exact. Racing all V tokens and [MASK]
with float32 Gumbel noise is not: at a reveal probability of 0.01 it loses half of the rare tokens' mass and reveals too
few sites (tests/core/test_categorical.py shows both).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

# float64 rows processed at once: 2^24 entries are 128 MB
_CHUNK_ENTRIES = 1 << 24


def unnormalised(logits: Float[Tensor, "k v"], temperature: float = 1.0, top_p: float = 1.0) -> Float64[Tensor, "k v"]:
    """exp((logits - max) / temperature), zero outside the nucleus, float64.

    The nucleus is the smallest set {v : p_v >= threshold} of mass at least top_p; ties at the threshold all stay, so
    the result does not depend on the order of the classes (as in MD4's code, models/binary_search.py). Only max, exp
    and cumulative sums along a row are used: a row gives the same bits alone and in a batch.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be positive and finite (towards 0 the mode is drawn)")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it is a probability mass in (0, 1], 1 keeps every class")
    scaled = logits.double()
    p = torch.exp((scaled - scaled.amax(-1, keepdim=True)) / temperature)
    if top_p == 1:
        return p
    ordered = p.sort(-1, descending=True).values
    mass = ordered.cumsum(-1)
    first = (mass < top_p * mass[:, -1:]).sum(-1, keepdim=True).clamp(max=p.shape[-1] - 1)
    return torch.where(p >= ordered.gather(-1, first), p, 0.0)


def probabilities(logits: Float[Tensor, "k v"], temperature: float = 1.0, top_p: float = 1.0) -> Float64[Tensor, "k v"]:
    """The law that `draw` draws from, normalised."""
    p = unnormalised(logits, temperature, top_p)
    return p / p.cumsum(-1)[:, -1:]


def draw(
    logits: Float[Tensor, "k v"], u: Float64[Tensor, " k"], temperature: float = 1.0, top_p: float = 1.0
) -> Int64[Tensor, " k"]:
    """One class per row: the first v whose cumulative probability exceeds u in (0, 1)."""
    rows = max(1, _CHUNK_ENTRIES // logits.shape[-1])
    drawn = []
    for part, u_part in zip(logits.split(rows), u.split(rows), strict=True):
        cumulative = unnormalised(part, temperature, top_p).cumsum(-1)
        target = u_part[:, None] * cumulative[:, -1:]
        # right=True: a class of probability 0 adds nothing to the sum and can never be the first to exceed it
        drawn.append(torch.searchsorted(cumulative, target, right=True)[:, 0])
    return torch.cat(drawn).clamp(max=logits.shape[-1] - 1) if drawn else u.long()


def choose_sites(probability: Float64[Tensor, "b n"], u: Float64[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
    """An independent Bernoulli per site: True where u < probability."""
    return u < probability


def draw_common(p: Float64[Tensor, " v"], u: Float64[Tensor, "*k"]) -> Int64[Tensor, "*k"]:
    """One class per entry of u, all from one law p (which need not be normalised): no row per entry is formed."""
    cumulative = p.cumsum(0)
    # right=True, as in `draw`; the last sum times a u next to 1 may round to the sum itself
    return torch.searchsorted(cumulative, u * cumulative[-1], right=True).clamp(max=len(p) - 1)
