"""Optimiser steps where Lightning counts batches.

Lightning 2.6.6 counts micro-batches in `val_check_interval`, `limit_train_batches` and `overfit_batches`, and a rank's
own batches in `limit_val_batches`. Here the user's numbers are optimiser steps, and evaluation batches of all ranks
together: neither the micro-batch nor the number of devices changes what a run does. The conversion happens where
accumulation becomes known, when the data is set up; afterwards the trainer gets its own numbers back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

_CONVERTED = (
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "limit_predict_batches",
    "overfit_batches",
    "val_check_interval",
)


@dataclass(frozen=True)
class Epoch:
    """One of Lightning's passes over the training data.

    Attributes:
        steps: optimiser steps in it.
        repeats: whether each epoch has the rows of the first one again, unshuffled (`overfit_batches`).
    """

    steps: int
    repeats: bool = False


class Counts:
    """What a trainer counted before the conversion, to be given back to it. (Its accumulation is the data's.)"""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.before: dict[str, Any] = {name: getattr(trainer, name) for name in _CONVERTED}

    def give_back(self) -> None:
        for name, value in self.before.items():
            setattr(self.trainer, name, value)


def share(name: str, limit: int | float, whole: int, unit: str) -> int:
    """How many of `whole` steps or batches a trainer's limit means: a number of them, or a fraction.

    Raises:
        ValueError: a fraction of less than one.
    """
    if isinstance(limit, int):
        return min(limit, whole)
    found = int(whole * limit)
    if limit > 0 and whole > 0 and found == 0:
        raise ValueError(
            f"trainer.{name} is {limit}, less than one {unit} of the {whole} there are; give at least {1 / whole:.3g}, "
            "or a whole number"
        )
    return found


def convert_training(trainer: Trainer, accumulation: int, steps: int) -> Epoch:
    """Makes `trainer` count micro-batches where its user wrote optimiser steps; fractions are of an epoch's steps.

    Args:
        trainer: as its user made it.
        accumulation: micro-batches per step and device.
        steps: of one pass over the training data.

    Raises:
        ValueError: validations that would never come, or a fraction of less than one step.
    """
    overfit: int | float = trainer.overfit_batches  # type: ignore[attr-defined]
    if overfit:
        epoch = Epoch(share("overfit_batches", overfit, steps, "step"), repeats=True)
        # or Lightning would put an order of its own in the place of data/order.py
        trainer.overfit_batches = 0  # type: ignore[attr-defined]
    else:
        epoch = Epoch(share("limit_train_batches", trainer.limit_train_batches, steps, "step"))
    if epoch.steps < steps:
        trainer.limit_train_batches = epoch.steps * accumulation
    else:
        trainer.limit_train_batches = 1.0
    trainer.accumulate_grad_batches = accumulation
    _convert_validation(trainer, accumulation, epoch.steps)
    return epoch


def _convert_validation(trainer: Trainer, accumulation: int, steps: int) -> None:
    interval = trainer.val_check_interval
    at_epoch_ends = isinstance(interval, float) and interval == 1.0
    _settle_callbacks(trainer, at_epoch_ends)
    if at_epoch_ends or steps == 0:
        return
    if isinstance(interval, float):
        interval = max(1, int(steps * interval))
    elif interval > steps and trainer.check_val_every_n_epoch is not None and trainer.limit_val_batches > 0:
        raise ValueError(
            f"trainer.val_check_interval is {interval} steps, but an epoch has {steps}; set "
            "trainer.check_val_every_n_epoch: null to count steps across epochs, or trainer.limit_val_batches: 0 to "
            "validate never"
        )
    trainer.val_check_interval = interval * accumulation


def _settle_callbacks(trainer: Trainer, at_epoch_ends: bool) -> None:
    """Lightning's callbacks take val_check_interval 1, after each batch, for 1.0, at the end of each epoch."""
    if at_epoch_ends or trainer.limit_val_batches == 0:
        return
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and callback._check_on_train_epoch_end is None:
            callback._check_on_train_epoch_end = False
        if isinstance(callback, ModelCheckpoint) and callback._save_on_train_epoch_end is None:
            callback._save_on_train_epoch_end = False


def convert_evaluation(trainer: Trainer, name: str, rows: int, batch_size: int) -> None:
    """A fraction in `trainer`'s limit of that name, such as limit_val_batches, as a number of batches of all ranks."""
    limit = getattr(trainer, name)
    if isinstance(limit, float) and limit != 1.0:
        setattr(trainer, name, share(name, limit, -(-rows // batch_size), "batch"))


def evaluated_rows(trainer: Trainer | None, name: str, rows: int, batch_size: int) -> int:
    """How many of the split's rows, its first ones, are evaluated, by all ranks together."""
    limit = 1.0 if trainer is None else getattr(trainer, name)
    return min(rows, limit * batch_size) if isinstance(limit, int) else rows
