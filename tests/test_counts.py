"""Counts are optimiser steps, whatever the micro-batch; no step is cut in two; last.ckpt is of the last step.

Each run is of tests/trainer_runs.py: epochs of 7 steps, two micro-batches of 4 rows each where nothing else is said.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from tests.trainer_runs import Run, fit, largest_difference

SAMPLES = '{"class_path": "ggm_lightning.callbacks.samples.Samples", "init_args": {"num_samples": 2, "num_steps": 4}}'
QUARTERS = "--data.init_args.max_batch_per_device=2"
WHOLE = "--data.init_args.max_batch_per_device=8"


def callback(name: str, **arguments: Any) -> str:
    path = name if "." in name else f"{__name__}.{name}"
    return "--trainer.callbacks+=" + json.dumps({"class_path": path, "init_args": arguments})


def stock(name: str, **arguments: Any) -> str:
    return callback(f"lightning.pytorch.callbacks.{name}", **arguments)


def ok(run: Run) -> Run:
    assert run.exit_code == 0, run.output[-2000:]
    return run


class StopsAt(Callback):
    """Asks for the end in the middle of a step, after its first micro-batch."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step - 1:
            trainer.should_stop = True


class FailsIn(Callback):
    """Raises in the second micro-batch of a step."""

    def __init__(self, step: int) -> None:
        self.step, self.seen = step, 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.seen += trainer.global_step == self.step - 1
        if self.seen == 2:
            raise ValueError("as it was meant to")


