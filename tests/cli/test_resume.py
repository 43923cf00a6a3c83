"""What is said of a checkpoint before a run goes on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ggm_lightning.cli import resume

DATA = {"class_path": "ggm_lightning.data.toy.synthetic.MarkovChain", "init_args": {"length": 11, "num_train": 50}}


def resumed(folder: Path, **about: Any) -> resume.Resumed:
    config = {"data": DATA, **about}
    return resume.Resumed(folder / "last.ckpt", 400, {"config": config}, None)


def test_a_finished_run_of_ones_own_has_nothing_left_to_do(tmp_path: Path) -> None:
    own = resumed(tmp_path / "a")
    assert resume.is_finished(own, 400)
    assert not any(resume.is_finished(own, more) for more in (401, -1, None))
    said = resume.finished(own, 400, tmp_path / "a", changed=False)
    assert "this run is finished, at step 400 (trainer.max_steps is 400); to go on, raise trainer.max_steps" in said
    with pytest.raises(ValueError, match="nothing would be trained with what is changed"):
        resume.finished(own, 400, tmp_path / "a", changed=True)


def test_another_runs_steps_would_train_nothing(tmp_path: Path) -> None:
    other = resumed(tmp_path / "a")
    with pytest.raises(ValueError, match="the step count of another run, which is finished at step 400") as error:
        resume.finished(other, 400, tmp_path / "b", changed=False)
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
