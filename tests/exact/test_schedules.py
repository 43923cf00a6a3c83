"""Schedules: right ones pass whatever their alpha looks like, and a slope that is 1/2,000 too steep is found."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ggm_lightning.core import gaussian, schedules
from ggm_lightning.core.schedules import Cosine, Floored, Linear, Polynomial, Schedule
from ggm_lightning.exact import Equal, contracts, latent, prove, subject
from ggm_lightning.exact.integral import STEPS, integral, limit, over_time
from ggm_lightning.models.md4 import MD4
from tests.core.test_own_schedules import Late
from tests.exact.test_prove import with_latent
from tests.extend import pages

V, N = 3, 2
OF_BOUND = ("terms", "reverse_law", "bound", "equal", "each")


def of_page() -> dict[str, type[Schedule]]:
    space: dict[str, Any] = {"__name__": "mine"}
    exec(pages.files_of("schedule.md")["mine.py"], space)
    return {name: space[name] for name in ("Cubic", "Sigmoid")}


def of_package() -> dict[str, type[Schedule]]:
    found = {**vars(schedules), **vars(gaussian)}
    kinds = {name: kind for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, Schedule)}
    return {name: kind for name, kind in kinds.items() if not inspect.isabstract(kind)}


KINDS = of_package() | of_page()
ALIKE = ("Cosine", "SquaredCosine", "LatentLeads")  # as smooth as others, and passed before
# steep, with corners, of infinite slope: what the defaults are not
ODD = {
    "Sigmoid, steep": lambda: KINDS["Sigmoid"](steepness=49.0),
    "Polynomial, root": lambda: Polynomial(0.5, eps=0.0),
    "Polynomial, late": lambda: Polynomial(5.0),
    "Late": Late,
}


class TooSteep(Cosine):
    """By so little that the check of slopes, to 1 in 1,000, lets it through."""

    def dalpha(self, t: Tensor) -> Tensor:
        return 1.0005 * super().dalpha(t)


def md4(schedule: Schedule) -> MD4:
    return MD4(Equal(V), V, (N,), schedule)


def test_all_are_here() -> None:
    assert {"Linear", "Polynomial", "Cosine", "Geometric", "Sqrt", "Cubic", "Sigmoid"} <= set(KINDS)
    assert {kind.__name__ for kind in Floored.__subclasses__() if kind.__module__.startswith("ggm")} <= set(KINDS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in KINDS]
)
def test_check_of_a_schedule(name: str) -> None:
    """What `lightning check` asks of it."""
    wrong = [f"{answer.asked}: {answer.came}" for answer in contracts.answers(KINDS[name]()) if answer.passed is False]
    assert not wrong


@pytest.mark.parametrize("name", ODD)
def test_odd_ones(name: str) -> None:
    proof = prove(md4(ODD[name]()), only=OF_BOUND)
    assert proof["terms"].deviation < 1e-8  # control of the tolerance, 1e-5
    assert proof["equal"].passed


def test_a_slope_that_is_not_the_derivative() -> None:
    """Found in the rate and in the bound; what is given too coarsely is refused before."""
    proof = prove(md4(TooSteep(0.0)), only=OF_BOUND, report=True)
    assert proof["terms"].deviation == pytest.approx(5e-4, rel=0.1)
    assert {check.name for check in proof.failed} == {"terms", "equal", "each"}
    wrong = [answer for answer in contracts.answers(TooSteep(0.0)) if answer.passed is False]
    assert [answer.asked for answer in wrong] == ["terms", "equal", "each"]
    assert "terms" in {check.name for check in prove(md4(TooSteep()), only=OF_BOUND, report=True).failed}


def test_an_integral_that_stays_rough_says_by_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of an alpha of hundreds of corners: the error is allowed for, and told in the line of the equation."""
    model, only, rough = md4(Linear(0.0)), ("bound", "equal", "each"), 0.02
    assert not any("integral" in check.equation for check in prove(model, only=only))
    total = torch.tensor(0.015, dtype=torch.float64)
    monkeypatch.setattr(subject, "over_time", lambda f, edges: (over_time(f, edges)[0] + total, rough))
    found = prove(model, only=only)
    assert found["equal"].deviation == pytest.approx(0.015)
    assert all("the integral over t is known to 0.02 nats" in found[name].equation for name in ("bound", "equal"))
    monkeypatch.setattr(subject, "over_time", lambda f, edges: (over_time(f, edges)[0] + 2 * total, rough))
    assert not prove(model, only=only, report=True).passed  # control


@pytest.mark.slow
def test_the_latents_of_lddm() -> None:
    """Corners in the schedule of the tokens, beside a latent whose SNR ends as a root."""
    proof = prove(with_latent(latent.fuji, schedule=Late()), only=("bound", "equal"))
    assert proof["equal"].deviation < 1e-6


def test_integral_over_time_and_limit() -> None:
    def f(t: float) -> Tensor:
        return torch.tensor([t**2, t**-0.5, float(t > 0.3)], dtype=torch.float64)

    right = torch.tensor([1 / 3, 2.0, 0.7], dtype=torch.float64)
    total, error = over_time(f, (0.0, 1.0))
    assert float((total - right).abs().max()) < 1e-6
    assert error < 1e-6
    few, error = integral(f, (0.0, 1.0), most=3)
    assert 1e-3 < float((few - right).abs().max()) < 2 * error  # it is said
    scaled, _ = over_time(lambda t: f(t)[:1], (1.0, 3.0))
    assert float(scaled) == pytest.approx(26 / 3)
    steps = [torch.tensor([math.exp(0.01 * h), math.inf], dtype=torch.float64) for h in STEPS]
    found = limit(steps)
    assert float(found[0]) == pytest.approx(1.0, abs=1e-7)
    assert float(found[1]) == math.inf
    assert float(steps[-1][0]) - 1 > 1e-3  # control: the shortest step alone