class AccumulatesMore(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.accumulate_grad_batches = 4


class LeavesEpochsOut(Callback):
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.on_train_batch_start = lambda batch, batch_idx: -1


# ------------------------------------------------------------------------------- the micro-batch changes rounding only


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The undisturbed run, four micro-batches a step."""
    return ok(fit(tmp_path_factory.mktemp("counts") / "one", QUARTERS))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return ok(fit(tmp_path_factory.mktemp("counts") / "whole", WHOLE, callback_of_samples()))


def callback_of_samples() -> str:
    return f"--trainer.callbacks+={SAMPLES}"


def test_the_micro_batch_changes_rounding_and_nothing_else(whole: Run, tmp_path: Path) -> None:
    """Before, four micro-batches a step gave four times the validations, and a best.ckpt of half a step."""
    quarters = ok(fit(tmp_path / "quarters", QUARTERS, callback_of_samples()))
    assert whole.validated == quarters.validated == [3, 6]
    assert [row["step"] for row in whole.rows] == [row["step"] for row in quarters.rows]
    assert whole.bounds() == pytest.approx(quarters.bounds(), rel=1e-5)
    assert whole.checkpoint("best.ckpt")["global_step"] == quarters.checkpoint("best.ckpt")["global_step"]
    assert largest_difference(whole, quarters) < 1e-6
    names = sorted(file.name for file in (whole.folder / "samples").iterdir())
    assert names == ["step-000003.txt", "step-000006.txt"]
    for name in names:
        assert (whole.folder / "samples" / name).read_text() == (quarters.folder / "samples" / name).read_text()


def test_the_best_checkpoint_is_of_a_whole_step_and_resumes_bit_for_bit(one: Run, tmp_path: Path) -> None:
    """Before, the step after best.ckpt had two micro-batches of four, with no word about it."""
    best = one.checkpoint("best.ckpt")
    progress = best["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
    assert progress["ready"] == 4 * best["global_step"]
    again = ok(fit(tmp_path / "again", QUARTERS, "--ckpt_path", str(one.folder / "best.ckpt")))
    assert again.validated == [step for step in one.validated if step > best["global_step"]]
    assert largest_difference(one, again) == 0
    other = ok(fit(tmp_path / "other", QUARTERS, "--seed_everything=1"))
    assert largest_difference(one, other) > 1e-3  # control


def test_a_checkpoint_of_half_a_step_as_earlier_versions_left_them(one: Run, tmp_path: Path) -> None:
    """It holds the weights of a whole step, and says that two of the next one's four micro-batches were seen."""
    checkpoint = one.checkpoint("best.ckpt")
    assert checkpoint["global_step"] == 6
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts.update({name: count + 2 for name, count in counts.items()})
    torch.save(checkpoint, tmp_path / "half.ckpt")
    again = ok(fit(tmp_path / "again", QUARTERS, "--ckpt_path", str(tmp_path / "half.ckpt")))
    assert largest_difference(one, again) == 0


def test_the_validation_of_every_second_epoch_is_done_by_the_run_that_goes_on(tmp_path: Path) -> None:
    """Of a run that was killed after its last save, before the validation: nothing of it is in metrics.csv. Before, the
    resumed run took the next epoch for the present one and did not validate."""
    options = ["--trainer.val_check_interval=1.0", "--trainer.check_val_every_n_epoch=2"]
    killed = ok(fit(tmp_path / "run", *options, "--trainer.max_steps=14"))
    (killed.folder / "metrics.csv").unlink()
    assert ok(fit(tmp_path / "run", *options, "--trainer.max_steps=15", "--ckpt_path", "last")).validated == [14]


@pytest.mark.slow
def test_a_run_resumed_by_epochs_is_the_undisturbed_one(tmp_path: Path) -> None:
    """Before, it began with the rows of step 1 again, with no word about it."""
    epochs = ["--trainer.max_epochs=2", "--trainer.max_steps=-1"]
    ok(fit(tmp_path / "run", *epochs, "--trainer.max_steps=4"))
    resumed, whole = ok(fit(tmp_path / "run", *epochs, "--ckpt_path", "last")), ok(fit(tmp_path / "whole", *epochs))
    assert resumed.steps == whole.steps == 14
    assert largest_difference(whole, resumed) == 0


# ------------------------------------------------------------------------------------ nothing is saved in mid-step


def test_a_checkpoint_saved_on_an_error_in_mid_step_is_of_the_step_before(one: Run, tmp_path: Path) -> None:
    saves = stock("OnExceptionCheckpoint", dirpath=str(tmp_path / "run"), filename="failed")
    failed = fit(tmp_path / "run", QUARTERS, callback("FailsIn", step=5), saves)
    assert failed.exit_code != 0
    checkpoint = failed.checkpoint("failed.ckpt")
    assert checkpoint["global_step"] == 4
    assert checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == 16
    resumed = ok(fit(tmp_path / "resumed", QUARTERS, "--ckpt_path", str(failed.folder / "failed.ckpt")))
    assert largest_difference(one, resumed) == 0
    assert resumed.validated == [6]
    assert resumed.steps_with("train/bpd") == [6, 8]  # every second step, as without the error


def test_a_checkpoint_saved_by_the_clock_in_mid_step(one: Run, tmp_path: Path) -> None:
    """At every micro-batch; and those saved before a step's validation do not lose it."""
    saves = stock("ModelCheckpoint", train_time_interval="0:00:00", save_top_k=-1, filename="{step}")
    run = ok(fit(tmp_path / "run", QUARTERS, saves, "--trainer.max_steps=4"))
    for file in (run.folder / "checkpoints").glob("*.ckpt"):
        checkpoint = torch.load(file, weights_only=True)
        total = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
        assert total["ready"] == 4 * checkpoint["global_step"], file.name
    assert len(list((run.folder / "checkpoints").glob("*.ckpt"))) >= 4
    third = next((run.folder / "checkpoints").glob("step=3*.ckpt"))
    resumed = ok(fit(tmp_path / "resumed", QUARTERS, "--ckpt_path", str(third)))
    assert resumed.validated == [3, 6]
    assert largest_difference(one, resumed) == 0


# ------------------------------------------------------------------------------------ the end is kept


EARLY = stock("EarlyStopping", monitor="val/nelbo", stopping_threshold=1000.0)
ENDS = {
    "early": ([EARLY], 3),
    "early, saved at this step": ([EARLY, "--checkpoint_every_n_steps=3"], 3),
    "in mid-step": ([callback("StopsAt", step=5)], 5),
    "early, saved before": ([EARLY, "--checkpoint_every_n_steps=2"], 3),
    "by the clock": ([stock("Timer", duration="00:00:00:00", interval="epoch"), "--trainer.min_steps=1"], 7),
    "epochs": (["--trainer.max_epochs=1", "--trainer.max_steps=-1"], 7),
}
RARER = ("early, saved before", "by the clock", "epochs")


@pytest.mark.parametrize(
    ("options", "last"),
    [pytest.param(*end, id=name, marks=pytest.mark.slow if name in RARER else ()) for name, end in ENDS.items()],
)
def test_last_ckpt_is_of_the_last_step(one: Run, tmp_path: Path, options: list[str], last: int) -> None:
    """Before, the first left no last.ckpt, the third ended in mid-step, the fourth left last.ckpt of step 2."""
    run = ok(fit(tmp_path / "run", QUARTERS, *options))
    assert run.steps == last
    assert run.checkpoint()["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == 4 * last
    # once and again without what stopped it: the run that was never stopped
    on = ok(fit(tmp_path / "run", QUARTERS, "--ckpt_path", "last"))
    assert on.steps == 8
    assert largest_difference(one, on) == 0
    assert sorted(set(on.validated) | {3, 6}) == sorted(set(on.validated))


# ------------------------------------------------------------------------------------ runs that take no step


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--trainer.max_steps=0", "trainer.max_steps is 0: no step would be taken"),
        ("--trainer.max_epochs=0", "trainer.max_epochs is 0: no step would be taken"),
        ("--trainer.limit_train_batches=0", "trainer.limit_train_batches is 0: no step would be taken"),
        ("--trainer.limit_train_batches=0.1", "limit_train_batches is 0.1, less than one step of the 7 there are"),
        ("--trainer.max_time=00:00:00:00", "no optimiser step was taken (at step 0)"),
    ],
)
def test_a_run_without_a_step_is_an_error(tmp_path: Path, option: str, said: str) -> None:
    refused = fit(tmp_path / "run", option)
    assert said in refused.error
    assert not (refused.folder / "report.html").exists()


def test_a_finished_run_says_so(tmp_path: Path) -> None:
    """Nothing is left to be done: exit code 0, and no file changes (tests/cli/test_resume.py has the
    cases in which something else was asked for)."""
    run = ok(fit(tmp_path / "run", "--trainer.max_steps=2"))
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    again = ok(fit(tmp_path / "run", "--trainer.max_steps=2", "--ckpt_path", "last"))
    said = f"{run.folder}: this run is finished, at step 2 (trainer.max_steps is 2); to go on, raise trainer.max_steps"
    assert said in again.output
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before


@pytest.mark.slow
def test_a_run_whose_epochs_are_over_says_so(tmp_path: Path) -> None:
    epochs = ["--trainer.max_epochs=1", "--trainer.max_steps=-1"]
    run = ok(fit(tmp_path / "run", *epochs))
    (run.folder / "report.html").unlink()
    assert "step was taken (at step 7)" in fit(tmp_path / "run", *epochs, "--ckpt_path", "last").error
    assert not (run.folder / "report.html").exists()


def test_a_loop_whose_epochs_take_no_step_ends(tmp_path: Path) -> None:
    """Before, it went on for ever."""
    assert "passed without an optimiser step" in fit(tmp_path / "empty", callback("LeavesEpochsOut")).error
    changed = fit(tmp_path / "changed", callback("AccumulatesMore")).error
    assert "accumulate_grad_batches was changed from 2 to 4 while training" in changed
