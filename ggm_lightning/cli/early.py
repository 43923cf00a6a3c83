"""SLURM's signals before the first step, during the imports, the preparation and the loading, and after the last one.

Python runs a handler only between two of its own instructions, so that a process that waits in C (for other ranks, for
a file) would be deaf. The number of a signal is therefore written into a pipe by the interpreter itself, and a thread
acts. Within training callbacks/stop.py does (rundir/endings.py).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ggm_lightning.rundir import endings, lives, requeue
from ggm_lightning.rundir import hub as hubs

_WANTS_BACK = 75  # exit code for experiments/slurm/train.sbatch, which has scontrol where a container has none
_PATIENCE = 120.0  # seconds for SLURM to end a process that was put back, and for rank 0 to end the others


class EarlySignals:
    """Acts on SIGUSR1 and SIGTERM until training takes over, and once it is over.

    Args:
        folder: of the run.
        job: SLURM's number.
        rank: rank 0 acts for all.
        note_start: makes this start one of those that are counted, if it is none yet.
        before_leaving: what has to be released.
    """

    def __init__(
        self, folder: Path, job: str, rank: int, note_start: Callable[[], None], before_leaving: Callable[[], None]
    ) -> None:
        self.folder, self.job, self.rank = folder, job, rank
        self.note_start, self.before_leaving = note_start, before_leaving
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)

    def install(self) -> None:
        endings.turn = endings.Turn()
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, _hear)
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_as_before)  # a pool of workers is ended by SIGTERM, which is theirs alone
        threading.Thread(target=self._watch, name="early signals", daemon=True).start()

    def _watch(self) -> None:
        while True:
            number = os.read(self._reading, 1)[0]
            if number in (signal.SIGUSR1, signal.SIGTERM):
                self._take(signal.Signals(number))

    def _take(self, number: signal.Signals) -> None:
        if self.rank != 0:
            self._follow(number)
        elif endings.turn.ends_here():
            self._lead(number)

    def _follow(self, number: signal.Signals) -> None:
        """Rank 0 says what is to be said, and its end is noticed. If training begins instead, it takes the signal."""
        if number == signal.SIGUSR1 or endings.turn.training_begins_within(_PATIENCE):
            return
        if endings.turn.ends_here():
            self._end(128 + number)

    def _lead(self, number: signal.Signals) -> None:
        try:
            self._act(number)
        except Exception:  # in a thread that nobody looks at: training would wait for it without end
            traceback.print_exc()
            self._end(128 + number)

    def _act(self, number: signal.Signals) -> None:
        """Of rank 0, for all."""
        if endings.turn.is_over:
            self._say(f"stopped by {number.name} after training, which is saved")
            self._end(128 + number)
        wants_back = number == signal.SIGUSR1 or requeue.is_preempted()
        said = f"stopped by {number.name} before the first step; nothing was to be saved"
        if not wants_back:
            self._say(said)
            self._end(128 + number)
        self.note_start()
        count = lives.without_step(self.folder, self.job)
        if not lives.may_start_again(self.folder, self.job):
            self._say(
                f"{said}; the job is not requeued, it has started {count} times without a step: prepare the data "
                "beforehand (`lightning prepare`), or give it more time"
            )
            self._end(128 + number)
        self._say(f"{said}; the job goes back into the queue (start {count} without a step, {lives.MOST} are repeated)")
        reason = requeue.requeue()
        if reason is None:
            time.sleep(_PATIENCE)
            self._end(0)
        self._say(reason)
        self._end(_WANTS_BACK)

    def _say(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    def _end(self, code: int) -> NoReturn:
        self.before_leaving()
        hub = hubs.current()
        if hub is not None:
            hub.end_all()
        os._exit(code)


def _hear(number: int, frame: FrameType | None) -> None:
    """The signal does not kill: the thread acts, or training, if it begins before the thread has come to it."""
    endings.turn.hear(number)


def _as_before() -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        if signal.getsignal(number) is _hear:
            signal.signal(number, signal.SIG_DFL)
