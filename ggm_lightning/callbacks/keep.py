"""last.ckpt, renewed periodically and when training ends, however it ends, and best.ckpt, the lowest bound so far.

Two callbacks, because `save_last` of a callback that watches a metric is renewed only when the metric improves. Both
write through the run folder's own CheckpointIO, over their own file, so a kill at any moment leaves a whole one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import Strategy

from ggm_lightning.rundir.csv_log import CSVLog
from ggm_lightning.rundir.tensorboard_log import TensorBoardLog


class _Keep(ModelCheckpoint):
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The state belongs to the file: it is taken over where the folder was moved or copied with its files, and left
        where a new folder branches off (Lightning keeps it by the folder's name alone, and would let a worse model
        replace the best one of a folder that was renamed)."""
        file = Path(self.dirpath or ".") / f"{self.filename}.ckpt"
        if not file.is_file():
            return
        kept: dict[str, Any] = {"best_model_path": str(file), "kth_best_model_path": str(file), "last_model_path": ""}
        if state_dict["best_k_models"]:
            (score,) = state_dict["best_k_models"].values()
            kept |= {"best_k_models": {str(file): score}}
        super().load_state_dict({**state_dict, **kept, "dirpath": self.dirpath})


class KeepLast(_Keep):
    """<folder>/last.ckpt every n optimiser steps and after the last one, whatever ended the run.

    Args:
        folder: the run folder.
        every_n_steps: optimiser steps between two saves.
    """

    def __init__(self, folder: str, every_n_steps: int = 1000) -> None:
        if every_n_steps < 1:
            raise ValueError(f"checkpoint_every_n_steps is {every_n_steps}; it must be at least 1")
        super().__init__(
            dirpath=folder,
            filename="last",
            every_n_train_steps=every_n_steps,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )
        self._first = self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._first = self._step = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, CSVLog | TensorBoardLog):
                logger.continue_after(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # accumulating
        self._step = trainer.global_step
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        # before the validation that may follow, which may be what kills the run
        if _is_last(trainer):
            self.save_now(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """For a run that a validation's result stops. The validation is in the file, also where the step was saved
        before it: so a run resumed from here trains on."""
        if not trainer.sanity_checking and _stops(trainer):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _stops(trainer):
            self.save_now(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """For a run that was stopped where no hook above could see it. The averaged weights stand in the module by now,
        the raw ones are kept by EMA, which puts both into the file."""
        if self._step != self._first:
            self.save_now(trainer)

    def save_now(self, trainer: Trainer) -> None:
        """last.ckpt of this step, unless it is there already; before the step's validation is over."""
        if self._last_global_step_saved != trainer.global_step:
            self._save(trainer)

    def save_alone(self, trainer: Trainer) -> None:
        """`save_now` of one rank whose others are gone."""
        with _alone(trainer.strategy):
            self.save_now(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, CSVLog):
                logger.before_checkpoint()


@contextmanager
def _alone(strategy: Strategy) -> Iterator[None]:
    """What would ask the other ranks, or wait for them, is answered here."""
    answers: dict[str, Any] = {
        "barrier": lambda *args, **kwargs: None,
        "broadcast": lambda value, *args, **kwargs: value,
        "reduce_boolean_decision": lambda decision, *args, **kwargs: decision,
    }
    for name, answer in answers.items():
        setattr(strategy, name, answer)
    try:
        yield
    finally:
        for name in answers:
            delattr(strategy, name)


def _stops(trainer: Trainer) -> bool:
    """Whether somebody has asked for the end, and trainer.min_steps and min_epochs allow it."""
    return trainer.should_stop and trainer.fit_loop._can_stop_early


def _is_last(trainer: Trainer) -> bool:
    """Whether no training batch follows; after this hook the loop looks at the same conditions."""
    steps_done = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    epochs_done = (
        trainer.is_last_batch
        and trainer.max_epochs not in (None, -1)
        and trainer.current_epoch + 1 >= trainer.max_epochs
    )
    return steps_done or epochs_done or _stops(trainer)


class KeepBest(_Keep):
    """<folder>/best.ckpt: the averaged weights with the lowest bound, or the lowest value of another metric."""

    def __init__(self, folder: str, monitor: str = "val/nelbo") -> None:
        super().__init__(
            dirpath=folder,
            filename="best",
            monitor=monitor,
            mode="min",
            enable_version_counter=False,
            auto_insert_metric_name=False,
            save_on_train_epoch_end=False,  # but after each validation, also with val_check_interval 1
        )
