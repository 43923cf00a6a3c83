"""metrics.csv of a run folder: one row per logged step, appended to across resumes.

Lightning's CSVLogger (2.6.6) deletes the file when a run goes on in its folder. Here a resumed run appends. When the
run was resumed from step k, the rows that the abandoned continuation had written after k are taken out with the first
rows of the new one that are written: both kept, the file would hold two values for a step, and the curve would run
backwards. A resumed run that takes no step changes nothing.

The step of a row is the number of optimiser steps taken. Lightning hands its loggers a count of its own, which is one
less, and which (2.6.6) is off by one after a resume from a checkpoint that was saved at the end of an epoch.
"""

from __future__ import annotations

import csv
import math
import os
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

FILE_NAME = "metrics.csv"
Curve = list[tuple[int, float]]
_LEADING = ["step", "epoch", "seconds"]


class CSVLog(Logger):
    """Appends metrics to <save_dir>/metrics.csv with the columns step, epoch, seconds and one per metric.

    seconds is the time spent on the run so far, earlier parts of a resumed run included. A new metric becomes a new
    column (the file is rewritten beside the old one and renamed over it). When the file cannot be written (full disk),
    a single warning is given, the rows stay in memory, and each later flush tries again.

    Args:
        save_dir: the run folder.
        flush_every_n_rows: rows reach the file at each validation and at latest after so many.
    """

    def __init__(self, save_dir: str = ".", flush_every_n_rows: int = 20) -> None:
        super().__init__()
        if flush_every_n_rows < 1:
            raise ValueError(f"CSVLog: flush_every_n_rows is {flush_every_n_rows}; it must be at least 1")
        self._save_dir = str(save_dir)
        self.flush_every_n_rows = flush_every_n_rows
        self._rows: list[dict[str, Any]] = []
        self._columns: list[str] | None = None  # of the file; None as long as it was not looked at
        self._evaluating = False
        self._trainer: Trainer | None = None
        self._first_row_of_fit = False
        self._resumed_at: int | None = None  # told by callbacks/keep.py
        self._truncate_at: int | None = None
        self._measured_again: set[str] = set()
        self._seconds_before = 0.0
        self._started = time.monotonic()
        self._warned = False
        self._flush_next = False

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return self._save_dir

    @property
    def path(self) -> Path:
        """metrics.csv; evaluation.csv in a Trainer's validate or test, where steps are not those of the run."""
        return Path(self._save_dir) / ("evaluation.csv" if self._evaluating else FILE_NAME)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the resolved configuration lies beside the file."""

    def log_graph(self, model: LightningModule, input_array: Any = None) -> None:  # type: ignore[override]
        """The Trainer hands over the module here when it starts; its trainer tells a fit from an evaluation."""
        self.flush()
        self._trainer = model.trainer
        self._first_row_of_fit = self._trainer.state.fn == TrainerFn.FITTING
        self._evaluating = not self._first_row_of_fit
        self._columns, self._truncate_at, self._resumed_at = None, None, None
        self._seconds_before, self._started = 0.0, time.monotonic()

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self._trainer is not None:
            step = self._trainer.global_step
        step = 0 if step is None else int(step)
        if self._first_row_of_fit:
            self._first_row_of_fit = False
            self._begin(step, set(metrics))
        row = {"step": step, "epoch": metrics.get("epoch"), "seconds": round(self._seconds(), 3)}
        row |= {name: value for name, value in metrics.items() if name not in _LEADING}
        last = self._rows[-1] if self._rows else None
        # one row per step: Lightning's monitors log at each micro-batch of it
        if last is not None and last["step"] == step:
            last.update(row)
        else:
            self._rows.append(row)

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def continue_after(self, step: int) -> None:
        """The run has taken so many steps and goes on from here. callbacks/keep.py calls it when training starts; the
        file is changed when the first rows that follow are written."""
        self._resumed_at = step

    @rank_zero_only
    def _begin(self, step: int, names: set[str]) -> None:
        """Before the first row of a fit: takes out what it and the rows after it replace."""
        if self._resumed_at is None:
            # A Trainer without KeepLast. A run logs at the same steps after a resume as before, so this step is the
            # first of the abandoned continuation, too; but that of a validation may be the one it was resumed from.
            trains = any(name.startswith("train/") for name in names)
            self._truncate_at = step if trains else step + 1
        else:
            self._truncate_at = self._resumed_at + 1
        # a run saved before the validation of its step does that validation again
        self._measured_again = names - set(_LEADING) if step < self._truncate_at else set()
        self._guarded(self._read_seconds)

    def _read_seconds(self) -> None:
        _, kept = self._kept()
        self._seconds_before = max((float(row["seconds"] or 0) for row in kept), default=0.0)

    def _kept(self) -> tuple[list[str] | None, list[dict[str, Any]]]:
        """(columns, rows) of the file that stay."""
        assert self._truncate_at is not None
        columns, rows = _read_rows(self.path)
        kept = [row for row in rows if int(row["step"]) < self._truncate_at]
        for row in [row for row in kept if int(row["step"]) == self._truncate_at - 1]:
            row |= dict.fromkeys(self._measured_again & set(row), "")
            if not any(value for name, value in row.items() if name not in _LEADING):
                kept.remove(row)
        return columns, kept

    def _truncate(self) -> None:
        self._columns, kept = self._kept()
        if self._columns is not None:
            self._rewrite(self._columns, kept)
        self._truncate_at = None

    def before_checkpoint(self) -> None:
        """A run resumed from it does not repeat the rows up to here: they, and then the row of this very step, which
        Lightning logs only after the save, must reach the file."""
        self._write()
        self._flush_next = True

    def save(self) -> None:
        """Lightning calls this after every row; see `flush_every_n_rows`."""
        validated = any(name.startswith(("val/", "test/")) for row in self._rows for name in row)
        if validated or self._flush_next or len(self._rows) >= self.flush_every_n_rows:
            self._flush_next = False
            self.flush()

    def finalize(self, status: str) -> None:
        if status == "success" or self._has_stepped():
            self._write()
        else:
            self._rows = []

    def flush(self) -> None:
        """Writes the rows in memory to the file; not before a resumed run has taken a step, since they replace what
        the file has of the steps that follow."""
        if self._has_stepped():
            self._write()

    def _has_stepped(self) -> bool:
        return not self._rows or self._resumed_at is None or self._rows[-1]["step"] > self._resumed_at

    @rank_zero_only
    def _write(self) -> None:
        if self._rows:
            self._guarded(self._append)

    def _guarded(self, write: Any) -> None:
        try:
            write()
        except OSError as error:
            if not self._warned:
                self._warned = True
                rank_zero_warn(
                    f"{self.path}: cannot be written ({error.strerror or error}); training goes on, the metrics stay "
                    "in memory and are written as soon as the file can be, so free some space"
                )

    def _append(self) -> None:
        if self._truncate_at is not None:
            self._truncate()
        if self._columns is None:
            self._columns, _ = _read_rows(self.path)
        columns = self._columns or list(_LEADING)
        columns = columns + sorted({name for row in self._rows for name in row} - set(columns))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if columns != self._columns:
            self._rewrite(columns, _read_rows(self.path)[1] + self._rows)
        else:
            self._append_rows(columns)
        self._rows = []

    def _append_rows(self, columns: list[str]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            start = file.tell()
            try:
                csv.DictWriter(file, columns).writerows(self._rows)
                file.flush()
            except OSError:
                # half a row would be glued to the next one
                os.truncate(self.path, start)
                raise

    def _rewrite(self, columns: list[str], rows: list[dict[str, Any]]) -> None:
        partial = self.path.with_name(f".{self.path.name}.partial")
        try:
            with partial.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(rows)
            os.replace(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)
        self._columns = columns


def _read_rows(path: Path) -> tuple[list[str] | None, list[dict[str, Any]]]:
    """(columns, rows); no columns for a missing or empty file. A last line that a kill has cut off is left out."""
    if not path.is_file():
        return None, []
    text = path.read_text(encoding="utf-8")
    reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    columns = list(reader.fieldnames) if reader.fieldnames else None
    return columns, [row for row in reader if (row.get("step") or "").isdigit()]


def read_metrics(path: str | Path) -> dict[str, Curve]:
    """metric -> [(step, value), ...] in the order of steps, from a metrics.csv; of several values at a step the last.

    Raises:
        ValueError: no such file, or one without a column "step".
    """
    path = Path(path)
    columns, rows = _read_rows(path)
    if columns is None or "step" not in columns:
        raise ValueError(f"{path}: no metrics in it; give the metrics.csv of a run folder")
    curves: dict[str, dict[int, float]] = {name: {} for name in columns if name != "step"}
    for row in rows:
        for name, curve in curves.items():
            value = _number(row.get(name))
            if value is not None:
                curve[int(row["step"])] = value
    return {name: sorted(curve.items()) for name, curve in curves.items() if curve}


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return None if math.isnan(value) else value
