"""How a fit has ended: (state, why) of its story."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

from ggm_lightning.rundir.endings import NonFinite, Stopped

BY_TIME = "by its time limit (trainer.max_time)"


def of_exception(exception: BaseException) -> tuple[str, str]:
    """Of a fit that an exception has ended."""
    if isinstance(exception, KeyboardInterrupt):
        return "stopped", "by Ctrl-C"
    if isinstance(exception, (Stopped, NonFinite)):
        return "stopped", str(exception).removeprefix("stopped ")
    return "failed", f"{type(exception).__name__}: {exception}"[:1000]


def of_fit(trainer: Trainer) -> tuple[str, str]:
    """Of a fit that ended without an exception."""
    if trainer.max_steps < 0 or trainer.global_step >= trainer.max_steps:
        return "finished", ""
    left = [timer.time_remaining() for timer in timers(trainer)]
    if any(seconds is not None and seconds <= 0 for seconds in left):
        return "stopped", BY_TIME
    if trainer.should_stop:
        return "stopped", "by a callback, such as EarlyStopping"
    return "finished", ""


def timers(trainer: Trainer) -> list[Timer]:
    """What trainer.max_time has made, or the user's own."""
    return [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
