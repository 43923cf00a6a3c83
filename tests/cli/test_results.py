"""Results of sample and infill: each in a folder of its own, written whole, never over others, found again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ggm_lightning.cli.main import main
from ggm_lightning.cli.parts import divided
from ggm_lightning.cli.results import Results, folder_name, place
from ggm_lightning.models.md4 import MD4
from tests.fixtures.v1 import unpacked


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a checkpoint of a model of text alone in it."""
    unpacked(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    shutil.copy("v1/runs/text/last.ckpt", "run/last.ckpt")
    return Path("run")


def sample(*arguments: str) -> None:
    main(["sample", "--ckpt_path", "run/last.ckpt", "--num_samples", "5", "--num_steps", "3", *arguments])


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        sample(*arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def folders(run: Path) -> list[str]:
    return sorted(entry.name for entry in run.iterdir() if entry.is_dir())


def tree(run: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in run.rglob("*") if file.is_file()}


def test_every_setting_has_its_own_folder(run: Path) -> None:
    sample()
    before = tree(run)
    for changed in (
        ["--num_steps", "4"],
        ["--temperature", "0.5"],
        ["--top_p", "0.9"],
        ["--seed", "1"],
        ["--num_samples", "2"],
        ["--sampler", "first_hitting"],
        ["--grid", "uniform"],
    ):
        sample(*changed)
    infill = ["infill", "--ckpt_path", "run/last.ckpt", "--num_steps", "3", "--text"]
    main([*infill, "The _ of"])
    main([*infill, "The __ of"])
    main([*infill, "the _ of"])
    assert len(folders(run)) == 11
    assert {name: Path(name).read_bytes() for name in before} == before
    assert "samples-step2-ancestral-3steps-temp1-seed0-n5" in folders(run)
    assert "samples-step2-ancestral-3steps-temp0.5-seed0-n5" in folders(run)


def test_the_same_again_is_found_and_redone_when_asked(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample()
    first = capsys.readouterr()
    before = tree(run)
    calls: list[int] = []
    real = MD4.sample
    monkeypatch.setattr(MD4, "sample", lambda self, *a, **k: calls.append(1) or real(self, *a, **k))
    sample("--batch_size", "2")  # changes nothing, so it is the same
    second = capsys.readouterr()
    assert "done already: run/samples-step2-" in second.err
    assert "--again true does it again" in second.err
    assert second.out == first.out
    assert (calls, tree(run)) == ([], before)
    sample("--again", "true")
    assert len(calls) == 1
    after = tree(run)
    assert {name for name in after if after[name] != before[name]} <= {n for n in after if not n.endswith(".ckpt")}
    one, two = (np.load(folder / "samples.npz")["x"] for folder in [next(run.glob("samples-*"))] * 2)
    assert np.array_equal(one, two)


def test_samples_are_shown_on_stdout(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample()
    printed = capsys.readouterr().out
    texts = next(run.glob("samples-*/samples.txt")).read_text()
    assert printed.count("--- sample") == 3
    assert printed.split("--- sample 0 ---\n")[1].splitlines()[0] in texts
    assert "... and 2 more" in printed


def test_a_model_trained_anew_under_the_same_name(run: Path) -> None:
    sample()
    before = tree(run)
    shutil.copy("v1/runs/md4/last.ckpt", run / "last.ckpt")  # another model of two steps
    sample()
    first, second = folders(run)
    assert second.startswith(f"{first}-")
    assert {name: Path(name).read_bytes() for name in before if "samples" in name} == {
        name: content for name, content in before.items() if "samples" in name
    }


def test_what_stands_in_the_way_is_said_before_the_first_network_call(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample("--out", "mine")
    mine = tree(Path("mine"))
    monkeypatch.setattr(MD4, "sample", lambda *_, **__: pytest.fail("the network was called"))
    Path("notes").mkdir()
    Path("notes/a.txt").write_text("mine")
    Path("file").write_text("mine")
    other = error_of(capsys, "--out", "mine", "--num_steps", "4")
    assert "--out mine: holds other results (num_steps is 4, there 3); name a new folder" in other
    assert "holds other results" in error_of(capsys, "--out", "mine", "--num_steps", "4", "--again", "true")
    assert "holds files that are no results" in error_of(capsys, "--out", "notes")
    assert "holds files that are no results" in error_of(capsys, "--out", "notes", "--again", "true")
    assert "a file is there" in error_of(capsys, "--out", "file")
    assert "file/below: cannot be written (Not a directory); choose another folder by --out" in error_of(
        capsys, "--out", "file/below"
    )
    assert "sampler 'fast' is unknown" in error_of(capsys, "--sampler", "fast")
    assert "num_samples is 0" in error_of(capsys, "--num_samples", "0")
    assert tree(Path("mine")) == mine
    assert os.listdir("notes") == ["a.txt"]
    assert folders(run) == []


def test_a_stopped_command_goes_on_where_it_was(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of five rows were drawn; they are not drawn again, and the result is that of an undisturbed command."""
    sample("--out", "whole")
    real = MD4.sample
    drawn: list[list[int]] = []

    def stopped(self: MD4, *arguments: object, **options: object) -> object:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(options["row"].tolist())  # type: ignore[attr-defined]
        return real(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(MD4, "sample", stopped)
    with pytest.raises(SystemExit):
        sample("--out", "part", "--batch_size", "2")
    assert [name for name in os.listdir("part") if not name.startswith(".")] == []
    drawn.clear()
    sample("--out", "part", "--batch_size", "2")
    assert drawn == [[4]]
    assert np.array_equal(np.load("part/samples.npz")["x"], np.load("whole/samples.npz")["x"])
    assert sorted(os.listdir("part")) == sorted(os.listdir("whole"))
    assert Path("part/trace.html").read_text() == Path("whole/trace.html").read_text()


def test_parts_of_other_settings_are_not_gone_on_with(tmp_path: Path) -> None:
    """Of the same rows: the settings stand in the part itself."""
    results = place(tmp_path, "x", {"seed": 1, "checkpoint_identity": "0" * 16}, str(tmp_path / "out"), False)

    def part(of: Results, value: int) -> list[int]:
        found = divided(of.parts, [(0, 2)], lambda start, stop: {"x": np.array([value])})
        return [int(one["x"][0]) for one in found or []]

    assert part(results, 1) == [1]
    assert part(results, 3) == [1]
    other = place(tmp_path, "x", {"seed": 2, "checkpoint_identity": "0" * 16}, str(tmp_path / "out"), False)
    assert part(other, 3) == [3]


def test_a_failure_while_writing_leaves_nothing_half(tmp_path: Path) -> None:
    results = place(tmp_path, "x", {"seed": 1, "checkpoint_identity": "0" * 16}, None, False)

    def fill_the_disk() -> None:
        with results.writing() as folder:
            (folder / "samples.npz").write_text("half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fill_the_disk()
    assert os.listdir(tmp_path / "x") == []
    again = place(tmp_path, "x", {"seed": 1, "checkpoint_identity": "0" * 16}, None, False)
    assert not again.done
    with again.writing() as folder:
        (folder / "samples.npz").write_text("whole")
    assert sorted(os.listdir(tmp_path / "x")) == ["samples.npz", "settings.json"]
    assert json.loads((tmp_path / "x" / "settings.json").read_text())["format"] == 1
    assert place(tmp_path, "x", {"seed": 1, "checkpoint_identity": "0" * 16}, None, False).done


def test_names_are_no_paths() -> None:
    assert folder_name("samples", 3, ("", "../../x y", ""), ("temp", 0.50, ""), ("", None, "")) == (
        "samples-step3-_.._x_y-temp0.5"
    )
    assert "/" not in folder_name("samples", None, ("", "a/b", ""), ("", "..", ""))
