"""TensorBoard's events of a run folder, in which a resumed run goes on where its checkpoint stands.

Lightning's logger (2.6.6) opens a second events file beside the first. What the run had logged after its last
checkpoint then stands there twice, and the curve runs backwards. Here the new file begins with the mark by which
TensorBoard hides these values (what `SummaryWriter(purge_step=...)` writes); nothing is deleted from the old file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class TensorBoardLog(TensorBoardLogger):
    """The step of a value is the number of optimiser steps taken, as in metrics.csv.

    Args:
        folder: the run folder.
        fitting: write into <folder>/tensorboard. Else into <folder>/tensorboard_evaluation: the steps of validate, test
            and predict are not those of the run, whose curves they must not disturb.
    """

    def __init__(self, folder: Path, fitting: bool = True) -> None:
        version = "tensorboard" if fitting else "tensorboard_evaluation"
        super().__init__(save_dir=str(folder), name="", version=version)
        self._trainer: Trainer | None = None
        self._resumed_at: int | None = None  # until the first value after it is written
        self._epoch_step = -1  # the last step with which the epoch was written

    @rank_zero_only
    def log_graph(self, model: LightningModule, input_array: Any = None) -> None:  # type: ignore[override]
        """The Trainer hands over the module here when it starts."""
        self._trainer = model.trainer
        super().log_graph(model, input_array)

    def continue_after(self, step: int) -> None:
        """The run has taken so many steps and goes on from here: later values, of a continuation that was abandoned,
        are to be hidden. callbacks/keep.py calls it when training starts."""
        self._resumed_at = step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        writer = super().experiment
        if self._resumed_at is not None:
            step, self._resumed_at = self._resumed_at, None
            self._hide_after(step, writer)
        return writer

    def _hide_after(self, step: int, writer: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        # A run saved before the validation of its step does that validation again. The marks know no names: so all
        # values of the step are hidden, and those that validation does not give are written once more.
        assert self._trainer is not None
        validates_again = bool(self._trainer.validating) and self._trainer.global_step == step
        kept = self._training_scalars(step) if validates_again else {}
        first_hidden = step if validates_again else step + 1
        session = SessionLog(status=SessionLog.START)
        writer._get_file_writer().add_event(Event(step=first_hidden, session_log=session))
        for name, value in kept.items():
            writer.add_scalar(name, value, step)
        if "epoch" in kept:
            self._epoch_step = step

    def _training_scalars(self, step: int) -> dict[str, float]:
        """Name -> value at this step, of what is no result of a validation."""
        from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
        from tensorboard.util import tb_logging

        events = EventAccumulator(self.log_dir, size_guidance={SCALARS: 0})  # 0: all of them
        # it would warn of each mark of an earlier resume
        tb_logging.get_logger().disabled = True
        try:
            events.Reload()
        finally:
            tb_logging.get_logger().disabled = False
        names = [name for name in events.Tags()[SCALARS] if not name.startswith("val/")]
        found = {name: [event.value for event in events.Scalars(name) if event.step == step] for name in names}
        return {name: values[-1] for name, values in found.items() if values}

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._trainer is not None:
            step = self._trainer.global_step
        _ = self.experiment  # hides first what is to be hidden
        metrics = dict(metrics)
        if "epoch" in metrics and step == self._epoch_step:
            del metrics["epoch"]  # Lightning gives it with the loss and with the bound of a step
        elif "epoch" in metrics and step is not None:
            self._epoch_step = step
        super().log_metrics(metrics, step)
