"""last.ckpt, renewed periodically and when training ends, and best.ckpt, the lowest bound so far.

Two callbacks, because `save_last` of a callback that watches a metric is renewed only when the metric improves. Both
write through the run folder's own CheckpointIO, over their own file, so a kill at any moment leaves a whole one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

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
    """<folder>/last.ckpt every n optimiser steps and after the last one.

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
        self._step = 0
        self._saving = False  # this callback, and not KeepBest

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._step = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, CSVLog | TensorBoardLog):
                logger.continue_after(trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Lightning (2.6.6) tells by this count which steps are logged. After a resume from the end of an epoch it is
        # one too high, and every row of the resumed run would belong to the step before the one that is due.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # accumulating: a run resumed from here would count its micro-batches wrongly
        self._step = trainer.global_step
        self._saving = True
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._saving = False
        # here and not in on_train_end, where the averaged weights have already replaced the raw ones
        if _is_last(trainer):
            self.save_now(trainer)

    def save_now(self, trainer: Trainer) -> None:
        """last.ckpt of this step, unless it is there already; before the step's validation is over."""
        if self._last_global_step_saved != trainer.global_step:
            self._saving = True
            self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))
            self._saving = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A validation that is due after this step would be skipped by a run resumed from here (Lightning 2.6.6); one
        that was interrupted in its first batch is begun anew: so the loop's state says that it was."""
        for logger in trainer.loggers:
            if isinstance(logger, CSVLog):
                logger.before_checkpoint()
        fit_loop = trainer.fit_loop
        fetcher = fit_loop._data_fetcher
        if self._saving and fetcher is not None and fit_loop.epoch_loop._should_check_val_fx(fetcher):
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress = {"total": begun, "current": dict(begun), "is_last_batch": False}
            checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = progress

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lightning tells from the number of micro-batches when a step is full. Where a step has more or fewer of them
        than before (other devices), the first step would be cut short, and all rows after it belong to other steps."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        before, rest = divmod(progress["total"]["ready"], checkpoint["global_step"] or 1)
        now = trainer.accumulate_grad_batches
        if rest or before in (0, now):
            return
        for counts in (progress["total"], progress["current"]):
            done = counts["ready"] // before * now
            counts.update({name: done - (counts["ready"] - count) for name, count in counts.items()})


def _is_last(trainer: Trainer) -> bool:
    """Whether no training batch follows; after this hook the loop looks at the same conditions."""
    steps_done = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    epochs_done = (
        trainer.is_last_batch
        and trainer.max_epochs not in (None, -1)
        and trainer.current_epoch + 1 >= trainer.max_epochs
    )
    return steps_done or epochs_done or trainer.should_stop


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
        )
