"""wandb: a resumed run continues its run there, and what the user has set goes before our defaults."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from ggm_lightning.cli.main import main
from ggm_lightning.rundir import wandb_log
from ggm_lightning.rundir.wandb_log import ID_FILE, wandb_logger
from tests.faults.runs import MARKOV, TINY
from tests.rundir.wandb_records import about, rows


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As the tests want it, whoever runs them; no run of wandb's is left behind."""
    if wandb.run is not None:  # of another test in this process; without its service it could not be ended any more
        wandb.finish()
    # its service would be gone for whoever comes after: its address stands in the environment
    wandb.teardown()
    os.environ.pop("WANDB_SERVICE", None)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    wandb.finish()
    wandb.teardown()
    os.environ.pop("WANDB_SERVICE", None)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of wandb.init, which gives a run without starting anything."""
    found: list[dict[str, Any]] = []

    def init(**options: Any) -> Any:
        found.append(options)
        disabled = os.environ.get("WANDB_MODE") == "disabled"
        run_id = options["id"] or f"new{len(found)}"
        return SimpleNamespace(id=run_id, disabled=disabled, name=options["name"], finish=lambda: None)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb_log, "_started", [])
    return found


def fit(folder: Path, command: str, steps: int, *extra: str, logger: str = "wandb_offline") -> Path:
    arguments = ["--runs", str(folder), "--name", "run", f"--logger=[csv,{logger}]", f"--trainer.max_steps={steps}"]
    main([command, "--config", str(MARKOV), *TINY, *arguments, "--trainer.val_check_interval=3", *extra])
    return folder / "run"


def logged_steps(file: Path, last: int) -> list[int]:
    """wandb's own process writes the file; on a busy machine it may be behind for a moment."""
    for _ in range(60):
        steps = [row["trainer/global_step"] for row in rows(file) if "train/bpd" in row]
        if last in steps:
            break
        time.sleep(0.5)
    return steps


@pytest.mark.slow
def test_a_resumed_run_continues_and_an_evaluation_does_not(tmp_path: Path) -> None:
    run = fit(tmp_path, "fit", 5)
    (run / "last.ckpt").rename(run / "earlier.ckpt")
    fit(tmp_path, "fit", 7, f"--ckpt_path={run}/earlier.ckpt")  # to be abandoned
    fit(tmp_path, "fit", 9, f"--ckpt_path={run}/earlier.ckpt")
    run_id = (run / ID_FILE).read_text().strip()
    parts = sorted((run / "wandb").glob("offline-run-*"), key=os.path.getmtime)
    assert [part.name.split("-")[3] for part in parts] == [run_id] * 3
    wandb.finish()
    files = [part / f"run-{run_id}.wandb" for part in parts]
    steps = [logged_steps(file, last) for file, last in zip(files, (5, 7, 9), strict=True)]
    assert steps == [[1, 2, 3, 4, 5], [6, 7], [6, 7, 8, 9]]  # nothing is dropped, nothing numbered anew
    fit(tmp_path, "validate", 9, f"--ckpt_path={run}/earlier.ckpt")
    other = set((run / "wandb").glob("offline-run-*")) - set(parts)
    assert len(other) == 1
    assert not other.pop().name.endswith(run_id)
    assert (run / ID_FILE).read_text().strip() == run_id


