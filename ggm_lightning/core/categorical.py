"""The one place where tokens are drawn.

Sites first, then values: a Bernoulli per site decides what changes, and only there a categorical is drawn, by the
inverse of its cumulative sum in float64 with one float64 uniform per row. That is exact. Racing all V tokens and [MASK]
with float32 Gumbel noise is not: at a reveal probability of 0.01 it loses half of the rare tokens' mass and reveals too
few sites (tests/core/test_categorical.py shows both).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, fields
from functools import cache
from numbers import Real
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torch.nn import functional

from ggm_lightning.core import logs, watch
from ggm_lightning.core.arguments import whole_number
from ggm_lightning.core.losses import at_least_float32
from ggm_lightning.core.watch import Sites

# entries processed at once: 2^24 are 128 MB in float64
_CHUNK_ENTRIES = 1 << 24
_BLOCK = 256  # classes whose sum is one step of the outer search
_WIDTHS = (1 << 10, 1 << 14)  # of the largest classes, among which the nucleus is looked for before all are sorted


NUCLEI = ("crossing", "inside")


def check_sharpening(temperature: object, top_p: object, top_k: object = None, nucleus: object = "crossing") -> None:
    """ValueError for anything but numbers, temperature finite and not negative, top_p in (0, 1], top_k None or a whole
    number of at least 1, nucleus one of NUCLEI."""
    if not isinstance(temperature, Real) or not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature!r}; it must be at least 0, the mode, and finite")
    if not isinstance(top_p, Real) or not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p!r}; it is a probability mass in (0, 1], 1 keeps every class")
    if top_k is not None:
        whole_number("top_k", top_k, 1)
    if nucleus not in NUCLEI:
        raise ValueError(f"nucleus is {nucleus!r}; choose {' or '.join(NUCLEI)}")


@dataclass(frozen=True)
class Sharpening:
    """How the law of the values is changed before it is drawn from. All options of that kind are fields of this class:
    samplers and laws hand it on as a whole.

    Attributes:
        temperature: a number that logits are divided by; 1 draws from the law itself, 0 is the mode.
        top_p: a number, mass of the nucleus, see `unnormalised`; 1 keeps every class.
        top_k: how many classes are kept before the nucleus is taken; None keeps every class.
        nucleus: whether the class that crosses top_p is kept, "crossing", or not, "inside".

    Raises ValueError for what `check_sharpening` refuses.
    """

    temperature: Any = 1.0  # whatever a user gives is checked below, where a type checker would be first
    top_p: Any = 1.0
    top_k: Any = None
    nucleus: Any = "crossing"

    def __post_init__(self) -> None:
        check_sharpening(self.temperature, self.top_p, self.top_k, self.nucleus)

    @property
    def leaves_out(self) -> bool:
        """Whether classes may get probability 0 that have another in the law itself."""
        return self.top_p < 1 or self.top_k is not None or self.temperature == 0

    @property
    def in_one_kernel(self) -> bool:
        """Whether core/draw_kernels.py can draw from the sharpened law."""
        crossing = self.top_p == 1 or self.nucleus == "crossing"
        return self.temperature > 0 and self.top_k is None and crossing

    def __str__(self) -> str:
        return " and ".join(
            f"{field.name} {getattr(self, field.name)}"
            for field in fields(self)
            if field.name in ("temperature", "top_p") or getattr(self, field.name) != field.default
        )

    def draw(self, logits: Float[Tensor, "k v"], u: Float64[Tensor, " k"], at: Sites = None) -> Int64[Tensor, " k"]:
        """One class per row, see `draw`."""
        return draw(logits, u, self, at)

    def probabilities(self, logits: Float[Tensor, "k v"]) -> Float64[Tensor, "k v"]:
        """The law that `draw` draws from, normalised."""
        return probabilities(logits, self)

    def log_probabilities(self, logits: Float[Tensor, "*k v"]) -> Float64[Tensor, "*k v"]:
        """Its logarithms, see `log_probabilities`."""
        return log_probabilities(logits, self)


PLAIN = Sharpening()


def unnormalised(logits: Float[Tensor, "k v"], sharpening: Sharpening = PLAIN) -> Float64[Tensor, "k v"]:
    """exp((logits - max) / temperature), zero outside the top_k classes and the nucleus, float64.

    temperature 0 is its limit: 1 at the largest logits, 0 elsewhere. top_k keeps {v : p_v >= the k-th largest}. Then
    the nucleus of what is left: "crossing" is the smallest set {v : p_v >= threshold} of mass at least top_p (as in
    MD4's code, models/binary_search.py); "inside" the largest of mass at most top_p, and never less than the most
    probable classes (as in ReMDM's, arXiv 2503.00307). Ties all stay or all go, so that the result does not depend on
    the order of the classes. Only max, exp, the largest values and cumulative sums along a row are used: a row gives
    the same bits alone and in a batch.
    """
    temperature, top_p, top_k = float(sharpening.temperature), float(sharpening.top_p), sharpening.top_k
    scaled = logits.double()
    top = scaled.amax(-1, keepdim=True)
    if temperature == 0:
        # NaN is no largest logit, and stays NaN
        p = torch.where(scaled == top, 1.0, scaled * 0.0)
        p = torch.where(scaled == -torch.inf, 0.0, p)
    else:
        p = torch.exp((scaled - top) / temperature)
    if top_k is not None and top_k < p.shape[-1]:
        p = torch.where(p >= _largest(p.detach(), top_k)[:, -1:], p, 0.0)
    if top_p == 1:
        return p
    if sharpening.nucleus == "inside":
        return torch.where(_inside(p.detach(), top_p), p, 0.0)
    return torch.where(p >= _threshold(p.detach(), top_p), p, 0.0)


def _threshold(p: Float64[Tensor, "k v"], top_p: float) -> Float64[Tensor, "k 1"]:
    """The largest p_v such that all classes at least as large hold top_p of the row. Looked for among the largest
    classes first: a nucleus of a trained model is small, and a sort of all classes is what one would wait for."""
    v = p.shape[-1]
    goal = top_p * p.cumsum(-1)[:, -1:]
    threshold = torch.empty_like(goal)
    left = torch.arange(len(p), device=p.device)
    for width in (*(w for w in _WIDTHS if w < v), v):
        largest = _largest(p if len(left) == len(p) else p[left], width)
        short = (largest.cumsum(-1) < goal[left]).sum(-1, keepdim=True)
        threshold[left] = largest.gather(-1, short.clamp(max=width - 1))
        left = left[short[:, 0] == width]
        if not len(left):
            break
    return threshold


def _largest(p: Float64[Tensor, "k v"], width: int) -> Float64[Tensor, "k width"]:
    """The largest of each row, falling. NumPy's vectorised sorts are several times as fast as `topk` on a CPU."""
    if p.device.type != "cpu":
        return p.topk(width).values
    rows = p.numpy()
    if width < rows.shape[-1]:
        rows = np.partition(rows, -width, axis=-1)[:, -width:]
    return torch.from_numpy(np.sort(rows, axis=-1)).flip(-1)


def _inside(p: Float64[Tensor, "k v"], top_p: float) -> Bool[Tensor, "k v"]:
    """{v : the classes at least as large as v hold at most top_p of the row}, and the largest."""
    largest = _largest(p, p.shape[-1])
    mass = largest.cumsum(-1)
    kept = (mass <= top_p * mass[:, -1:]).sum(-1, keepdim=True)
    # the first that is left out takes those with it that are as large
    left_out = largest.gather(1, kept.clamp(max=p.shape[-1] - 1))
    return (p > left_out) | (p == largest[:, :1])


def probabilities(logits: Float[Tensor, "k v"], sharpening: Sharpening = PLAIN) -> Float64[Tensor, "k v"]:
    """The law that `draw` draws from, normalised."""
    p = unnormalised(logits, sharpening)
    return p / p.cumsum(-1)[:, -1:]


def log_probabilities(logits: Float[Tensor, "*k v"], sharpening: Sharpening = PLAIN) -> Float64[Tensor, "*k v"]:
    """The logarithms of `probabilities`, however small; -inf outside the nucleus, and where no class is possible."""
    scaled = logits.double() / (float(sharpening.temperature) or 1.0)
    if sharpening.leaves_out:
        kept = unnormalised(logits.flatten(0, -2), sharpening).reshape(logits.shape) > 0
        scaled = torch.where(kept, scaled, -torch.inf)
    return logs.log_normalised(scaled)


def draw(
    logits: Float[Tensor, "k v"],
    u: Float64[Tensor, " k"],
    sharpening: Sharpening = PLAIN,
    at: Sites = None,
) -> Int64[Tensor, " k"]:
    """One class per row: the first v whose cumulative probability exceeds u in (0, 1).

    A row that holds NaN or +inf, or -inf alone, is no law: ValueError names its step, row and site (`at` says where the
    k rows stand), within a sampler on a GPU not at once but before the sample is returned (core/watch.py).

    Many classes are searched in two levels, float64 sums of blocks and then one block, and without a nucleus their
    exponentials keep the logits' precision (float32 at least): two thirds of the time. A GPU with Triton takes one
    kernel for all of it, in float32 for logits that are not float64; it knows temperature and the nucleus "crossing".
    """
    if logits.is_cuda and logits.dtype != torch.float64 and sharpening.in_one_kernel:
        kernels = triton_draws()
        if kernels is not None:
            drawn = kernels.draw(logits, u, float(sharpening.temperature), float(sharpening.top_p))
            watch.note((-drawn).clamp(min=0), at)
            return drawn.clamp(min=0)
    faults = watch.faults_of(logits)
    watch.note(faults, at)
    rows = max(1, _CHUNK_ENTRIES // logits.shape[-1])
    parts = zip(logits.split(rows), u.split(rows), strict=True)
    drawn = [_draw_rows(part, u_part, sharpening) for part, u_part in parts]
    # a legal class stands where a fault has not been reported yet
    return torch.where(faults > 0, 0, torch.cat(drawn)) if drawn else u.long()


@cache
def triton_draws() -> ModuleType | None:
    """The Triton kernels, or None with a warning where Triton is missing."""
    try:
        from ggm_lightning.core import draw_kernels
    except ImportError:
        warnings.warn("Triton is not installed: draws take several passes; pip install triton", stacklevel=2)
        return None
    return draw_kernels


def _draw_rows(logits: Float[Tensor, "k v"], u: Float64[Tensor, " k"], sharpening: Sharpening) -> Int64[Tensor, " k"]:
    k, v = logits.shape
    if v <= 4 * _BLOCK:
        return _first_above(unnormalised(logits, sharpening).cumsum(-1), u)
    if sharpening.leaves_out:
        e = unnormalised(logits, sharpening)
    else:
        scaled = at_least_float32(logits)
        e = torch.exp((scaled - scaled.amax(-1, keepdim=True)) / float(sharpening.temperature))
    blocks = functional.pad(e, (0, -v % _BLOCK)).reshape(k, -(-v // _BLOCK), _BLOCK)  # k may be 0
    # 256 neighbours are added in the same order in any batch; a whole row might be cut among threads
    ends = blocks.sum(-1).double().cumsum(-1)
    block = _first_above(ends, u)[:, None].clamp(max=ends.shape[1] - 1)  # NaN is above nothing
    begin = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    share = (u[:, None] * ends[:, -1:] - begin) / (ends.gather(1, block) - begin)
    inner = blocks[torch.arange(k, device=u.device), block[:, 0]].double().cumsum(-1)
    return block[:, 0] * _BLOCK + _first_above(inner, share[:, 0].clamp(min=0))


def _first_above(cumulative: Float64[Tensor, "k v"], u: Float64[Tensor, " k"]) -> Int64[Tensor, " k"]:
    """The first v with cumulative_v > u cumulative_{-1}: a class of probability 0 adds nothing to the sum and can never
    be the first, also where a u next to 1 rounds to all of it."""
    total = cumulative[:, -1:]
    target = torch.minimum(u[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def choose_sites(probability: Float64[Tensor, "b n"], u: Float64[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
    """An independent Bernoulli per site: True where u < probability."""
    return u < probability


def draw_common(p: Float64[Tensor, " v"], u: Float64[Tensor, "*k"]) -> Int64[Tensor, "*k"]:
    """One class per entry of u, all from one law p (which need not be normalised): no row per entry is formed."""
    cumulative = p.cumsum(0)
    # right=True, as in `draw`; the last sum times a u next to 1 may round to the sum itself
    return torch.searchsorted(cumulative, u * cumulative[-1], right=True).clamp(max=len(p) - 1)
