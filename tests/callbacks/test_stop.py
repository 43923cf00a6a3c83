"""A signal ends a run behind the step in which it came, with last.ckpt of that step. (Whole runs: tests/faults.)"""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest
from lightning.pytorch import Callback
from torch import distributed, multiprocessing

from ggm_lightning.callbacks.keep import KeepLast
from ggm_lightning.callbacks.stop import StopSignals
from ggm_lightning.rundir import endings, requeue
from ggm_lightning.rundir.checkpoint import AtomicCheckpointIO, read
from ggm_lightning.rundir.endings import Stopped


class Sends(Callback):
    """A signal in the middle of one micro-batch."""

    def __init__(self, number: int, micro_batch: int) -> None:
        self.number, self.micro_batch, self.seen = number, micro_batch, []

    def on_before_backward(self, trainer, pl_module, loss):
        self.seen.append(trainer.global_step)
        if len(self.seen) == self.micro_batch:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def stopped(tiny, tiny_data, fit, tmp_path):
    """stopped(signal, micro-batch, **trainer arguments) -> (what was raised, last.ckpt, micro-batches that ran)."""

    def run(number, micro_batch, **arguments):
        keep, sends = KeepLast(str(tmp_path), every_n_steps=1000), Sends(number, micro_batch)
        options = {"enable_checkpointing": True, "plugins": [AtomicCheckpointIO()], "max_epochs": 1}
        options |= {"limit_val_batches": 0, **arguments}
        before = signal.getsignal(number)
        with pytest.raises(Stopped) as raised:
            fit(tiny(), sends, keep, StopSignals(keep), data=tiny_data(12), **options)
        assert signal.getsignal(number) == before  # handlers are put back
        return raised.value, read(tmp_path / "last.ckpt"), len(sends.seen)

    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_step_is_finished_and_saved_and_the_code_is_the_shells(stopped, tmp_path, monkeypatch, number):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    error, checkpoint, batches = stopped(number, 3)
    assert (checkpoint["global_step"], batches) == (3, 3)
    assert error.exit_code == 128 + number
    assert f"after step 3; {tmp_path}/last.ckpt is saved; continue with --ckpt_path last" in str(error)


@pytest.mark.parametrize("micro_batch", [4, 5, 6])
def test_all_micro_batches_of_the_step_are_made(stopped, micro_batch):
    _, checkpoint, batches = stopped(signal.SIGTERM, micro_batch, accumulate_grad_batches=3)
    assert (checkpoint["global_step"], batches) == (2, 6)


