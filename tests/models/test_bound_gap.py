"""How far the bounds of MD4 and GenMD4 with their default floors are from -log p(x): the figures of docs/exactness.md
and of the docstrings.

By enumeration of the law of four sites of three classes, with exact networks. Without the floors nothing is left.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ggm_lightning.core import schedules, vector_masking
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.networks import TimedMasked
from ggm_lightning.models.genmd4 import GenMD4
from tests.models.infilling_law import EXPONENTS, N, P, V
from tests.models.test_genmd4_exact import genmd4, integral
from tests.models.test_md4_exact import SCHEDULES, continuous_bound, md4

LAW = JointLaw.random(N, V, seed=0)


def summary(bound: Tensor) -> tuple[float, float, float]:
    """(mean, least, largest) of bound - (-log p(x)), nats."""
    gap = bound + LAW.log_p
    return float(P @ gap), float(gap.min()), float(gap.max())


def md4_gap(schedule: schedules.Schedule) -> tuple[float, float, float]:
    model = md4(LAW, schedule)
    return summary(continuous_bound(model, LAW.x) + model.reconstruction_nats + model.prior_nats)


def genmd4_gap(w: Tensor, first_time: float) -> tuple[float, float, float]:
    model: GenMD4 = genmd4(TimedMasked(LAW, w), w, n=N, first_time=first_time)
    with torch.no_grad():
        return summary(integral(model, LAW.x) + model.reconstruction(LAW.x) + model.prior_nats)


def test_the_page_has_these_figures_and_this_law() -> None:
    page = (Path(__file__).parents[2] / "docs" / "exactness.md").read_text(encoding="utf-8")
    for figures in ("1.7e-4 | -3.0e-3 | 4.2e-4", "1.6e-5 | -3.0e-4 | 3.7e-5", "1.8e-3 | -0.26 | 7.9e-3"):
        assert f" | {figures} |" in page
    assert "exact.JointLaw.random(4, 3, seed=0)" in page
    assert torch.equal(LAW.p, P)


@pytest.mark.parametrize("name", SCHEDULES)
def test_md4_with_the_default_eps(name: str) -> None:
    mean, least, largest = md4_gap(SCHEDULES[name]())
    assert mean == pytest.approx(1.7e-4, abs=6e-6)
    assert least == pytest.approx(-3.0e-3, abs=6e-5)
    assert largest == pytest.approx(4.2e-4, abs=6e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_md4_without_eps(name: str) -> None:
    assert max(abs(gap) for gap in md4_gap(SCHEDULES[name](eps=0.0))) < 1e-8


def test_md4_with_the_geometric_schedule_whose_floor_is_b_min() -> None:
    mean, least, largest = md4_gap(schedules.Geometric())
    assert mean == pytest.approx(1.6e-5, abs=6e-7)
    assert least == pytest.approx(-3.0e-4, abs=6e-6)
    assert largest == pytest.approx(3.7e-5, abs=6e-7)


def test_genmd4_with_the_default_first_time() -> None:
    mean, least, largest = genmd4_gap(EXPONENTS, 1e-3)
    assert mean == pytest.approx(1.8e-3, abs=6e-5)
    assert least == pytest.approx(-0.26, abs=6e-3)
    assert largest == pytest.approx(7.9e-3, abs=6e-5)


def test_genmd4_without_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_masking, "EPS", 0.0)
    assert max(abs(gap) for gap in genmd4_gap(EXPONENTS, 1e-12)) < 1e-7
