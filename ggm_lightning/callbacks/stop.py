"""SIGTERM, SIGUSR1 and Ctrl-C: finish the optimiser step, save last.ckpt, leave; SLURM jobs are put back in the queue.

Lightning 2.6.6 saves on SLURM's signal in the middle of a batch (4 of 6 resumed runs then differed from the undisturbed
one), and on Ctrl-C not at all. Here a signal only sets a flag, which is looked at where a step has ended; several ranks
tell each other of it, and leave after the step that follows (callbacks/agreement.py).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ggm_lightning.callbacks.agreement import Agreement
from ggm_lightning.callbacks.keep import KeepLast
from ggm_lightning.rundir.endings import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignals(Checkpoint):
    """A checkpoint callback, since Lightning calls those after all others: the step is then complete.

    Args:
        keep_last: writes the checkpoint.
    """

    def __init__(self, keep_last: KeepLast) -> None:
        self.keep_last = keep_last
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self._step = 0
        self._leaving = False
        self._agreement: Agreement | None = None  # once training has begun

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install()  # before the first loader workers are forked, to whom Ctrl-C is sent, too

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install()
        self._step = trainer.global_step
        self._agreement = Agreement(trainer)
        loop = trainer.fit_loop.epoch_loop
        if trainer.world_size > 1 and hasattr(loop, "_broadcast_sigterm_tensor"):
            # before each batch Lightning (2.6.6) asks rank 0 for its own flag, which these handlers leave alone, and
            # waits for the device
            loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def _install(self) -> None:
        if not self._before:
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked process that has not set its own handlers yet (data/base.py)
        if number == signal.SIGINT and self.received == signal.SIGINT:
            self._die("stopped at once by the second Ctrl-C; last.ckpt is the one before")
        self.received = self.received or number
        if number == signal.SIGINT:
            _say("Ctrl-C: ending after this step; press it again to stop at once")

    @staticmethod
    def _die(message: str) -> None:
        _say(message)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # accumulating
        self._step = trainer.global_step
        # any rank may have been told; they must leave after the same step, which of several ranks is the next one
        assert self._agreement is not None
        if self._agreement.ask(self.received is not None):
            self.keep_last.save_now(trainer)
            self._leaving = True

    # the step's own metrics are logged after the hook above: leave at the next one, whichever it is

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if self._leaving:
            self._leave(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._agreement is not None and not self._leaving and self._agreement.settle():
            self.keep_last.save_now(trainer)  # not only after a whole validation
            self._leaving = True
        if self._leaving:
            self._leave(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """A validation is given up; the checkpoint says that it is to be done again. Several ranks finish theirs: their
        numbers of batches differ, so that they could not agree where to stop."""
        if self.received is not None and trainer.world_size == 1 and not trainer.sanity_checking:
            self.keep_last.save_now(trainer)
            self._leave(trainer)

    def _leave(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            raise Stopped("", 0)
        number = signal.Signals(self.received or signal.SIGTERM)
        path = f"{self.keep_last.dirpath}/last.ckpt"
        said = f"stopped by {_NAMES.get(number, number.name)} after step {trainer.global_step}; {path} is saved"
        requeued = number == signal.SIGUSR1 and _requeue()
        said += "; the job is back in the queue" if requeued else "; continue with --ckpt_path last"
        raise Stopped(said, 0 if requeued else 128 + number)


_NAMES = {signal.SIGINT: "Ctrl-C"}


def _say(message: str) -> None:
    """From a signal handler: print() could be interrupted in itself. In a terminal the message takes the place of the
    bar, which is drawn again below."""
    stream = sys.__stderr__.fileno() if sys.__stderr__ else 2
    start = "\r\x1b[K" if os.isatty(stream) else "\n"
    os.write(stream, f"{start}{message}\n".encode())


def _requeue() -> bool:
    """`scontrol requeue` of this SLURM job (of this task of a job array); False outside SLURM and when it fails."""
    job, array = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_ARRAY_JOB_ID")
    if job is None:
        return False
    name = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else job
    if not re.fullmatch(r"[0-9_]+", name):
        rank_zero_warn(f"SLURM job number {name!r} looks wrong; the job is not requeued")
        return False
    try:
        subprocess.run(["scontrol", "requeue", name], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else None
        reason = (said or str(error).encode()).decode(errors="replace").strip()
        rank_zero_warn(f"scontrol requeue {name} failed ({reason}); requeue it by hand")
        return False
    return True