def test_which_signal_puts_a_job_back(stopped, monkeypatch):
    """USR1 asks for it, SIGTERM only where SLURM gives the nodes to another job: scancel must not requeue."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr(requeue, "hindrance", lambda: None)
    monkeypatch.setattr(requeue, "is_preempted", lambda: False)
    error, checkpoint, _ = stopped(signal.SIGUSR1, 2)
    assert (error.goes_back, checkpoint["global_step"]) == (True, 2)
    assert str(error).endswith("last.ckpt is saved; the job goes back into the queue")
    error = stopped(signal.SIGTERM, 2)[0]
    assert (error.goes_back, error.exit_code) == (False, 128 + signal.SIGTERM)
    monkeypatch.setattr(requeue, "is_preempted", lambda: True)
    error = stopped(signal.SIGTERM, 2)[0]
    assert (error.goes_back, error.is_preempted) == (True, True)
    assert "the job is preempted and goes back into the queue" in str(error)
    assert not stopped(signal.SIGINT, 2)[0].goes_back


def test_without_scontrol_a_line_says_what_is_to_be_done(stopped, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PATH", "/nowhere")
    error = stopped(signal.SIGUSR1, 2)[0]
    assert (error.goes_back, error.exit_code) == (False, 128 + signal.SIGUSR1)
    assert "last.ckpt is saved; scontrol is not found here (a container?)" in str(error)


class SendsAt(Callback):
    """A signal in one hook."""

    def __init__(self, number: int, hook: str) -> None:
        setattr(self, hook, lambda trainer, pl_module: os.kill(os.getpid(), number))


@pytest.fixture
def early(monkeypatch):
    """What cli/early.py does with USR1 and SIGTERM under SLURM, but for its thread; the numbers that it has heard."""
    heard, turn = [], endings.Turn()
    monkeypatch.setattr(endings, "turn", turn)

    def hears(number, frame):
        heard.append(number)
        turn.hear(number)

    before = {number: signal.signal(number, hears) for number in (signal.SIGUSR1, signal.SIGTERM)}
    yield heard
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_just_before_training_is_obeyed_after_its_first_step(early, tiny, tiny_data, fit, tmp_path, number):
    """By training alone, and once: Lightning has noted SIGTERM, too, and would leave without a line."""
    keep = KeepLast(str(tmp_path), every_n_steps=1000)
    options = {"enable_checkpointing": True, "plugins": [AtomicCheckpointIO()], "limit_val_batches": 0}
    with pytest.raises(Stopped, match=f"stopped by {number.name} after step 1;") as raised:
        fit(tiny(), SendsAt(number, "on_train_start"), keep, StopSignals(keep), data=tiny_data(12), **options)
    assert raised.value.exit_code == 128 + number
    assert early == [number]
    assert not endings.turn.ends_here()  # nor by the thread, should it come to it now


@pytest.mark.parametrize("hook", ["on_fit_end", "setup"])
def test_a_signal_after_training_is_left_to_what_listens_then(early, tiny, fit, tmp_path, hook) -> None:
    """Heard while Report writes its page, and so sent once more. (`setup`: no signal, a control.)"""
    keep = KeepLast(str(tmp_path), every_n_steps=1000)
    before = signal.getsignal(signal.SIGTERM)
    sends = [SendsAt(signal.SIGTERM, hook)] if hook == "on_fit_end" else []
    options = {"enable_checkpointing": True, "plugins": [AtomicCheckpointIO()], "max_epochs": 1}
    fit(tiny(), *sends, keep, StopSignals(keep), **options)
    assert early == [signal.SIGTERM] * 2 * len(sends)
    assert endings.turn.is_over
    assert endings.turn.ends_here()
    assert signal.getsignal(signal.SIGTERM) is before  # and not what Lightning has set within training


def steps_of(rank: int, store: str, signals: dict[int, int], out: list[object]) -> None:
    """Five steps of one of two ranks, which `signals` reach in the second one; how it has ended."""
    os.environ["SLURM_JOB_ID"] = "17"
    requeue.hindrance, requeue.is_preempted = lambda: None, lambda: False
    distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    keep = SimpleNamespace(dirpath="runs/x", save_now=lambda trainer: None)
    loops = SimpleNamespace(epoch_loop=SimpleNamespace())
    trainer = SimpleNamespace(world_size=2, global_step=0, is_global_zero=rank == 0, fit_loop=loops)
    trainer.received_sigterm = False
    stop = StopSignals(keep)
    stop.on_train_start(trainer, None)
    try:
        for step in range(5):
            stop.on_train_batch_start(trainer)
            trainer.global_step += 1
            if step == 1 and rank in signals:
                os.kill(os.getpid(), signals[rank])
            stop.on_train_batch_end(trainer, None, None, None, step)
    except Stopped as stopped:
        out[rank] = (trainer.global_step, str(stopped), stopped.exit_code, stopped.goes_back)
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("signals", "name", "code"),
    [
        ({1: signal.SIGUSR1}, "SIGUSR1", 128 + signal.SIGUSR1),
        ({0: signal.SIGTERM, 1: signal.SIGUSR1}, "SIGUSR1", 128 + signal.SIGUSR1),
        ({0: signal.SIGINT, 1: signal.SIGTERM}, "SIGTERM", 128 + signal.SIGTERM),
    ],
    ids=["one rank alone", "the job comes back", "the scheduler's"],
)
def test_all_ranks_obey_the_signal_that_one_has_received(tmp_path, signals, name, code) -> None:
    with multiprocessing.get_context("fork").Manager() as manager:
        out = manager.list([None, None])
        context = multiprocessing.start_processes(
            steps_of, (str(tmp_path / "store"), signals, out), nprocs=2, join=False, start_method="fork"
        )
        while not context.join():
            pass
        (step, said, exit_code, goes_back), follows = out
    assert (step, exit_code, goes_back) == (3, code, name == "SIGUSR1")
    assert f"stopped by {name} after step 3" in said
    assert follows == (3, "", 0, False)
