"""What the progress bar writes, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re
import sys

import pytest

from ggm_lightning.callbacks.progress import Progress, _clock, _short


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def screen(monkeypatch):
    def use(terminal: bool) -> Stream:
        stream = Stream(terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return use


def test_plain_lines(tiny, tiny_data, fit, screen):
    stream = screen(terminal=False)
    fit(tiny(), Progress(plain_seconds=0), data=tiny_data(4), max_epochs=-1, max_steps=7, enable_progress_bar=True)
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    steps = [line for line in lines if "tokens/s" in line]
    assert len(steps) == 7
    pattern = r"step 3/7 \(43%\)  bits/token \d\.\d+  [\d.]+[kMG]? tokens/s  elapsed 00:\d\d  left 00:\d\d"
    assert re.fullmatch(pattern, steps[2])
    results = [line for line in lines if "validation" in line]
    assert results == [
        "step 4  validation, upper bound: 9.500 ± 0.250 nats per example  2.7500 ± 0.1250 bits per token  "
        "6.500 ± 0.500 perplexity"
    ]  # and none for the sanity check


def test_a_plain_line_only_every_so_often(tiny, tiny_data, fit, screen):
    stream = screen(terminal=False)
    fit(tiny(), Progress(plain_seconds=1e9), data=tiny_data(4), max_epochs=-1, max_steps=7, enable_progress_bar=True)
    steps = [line for line in stream.getvalue().splitlines() if "tokens/s" in line]
    assert [line.split()[1] for line in steps] == ["7/7"]


def test_bar_of_a_resumed_run_starts_at_its_step(tiny, tiny_data, fit, screen, tmp_path):
    arguments = {"data": tiny_data(4), "max_epochs": -1, "enable_progress_bar": True}
    fit(tiny(), Progress(), max_steps=8, **arguments).save_checkpoint(tmp_path / "x.ckpt")
    stream = screen(terminal=True)
    fit(tiny(), Progress(refresh_seconds=0), max_steps=12, ckpt_path=tmp_path / "x.ckpt", **arguments)
    counts = [int(n) for n in re.findall(r"(\d+)/12", stream.getvalue())]
    assert counts[0] == 8
    assert counts == sorted(counts)
    assert counts[-1] == 12
    assert "bits/token" in stream.getvalue()
    assert "validation, upper bound: 9.500 ± 0.250" in stream.getvalue()


def test_metrics_are_not_fetched_at_every_step(tiny, tiny_data, fit, screen, monkeypatch):
    screen(terminal=True)
    fetched = []
    monkeypatch.setattr(Progress, "_values", lambda self, trainer: fetched.append(trainer.global_step) or [])
    fit(tiny(), Progress(refresh_seconds=1e9), data=tiny_data(4), max_steps=12, max_epochs=-1, enable_progress_bar=True)
    assert fetched == [12]


def test_silent_on_other_ranks(tiny, fit, screen):
    stream = screen(terminal=False)
    progress = Progress(plain_seconds=0)
    progress.disable()
    fit(tiny(), progress, enable_progress_bar=True)
    assert stream.getvalue() == ""


def test_units():
    assert [_short(n) for n in (12, 1234, 45_600_000, 7e9)] == ["12", "1.23k", "45.6M", "7G"]
    assert [_clock(s) for s in (61.7, 3725)] == ["01:01", "1:02:05"]
