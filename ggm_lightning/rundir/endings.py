"""How a training ends before its last step, where no code has failed."""

from __future__ import annotations


class Stopped(Exception):
    """Training was stopped by a signal, and everything up to here is saved.

    Attributes:
        exit_code: 128 + signal number as shells have it; 0 for a requeued job and for the ranks that only follow.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class NonFinite(ValueError):
    """Training cannot go on: loss, gradients or weights are not finite."""
