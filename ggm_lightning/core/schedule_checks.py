"""What a schedule must be, checked once, when a model is built with it: a class from outside may hold any formula.

A wrong schedule gives no error later, but a bound that is none: where alpha jumps, its slope misses the jump, and with
it that part of the integral (eq. (5) of MD4, arXiv 2406.04329).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from ggm_lightning.core.schedules import Schedule

_CELLS = 2048
_ROUNDING = 1e-12  # of alpha, which may not rise by more
_STEP = 1e-5  # of the differences that slopes are compared with


def checked(schedule: Any, name: str = "schedule", of_latent: bool = False) -> Schedule:
    """The schedule itself, if it is one.

    Args:
        schedule: what a model was given under this `name`.
        of_latent: it says how much noise a latent holds. Its clean end is then not looked at, as max_snr decides where
            the latent's path begins.

    Raises:
        ValueError: in one line: not a Schedule; a shape, dtype or number that it may not return; alpha outside [0, 1],
            rising, jumping, or too far from 1 at t = 0 or from 0 at t = 1; masked_fraction, dalpha or inverse that do
            not belong to alpha.
    """
    if not isinstance(schedule, Schedule):
        raise ValueError(
            f"{name} is {_shown(schedule)}; give an object of a class that is derived from "
            "ggm_lightning.core.schedules.Schedule"
        )
    kind = f"{name} {type(schedule).__name__}"
    t = torch.linspace(0, 1, _CELLS + 1, dtype=torch.float64, device="cpu")
    alpha, u = _fractions(schedule, kind, t)
    _check_each_by_itself(schedule, kind, t, alpha)
    _check_fall(kind, t, alpha)
    _check_fall(kind, t, 1 - u)
    apart = float((alpha + u - 1).abs().max())
    if apart > 1e-9:
        raise ValueError(f"{kind}: masked_fraction(t) and 1 - alpha(t) are {apart:.2g} apart; they must be the same")
    _check_ends(schedule, kind, alpha, u, of_latent)
    _check_slope(schedule, kind, t, alpha)
    _check_inverse(schedule, kind)
    return schedule


def latent(schedule: Any) -> Schedule:
    """`checked`, of a latent's."""
    return checked(schedule, "latent_schedule", of_latent=True)


def _numbers(schedule: Schedule, kind: str, method: str, t: Tensor) -> Tensor:
    """What a method returns, of the right type, shape and dtype."""
    found = getattr(schedule, method)(t)
    if not isinstance(found, Tensor):
        raise ValueError(f"{kind}: {method}(t) returns {_shown(found)}; it must return a tensor of t's shape")
    if found.dtype != torch.float64:
        dtype = str(found.dtype).removeprefix("torch.")
        raise ValueError(f"{kind}: {method}(t) returns {dtype} for a float64 t; leave t's precision as it is")
    if found.shape != t.shape:
        raise ValueError(
            f"{kind}: {method}(t) returns the shape {list(found.shape)} for t of {list(t.shape)}; one number for each "
            "time is needed"
        )
    return found.detach()


