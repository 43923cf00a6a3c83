"""How a training ends before its last step, where no code has failed."""

from __future__ import annotations

import threading
import time


class Turn:
    """Whose turn it is to obey a signal: that of cli/early.py before training and after it, that of callbacks/stop.py
    in between. At the change none is lost and none is obeyed twice: what a handler hears is kept until one of the two
    takes it.

    Attributes:
        is_over: training has ended, and not by a signal.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._training = threading.Event()
        self._is_ending = False  # by cli/early.py
        self._heard: list[int] = []
        self._change = threading.Lock()  # never taken in a handler, which may interrupt whoever holds it

    def hear(self, number: int) -> None:
        """For a handler of cli/early.py."""
        self._heard.append(number)

    def training_begins(self) -> int | None:
        """The signal that was heard and not obeyed before, to be obeyed now; training has set its own handlers already.

        Where cli/early.py is ending this process, it does not return: no step may follow then.
        """
        with self._change:
            if not self._is_ending:
                self._training.set()
                self.is_over = False
        while self._is_ending:
            time.sleep(0.1)
        return self._taken()

    def training_ends(self) -> int | None:
        """The signal that was heard when training no longer listened; its own handlers are gone already."""
        with self._change:
            self._training.clear()
            self.is_over = True
        return self._taken()

    def ends_here(self) -> bool:
        """For cli/early.py: whether it is to end the process. Training does not begin any more then."""
        with self._change:
            self._is_ending = not self._training.is_set()
            return self._is_ending

    def is_settled(self) -> bool:
        """Whether training has begun, or a signal ends the process before: false of a command that is refused."""
        return self._is_ending or self.is_over or self._training.is_set()

    def training_begins_within(self, seconds: float) -> bool:
        return self._training.wait(seconds)

    def _taken(self) -> int | None:
        heard, self._heard = self._heard, []
        return heard[0] if heard else None


turn = Turn()


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
