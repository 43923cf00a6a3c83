"""A run's optimiser steps: none is cut in two, by whoever stops the run or saves it, and a run takes at least one.

Lightning 2.6.6 looks after each micro-batch whether to stop, and lets callbacks save there. A run resumed from such a
checkpoint would take a step of the micro-batches that were left.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from ggm_lightning.rundir.csv_log import CSVLog


class WholeSteps(Checkpoint):
    """Runs and checkpoints end where an optimiser step ends. A checkpoint callback, for Lightning calls those last.

    Whoever sets `trainer.should_stop` in the middle of a step has his way at its end. Whoever saves there (on an error,
    or by the clock) gets the state of the step before: weights and optimiser are still as it left them, and what the
    checkpoint says of the progress is put right.
    """

    def __init__(self) -> None:
        self._step = 0
        self._micro_batches = 0  # of all whole steps so far
        self._accumulation = 1
        self._stop_later = False
        self._validated = -1  # the step after which the last validation was complete

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self._micro_batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        self._accumulation = trainer.accumulate_grad_batches
        self._stop_later = False
        self._validated = -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.accumulate_grad_batches != self._accumulation:
            raise ValueError(
                f"trainer.accumulate_grad_batches was changed from {self._accumulation} to "
                f"{trainer.accumulate_grad_batches} while training; a step has data.global_batch_size rows, divided "
                "by data.max_batch_per_device: change these, before training"
            )
        completes_step = not trainer.fit_loop._should_accumulate()
        if self._stop_later and completes_step:
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self._micro_batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
            self._stop_later = False
        elif trainer.should_stop:
            self._stop_later, trainer.should_stop = True, False

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validated = trainer.global_step

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING or "loops" not in checkpoint:
            return
        fit_loop = checkpoint["loops"]["fit_loop"]
        progress = fit_loop["epoch_loop.batch_progress"]
        epoch_has_ended = _reopen_epoch(fit_loop["epoch_progress"])
        begun = progress["total"]["ready"] - self._micro_batches
        if trainer.global_step == self._step and begun > 0:
            progress["is_last_batch"] = False
            for counts in (progress["total"], progress["current"]):
                _all_at(counts, counts["ready"] - begun)
            return
        validates = _validates_here(trainer)
        validation_follows = validates and self._validated != trainer.global_step
        if progress["current"]["ready"] >= trainer.num_training_batches:
            progress["is_last_batch"] = True
            if validation_follows:
                _last_batch_is(progress, completed=True)  # or the next epoch would have begun when it comes
            elif epoch_has_ended or not validates:
                _last_batch_is(progress, completed=False)  # or this epoch would be given one more (Lightning 2.6.6)
        if validation_follows:
            # a run resumed from here would skip it (Lightning 2.6.6), but one that was interrupted in its first batch
            # is begun anew: so the loop's state says that it was
            begun_anew = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            validation = {"total": begun_anew, "current": dict(begun_anew), "is_last_batch": False}
            fit_loop["epoch_loop.val_loop.batch_progress"] = validation

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lightning tells from the number of micro-batches when a step is full. Where a step has more or fewer of them
        than before (other devices), the first step would be cut short, and all rows after it belong to other steps."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        fit_loop = checkpoint["loops"]["fit_loop"]
        progress = fit_loop["epoch_loop.batch_progress"]
        steps = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
        if steps["total"]["completed"] != checkpoint["global_step"]:
            return  # a model that calls its optimisers itself: nothing is accumulated
        in_mid_step = checkpoint["global_step"] > 0 and progress["total"]["ready"] % checkpoint["global_step"] > 0
        for part in ("total", "current"):
            counts, done = progress[part], steps[part]["completed"] * trainer.accumulate_grad_batches
            if in_mid_step:  # by an earlier version of this package
                _all_at(counts, done)
            else:
                behind = {name: counts["ready"] - count for name, count in counts.items()}
                counts.update({name: done - lag for name, lag in behind.items()})


def _reopen_epoch(progress: dict[str, dict[str, int]]) -> bool:
    """The epoch's counts as they are within it, also where it has ended; whether it had."""
    if progress["current"]["processed"] < progress["current"]["started"] or progress["current"]["started"] == 0:
        return False
    for counts in progress.values():
        started = counts["started"]
        counts.update(ready=started, processed=started - 1, completed=started - 1)
    return True


