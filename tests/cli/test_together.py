"""What ranks that were started together say and do: at the start, when one of them fails, and on an early signal."""

from __future__ import annotations

import io
import signal
import threading
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from ggm_lightning.cli import early, environment, resume, together
from ggm_lightning.cli import main as command_line
from ggm_lightning.cli.early import EarlySignals
from ggm_lightning.cli.launcher import Place
from ggm_lightning.cli.together import Labelled, Session
from ggm_lightning.rundir import checkpoint as checkpoint_files
from ggm_lightning.rundir import endings, lives, requeue
from ggm_lightning.rundir import hub as hubs
from tests.rundir.test_hub import drop, hub
from tests.rundir.test_hub import together as at_once

PLACE = Place("srun", 2, 2, (1, 1), 0, 0, 0, "n1", "17", 3)


@pytest.fixture
def two(tmp_path: Path) -> Any:
    pair = [hub(rank, 2, str(tmp_path)) for rank in range(2)]
    assert at_once([lambda h=h: h.meet(10) for h in pair]) == [None, None]
    yield pair
    hubs.use(None)
    for one in pair:
        one.leave()


def test_the_first_line_of_a_life(tmp_path: Path) -> None:
    said = Session(PLACE, tmp_path, True).first_line(40)
    assert said.startswith("job 17, 2 nodes, 2 ranks, restart 3, ggm_lightning ")
    assert said.endswith(f"{tmp_path} goes on from step 40")
    assert "first start" in Session(Place("torchrun", 2), tmp_path, True).first_line(None)


@pytest.mark.parametrize(
    "rest", [["--runs", "runs", "--name", "name"], ["--name=name"], ["--name", "name", "--runs=runs"]], ids=str
)
def test_a_value_that_is_called_like_an_option_is_none(rest: list[str]) -> None:
    assert together.folder_of({"name": "experiment"}, rest) == Path("runs/name")


def test_lines_carry_the_rank() -> None:
    file = io.StringIO()
    stream = Labelled(file, "rank 1: ")
    for part in ("a", "b\nc\n", "\n", "d"):
        stream.write(part)
    assert file.getvalue() == "rank 1: ab\nrank 1: c\n\nrank 1: d"


