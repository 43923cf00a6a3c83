"""Figures of rows made by hand, and curves compared at equal entropy."""

from __future__ import annotations

import math

import pytest
import torch

from ggm_lightning.metrics.frontier import Point, at_entropy, compared, figures_of, unigram_entropy


def test_figures_by_hand() -> None:
    x = torch.tensor([[0, 1, 0, 1, 2], [0, 1, 0, 1, 2], [3, 3, 3, 3, 3]])
    bits = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    found = figures_of(x, bits)
    assert found["judge"] == 3.0
    assert found["judge_stderr"] == pytest.approx(math.sqrt(7 / 3))  # variance (4 + 1 + 9) / 2, over 3 rows
    shares = [4 / 15, 4 / 15, 2 / 15, 5 / 15]
    assert found["entropy"] == pytest.approx(-sum(p * math.log2(p) for p in shares))
    assert found["distinct_2"] == pytest.approx(4 / 12)  # 01, 10, 12, 33
    assert found["distinct_4"] == pytest.approx(3 / 6)  # 0101, 1012, 3333
    assert found["duplicates"] == pytest.approx(1 / 3)


def test_variety_is_of_the_first_rows() -> None:
    x = torch.tensor([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [0, 1, 2, 3, 4]])
    bits = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    found = figures_of(x, bits, varied=2)
    assert found["judge"] == 3.0
    assert (found["duplicates"], found["distinct_4"]) == (0.0, 1.0)
    assert figures_of(x, bits)["duplicates"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="at least 2"):
        figures_of(x, bits, varied=1)
    assert figures_of(x[:, :3], bits)["distinct_4"] is None  # too short: no number


def test_the_entropys_error_is_its_spread() -> None:
    """Over 400 repetitions of 50 rows; the standard error of a spread of 400 is 3.5 %."""
    law = torch.tensor([0.5, 0.2, 0.2, 0.07, 0.03])
    generator = torch.Generator().manual_seed(0)
    found = [
        unigram_entropy(torch.multinomial(law, 50 * 7, True, generator=generator).reshape(50, 7)) for _ in range(400)
    ]
    values, errors = (torch.tensor(part) for part in zip(*found, strict=True))
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.15)


def line(slope: float, start: float, *entropies: float) -> list[Point]:
    return [Point(h, 0.01, start + slope * h, 0.02) for h in entropies]


def test_between_two_points() -> None:
    curve = [Point(3.0, 0.0, 4.0, 0.1), Point(2.0, 0.0, 2.0, 0.2), Point(1.0, 0.0, 1.5, 0.2)]
    judge, error = at_entropy(curve, 2.25)  # type: ignore[misc]
    assert judge == pytest.approx(2.5)
    assert error == pytest.approx(0.75 * 0.2 + 0.25 * 0.1)
    # an error of the entropy counts by the slope
    noisy = [Point(p.entropy, 0.05, p.judge, p.judge_stderr) for p in curve]
    assert at_entropy(noisy, 2.25)[1] == pytest.approx(error + 2 * 0.05)  # type: ignore[index]
    assert at_entropy(curve, 3.1) is None  # nothing is said beyond the curve's ends
    assert at_entropy(curve[:1], 3.0) is None


def test_equal_entropy_and_not_equal_temperature() -> None:
    """The first looks better at each of its own temperatures, as its samples are less varied; at equal entropy it is
    worse."""
    curves = {"sharp": line(2.0, 0.5, 1.0, 1.5, 2.0), "varied": line(2.0, 0.0, 1.8, 2.3, 2.8)}
    assert curves["sharp"][2].judge < curves["varied"][2].judge
    found = compared(curves, entropy=1.9)
    assert found is not None
    assert [name for name, _, _ in found.ranked] == ["varied", "sharp"]
    assert found.leads == [pytest.approx((0.5, math.sqrt(2) * (0.02 + 2 * 0.01)))]
    # that of real text is not reached by both: the nearest that they have in common
    assert compared(curves, entropy=2.6).entropy == 2.0  # type: ignore[union-attr]
    assert compared({"low": line(1, 0, 1, 2), "high": line(1, 0, 3, 4)}, 2.5) is None


def test_what_does_not_reach_it_is_named() -> None:
    found = compared({"a": line(1, 0, 1, 2), "b": line(1, 1, 1, 2), "c": line(1, 0, 3, 4)}, 1.5)
    assert found is not None
    assert found.unreached == ["c"]
    assert [name for name, _, _ in found.ranked] == ["a", "b"]
