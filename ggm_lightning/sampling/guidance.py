"""Classifier-free guidance: one network, asked with the label and without it, for every plan.

    logits = logits(no label) + w (logits(label) - logits(no label))                                            (1)

w = 1 is the law given the label, 0 the law without one, and more than 1 moves away from what the label does not say. A
row is sent twice, in one call. The law of a guided sampler is that of no data: not even an exact network makes it p.

Source: Ho and Salimans, arXiv 2207.12598; of discrete diffusion Schiff et al., arXiv 2412.10193.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor

from ggm_lightning.core.arguments import shown
from ggm_lightning.sampling.contract import Denoiser, Denoises
from ggm_lightning.sampling.request import Request
from ggm_lightning.sampling.sampler import Sampler

NONE = 1.0


def check(model: Denoises, sampler: Sampler, guidance: Any, label: Any) -> None:
    """ValueError with one line for a weight that is no number of at least 0, and where there is nothing to guide by."""
    if isinstance(guidance, bool) or not isinstance(guidance, Real) or not 0 <= guidance < math.inf:
        raise ValueError(f"guidance is {shown(guidance)}; it must be at least 0 and finite, 1 is none")
    if guidance == NONE:
        return
    said = f"guidance is {guidance}, but"
    if not sampler.asks_denoiser:
        raise ValueError(
            f"{said} sampler '{sampler.name}' of {type(model).__name__} draws from laws of its own; leave guidance out"
        )
    known = getattr(model.network, "num_labels", None)  # a network of the user's need not say
    if label is None or known == 0:
        raise ValueError(f"{said} there is no label to guide by; give one, or leave guidance out")
    if known is None:
        raise ValueError(
            f"{said} the network does not say how it is told of no label; give it the attribute num_labels, or leave "
            "guidance out"
        )
    if not model.label_dropout:
        raise ValueError(
            f"{said} the network was never asked without a label; train with model.label_dropout above 0, or leave "
            "guidance out"
        )


def guided(model: Denoises, denoiser: Denoiser, request: Request) -> Denoiser:
    """The denoiser of eq. (1); itself where nothing guides."""
    if request.guidance == NONE:
        return denoiser

    def logits(zt: Tensor, t: Tensor, label: Tensor | None, sites: Tensor, rows: Tensor) -> Tensor:
        assert label is not None  # see `check`
        nobody = torch.full_like(label, cast(int, model.network.num_labels))
        twice = [torch.cat([part, part]) for part in (zt, t, sites, rows)]
        both = denoiser(twice[0], twice[1], torch.cat([label, nobody]), twice[2], twice[3])
        with_label, without = both.chunk(2)
        # a class that either law excludes stays excluded: a difference of infinities is no number
        excluded = torch.isinf(with_label) | torch.isinf(without)
        mixed = without + request.guidance * (with_label - without)
        return torch.where(excluded, -torch.inf, mixed)

    return logits
