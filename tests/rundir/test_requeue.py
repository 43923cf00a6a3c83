"""Back into the queue, or not: decisions from SLURM's words and from the run's earlier lives; and the folder's lock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ggm_lightning.rundir import lives, lock, requeue
from ggm_lightning.rundir.lock import FolderLock, Held

SHOWN = "JobId=17 JobName=x PreemptEligibleTime=2026-11-28T19:36:01 PreemptTime={} SuspendTime=None Partition=main"


def test_the_job_says_whether_it_is_preempted() -> None:
    assert requeue.preempt_time(SHOWN.format("2026-11-28T19:40:00")) == "2026-11-28T19:40:00"
    assert requeue.preempt_time(SHOWN.format("None")) is None
    assert requeue.preempt_time("") is None


def test_what_the_job_is_called() -> None:
    assert requeue.job_name({}) is None
    assert requeue.job_name({"SLURM_JOB_ID": "17"}) == "17"
    assert requeue.job_name({"SLURM_JOB_ID": "18", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}) == "17_3"


def test_what_stands_in_the_way() -> None:
    assert "no SLURM job" in str(requeue.hindrance({}))
    assert "looks wrong" in str(requeue.hindrance({"SLURM_JOB_ID": "17; rm"}))
    said = str(requeue.hindrance({"SLURM_JOB_ID": "17", "PATH": "/nowhere"}))
    assert "scontrol is not found here (a container?)" in said
    assert said.endswith("scontrol requeue 17")


def test_a_job_may_start_so_often_without_a_step(tmp_path: Path) -> None:
    for restart in range(lives.MOST):
        lives.begin(tmp_path, "17", restart)
        assert lives.may_start_again(tmp_path, "17")
        assert not lives.has_progressed(tmp_path, "17", restart)
    lives.begin(tmp_path, "17", lives.MOST)
    assert not lives.may_start_again(tmp_path, "17")
    assert lives.without_step(tmp_path, "18") == 0  # another job counts from its own first start
    (tmp_path / "last.ckpt").write_text("steps")
    assert lives.has_progressed(tmp_path, "17", lives.MOST)
    assert lives.may_start_again(tmp_path, "17")
    lives.begin(tmp_path, "17", lives.MOST + 1)
    assert not lives.has_progressed(tmp_path, "17", lives.MOST + 1)
    assert lives.without_step(tmp_path, "17") == 1
    with (tmp_path / lives.FILE).open("a") as file:
        file.write('{"job": "17", "la')  # a full disk
    assert lives.without_step(tmp_path, "17") == 1


def test_another_job_in_the_folder_counts_for_nothing(tmp_path: Path) -> None:
    for restart in (0, 1):
        lives.begin(tmp_path, "17", restart)
        lives.begin(tmp_path, "18", 0)
    assert lives.without_step(tmp_path, "17") == 2
    (tmp_path / "last.ckpt").write_text("steps")
    lives.begin(tmp_path, "18", 1)
    assert lives.has_progressed(tmp_path, "17", 1)
    assert not lives.has_progressed(tmp_path, "18", 1)
    assert not lives.has_progressed(tmp_path, "17", 2)  # a start that is not noted yet


def test_a_start_that_came_to_nothing_is_taken_back(tmp_path: Path) -> None:
    lives.begin(tmp_path, "17", 0)
    before = (tmp_path / lives.FILE).read_bytes()
    lives.begin(tmp_path, "17", 1)
    lives.take_back(tmp_path, "18", 1)  # not the last line
    lives.take_back(tmp_path, "17", 1)
    assert (tmp_path / lives.FILE).read_bytes() == before
    lives.take_back(tmp_path, "17", 0)
    assert list(tmp_path.iterdir()) == []
    lives.take_back(tmp_path, "17", 0)


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    one, two = FolderLock(tmp_path), FolderLock(tmp_path)
    one.take()
    with pytest.raises(Held, match=f"process {os.getpid()} on "):
        two.take()
    one.release()
    two.take()
    one.release()  # of what it no longer has
    assert (tmp_path / lock.NAME).is_file()
    two.release()
    assert list(tmp_path.iterdir()) == []


def holder(tmp_path: Path, **other: object) -> None:
    told = {**FolderLock(tmp_path)._us, "token": "theirs", **other}
    (tmp_path / lock.NAME).write_text(json.dumps(told))


def test_a_holder_that_was_killed_here_is_followed_at_once(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    holder(tmp_path, process=dead.pid, started="1")
    FolderLock(tmp_path).take()
    holder(tmp_path, process=os.getpid(), started="1")  # the number of a dead one, given to another process
    FolderLock(tmp_path).take()


def test_a_holder_elsewhere_is_gone_when_it_stops_touching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder(tmp_path, machine="another", host="n7", process=1)
    with pytest.raises(Held, match="process 1 on n7"):
        FolderLock(tmp_path).take()
    before = (tmp_path / lock.NAME).stat().st_mtime - 1 - lock._SILENCE
    os.utime(tmp_path / lock.NAME, (before, before))
    FolderLock(tmp_path).take()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    holder(tmp_path, machine="another", job="17", restart="0")
    with pytest.raises(Held):
        FolderLock(tmp_path).take()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # the next life of the same job
    FolderLock(tmp_path).take()
