"""Rates by a clock that the test moves by hand."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.loggers import Logger

from ggm_lightning.callbacks import throughput
from ggm_lightning.callbacks.throughput import Rate, Throughput


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(throughput.time, "perf_counter", lambda: Clock.now)
    return Clock


def test_rate_over_a_window_without_pauses(clock):
    rate, x = Rate(window=3), torch.zeros(2, 5, dtype=torch.int64)
    assert rate.per_second() == (0, 0)
    for seconds in (7.0, 0.5, 0.5, 1.0):  # the first step, with its compilation, leaves the window
        clock.now += seconds
        rate.add(x)
        rate.pause()
        clock.now += 11.0  # validation
        rate.resume()
    assert rate.per_second() == pytest.approx((6 / 2.0, 30 / 2.0))


def test_pausing_twice_counts_once(clock):
    rate = Rate(window=2)
    rate.pause()
    clock.now += 3
    rate.pause()
    rate.resume()
    rate.resume()
    clock.now += 1
    rate.add(torch.zeros(2, 5))
    assert rate.per_second() == pytest.approx((2, 10))


def test_is_logged_over_all_ranks_every_n_steps(tiny, tiny_data, fit, monkeypatch):
    class Memory(Logger):
        name, version, rows = "", "", []

        def log_hyperparams(self, *args, **kwargs):
            """Nothing to keep."""

        def log_metrics(self, metrics, step=None):
            self.rows.append(metrics)

    monkeypatch.setattr(Rate, "per_second", lambda self: (2.0, 10.0))
    monkeypatch.setattr("lightning.pytorch.Trainer.world_size", 3)
    fit(tiny(), Throughput(), data=tiny_data(6), logger=Memory(), max_epochs=1, log_every_n_steps=3)
    found = [(row["train/tokens_per_s"], row["train/examples_per_s"]) for row in Memory.rows if "train/bpd" in row]
    assert found == [(30.0, 6.0), (30.0, 6.0)]


def test_window_must_hold_a_batch():
    with pytest.raises(ValueError, match="at least 1"):
        Throughput(window=0)
