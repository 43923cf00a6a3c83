"""metrics.csv: rows are appended across resumes, nothing is lost to a new column or a full disk."""

from __future__ import annotations

import errno
import os
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from ggm_lightning.rundir import csv_log
from ggm_lightning.rundir.csv_log import CSVLog, read_metrics


class Model(LightningModule):
    """Logs its step; in a later part of the run also something new."""

    def __init__(self, *extra: str) -> None:
        super().__init__()
        self.layer, self.extra = torch.nn.Linear(3, 1), extra

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).mean()
        self.log_dict({"train/value": float(self.global_step + 1), **dict.fromkeys(self.extra, 1.0)})
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/bpd", float(self.global_step))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(folder, model, steps, ckpt_path=None, logger=None, evaluate=False):
    trainer = Trainer(
        default_root_dir=folder,
        logger=logger or CSVLog(str(folder)),
        max_steps=steps,
        log_every_n_steps=1,
        val_check_interval=5,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        accelerator="cpu",
    )
    loader = DataLoader(torch.ones(10, 3), batch_size=2)
    if evaluate:
        trainer.validate(model, loader, verbose=False)
    else:
        trainer.fit(model, loader, loader, ckpt_path=ckpt_path)
    return trainer


def test_two_parts_of_a_run_with_a_new_column(tmp_path):
    run(tmp_path, Model(), 5).save_checkpoint(tmp_path / "x.ckpt")
    run(tmp_path, Model(), 8, ckpt_path=tmp_path / "x.ckpt")  # the continuation that is abandoned
    run(tmp_path, Model("train/new"), 10, ckpt_path=tmp_path / "x.ckpt")
    metrics = read_metrics(tmp_path / "metrics.csv")
    assert metrics["train/value"] == [(step, float(step)) for step in range(1, 11)]
    assert metrics["train/new"] == [(step, 1.0) for step in range(6, 11)]
    assert metrics["val/bpd"] == [(5, 5.0), (10, 10.0)]
    assert metrics["seconds"] == sorted(metrics["seconds"], key=lambda pair: pair[1])
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0].split(",")[:3] == ["step", "epoch", "seconds"]
    assert len(lines) == 11  # the rows of the abandoned steps are gone, a validation shares its step's row
    assert set(os.listdir(tmp_path)) == {"metrics.csv", "x.ckpt"}


def test_stock_logger_loses_the_first_part(tmp_path):
    def stock():
        return CSVLogger(tmp_path, name="", version="")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(tmp_path, Model(), 5, logger=stock()).save_checkpoint(tmp_path / "x.ckpt")
        run(tmp_path, Model(), 10, logger=stock(), ckpt_path=tmp_path / "x.ckpt")
    steps = [step for step, _ in read_metrics(tmp_path / "metrics.csv")["train/value"]]
    assert min(steps) > 5


def test_evaluation_leaves_the_training_rows_alone(tmp_path):
    run(tmp_path, Model(), 5)
    before = (tmp_path / "metrics.csv").read_bytes()
    run(tmp_path, Model(), 5, evaluate=True)
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert "val/bpd" in read_metrics(tmp_path / "evaluation.csv")


def test_rows_wait_for_a_validation_or_for_their_number(tmp_path):
    log = CSVLog(str(tmp_path), flush_every_n_rows=3)
    for step in range(2):
        log.log_metrics({"train/a": 1.0}, step)
        log.save()
    assert not log.path.exists()
    log.log_metrics({"train/a": 1.0}, 2)
    log.save()
    assert len(log.path.read_text().splitlines()) == 4
    log.log_metrics({"val/a": 1.0}, 3)
    log.save()
    assert len(log.path.read_text().splitlines()) == 5
    log.log_metrics({"train/a": 1.0}, 4)
    log.finalize("success")
    assert len(log.path.read_text().splitlines()) == 6


def test_half_a_line_left_by_a_kill(tmp_path):
    run(tmp_path, Model(), 5).save_checkpoint(tmp_path / "x.ckpt")
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text() + "5,0,1.2")
    run(tmp_path, Model(), 7, ckpt_path=tmp_path / "x.ckpt")
    assert read_metrics(path)["train/value"] == [(step, float(step)) for step in range(1, 8)]


@pytest.mark.parametrize("when", ["append", "new file"])
def test_full_disk_costs_one_warning_and_no_rows(tmp_path, monkeypatch, when):
    log = CSVLog(str(tmp_path), flush_every_n_rows=1)
    if when == "append":
        log.log_metrics({"train/a": 0.0}, 0)
        log.save()

    def writer(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setattr(csv_log.csv, "DictWriter", writer)
        for step in range(1, 5):
            log.log_metrics({"train/a": float(step)}, step)
            log.save()
    assert len(caught) == 1
    assert "No space left" in str(caught[0].message)
    log.log_metrics({"train/a": 5.0}, 5)
    log.save()
    first = 0 if when == "append" else 1
    assert read_metrics(log.path)["train/a"] == [(step, float(step)) for step in range(first, 6)]
    assert os.listdir(tmp_path) == ["metrics.csv"]


def test_what_is_no_metrics_file(tmp_path):
    with pytest.raises(ValueError, match=r"give the metrics\.csv of a run folder"):
        read_metrics(tmp_path / "metrics.csv")
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"give the metrics\.csv of a run folder"):
        read_metrics(tmp_path / "metrics.csv")