@pytest.mark.slow
def test_the_environment_reaches_a_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb reads its variables once per process."""
    given = {
        "PROJECT": "mine",
        "ENTITY": "team",
        "NAME": "called",
        "RUN_ID": "abc123",
        "RUN_GROUP": "all",
        "TAGS": "a,b",
    }
    for name, value in {**given, "DIR": str(tmp_path / "place")}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    (tmp_path / "place").mkdir()
    wandb.teardown()
    run = fit(tmp_path, "fit", 1)
    wandb.finish()
    wandb.teardown()
    (file,) = (tmp_path / "place" / "wandb").glob("offline-run-*-abc123/run-abc123.wandb")
    found = about(file)
    assert (found.project, found.entity, found.display_name) == ("mine", "team", "called")
    assert (found.run_id, found.run_group, list(found.tags)) == ("abc123", "all", ["a", "b"])
    assert (run / ID_FILE).read_text() == "abc123\n"
    assert not (run / "wandb").exists()


def test_defaults_and_what_goes_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[dict[str, Any]]
) -> None:
    folder = tmp_path / "run"
    wandb_logger(folder, offline=False, fitting=True)
    ours = {name: calls[0][name] for name in ("project", "name", "dir", "id", "resume", "mode")}
    expected = {"project": "ggm_lightning", "name": "run", "dir": str(folder), "id": None, "resume": "allow"}
    assert ours == {**expected, "mode": None}
    assert (folder / ID_FILE).read_text() == "new1\n"
    wandb_logger(folder, offline=False, fitting=True)
    assert calls[1]["id"] == "new1"
    wandb_logger(tmp_path / "elsewhere", offline=False, fitting=True)
    assert calls.pop()["id"] is None
    given = {"PROJECT": "mine", "NAME": "called", "DIR": str(tmp_path / "place"), "RUN_ID": "an other"}
    for name, value in given.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb_logger(folder, offline=False, fitting=True)
    theirs = [calls[2][name] for name in ("project", "name", "dir", "id")]
    assert theirs == list(given.values())
    assert (folder / ID_FILE).read_text() == "new1\n"  # not overwritten by another id
    for _ in range(2):  # whatever wandb allows can be kept and read again
        wandb_logger(tmp_path / "named by the user", offline=False, fitting=True)
    monkeypatch.delenv("WANDB_RUN_ID")
    wandb_logger(tmp_path / "named by the user", offline=False, fitting=True)
    assert calls[-1]["id"] == "an other"


@pytest.mark.parametrize("name", ["WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM"])
def test_the_users_way_of_resuming(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[dict[str, Any]]
) -> None:
    monkeypatch.setenv(name, "never")
    wandb_logger(tmp_path, offline=False, fitting=True)
    assert calls[0]["resume"] is None


def test_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[dict[str, Any]]) -> None:
    for word, environment, expected in (
        (True, None, "offline"),
        (True, "online", "offline"),
        (True, "disabled", None),
        (False, "offline", None),
    ):
        monkeypatch.delenv("WANDB_MODE", raising=False)
        if environment is not None:
            monkeypatch.setenv("WANDB_MODE", environment)
        folder = tmp_path / f"{word}{environment}"
        wandb_logger(folder, offline=word, fitting=True)
        assert calls[-1]["mode"] == expected
        assert os.environ.get("WANDB_MODE") == environment  # Lightning's `offline` would set it to dryrun
        assert (folder / ID_FILE).exists() == (environment != "disabled")


def test_an_evaluation_never_takes_the_trainings_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[dict[str, Any]]
) -> None:
    (tmp_path / ID_FILE).write_text("training\n")
    wandb_logger(tmp_path, offline=False, fitting=False)
    monkeypatch.setenv("WANDB_RUN_ID", "training")  # a job's script sets it for all its commands
    wandb_logger(tmp_path, offline=False, fitting=False)
    monkeypatch.setenv("WANDB_RUN_ID", "own")
    wandb_logger(tmp_path, offline=False, fitting=False)
    assert [call["job_type"] for call in calls] == ["evaluation"] * 3
    assert len({call["id"] for call in calls} - {None, "training"}) == 3
    assert calls[2]["id"] == "own"
    assert (tmp_path / ID_FILE).read_text() == "training\n"


def test_other_ranks_leave_the_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(wandb_log.rank_zero_only, "rank", 1)
    (tmp_path / ID_FILE).write_text("not/an id\n")
    wandb_logger(tmp_path, offline=False, fitting=True)
    assert calls == []
    monkeypatch.setattr(wandb_log.rank_zero_only, "rank", 0)  # control
    with pytest.raises(ValueError, match="holds no id of a wandb run; delete it"):
        wandb_logger(tmp_path, offline=False, fitting=True)


def test_a_run_that_is_gone_from_the_server_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[dict[str, Any]]
) -> None:
    working = wandb.init

    def init(**options: Any) -> Any:
        if options["mode"] != "offline":
            raise wandb.errors.CommError("run kept was previously created and deleted\nand more")
        return working(**options)

    monkeypatch.setattr(wandb, "init", init)
    (tmp_path / ID_FILE).write_text("kept\n")
    with pytest.warns(UserWarning, match="previously created and deleted.*the run is logged offline"):
        wandb_logger(tmp_path, offline=False, fitting=True)
    assert [(call["id"], call["mode"]) for call in calls] == [("kept", "offline")]


def test_no_room_for_the_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[dict[str, Any]]) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wandb_log.os, "replace", full)
    with pytest.warns(UserWarning, match="No space left on device.*training goes on"):
        wandb_logger(tmp_path, offline=False, fitting=True)
    assert list(tmp_path.iterdir()) == []
