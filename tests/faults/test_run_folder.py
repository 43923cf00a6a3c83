"""What is wrong with a run folder, a disk or a logger is said in one line, and nothing that was saved is lost."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import wandb

from ggm_lightning import load
from ggm_lightning.cli.main import main
from ggm_lightning.models.md4 import MD4
from ggm_lightning.rundir import checkpoint as checkpoint_files
from ggm_lightning.rundir import csv_log, wandb_log
from tests.faults.runs import MARKOV, TINY

FULL = OSError(errno.ENOSPC, "No space left on device")


def fit(folder: Path, *extra: str, steps: int = 4) -> None:
    steps_of = [f"--trainer.max_steps={steps}", "--trainer.val_check_interval=2", "--checkpoint_every_n_steps=2"]
    constant = ["--model.optimizer.decay=constant"]
    main(["fit", "--config", str(MARKOV), *TINY, *steps_of, *constant, "--runs", str(folder), "--name", "run", *extra])


def error_of(capsys: pytest.CaptureFixture[str], folder: Path, *extra: str, steps: int = 4, code: int = 2) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        fit(folder, *extra, steps=steps)
    said = capsys.readouterr().err
    assert stop.value.code == code
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith("lightning: error: ")]
    assert len(lines) == 1, said
    assert said.strip().endswith(lines[0])
    return lines[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    fit(folder)
    return folder


@pytest.fixture
def used(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path / "runs"


def test_a_used_folder_is_not_written_over(used: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (used / "run" / "last.ckpt").read_bytes()
    assert "run already holds a run; continue it with --ckpt_path last, or choose" in error_of(capsys, used)
    assert (used / "run" / "last.ckpt").read_bytes() == before


def test_a_folder_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = error_of(capsys, Path("/proc/sys"))  # not even for root
    assert said.startswith("lightning: error: /proc/sys/run: cannot be written (")
    assert said.endswith("choose another folder by --runs and --name")
    (tmp_path / "file").write_text("in the way")
    assert "file/run: cannot be written (Not a directory)" in error_of(capsys, tmp_path / "file")


def test_no_room_for_one_checkpoint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    fit(tmp_path / "sized", steps=1)
    size = 16 * sum(p.numel() for p in load(tmp_path / "sized" / "run" / "last.ckpt").parameters())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    assert "0 MB of space are free, one checkpoint takes about 0 MB; free some space" in error_of(capsys, tmp_path)
    assert not list((tmp_path / "run").glob("*.ckpt"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 2 * size))
    with pytest.warns(UserWarning, match="stand beside each other; free some space before it runs out"):
        fit(tmp_path, steps=2)


@pytest.mark.parametrize("where", ["_write", pytest.param("_sync_folder", marks=pytest.mark.slow)])
def test_a_disk_that_fills_up_during_the_run(
    where: str, used: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, where, full)
        said = error_of(capsys, used, "--ckpt_path=last", steps=8, code=1)  # a job may go back into its queue
    # the first thing to be saved: last.ckpt is from before the last step's validation, which is done again
    assert "run/best.ckpt: cannot be written (No space left on device); the file of before is whole" in said
    for name in ("last.ckpt", "best.ckpt"):
        assert checkpoint_files.read(used / "run" / name)["global_step"] == 4
    assert sorted(path.name for path in (used / "run").glob(".*")) == []
    fit(used, "--ckpt_path=last", steps=8)
    fit(used.parent, "--name=whole", steps=8)
    one, two = (torch.load(f / "last.ckpt", weights_only=True) for f in (used / "run", used.parent / "whole"))
    for name, value in one["current_model_state"].items():
        assert torch.equal(value, two["current_model_state"][name])


def test_best_is_never_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each step of saving and cleaning up there is a whole last.ckpt and, once there was one, a best.ckpt."""
    seen: list[set[str]] = []
    for name in ("_write", "_refuse_code", "_sync_folder"):
        original = getattr(checkpoint_files, name)

        def watched(*args: object, original: object = original) -> object:
            result = original(*args)  # type: ignore[operator]
            names = {path.name for path in (tmp_path / "run").glob("*.ckpt")}
            for file in names:
                checkpoint_files.read(tmp_path / "run" / file)
            seen.append(names)
            return result

        monkeypatch.setattr(checkpoint_files, name, watched)
    fit(tmp_path, steps=8)
    assert seen[-1] == {"last.ckpt", "best.ckpt"}
    assert all(before <= after for before, after in pairwise(seen))
    assert len(seen) > 15


