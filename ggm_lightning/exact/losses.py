"""The training loss, with rows that are drawn from the law.

loss         E loss(x) is the mean of the bound in bits per site, where that is its unit (train/bpd); constants that no
             network moves may be left out
loss rises   it is higher with the exact answers moved by +-0.3 cos(site, class), with equal draws
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ggm_lightning.exact.records import Check, no_nan
from ggm_lightning.exact.subject import Subject, constants
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.lddm_base import LatentFamily

_STEPS = 32  # of training, each with noise of its own
_ROWS = 1_000  # of each, at least
_ERRORS = 4.0  # standard errors that the loss may be off; and that its rise has to be above
_MOVED = 0.3  # of the logits
_CERTAIN = 1e-9  # of the loss; a loss that does not look at the tokens at all changes by 0
_OFTEN = "the sign, the weight or the target of the loss is not the bound's"


def checks(subject: Subject, nats: Tensor, error: Tensor, enumerated: bool) -> Iterator[Check]:
    """nats, error: the bound of every x and its standard error, Float64[S]; enumerated: whether it is exact."""
    base = _losses(subject, 0.0)
    moved = {f"{size:+g}": _losses(subject, size) for size in (_MOVED, -_MOVED)}
    if isinstance(subject.model, LatentFamily):
        # training leaves the latent out of some rows, of which the exact network is not told: its answer is not the
        # best of one way, but between the two
        moved = {f"±{_MOVED:g}": torch.stack([*moved.values()]).mean(0)}
        if 0 < float((moved[f"±{_MOVED:g}"] - base).abs().max()) < _CERTAIN:
            return  # the latent says all: what is certain cannot be moved
    elif subject.model.loss_name == "train/bpd":
        yield _value(subject, base, nats, error, enumerated)
    yield _rise(base, moved)


def _value(subject: Subject, losses: Tensor, nats: Tensor, error: Tensor, enumerated: bool) -> Check:
    model, p = subject.model, subject.law.p[subject.law.p > 0]
    bits = subject.law.num_sites * math.log(2)
    added = None if not enumerated or model.exact or subject.noise is None else constants(subject)
    ends = torch.stack([p @ nats, p @ (nats if added is None else nats - added)]) / bits
    found = losses.mean()
    off = torch.maximum(found - ends.max(), ends.min() - found).clamp(min=0)
    noise = torch.stack([losses.std() / math.sqrt(_STEPS), (p * error).norm() / bits]).norm()
    place = f"{float(found):.5g} bits per site, the bound is {float(ends[0]):.5g} and {float(ends[1]):.5g} in its terms"
    ratio = float(found / ends[0])
    often = f"it is {ratio:.3g} times the bound: {_OFTEN}"
    off = no_nan(off / noise.clamp(min=1e-6))
    return Check("loss", "E loss = E bound in bits per site, standard errors", float(off), _ERRORS, place, often)


def _rise(base: Tensor, moved: dict[str, Tensor]) -> Check:
    """Of each way by itself: at its lowest point a loss rises in both."""
    worst, place = 0.0, ""
    for way, losses in moved.items():
        apart = losses - base
        rise, noise = float(apart.mean()), float(apart.std()) / math.sqrt(_STEPS)
        off = noise / rise if rise > 0 else math.inf
        if off > worst:
            worst, place = off, f"{way}: it rises by {rise:.3g} ± {noise:.2g}"
    equation = f"the loss rises when exact answers are moved by ±{_MOVED:g} (noise over rise)"
    return Check("loss rises", equation, worst, 1 / _ERRORS, place, _OFTEN)


def _losses(subject: Subject, size: float) -> Tensor:
    """Float64[_STEPS], the loss of each step; the same rows and noise whatever `size` is."""
    model, law = subject.model, subject.law
    rows = max(_ROWS, subject.num_samples // _STEPS)
    generator = torch.Generator().manual_seed(subject.seed)

    def move(module: object, args: object, answer: Any) -> Any:
        if isinstance(answer, tuple):
            return (move(module, args, answer[0]), *answer[1:])
        pattern = size * torch.cos(0.5 + 1.7 * torch.arange(answer[0].numel())).reshape(answer.shape[1:])
        amounts = isinstance(model, Blackout) and model.output == "deaths"
        return answer * pattern.exp() if amounts else answer + pattern

    hook = model.network.register_forward_hook(move)
    try:
        found = []
        for step in range(_STEPS):
            x = subject.shaped(law.x[torch.multinomial(law.p, rows, replacement=True, generator=generator)])
            found.append(model.loss(x, step=step, row=torch.arange(rows), total=rows).double())
        return torch.stack(found)
    finally:
        hook.remove()
