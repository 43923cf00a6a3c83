"""Every callback that comes with Lightning, for the table of tests/trainer_flags.py."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import callbacks as stock

from tests.trainer_flags import BY_EPOCH, TWO_EPOCHS, Case, ended, plain, said
from tests.trainer_runs import Run

EMA_INSTEAD = "weights are averaged by ggm_lightning.callbacks.ema.EMA"


@dataclass(frozen=True)
class Called(Case):
    """A callback; `given` are its arguments."""

    given: dict[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> list[str]:
        callback = {"class_path": f"lightning.pytorch.callbacks.{self.name}", "init_args": self.given}
        return [f"--trainer.callbacks+={json.dumps(callback)}", *self.options]


def called(name: str, given: dict[str, Any], meaning: str, *rest: Any, **more: Any) -> Called:
    value = ", ".join(f"{key}: {json.dumps(argument)}" for key, argument in given.items())
    return Called(name, value, meaning, *rest, given=given, **more)


def files(*names: str) -> Any:
    """Whether the run is as without the callback, and has these files."""
    return lambda run: plain(run) and {file.name for file in (run.folder / "checkpoints").iterdir()} == set(names)


def rates_of_lr(run: Run) -> bool:
    return plain(run) and len(run.steps_with("lr-AdamW")) == 4  # once for each logged step, not for each micro-batch


BAR = ("--trainer.enable_progress_bar=true",)
CALLBACKS = [
    called("Callback", {}, "does nothing: a base class", plain),
    called("Checkpoint", {}, "likewise", plain),
    called("ProgressBar", {}, "likewise; in the place of ours", plain, options=BAR),
    called("BaseFinetuning", {}, "a base class", refused="BaseFinetuning does nothing itself"),
    called("BasePredictionWriter", {}, "does nothing in a fit: a base class", plain),
    called("BackboneFinetuning", {}, "for models with a module `backbone`", refused="which MD4 has not"),
    called("BatchSizeFinder", {}, "", refused="set data.max_batch_per_device to what fits on the device instead"),
    called("DeviceStatsMonitor", {"cpu_stats": False}, "as Lightning has it, in a logged step's row", plain),
    called("DeviceStatsMonitor", {"cpu_stats": True}, "needs psutil", refused="`psutil`", absent="psutil"),
    called("EarlyStopping", {"monitor": "val/nelbo", "stopping_threshold": 1000.0},
           "after a validation; last.ckpt is of the last step, and trains on (tests/test_counts.py)",
           ended(3, 3), resumed="", fast=True),
    called("EarlyStopping", {"monitor": "val/nelbo", "patience": 9}, "patience in validations", plain),
    called("EarlyStopping", {"monitor": "train/bpd", "patience": 9, "check_on_train_epoch_end": True},
           "patience in epochs", plain),
    called("EarlyStopping", {"monitor": "val/xyz"}, "of a name that no validation logs", fast=True,
           refused="monitor is 'val/xyz', which no validation logs; choose one of val/bpd"),
    called("EarlyStopping", {"monitor": "loss"}, "of another name that is not logged; known at the first look",
           refused="Early stopping conditioned on metric `loss` which is not available", resumed=""),
    called("GradientAccumulationScheduler", {"scheduling": {"0": 2}}, "", fast=True,
           refused="a step has data.global_batch_size rows in every epoch"),
    called("LambdaCallback", {"on_train_start": "builtins.print"}, "as Lightning has it", plain),
    called("LearningRateFinder", {}, "", refused="set model.optimizer.lr, and compare short runs"),
    called("LearningRateMonitor", {}, "once for each logged step, in the row of the step before", rates_of_lr),
    called("ModelCheckpoint", {"every_n_train_steps": 4, "save_top_k": -1, "filename": "{step}"}, "optimiser steps",
           files("step=4.ckpt", "step=8.ckpt")),
    called("ModelCheckpoint", {"monitor": "val/bpd", "filename": "low"}, "after validations", files("low.ckpt")),
    called("ModelCheckpoint", {"every_n_epochs": 1, "save_top_k": -1, "filename": "{epoch}"}, "epochs",
           lambda run: run.steps == 14, options=(*TWO_EPOCHS, "--trainer.val_check_interval=1.0", BY_EPOCH)),
    called("ModelCheckpoint", {"train_time_interval": "0:00:00", "filename": "now"},
           "by the clock; in the middle of a step it holds the step before", files("now.ckpt")),
    called("ModelCheckpoint", {"monitor": "val/xyz"}, "of a name that no validation logs",
           refused="monitor is 'val/xyz', which no validation logs"),
    called("ModelPruning", {"pruning_fn": "l1_unstructured", "amount": 0.5}, "", refused="prune after the training"),
    called("ModelSummary", {}, "as Lightning has it", said("Trainable params")),
    called("OnExceptionCheckpoint", {"dirpath": "."}, "in the middle of a step it holds the step before", plain),
    called("RichModelSummary", {}, "as Lightning has it", said("Trainable params")),
    called("RichProgressBar", {}, "in the place of ours; it counts micro-batches", plain, options=BAR),
    called("TQDMProgressBar", {}, "likewise", plain, options=BAR),
    called("StochasticWeightAveraging", {"swa_lrs": 0.01}, "", refused=EMA_INSTEAD),
    called("SpikeDetection", {}, "", refused="a run cannot be resumed with it"),
    called("ThroughputMonitor", {"batch_size_fn": "tests.trainer_runs.rows_of"},
           "as Lightning has it, in micro-batches; train/tokens_per_s is logged anyway", plain),
    called("Timer", {"duration": "00:01:00:00"}, "as trainer.max_time", plain, fast=True),
    called("WeightAveraging", {}, "", refused=EMA_INSTEAD),
    called("EMAWeightAveraging", {}, "", refused=EMA_INSTEAD),
]  # fmt: skip


def callbacks_of_lightning() -> list[str]:
    return list(stock.__all__)