def test_a_copied_run_leaves_the_original_alone(used: Path, finished: Path) -> None:
    before = {path: path.read_bytes() for path in (finished / "run").glob("*.ckpt")}
    fit(used, "--ckpt_path=last", steps=8)
    assert torch.load(used / "run" / "last.ckpt", weights_only=True)["global_step"] == 8
    assert {path: path.read_bytes() for path in (finished / "run").glob("*.ckpt")} == before
    assert len(before) == 2


def test_the_best_stays_the_best_in_a_renamed_folder(
    used: Path, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (used / "run" / "best.ckpt").read_bytes()
    nelbo = MD4.nelbo
    monkeypatch.setattr(MD4, "nelbo", lambda *args, **options: nelbo(*args, **options) + 100)  # all later ones worse
    fit(used, "--ckpt_path=last", steps=8)
    assert (used / "run" / "best.ckpt").read_bytes() == before
    assert not [w for w in recwarn if "dirpath has changed" in str(w.message)]
    (used / "run" / "last.ckpt").rename(used / "elsewhere.ckpt")
    fit(used, f"--ckpt_path={used / 'elsewhere.ckpt'}", "--name=branch", steps=10)
    assert (used / "branch" / "best.ckpt").is_file()  # a folder of its own has a best of its own


def test_a_damaged_last_checkpoint(used: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (used / "run" / "last.ckpt").read_bytes()
    (used / "run" / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    said = error_of(capsys, used, "--ckpt_path=last", steps=8)
    assert "last.ckpt: truncated, altered or not a checkpoint" in said
    assert "use another checkpoint of the run" in said
    fit(used, "--ckpt_path=best", steps=8)
    assert torch.load(used / "run" / "last.ckpt", weights_only=True)["global_step"] == 8


def test_a_changed_configuration_is_kept_and_named(used: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(used, "--ckpt_path=last", "--trainer.gradient_clip_val=2", steps=6)
    (line,) = [message for message in caplog.messages if "configuration changed" in message]
    assert "trainer.gradient_clip_val is 2" in line
    assert "there 1.0" in line
    assert "trainer.max_steps is 6, there 4" in line
    assert line.endswith("run/config-2.yaml")
    assert "max_steps: 4" in (used / "run" / "config.yaml").read_text()
    assert "max_steps: 6" in (used / "run" / "config-2.yaml").read_text()


def test_a_checkpoint_of_another_family(used: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = used / "run" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["ggm_lightning"]["model"]["class_path"] = "ggm_lightning.models.ggm.GGM"
    checkpoint_files.AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    said = error_of(capsys, used, "--ckpt_path=last", steps=8)
    assert (
        "is of another model: model.class_path is ggm_lightning.models.md4.MD4, there ggm_lightning.models.ggm" in said
    )


# ------------------------------------------------------------------------------------------------------- loggers


def test_a_full_disk_for_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def full(self: object, columns: object, rows: object = None) -> None:
        raise FULL

    monkeypatch.setattr(csv_log.CSVLog, "_rewrite", full)
    fit(tmp_path)
    told = [str(w.message) for w in recwarn if "metrics.csv" in str(w.message)]
    assert len(told) == 1
    assert "cannot be written (No space left on device); training goes on" in told[0]
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 4


def test_a_logger_that_breaks_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    from lightning.pytorch.loggers import TensorBoardLogger

    calls = []

    def broken(self: object, metrics: object, step: object = None) -> None:
        calls.append(step)
        raise RuntimeError("the event file is gone\nand more")

    monkeypatch.setattr(TensorBoardLogger, "log_metrics", broken)
    fit(tmp_path, "--logger=[csv,tensorboard]")
    told = [str(w.message) for w in recwarn if "tensorboard" in str(w.message)]
    assert told == ["logger 'tensorboard' failed (the event file is gone) and is left out; training goes on"]
    assert len(calls) == 1
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 4


def _forget_wandb() -> None:
    wandb.finish()
    wandb.teardown()


@pytest.mark.slow
def test_wandb_without_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    for name, value in {"BASE_URL": "http://127.0.0.1:9", "API_KEY": "a" * 40, "INIT_TIMEOUT": "3"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    _forget_wandb()  # which reads the environment once in a process
    fit(tmp_path, "--logger=[csv,wandb]")
    _forget_wandb()
    told = [str(w.message) for w in recwarn if "wandb cannot be reached" in str(w.message)]
    assert len(told) == 1
    assert f"upload it with `wandb sync {tmp_path}/run/wandb/offline-run-*`" in told[0]
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert wandb_log._PATIENCE <= 30