def _validates_here(trainer: Trainer) -> bool:
    """Whether a validation is due after the step that was just taken. (One that comes because the run is stopped would
    not have come otherwise, and a resumed run does without.)"""
    fetcher = trainer.fit_loop._data_fetcher
    if fetcher is None:
        return False
    should_stop, trainer.should_stop = trainer.should_stop, False
    due = trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
    trainer.should_stop = should_stop
    return due


def _last_batch_is(progress: dict[str, Any], completed: bool) -> None:
    """By this count Lightning tells where in the last batch of an epoch a checkpoint was saved."""
    for counts in (progress["total"], progress["current"]):
        counts["completed"] = counts["ready"] if completed else counts["ready"] - 1


def _all_at(counts: dict[str, int], done: int) -> None:
    for name in counts:
        counts[name] = done


class TakesSteps(Callback):
    """Ends a run in one line that takes no step, or watches what nobody logs. To stand before all other callbacks."""

    def __init__(self) -> None:
        self._first = 0
        self._last = 0
        self._empty_epochs = 0
        self._weights: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._first = trainer.global_step

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._weights is not None:
            pl_module.load_state_dict(self._weights, strict=pl_module.strict_loading)
        self._weights = None
        if trainer.enable_autolog_hparams:
            return
        for logger in trainer.loggers:  # Lightning does this itself, but not where hyperparameters are left out
            if isinstance(logger, CSVLog):
                logger.log_graph(pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if trainer.precision == "64-true":
            # Lightning 2.6.6 has just loaded them into a module that becomes one of float64 only after this
            self._weights = checkpoint.get("current_model_state", checkpoint["state_dict"])
        self._first = checkpoint["global_step"]
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        for name, limit, done in (
            ("max_steps", trainer.max_steps, self._first),
            ("max_epochs", trainer.max_epochs, epochs),
        ):
            if limit not in (None, -1) and done >= limit:
                raise ValueError(
                    f"{trainer.default_root_dir}: this run is finished, at step {self._first} (trainer.{name} is "
                    f"{limit}); to go on, raise trainer.{name}"
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = trainer.global_step
        self._empty_epochs = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # by which Lightning tells when to log; one too many where a run was resumed before a validation (2.6.6)
        if pl_module.automatic_optimization:
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # one may be empty: a resumed run's first, where the checkpoint was saved after the last step of an epoch
        self._empty_epochs = self._empty_epochs + 1 if trainer.global_step == self._last else 0
        self._last = trainer.global_step
        if self._empty_epochs > 1:
            raise ValueError(
                f"epoch {trainer.current_epoch} passed without an optimiser step (after step {self._last}), and so "
                "would all others; a callback of yours leaves the epochs out, or changes how batches are accumulated"
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """In the check before training, or after the first validation: all its metrics have been logged once."""
        # while checking, they are in no public place
        seen = trainer._logger_connector.metrics["callback"] if trainer.sanity_checking else trainer.callback_metrics
        logged = sorted(name for name in seen if name.startswith("val/"))
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            watched = callback.monitor if isinstance(callback, EarlyStopping | ModelCheckpoint) else None
            lenient = isinstance(callback, EarlyStopping) and not callback.strict
            if watched is not None and watched.startswith("val/") and watched not in logged and not lenient:
                raise ValueError(
                    f"{type(callback).__name__}: monitor is '{watched}', which no validation logs; choose one of "
                    f"{', '.join(logged)}"
                )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self._first:
            raise ValueError(
                f"{trainer.default_root_dir}: no optimiser step was taken (at step {self._first}); raise "
                "trainer.max_steps, trainer.max_epochs or trainer.max_time, or look which callback stops the run"
            )
