"""Medians of a clock that is known."""

from __future__ import annotations

import pytest
import torch

from ggm_lightning.metrics import speed
from ggm_lightning.sampling.request import Samples


def test_medians_of_the_runs_behind_the_first() -> None:
    ticks = iter([0, 9, 10, 12, 20, 21])  # 9, 2 and 1 seconds
    runs: list[int] = []

    def draw() -> Samples:
        runs.append(1)
        return Samples(torch.zeros(5, 7), 11, rows=70)

    found = speed.measure(draw, torch.device("cpu"), repeats=3, clock=lambda: float(next(ticks)))
    assert len(runs) == 4
    assert (found.samples, found.repeats, found.fastest, found.slowest) == (5, 3, 1.0, 9.0)
    assert found.seconds_per_sample == pytest.approx(2 / 5)
    assert found.samples_per_second == pytest.approx(5 / 2)
    assert found.rows_per_second == pytest.approx(70 / 2)
    assert found.rows_per_sample == 14
    assert (found.device, found.threads) == ("cpu", torch.get_num_threads())
    with pytest.raises(ValueError, match="at least 1"):
        speed.measure(draw, torch.device("cpu"), repeats=0)
