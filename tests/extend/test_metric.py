"""docs/extend/metric.md, followed word by word."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggm_lightning import load
from ggm_lightning.data.toy.synthetic import MarkovChain
from ggm_lightning.rundir.csv_log import read_metrics
from tests.extend import pages


@pytest.mark.slow
def test_the_page(tmp_path: Path) -> None:
    page = "metric.md"
    pages.write(page, tmp_path)
    (command,) = pages.commands_of(page)
    pages.run_here(command, tmp_path, *pages.QUICK)
    found = read_metrics(tmp_path / "runs" / "measured" / "metrics.csv")
    # the data's own chain, counted here: the held-out rows that the metric was given
    real = MarkovChain(length=64).rows("val")[list(range(16))]["x"].numpy()
    assert found["val/doubles_real"][-1][1] == pytest.approx(np.mean(real[:, 2:] == real[:, :-2]), rel=1e-6)
    model = load(tmp_path / "runs" / "measured" / "last.ckpt")  # without --trust: a metric is no part of the model
    drawn = model.sample(16, 8, seed=0).x.numpy()
    assert found["val/doubles"][-1][1] == pytest.approx(np.mean(drawn[:, 2:] == drawn[:, :-2]), rel=1e-6)
    assert 0 < found["val/distinct_2"][-1][1] <= 1
