"""Curves as SVG: which range is shown, what the axes say, and where a point lies."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ggm_lightning.report.chart import Line, chooser, duration, limits, nice_ticks, tick_text


def test_one_early_point_leaves_the_picture() -> None:
    early = np.array([2e9, 3.0, 2.8, 2.6, 2.5])
    low, high = limits([early])
    assert low < 2.5
    assert 3.0 < high < 3.1
    # controls: a curve that falls evenly is shown whole, and so is a run of two validations
    even = np.array([5.0, 4.4, 3.8, 3.2, 2.6])
    assert limits([even])[1] > 5.0
    assert limits([np.array([12.0, 3.0])])[1] > 12.0


def test_levels_stay_inside_and_a_rise_at_the_end_is_shown() -> None:
    low, high = limits([np.array([12.0, 3.0, 2.8, 2.7])], [2.0, 3.3])
    assert low < 2.0
    assert 3.3 < high < 4
    assert limits([np.array([3.0, 2.8, 2.7, 40.0])])[1] > 40  # a run that falls apart must be seen to do so


def test_the_range_of_nothing() -> None:
    low, high = limits([])
    assert low < high
    low, high = limits([np.array([2.0])])
    assert low < 2 < high


def test_a_point_lies_where_the_axis_says() -> None:
    line = Line("a", "held-out", np.array([0.0, 70.0, 100.0]), np.array([5.0, 3.0, 4.0]))
    svg = chooser({"optimiser steps": [line]}, "bits", {})
    wide, narrow = re.findall(r'<svg class="[\w-]+" viewBox="0 0 (\d+) (\d+)".*?points="([^"]+)"', svg)
    low, high = limits([line.y])
    for width, height, points in (wide, narrow):
        xs, ys = np.array([point.split(",") for point in points.split()], float).T
        left, right, top, bottom = 52, int(width) - 14, 26, int(height) - 44
        np.testing.assert_allclose(xs, left + (right - left) * line.x / 100, atol=0.06)
        np.testing.assert_allclose(ys, bottom - (bottom - top) * (line.y - low) / (high - low), atol=0.06)
    assert wide[:2] != narrow[:2]


def test_what_was_cut_is_said() -> None:
    line = Line("a", "held-out", np.arange(5.0), np.array([4e9, 3.0, 2.8, 2.6, 2.5]))
    assert "above the picture, up to 4e+09" in chooser({"optimiser steps": [line]}, "bits", {})
    later = Line("a", "held-out", line.x[1:], line.y[1:])
    assert "above the picture" not in chooser({"optimiser steps": [later]}, "bits", {})


def test_no_drawing_has_more_points_than_pixels() -> None:
    x = np.arange(100_000.0)
    svg = chooser({"optimiser steps": [Line("a", "training", x, np.sin(x / 9999))]}, "bits", {})
    assert len(svg) < 20_000


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (2.03, 2.47), (0.0, 123_456.0), (-3.0, 5.0), (1e-4, 3e-4)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = nice_ticks(low, high, 6)
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    step = ticks[1] - ticks[0]
    assert f"{step:.3g}"[0] in "125" or f"{step:e}"[0] in "125"


def test_words_of_axes() -> None:
    assert [tick_text(v, "optimiser steps") for v in (0, 1600, 25_000, 2.5e6, 3e9)] == [
        "0",
        "1,600",
        "25k",
        "2.5M",
        "3G",
    ]
    assert [duration(v) for v in (0, 59.6, 90, 3600, 7260)] == ["0 s", "1 min", "1 min 30 s", "1 h", "2 h 01 min"]
    assert tick_text(90, "time") == "1 min 30 s"
