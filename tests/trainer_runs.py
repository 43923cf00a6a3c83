"""Tiny runs of `lightning fit`, each in a forked process with a time limit: what tests/trainer_flags.py tries out.

An epoch has 7 optimiser steps of 8 rows, in two micro-batches each; validations see 12 rows, 4 at a time.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import multiprocessing
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

ROOT = Path(__file__).parents[1]
SECONDS = 60.0  # of one run; each takes about one
REPORT = '{"class_path": "ggm_lightning.report.callback.Report", "init_args": {"num_samples": 1, "num_steps": 1}}'
EMA = '{"class_path": "ggm_lightning.callbacks.ema.EMA", "init_args": {"decay": 0.9}}'
TINY = [
    *("--config", str(ROOT / "experiments" / "md4_markov.yaml")),
    "--model.network.init_args.feature_dim=4",
    "--model.network.init_args.num_layers=1",
    "--model.optimizer={lr: 0.004, decay: constant}",  # a cosine knows the last step
    "--data.init_args.num_train=50",
    "--data.init_args.num_val=12",
    "--data.init_args.length=11",
    "--data.init_args.global_batch_size=8",
    "--data.init_args.max_batch_per_device=4",
    "--data.init_args.eval_batch_size=4",
    "--trainer.log_every_n_steps=2",
    "--trainer.val_check_interval=3",
    "--trainer.max_steps=8",
    "--trainer.enable_progress_bar=false",
    f"--trainer.callbacks=[{EMA}, {REPORT}]",
]
STEPS_PER_EPOCH = 7


@dataclass(frozen=True)
class Run:
    """What one start of `lightning fit` has left."""

    folder: Path
    exit_code: int | None  # None: it was still running when its time was over
    output: str

    @property
    def error(self) -> str:
        """The one line of a run that was refused; all of the output where there is more than that."""
        lines = [line for line in self.output.splitlines() if line.startswith("lightning: error: ")]
        refused = self.exit_code == 2 and len(lines) == 1 and "Traceback" not in self.output
        return lines[0].removeprefix("lightning: error: ") if refused else ""

    @property
    def rows(self) -> list[dict[str, str]]:
        file = self.folder / "metrics.csv"
        with file.open() as text:
            return list(csv.DictReader(text))

    def steps_with(self, metric: str) -> list[int]:
        return [int(row["step"]) for row in self.rows if row.get(metric)]

    @property
    def validated(self) -> list[int]:
        return self.steps_with("val/nelbo")

    def bounds(self) -> list[float]:
        return [float(row["val/nelbo"]) for row in self.rows if row.get("val/nelbo")]

    def checkpoint(self, name: str = "last.ckpt") -> dict[str, Any]:
        return torch.load(self.folder / name, weights_only=True)

    @property
    def steps(self) -> int:
        """Of last.ckpt."""
        return int(self.checkpoint()["global_step"])


def _log_to(stream: TextIO) -> None:
    """Lightning's loggers write to what stderr was when they were made: under pytest, to a file of pytest's."""
    for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
        for handler in getattr(logger, "handlers", []):  # some entries only hold a name's place
            if type(handler) is logging.StreamHandler:
                handler.setStream(stream)


def _child(arguments: list[str], log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    _log_to(sys.stderr)
    from ggm_lightning.cli.main import main

    torch.set_num_threads(1)
    code = 0
    try:
        main(["fit", *arguments])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


def fit(folder: Path, *arguments: str, seconds: float = SECONDS) -> Run:
    """`lightning fit` of the tiny experiment; `folder` is the run's own, and later arguments win."""

    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.parent / f"{folder.name}.log"
    place = ["--runs", str(folder.parent), "--name", folder.name]
    process = multiprocessing.get_context("fork").Process(target=_child, args=([*TINY, *place, *arguments], str(log)))
    process.start()
    process.join(seconds)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    return Run(folder, code, log.read_text())


def largest_difference(one: Run, other: Run) -> float:
    """Of the raw weights of the two runs' last.ckpt."""
    weights = [run.checkpoint() for run in (one, other)]
    raw = [checkpoint.get("current_model_state", checkpoint["state_dict"]) for checkpoint in weights]
    return max(float((raw[0][name].double() - raw[1][name].double()).abs().max()) for name in raw[0])


def rows_of(batch: dict[str, torch.Tensor]) -> int:
    """For ThroughputMonitor, which has to be told."""
    return len(batch["x"])
