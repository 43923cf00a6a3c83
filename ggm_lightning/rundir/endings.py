"""How a training ends before its last step, where no code has failed."""

from __future__ import annotations

import threading

_training = threading.Event()


def training_begins() -> None:
    """From here on signals are looked at where a step has ended (callbacks/stop.py), and no longer by cli/early.py."""
    _training.set()


def training_has_begun() -> bool:
    return _training.is_set()


class Stopped(Exception):
    """Training was stopped by a signal, and everything up to here is saved.

    Attributes:
        exit_code: 128 + signal number as shells have it; 0 for the ranks that only follow.
        goes_back: the job is to be put back into SLURM's queue, once the message has been said: that ends the process.
            It then exits with 0.
        is_preempted: SLURM does so itself where the job cannot, if the process waits for it.
    """

    def __init__(self, message: str, exit_code: int, goes_back: bool = False, is_preempted: bool = False) -> None:
        super().__init__(message)
        self.exit_code, self.goes_back, self.is_preempted = exit_code, goes_back, is_preempted


class NonFinite(ValueError):
    """Training cannot go on: loss, gradients or weights are not finite."""