def _fractions(schedule: Schedule, kind: str, t: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, masked_fraction), both in [0, 1]."""
    found = {}
    for method in ("alpha", "masked_fraction"):
        values = found[method] = _numbers(schedule, kind, method, t)
        wrong = torch.nonzero(~((values >= 0) & (values <= 1)))
        if len(wrong):
            at = int(wrong[0, 0])
            raise ValueError(
                f"{kind}: {method}({float(t[at]):.4g}) is {float(values[at]):.4g}; it is a probability and must lie in "
                "[0, 1] for all t from 0 to 1 (where only rounding leads out of it: .clamp(0, 1))"
            )
    return found["alpha"], found["masked_fraction"]


def _check_each_by_itself(schedule: Schedule, kind: str, t: Tensor, alpha: Tensor) -> None:
    at = _CELLS // 3
    alone = _numbers(schedule, kind, "alpha", t[at])  # of no dimension, as the ends are asked for
    if abs(float(alone) - float(alpha[at])) > _ROUNDING:
        raise ValueError(
            f"{kind}: alpha({float(t[at]):.4g}) is {float(alone):.4g} alone and {float(alpha[at]):.4g} among other "
            "times; each number must depend on its own time alone"
        )


def _check_fall(kind: str, t: Tensor, alpha: Tensor) -> None:
    rise = alpha.diff()
    at = int(rise.argmax())
    if float(rise[at]) > _ROUNDING:
        raise ValueError(
            f"{kind}: alpha rises from {float(alpha[at]):.6g} at t = {float(t[at]):.4g} to {float(alpha[at + 1]):.6g} "
            f"at {float(t[at + 1]):.4g}; it must fall from 1 to 0 as t goes from 0 to 1"
        )


def _check_ends(schedule: Schedule, kind: str, alpha: Tensor, u: Tensor, of_latent: bool) -> None:
    clean_at_1, masked_at_0 = float(alpha[-1]), float(u[0])
    remedy = f"at most {schedule.floor:g} may be missing, or the class sets its own `floor`"
    if clean_at_1 > schedule.floor:
        raise ValueError(f"{kind}: alpha(1) is {clean_at_1:.4g}; it must be 0, where all is noise: {remedy}")
    if masked_at_0 > schedule.floor and not of_latent:
        raise ValueError(f"{kind}: alpha(0) is {1 - masked_at_0:.4g}; it must be 1, where all is clean: {remedy}")


def _check_slope(schedule: Schedule, kind: str, t: Tensor, alpha: Tensor) -> None:
    slope = _numbers(schedule, kind, "dalpha", t)
    bad = slope.isnan() | (slope > 1e-9)
    bad[1:-1] |= slope[1:-1].isinf()
    wrong = torch.nonzero(bad)
    if len(wrong):
        at = int(wrong[0, 0])
        raise ValueError(
            f"{kind}: dalpha({float(t[at]):.4g}) is {float(slope[at]):.4g}; the slope of alpha must be 0 or below and "
            "finite (at t = 0 and 1 also -inf); write alpha in another form, or give dalpha(t) as well"
        )
    _check_jumps(schedule, kind, t, alpha, slope)
    # away from round numbers, at which formulas made of pieces have their kinks
    some = (torch.arange(61, dtype=torch.float64) + 1 / math.e) / 61
    drop = schedule.alpha(some + _STEP) - schedule.alpha(some - _STEP)
    expected, given = (drop / (2 * _STEP)).detach(), _numbers(schedule, kind, "dalpha", some)
    apart = (given - expected).abs() - 1e-3 * torch.maximum(given.abs(), expected.abs())
    at = int(apart.argmax())
    if float(apart[at]) > 1e-6:
        raise ValueError(
            f"{kind}: dalpha({float(some[at]):.4g}) is {float(given[at]):.4g}, and the slope of alpha there is "
            f"{float(expected[at]):.4g}; dalpha must be its derivative"
        )


def _check_jumps(schedule: Schedule, kind: str, t: Tensor, alpha: Tensor, slope: Tensor) -> None:
    middle = _numbers(schedule, kind, "dalpha", (t[1:] + t[:-1]) / 2)
    steepest = -torch.stack([slope[1:], slope[:-1], middle]).amin(0)
    fall = -alpha.diff()
    wrong = torch.nonzero((fall > 0.01) & (fall > 4 * steepest / _CELLS))
    if len(wrong):
        at = int(wrong[0, 0])
        raise ValueError(
            f"{kind}: alpha jumps from {float(alpha[at]):.4g} at t = {float(t[at]):.4g} to {float(alpha[at + 1]):.4g} "
            f"at {float(t[at + 1]):.4g}, which its slope does not show; a bound needs a continuous alpha"
        )


def _check_inverse(schedule: Schedule, kind: str) -> None:
    t = (torch.arange(61, dtype=torch.float64) + 1 / math.e) / 61
    u = schedule.masked_fraction(t).detach()
    back = _numbers(schedule, kind, "inverse", u)
    again: Float64[Tensor, " b"] = schedule.masked_fraction(back).detach()
    apart = torch.nan_to_num((again - u).abs(), nan=math.inf)
    at = int(apart.argmax())
    if not float(apart[at]) < 1e-6:
        raise ValueError(
            f"{kind}: inverse({float(u[at]):.4g}) is {float(back[at]):.4g}, and masked_fraction there is "
            f"{float(again[at]):.4g}; inverse(u) must be the time whose masked fraction is u"
        )


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
