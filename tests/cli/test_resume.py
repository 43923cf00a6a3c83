"""What is said of a checkpoint before a run goes on from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import Timer

from ggm_lightning.cli import resume

DATA = {"class_path": "ggm_lightning.data.toy.synthetic.MarkovChain", "init_args": {"length": 11, "num_train": 50}}


def resumed(folder: Path, **about: Any) -> resume.Resumed:
    config = {"data": DATA, **about}
    return resume.Resumed(folder / "last.ckpt", 400, {"config": config}, None)


def trainer(max_steps: int = -1, *callbacks: Any, **more: Any) -> Any:
    return SimpleNamespace(
        max_steps=max_steps, callbacks=[object(), *callbacks], **{"min_steps": None, "min_epochs": None} | more
    )


def ended(resumed_run: resume.Resumed, *given: Any, **more: Any) -> resume.Finished:
    end = resume.finished(resumed_run, trainer(*given, **more))
    assert end is not None
    return end


def test_a_finished_run_of_ones_own_has_nothing_left_to_do(tmp_path: Path) -> None:
    own = resumed(tmp_path / "a")
    assert not any(resume.finished(own, trainer(more)) for more in (401, -1))
    said = resume.nothing_left(own, ended(own, 400), tmp_path / "a", changed=False)
    assert "this run is finished, at step 400 (trainer.max_steps is 400); to go on, raise trainer.max_steps" in said
    with pytest.raises(ValueError, match="nothing would be trained with what is changed"):
        resume.nothing_left(own, ended(own, 400), tmp_path / "a", changed=True)


def test_a_run_beyond_the_steps_that_are_asked_for_is_not_called_finished(tmp_path: Path) -> None:
    own = resumed(tmp_path / "a")
    said = resume.nothing_left(own, ended(own, 60), tmp_path / "a", changed=False)
    assert "this run is at step 400 already, beyond trainer.max_steps, which is 60; to go on, raise " in said
    assert "raise trainer.max_steps above 400;" in said


def test_a_run_whose_time_is_used_up_has_nothing_left_to_do(tmp_path: Path) -> None:
    own = replace(resumed(tmp_path / "a"), seconds={"Timer": 200.5})
    said = resume.nothing_left(own, ended(own, 401, Timer("00:00:03:20")), tmp_path / "a", changed=False)
    assert "this run is finished by its time limit, at step 400 (trainer.max_time is 00:00:03:20); to go on, " in said
    assert "to go on, raise trainer.max_time; to start a new run from its weights, give --init_from" in said
    assert not resume.finished(own, trainer(401, Timer("00:00:03:21")))  # control: it has time
    assert not resume.finished(own, trainer(401, Timer()))
    assert not resume.finished(own, trainer(401, Timer("00:00:03:20"), min_steps=401))
    assert not resume.finished(resumed(tmp_path / "a"), trainer(401, Timer("00:00:03:20")))  # it was not measured


def test_times_are_written_as_the_trainer_takes_them() -> None:
    seconds = 3 * 86400 + 2 * 3600 + 7 * 60 + 5
    assert resume.as_max_time(seconds) == "03:02:07:05"
    assert Timer(resume.as_max_time(seconds)).time_remaining() == seconds


def test_another_runs_steps_would_train_nothing(tmp_path: Path) -> None:
    other = resumed(tmp_path / "a")
    with pytest.raises(ValueError, match="the step count of another run, which is finished, at step 400") as error:
        resume.nothing_left(other, ended(other, 400), tmp_path / "b", changed=False)
    assert f"give --init_from {tmp_path}/a/last.ckpt instead of --ckpt_path" in str(error.value)
    (line,) = resume.what_is_restored(other, tmp_path / "b", [], [])
    assert "is of another run: its step count (400) and its optimiser are restored" in line
    assert resume.what_is_restored(other, tmp_path / "a", [], []) == []  # control


def test_data_that_changed_is_named() -> None:
    of = resumed(Path("a"))
    assert resume.changed_data(of, {"data": DATA}) == []
    how = {**DATA, "init_args": {**DATA["init_args"], "max_batch_per_device": 3}}
    assert resume.changed_data(of, {"data": how}) == []
    longer = {**DATA, "init_args": {**DATA["init_args"], "num_train": 60}}
    assert resume.changed_data(of, {"data": longer}) == ["data.num_train is 60, there 50"]
    (line,) = resume.what_is_restored(of, Path("a"), [], resume.changed_data(of, {"data": longer}))
    assert line == "the data is not that of the checkpoint (data.num_train is 60, there 50): it goes on with this one"


def test_what_is_frozen_stays_frozen() -> None:
    of = resumed(Path("a"), freeze=["network.head", "network.blocks"])
    resume.refuse_other_freeze(of, ["network.blocks", "network.head"])
    with pytest.raises(ValueError, match=r"its run has --freeze 'network\.head' --freeze 'network\.blocks', which"):
        resume.refuse_other_freeze(of, [])
    with pytest.raises(ValueError, match="its run has no --freeze"):
        resume.refuse_other_freeze(resumed(Path("a")), ["network.head"])