def test_after_the_loss_of_a_rank_the_job_goes_back_if_it_has_got_on(
    two: list[hubs.Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(requeue, "requeue", lambda: asked.append(1))
    drop(two[1])
    assert two[0].is_over.wait(5)
    hubs.use(two[0])
    lives.begin(tmp_path, PLACE.job, PLACE.restart)
    monkeypatch.setattr(together, "_once", threading.Lock())
    said = Session(PLACE, tmp_path, True).last_line()
    assert said == "rank 1 on n1 has died; all ranks end; the job is not requeued, no step was saved since it started"
    assert asked == []
    (tmp_path / "last.ckpt").write_text("steps")
    lives.begin(tmp_path, "18", PLACE.restart)  # another job's
    monkeypatch.setattr(together, "_once", threading.Lock())
    assert Session(PLACE, tmp_path, True).last_line() == ""  # it is said before SLURM ends this process
    assert "rank 1 on n1 has died; all ranks end, and the job goes back into the queue" in capsys.readouterr().err
    assert asked == [1]
    assert Session(PLACE, tmp_path, True).last_line() == ""  # once


def test_rank_1_speaks_for_rank_0(two: list[hubs.Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "_once", threading.Lock())
    drop(two[0])
    assert two[1].is_over.wait(5)
    hubs.use(two[1])
    alone = Place("torchrun", 2, rank=1)
    assert Session(alone, tmp_path, True).last_line() == "rank 0 on n0 has died; all ranks end"


@pytest.fixture
def signalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """signalled(number, rank) -> (exit code or None, what was said, whether it was requeued)."""
    monkeypatch.setattr(endings, "turn", endings.Turn())

    noted: list[int] = []

    def act(number: signal.Signals, rank: int = 0, hindrance: str | None = None) -> tuple[int | None, str, bool]:
        asked: list[int] = []

        def asks() -> str | None:
            asked.append(1)
            return hindrance

        monkeypatch.setattr(requeue, "requeue", asks)
        monkeypatch.setattr(early.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(endings.turn, "_is_ending", False)  # that of the act before
        signals = EarlySignals(tmp_path, "17", rank, lambda: noted.append(1), lambda: None)

        def ends(code: int) -> None:
            raise SystemExit(code)

        monkeypatch.setattr(signals, "_end", ends)
        try:
            signals._take(number)
            code: Any = None
        except SystemExit as stopped:
            code = stopped.code
        return code, capsys.readouterr().err, bool(asked)

    return act


def test_usr1_before_the_first_step(signalled: Any, tmp_path: Path) -> None:
    for restart in range(lives.MOST):
        lives.begin(tmp_path, "17", restart)
        code, said, requeued = signalled(signal.SIGUSR1)
        assert (code, requeued) == (0, True)
        assert f"the job goes back into the queue (start {restart + 1} without a step" in said
    code, said, _ = signalled(signal.SIGUSR1, hindrance="scontrol is not found here (a container?)")
    assert code == 75  # as experiments/slurm/train.sbatch understands it
    assert "scontrol is not found here" in said
    lives.begin(tmp_path, "17", lives.MOST)
    code, said, requeued = signalled(signal.SIGUSR1)
    assert (code, requeued) == (128 + signal.SIGUSR1, False)
    assert f"the job is not requeued, it has started {lives.MOST + 1} times without a step" in said
    assert signalled(signal.SIGUSR1, rank=1) == (None, "", False)  # rank 0 acts for all


def test_sigterm_before_the_first_step(signalled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lives.begin(tmp_path, "17", 0)
    monkeypatch.setattr(requeue, "is_preempted", lambda: False)
    assert signalled(signal.SIGTERM)[::2] == (128 + signal.SIGTERM, False)  # scancel
    monkeypatch.setattr(requeue, "is_preempted", lambda: True)
    assert signalled(signal.SIGTERM)[::2] == (0, True)


def test_training_takes_what_was_heard_and_is_not_obeyed_yet(signalled: Any) -> None:
    endings.turn.hear(signal.SIGUSR1)  # the thread has not come to it
    assert endings.turn.training_begins() == signal.SIGUSR1
    assert endings.turn.training_begins() is None
    for rank in (0, 1):
        for number in (signal.SIGUSR1, signal.SIGTERM):
            assert signalled(number, rank) == (None, "", False)


def test_rank_1_waits_for_rank_0_or_for_training(signalled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def begins(seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) == 2:
            endings.turn.training_begins()
        return len(waits) == 2

    monkeypatch.setattr(endings.turn, "training_begins_within", begins)
    assert signalled(signal.SIGTERM, rank=1) == (128 + signal.SIGTERM, "", False)
    monkeypatch.setattr(endings.turn, "_is_ending", False)
    assert signalled(signal.SIGTERM, rank=1) == (None, "", False)
    assert waits == [early._PATIENCE] * 2


def test_no_step_follows_where_a_signal_ends_the_process(signalled: Any) -> None:
    assert endings.turn.ends_here()
    main = threading.Thread(target=endings.turn.training_begins, daemon=True)
    main.start()
    main.join(0.1)
    assert main.is_alive()
    endings.turn._is_ending = False
    main.join(5)
    assert not main.is_alive()


def test_a_signal_after_training_ends_the_process_with_its_line(signalled: Any) -> None:
    endings.turn.training_begins()
    assert endings.turn.training_ends() is None
    for number in (signal.SIGUSR1, signal.SIGTERM):
        code, said, requeued = signalled(number)
        assert (code, requeued) == (128 + number, False)
        assert said == f"stopped by {number.name} after training, which is saved\n"
    assert signalled(signal.SIGUSR1, rank=1) == (None, "", False)


def test_a_job_that_is_refused_leaves_the_folder_to_the_one_that_is_there(tmp_path: Path) -> None:
    first = Session(Place(job="17"), tmp_path, True)
    first.take_folder()
    (tmp_path / "last.ckpt").write_text("steps")
    second = Session(Place(job="18"), tmp_path, True)
    with pytest.raises(ValueError, match="in use by"):
        second.take_folder()
    second.close()
    assert [life["job"] for life in lives.of(tmp_path)] == ["17"]
    assert lives.has_progressed(tmp_path, "17", 0)
    first.release()


@pytest.mark.parametrize("begins", [False, True])
def test_a_start_is_noted_unless_it_is_refused(begins: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "turn", endings.Turn())
    refused = Session(Place(job="17"), tmp_path / "runs" / "name", True)
    refused.make_folder()
    refused.take_folder()
    refused.note_start()  # by the thread of early signals: one start is one line
    assert len(lives.of(refused.folder)) == 1
    if begins:
        endings.turn.training_begins()
    refused.close()
    assert refused.folder.exists() == begins
    assert len(lives.of(refused.folder)) == begins


@pytest.mark.parametrize(("job", "rank", "fits"), [(None, 0, True), ("17", 1, True), ("17", 0, False)])
def test_who_notes_no_start(job: str | None, rank: int, fits: bool, tmp_path: Path) -> None:
    Session(Place(job=job, rank=rank), tmp_path, fits).note_start()
    assert lives.of(tmp_path) == []


def test_a_start_that_an_early_signal_ends_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also before the folder is this job's."""
    monkeypatch.setattr(endings, "turn", endings.Turn())
    monkeypatch.setattr(requeue, "requeue", lambda: "failed")
    session = Session(Place(job="17"), tmp_path / "name", True)
    signals = EarlySignals(session.folder, "17", 0, session.note_start, session.release)
    monkeypatch.setattr(signals, "_end", lambda code: None)
    assert endings.turn.ends_here()
    signals._act(signal.SIGUSR1)
    assert "back into the queue (start 1 without a step" in capsys.readouterr().err
    session.close()  # the main thread may have come so far, before SLURM ends the process
    assert lives.without_step(session.folder, "17") == 1


def saved(path: Path, step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"a": torch.ones(3)}, "global_step": step}, path)


def test_rank_0_decides_from_where_all_go_on(
    two: list[hubs.Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "n0" / "last.ckpt", tmp_path / "n1" / "last.ckpt"
    saved(here, 5)
    ours: dict[int, hubs.Hub] = {}
    monkeypatch.setattr(resume.hubs, "current", lambda: ours[threading.get_ident()])
    monkeypatch.setattr(resume, "_LATE", 1.0)

    def asks(number: int, resolved: Any) -> Any:
        ours[threading.get_ident()] = two[number]
        return resume.agreed(resolved)

    def fails() -> str:
        raise AssertionError("rank 1 does not look for itself")

    first, second = at_once([lambda: asks(0, lambda: str(here)), lambda: asks(1, fails)])
    assert (first.step, second.step, second.path) == (5, 5, here)
    assert second.read is None
    assert at_once([lambda: asks(0, lambda: None), lambda: asks(1, fails)]) == [None, None]  # all start anew
    saved(there, 5)
    identity = checkpoint_files.identity(here)
    with zipfile.ZipFile(here, "a") as archive:
        archive.writestr("last/other", "x")
    assert checkpoint_files.identity(here) != identity
    two[0].tell("resume", [str(here), 5, identity])  # of a file that rank 1 does not see
    late = at_once([lambda: asks(1, fails)])[0]
    assert "goes on from" in str(late)
    assert "node n1 sees another file there after 1 s; put --runs on a file system that all nodes share" in str(late)


def test_the_ports_and_the_silence_of_the_ranks(two: list[hubs.Hub]) -> None:
    told = environment.Launched(PLACE, "n1")
    hubs.use(two[0])
    port = told.main_port
    assert two[1].hear("port") == port
    assert told.main_port == port  # told once
    assert environment.silence(DDPStrategy(timeout=timedelta(seconds=40))) == 20
    assert environment.silence(DDPStrategy()) == 120


def test_where_a_traceback_is_shown_the_other_ranks_are_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """GGM_DEBUG=1 on a rank that fails: it says why, before its line to rank 0 ends in peace."""
    told: list[str] = []

    class Failing:
        def is_of_another(self) -> bool:
            return False

        def chosen(self, line: str) -> str:
            told.append(line)
            return ""

    monkeypatch.setattr(together, "session", Failing)
    monkeypatch.setenv("GGM_DEBUG", "1")
    with pytest.raises(ValueError, match="rows are gone"):
        command_line._reported(ValueError("rows are gone"), ["fit"])
    assert told == ["ValueError: rows are gone"]
