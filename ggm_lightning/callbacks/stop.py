"""SIGTERM, SIGUSR1 and Ctrl-C: finish the optimiser step, save last.ckpt, leave. On SIGUSR1 a SLURM job goes back into
the queue, and on the SIGTERM of a preemption, not on that of scancel.

Lightning 2.6.6 saves on SLURM's signal in the middle of a batch (4 of 6 resumed runs then differed from the undisturbed
one), and on Ctrl-C not at all. Here a signal only sets a flag, which is looked at where a step has ended; several ranks
tell each other of it, and leave after the step that follows (callbacks/agreement.py).
"""

from __future__ import annotations

import math
import os
import signal
import sys
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from ggm_lightning.callbacks.agreement import Agreement
from ggm_lightning.callbacks.keep import KeepLast
from ggm_lightning.rundir import endings, requeue
from ggm_lightning.rundir import hub as hubs
from ggm_lightning.rundir.endings import NonFinite, Stopped

# where ranks have received different ones, all obey the last of these: a job that SLURM wants to go on comes back
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopSignals(Checkpoint):
    """A checkpoint callback, since Lightning calls those after all others: the step is then complete.

    Args:
        keep_last: writes the checkpoint.
    """

    def __init__(self, keep_last: KeepLast) -> None:
        self.keep_last = keep_last
        self.received: signal.Signals | None = None
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self._step = 0
        self._leaving: signal.Signals | None = None  # for which all ranks leave
        self._agreement: Agreement | None = None  # once training has begun
        self._batches_left = self._questions_left = 0  # of a validation
        self._first = 0
        self._is_whole = False  # weights, moments and averages are those of one step

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_over(trainer)  # before the first loader workers are forked, to whom Ctrl-C is sent, too

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_over(trainer)
        self._first = self._step = trainer.global_step
        self._is_whole = True
        self._agreement = Agreement(trainer)
        loop = trainer.fit_loop.epoch_loop
        if trainer.world_size > 1 and hasattr(loop, "_broadcast_sigterm_tensor"):
            # before each batch Lightning (2.6.6) asks rank 0 for its own flag, which these handlers leave alone, and
            # waits for the device
            loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def _take_over(self, trainer: Trainer) -> None:
        self._install()
        if trainer.received_sigterm:
            # by the handler that Lightning (2.6.6) has set moments ago: it would leave without a line, with exit code 0
            trainer._signal_connector.received_sigterm = False
            self.received = self.received or signal.SIGTERM

    def _install(self) -> None:
        if not self._before:
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        heard = endings.turn.training_begins()  # last: what comes from here on is noted
        if heard is not None:
            self.received = self.received or signal.Signals(heard)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._note:  # else the trainer has put back those of before its own
                signal.signal(number, handler)
        self._before = {}
        heard = endings.turn.training_ends()
        if heard is not None:
            os.kill(os.getpid(), heard)  # once more, for cli/early.py

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked process that has not set its own handlers yet (data/base.py)
        if number == signal.SIGINT and self.received == signal.SIGINT:
            self._die("stopped at once by the second Ctrl-C; last.ckpt is the one before")
        self.received = self.received or signal.Signals(number)
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
        self._is_whole = True
        # any rank may have been told; they must leave after the same step, which of several ranks is the next one
        assert self._agreement is not None
        self._save_if_agreed(trainer, self._agreement.ask(self._code()))

    # the step's own metrics are logged after the hook above: leave at the next one, whichever it is

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if self._leaving is not None:
            self._leave(trainer, self._leaving)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._agreement is None or trainer.sanity_checking:
            return
        if self._leaving is None:
            self._save_if_agreed(trainer, self._agreement.settle())  # not only after a whole validation
        if self._leaving is not None:
            self._leave(trainer, self._leaving)
        batches = trainer.num_val_batches
        own = sum(batches) if isinstance(batches, list) else batches
        if trainer.world_size == 1 or not math.isfinite(own):
            return
        # ranks have different numbers of batches, and all must ask equally often
        self._batches_left, self._questions_left = int(own), self._agreement.largest(int(own))
        if not self._batches_left:
            self._ask_in_validation(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """A validation is given up; the checkpoint says that it is to be done again."""
        if trainer.sanity_checking:
            return
        if trainer.world_size > 1:
            self._batches_left -= 1
            self._ask_in_validation(trainer)
        elif self.received is not None:
            self.keep_last.save_now(trainer)
            self._leave(trainer, self.received)

    def _ask_in_validation(self, trainer: Trainer) -> None:
        """Once after each batch; behind its last one a rank asks what the others will still ask."""
        while self._questions_left > self._batches_left and self._agreement is not None:
            self._questions_left -= 1
            self._save_if_agreed(trainer, self._agreement.ask(self._code()))
            if self._leaving is not None:
                self._leave(trainer, self._leaving)
            if self._batches_left > 0:
                return

    def _code(self) -> int:
        """What the ranks agree upon: 0 for no signal, else its place among _SIGNALS, counted from 1."""
        return 0 if self.received is None else 1 + _SIGNALS.index(self.received)

    def _save_if_agreed(self, trainer: Trainer, code: int) -> None:
        if code:
            self.keep_last.save_now(trainer)
            self._leaving = _SIGNALS[code - 1]

    def _leave(self, trainer: Trainer, number: signal.Signals) -> None:
        if not trainer.is_global_zero:
            raise Stopped("", 0)
        path = f"{self.keep_last.dirpath}/last.ckpt"
        said = f"stopped by {_NAMES.get(number, number.name)} after step {trainer.global_step}; {path} is saved"
        is_preempted = number == signal.SIGTERM and requeue.is_preempted()
        if requeue.job_name() is None or not (number == signal.SIGUSR1 or is_preempted):
            raise Stopped(f"{said}; continue with --ckpt_path last", 128 + number)
        hindrance = requeue.hindrance()
        if hindrance is not None:
            raise Stopped(f"{said}; {hindrance}", 128 + number)
        why = "the job is preempted and goes" if is_preempted else "the job goes"
        raise Stopped(f"{said}; {why} back into the queue", 128 + number, goes_back=True, is_preempted=is_preempted)

    # ------------------------------------------------------------------ another rank is gone

    def on_before_optimizer_step(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._is_whole = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The steps that were made are saved by rank 0, if no step was being made when the other rank left."""
        hub = hubs.current()
        if hub is None or hub.rank != 0 or isinstance(exception, Stopped | NonFinite) or not self._is_whole:
            return
        if trainer.global_step == self._first or not hub.is_over.wait(_NEWS) or hub.lost is None:
            return
        hub.is_saving = True
        try:
            self.keep_last.save_alone(trainer)
            print(f"{self.keep_last.dirpath}/last.ckpt of step {trainer.global_step} is saved", file=sys.stderr)
        except Exception as error:  # what ended the training is said, whatever becomes of this
            print(f"step {trainer.global_step} is not saved: {' '.join(str(error).split())}", file=sys.stderr)
        finally:
            hub.is_saving = False


_NEWS = 3.0  # seconds until it is known that a rank is gone
_NAMES = {signal.SIGINT: "Ctrl-C"}


def _say(message: str) -> None:
    """From a signal handler: print() could be interrupted in itself. In a terminal the message takes the place of the
    bar, which is drawn again below."""
    stream = sys.__stderr__.fileno() if sys.__stderr__ else 2
    start = "\r\x1b[K" if os.isatty(stream) else "\n"
    os.write(stream, f"{start}{message}\n".encode())
