"""What is drawn of the bound: the mean of `nelbo`, for each of the family's estimators, and the error that it prints.

estimator    E nelbo(x) = bound(x)
error        the error of the states that nelbo hands on (metrics/likelihood.py) is no less than its spread
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ggm_lightning.exact.records import Check, no_nan, row
from ggm_lightning.exact.subject import Subject
from ggm_lightning.metrics.likelihood import error_of_states

ERRORS = 5.0  # standard errors that a draw may be off
_ROWS = 2_000  # of one x, whose spread is compared with its error
_SLACK = 1.15  # of the ratio of both


def estimated(subject: Subject, estimator: str | None = None) -> tuple[Tensor, Tensor]:
    """(mean of nelbo, its standard error) of each x that can be, Float64[S]; None: the family's first estimator."""
    x = subject.x()
    if subject.model.exact:
        return subject.model.nelbo(x), torch.full((len(x),), 1e-9, dtype=torch.float64)
    more = {} if estimator is None else {"estimator": estimator}
    count = max(200, subject.num_samples // len(x))
    drawn = subject.model.nelbo(x.repeat_interleave(count, 0), num_samples=4, seed=subject.seed, **more).double()
    drawn = drawn.reshape(len(x), count)
    return drawn.mean(1), drawn.std(1) / math.sqrt(count)


def checks(subject: Subject, nats: Tensor | None, wanted: Callable[[str], bool]) -> Iterator[Check]:
    """nats: the enumerated bound of every x, Float64[S]; None: `estimator` has nothing to be compared with."""
    others = subject.model.estimators[1:]
    if wanted("estimator") and nats is not None:
        yield _estimator(subject, nats, "estimator", None)
        for name in others:
            yield _estimator(subject, nats, f"estimator {name}", name)
    if wanted("error") and "states" in inspect.signature(subject.model.nelbo).parameters:
        yield _printed_error(subject, "error", {})
        for name in others:
            yield _printed_error(subject, f"error {name}", {"estimator": name})


def _estimator(subject: Subject, nats: Tensor, name: str, estimator: str | None) -> Check:
    """In the mean over all x alike: a single x may owe its mean to one draw in thousands."""
    found, error = estimated(subject, estimator)
    off = float(no_nan((found - nats).mean().abs() - subject.apart).clamp(min=0))
    spread = max(1e-9, float(error.square().sum().sqrt()) / len(error))
    i = int((found - nats).abs().argmax())
    place = f"x = {row(subject.x()[i])}: {float(found[i]):.5g} ± {float(error[i]):.2g}, bound {float(nats[i]):.5g} nats"
    often = "nelbo draws other times or states than `terms` belongs to, or weighs them otherwise"
    return Check(name, "E nelbo = bound, mean over x, standard errors", off / spread, ERRORS, place, often)


def _printed_error(subject: Subject, name: str, more: dict[str, Any]) -> Check:
    """Of rows of one x: they differ by the states that were drawn alone, as the error says."""
    model = subject.model
    x = subject.x()[[int(subject.law.p[subject.law.p > 0].argmax())]].expand(_ROWS, *model.shape)
    states: list[Tensor] = []
    drawn = model.nelbo(x, num_samples=4, seed=subject.seed, states=states, **more)
    error = error_of_states(torch.cat(states)) if states else None
    spread = float(drawn.std()) / math.sqrt(_ROWS)
    ratio = spread / error if error else math.inf
    place = f"x = {row(x[0])}: of {_ROWS:,} rows {spread:.4g} nats, it prints {error or 0.0:.4g}"
    equation = "spread of nelbo <= the error of the states it hands on (ratio)"
    often = "states of other units or weights than nelbo's"
    return Check(name, equation, ratio, _SLACK, place, often)
