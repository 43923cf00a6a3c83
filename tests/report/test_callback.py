"""The report of a real fit: figures of the last validation, samples from the averaged weights."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningDataModule

from ggm_lightning.callbacks.ema import EMA
from ggm_lightning.callbacks.throughput import Throughput
from ggm_lightning.report.callback import Report
from ggm_lightning.rundir.csv_log import CSVLog


def test_report_of_a_fit(tiny, fit, tmp_path):
    model = tiny()
    callbacks = [Report(num_samples=3, num_steps=2), EMA(0.9), Throughput()]
    fit(model, *callbacks, logger=CSVLog(str(tmp_path)), max_epochs=4)
    text = (tmp_path / "report.html").read_text()
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    for part in ("Bits per character, upper bound", "2.7500", "± 0.1250", "Perplexity", "9.5000", "2 steps"):
        assert part in text
    assert text.count("<pre>") == 3
    assert "Trained parameters" in text
    assert "exponential moving average, decay 0.9" in text
    assert '<div class="trace">' in text
    assert "25.0%" in text
    assert "<h2>Share of words</h2>" in text
    assert torch.equal(model.seen["sample"], model.head.weight)


def test_without_csv_and_with_bare_data(tiny, tiny_data, fit, tmp_path):
    class Bare(LightningDataModule):
        """Loaders, and nothing that a report could use."""

        batches = 1
        train_dataloader = val_dataloader = tiny_data.train_dataloader

    fit(tiny(), Report(num_samples=2), data=Bare(), max_epochs=1)
    text = (tmp_path / "report.html").read_text()
    assert "Bits per token, upper bound" in text
    assert "those of the last step" in text
    assert text.count("<pre>") == 2


def test_bits_per_character_of_longer_tokens(tiny, tiny_data, fit, tmp_path):
    data = tiny_data()
    data.characters_per_token = 4.0
    fit(tiny(), Report(num_samples=2), data=data, max_epochs=1)
    text = (tmp_path / "report.html").read_text()
    assert "0.6875" in text  # 2.75 / 4
    assert "Bits per token, upper bound" in text


def test_none_in_a_trial_run(tiny, fit, tmp_path):
    fit(tiny(), Report(), fast_dev_run=True)
    assert not (tmp_path / "report.html").exists()


def test_folder_that_cannot_be_written(tiny, fit, tmp_path):
    (tmp_path / "curve.png").mkdir()
    with pytest.warns(UserWarning, match="the run is complete"):
        fit(tiny(), Report(), max_epochs=1)


def test_arguments():
    with pytest.raises(ValueError, match="num_steps is 0"):
        Report(num_steps=0)
