"""`lightning sweep`: nothing is computed twice, nothing is mixed, what cannot be meant is refused before work."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ggm_lightning.cli import sweep_grid, sweep_judges
from ggm_lightning.cli.loading import load_family
from ggm_lightning.cli.main import main
from ggm_lightning.cli.sweep import joined
from ggm_lightning.codecs.text import Characters, Integers
from ggm_lightning.models.base import Family
from tests.cli.small_checkpoints import N, V, model_and_judge, write


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return model_and_judge(tmp_path)


SMALL = ["--num_steps", "2", "5", "--temperature", ".5", "1", "--num_samples", "6", "--out", "out"]
MD4 = ["--ckpt_path", "runs/md4/last.ckpt", *SMALL]
BOTH = ["--ckpt_path", "runs/md4/last.ckpt", "runs/ar/last.ckpt", "--judge", "runs/ar/last.ckpt", *SMALL]


@contextmanager
def linear_calls() -> Iterator[list[int]]:
    """How often a linear layer is called: a network that is called has some."""
    calls: list[int] = []

    def count(module: nn.Module, *_: Any) -> None:
        if isinstance(module, nn.Linear):
            calls.append(1)

    handle = nn.modules.module.register_module_forward_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


class Killer:
    """Counts the calls of `sample`; the one with the number `at` is never finished."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int | None = None) -> None:
        self.calls, self.at, self._sample = 0, at, Family.sample
        monkeypatch.setattr(Family, "sample", lambda model, *a, **k: self.sample(model, *a, **k))

    def sample(self, model: Family, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self._sample(model, *arguments, **options)


def stopped(arguments: list[str], code: int) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sweep", *arguments])
    assert stop.value.code == code


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with linear_calls() as calls:
        stopped(list(arguments), 2)
    assert calls == []
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def table(folder: str = "out") -> list[dict[str, str]]:
    """Without the seconds, which are not the same twice."""
    with Path(folder, "table.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds_per_sample"} for row in csv.DictReader(file)]


def cells(folder: str = "out") -> dict[str, int]:
    """The folders of finished cells, with the time at which their samples were written."""
    return {file.parent.name: file.stat().st_mtime_ns for file in Path(folder, "cells").glob("*/samples.npz")}


def test_killed_and_started_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the third of six cells; MD4 has four, and AR, which does not ask for steps, two."""
    killer = Killer(monkeypatch, at=3)
    stopped(BOTH, 130)
    first = cells()
    assert len(first) == 2
    assert len(table()) == 1 + 2  # real text, and what is done
    killer.calls, killer.at = 0, None
    main(["sweep", *BOTH])
    assert killer.calls == 4
    assert len(cells()) == 6
    assert {name: cells()[name] for name in first} == first
    with linear_calls() as calls:
        main(["sweep", *BOTH])
    assert calls == []  # neither drawn nor judged
    assert killer.calls == 4
    with linear_calls() as calls:
        main(["sweep", *BOTH, "--out", "undisturbed"])
    assert len(calls) > 0
    assert table() == table("undisturbed")


def test_killed_within_a_cell(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killer = Killer(monkeypatch, at=3)
    stopped([*MD4, "--batch_size", "2"], 130)  # of three batches the third one is missing
    assert cells() == {}
    killer.calls, killer.at = 0, None
    main(["sweep", *MD4, "--batch_size", "2"])
    assert killer.calls == 4 * 3 - 2


def test_another_checkpoint_or_setting_is_another_cell(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["sweep", *MD4])
    before, rows = cells(), table()
    write(Path("runs/md4/last.ckpt"), "md4", seed=1)  # as a training that goes on does
    main(["sweep", *MD4])
    after = cells()
    assert len(after) == 2 * len(before)
    assert {name: after[name] for name in before} == before
    assert len(table()) == len(rows)
    assert table()[0] == rows[0]  # of real text
    assert all(new["judge"] != old["judge"] for new, old in zip(table()[1:], rows[1:], strict=True))
    main(["sweep", *MD4, "--seed", "1"])
    assert len(cells()) == 3 * len(before)
    capsys.readouterr()
    main(["sweep", *MD4, "--num_steps", "2", "5", "7", "--seed", "1"])
    assert len(cells()) == 3 * len(before) + 2  # those that are new
    assert "4 of 6 cells were there already" in capsys.readouterr().err


def test_another_judge_draws_nothing_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main(["sweep", *MD4])
    counted = table()
    killer = Killer(monkeypatch)
    main(["sweep", *MD4, "--judge", "runs/ar/last.ckpt"])
    assert killer.calls == 0
    assert all(new["judge"] != old["judge"] for new, old in zip(table(), counted, strict=True))
    assert [row["entropy"] for row in table()[1:]] == [row["entropy"] for row in counted[1:]]
    main(["sweep", *MD4])
    assert table() == counted


def test_other_real_rows_have_figures_of_their_own(place: Path) -> None:
    """The same judge and samples, beside fewer real rows."""
    main(["sweep", *MD4])
    rows = table()
    (file, *_) = Path("out/cells").glob("*/figures-order3-*.json")
    kept = json.loads(file.read_text())
    kept["of"]["real"] = "of other rows"
    kept["figures"]["judge"] = 99.0
    file.write_text(json.dumps(kept))
    main(["sweep", *MD4])
    assert table() == rows


def test_the_batch_size_changes_nothing(place: Path) -> None:
    main(["sweep", *MD4])
    main(["sweep", *MD4, "--batch_size", "4", "--out", "other"])
    for name in cells():
        one, two = (np.load(Path(folder, "cells", name, "samples.npz"))["x"] for folder in ("out", "other"))
        assert (one == two).mean() > 0.9  # a network's own sums depend on the batch


def test_figures_are_those_of_the_samples(place: Path) -> None:
    main(["sweep", *BOTH])
    judge = load_family("runs/ar/last.ckpt", "cpu").model
    for row in table()[1:]:
        options = {"temperature": float(row["temperature"]), "seed": 0}
        name = row["sampler"].split()[0]
        model = load_family(f"runs/{name}/last.ckpt", "cpu").model
        drawn = model.sample(6, int(row["steps"] or 1), **options)
        bits = judge.nelbo(drawn.x) / N / np.log(2)
        assert float(row["judge"]) == pytest.approx(float(bits.mean()), rel=1e-6)
        assert float(row["judge_stderr"]) == pytest.approx(float(bits.std() / np.sqrt(6)), rel=1e-6)
        assert float(row["rows_per_sample"]) == pytest.approx(drawn.rows / 6)
    by_steps = {row["steps"] for row in table()[1:] if row["sampler"] == "ar ancestral"}
    assert by_steps == {""}
    assert "judges its own samples" in Path("out/sweep.html").read_text()


def test_samplers_go_to_the_families_that_have_them(place: Path) -> None:
    write(Path("runs/ggm/last.ckpt"), "ggm")
    names = ["md4", "ar", "ggm"]
    checkpoints = {name: load_family(f"runs/{name}/last.ckpt", "cpu") for name in names}
    asked = ["ancestral", "parallel", "gated", "remasking:rule=rate,eta=2"]
    found = sweep_grid.contenders(checkpoints, asked, {"eta": "3"})
    assert [one.name for one in found] == [
        "md4 ancestral",
        "md4 remasking:rule=rate,eta=2",
        "ar ancestral",
        "ggm parallel",
        "ggm gated",
    ]
    assert found[1].options == {"rule": "rate", "eta": 2.0}  # its own word before that for all
    every = sweep_grid.cells(found, [4, 2], [0.5, 1.0], [1.0])
    alike = [cell for cell in every if cell.num_steps is None]
    assert {cell.contender.name for cell in alike} == {"ar ancestral", "ggm gated"}
    assert len(alike) == 2 * 2
    assert [cell.num_steps for cell in every[len(alike) :]] == [2] * 6 + [4] * 6


def test_what_one_family_cannot_do_is_left_out_and_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """GGM's three sweeps need three steps."""
    write(Path("runs/ggm/last.ckpt"), "ggm")
    ggm = ["--ckpt_path", "runs/ggm/last.ckpt", *SMALL, "--sampler", "parallel"]
    main(["sweep", *ggm])
    said = capsys.readouterr().err
    assert "left out: parallel, 2 steps, temperature 0.5: num_steps is 2" in said
    assert [row["steps"] for row in table()] == ["", "5", "5"]
    assert "num_steps is 2" in Path("out/sweep.html").read_text()
    stopped([*ggm, "--num_steps", "2"], 2)
    assert "no cell could be drawn: num_steps is 2" in capsys.readouterr().err


REFUSED = {
    "one sample": ([*MD4, "--num_samples", "1"], "num_samples is 1"),
    "twice": ([*MD4, "--num_steps", "4", "4"], "names a value twice: 4 4"),
    "no steps": ([*MD4, "--num_steps", "0"], "num_steps is 0"),
    "temperature": ([*MD4, "--temperature", "-1"], "temperature"),
    "nothing behind": ([*MD4, "--num_steps"], "--num_steps needs at least one value"),
    "same checkpoint": ([*MD4, "--ckpt_path", "runs/md4/last.ckpt", "runs/md4/last.ckpt"], "holds the same as"),
    "sampler": ([*MD4, "--sampler", "parallel"], "'parallel' is unknown to MD4"),
    "option": ([*MD4, "--sampler.rule", "rate"], "no sampler of this sweep has that option"),
    "its option": ([*MD4, "--sampler", "remasking:colour=red"], "colour"),
    "word": ([*MD4, "--sampler", "remasking:rule"], "NAME:option=value"),
    "axis": ([*MD4, "--sampler", "ancestral:temperature=.5"], "is an axis of the sweep"),
    "judge": ([*MD4, "--judge", "runs/md4/last.ckpt"], "holds a MD4; give an AutoregressiveModel"),
    "folder": ([*MD4, "--out", "runs"], "holds files that are no sweep"),
    "file": ([*MD4, "--out", "runs/md4/last.ckpt"], "a file is there"),
    "label": ([*MD4, "--label", "1"], "knows no classes"),
    "order": ([*MD4, "--order", "40"], "more than can be counted"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_any_work(place: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    arguments, words = REFUSED[name]
    assert words in error_of(capsys, *arguments)
    assert not Path("out").exists()


def test_another_alphabet_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("runs/other/last.ckpt"), "ar", codec=Characters("abcdefg", unknown=None))
    said = error_of(capsys, *MD4, "--judge", "runs/other/last.ckpt")
    assert "--judge runs/other/last.ckpt is a model of 11 tokens of Characters" in said
    assert "compare models of the same data" in said
    said = error_of(capsys, *MD4, "--ckpt_path", "runs/md4/last.ckpt", "runs/other/last.ckpt")
    assert "other is a model of 11 tokens of Characters" in said
    write(Path("runs/same/last.ckpt"), "ar", codec=Integers(V))
    main(["sweep", *MD4, "--num_steps", "2", "--judge", "runs/same/last.ckpt"])  # control: it can be met


def test_pictures_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_family("runs/md4/last.ckpt", "cpu")
    loaded.model.shape = (3, 5)
    with pytest.raises(ValueError, match=r"shape \(3, 5\) are no sequences of tokens"):
        sweep_judges.refuse_unlike({"digits": loaded})
    loaded.model.shape, loaded.model.num_classes, loaded.model.codec = (N,), 1024, Integers(1024)
    with pytest.raises(ValueError, match="give --judge, the checkpoint of an AutoregressiveModel"):
        sweep_judges.refuse_many_classes(loaded.model)


def test_the_judge_has_not_counted_the_real_rows() -> None:
    rows = torch.arange(14 * N).reshape(14, N)
    court = sweep_judges.counted(rows, 14 * N, order=1, most=5)
    assert len(court.real) == 5
    judge: Any = court.judge
    assert judge.rows == sweep_judges.hash_of(rows[1::2])
    assert not set(court.real[:, 0].tolist()) & set(rows[1::2][:, 0].tolist())
    with pytest.raises(ValueError, match="have 3 rows"):
        sweep_judges.counted(rows[:3], 14 * N, order=1, most=4)


def test_damaged_samples_are_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["sweep", *MD4])
    name = next(iter(cells()))
    Path("out/cells", name, "samples.npz").write_bytes(b"")
    capsys.readouterr()
    main(["sweep", *MD4, "--judge", "runs/ar/last.ckpt"])
    assert f"{name}/samples.npz: cannot be read" in capsys.readouterr().err
    settings = json.loads(Path("out/cells", name, "settings.json").read_text())
    assert settings["num_samples"] == 6


def test_several_values_behind_one_key() -> None:
    given = ["--ckpt_path", "a, b.ckpt", "c.ckpt", "--seed", "1", "--num_steps=8", "--temperature", ".7", "1"]
    assert joined(given) == [
        "--seed",
        "1",
        '--ckpt_path=["a, b.ckpt", "c.ckpt"]',
        "--num_steps=[8]",
        "--temperature=[.7, 1]",
    ]
    assert joined(["--num_steps", "[8, 16]"]) == ["--num_steps=[8, 16]"]
    assert joined(["--num_steps", "8", "--num_steps", "16", "32"]) == ["--num_steps=[16, 32]"]


def test_names_of_checkpoints() -> None:
    names = ["runs/a/last.ckpt", "runs/b/best.ckpt", "x/c/last.ckpt", "y/c/last.ckpt"]
    assert sweep_grid.short_names(names) == ["a", "b/best", "x/c/last.ckpt", "y/c/last.ckpt"]


def test_time_left(place: Path) -> None:
    """By the nearest number of steps of the same sampler, in proportion."""
    checkpoints = {"md4": load_family("runs/md4/last.ckpt", "cpu")}
    found = sweep_grid.contenders(checkpoints, ["ancestral", "first_hitting"], {})
    first, *others = sweep_grid.cells(found, [2, 8], [1.0], [1.0])
    assert first.num_steps is None
    assert sweep_grid.seconds_left([], others) is None
    assert sweep_grid.seconds_left([(first, 3.0)], others) == 6.0
    assert sweep_grid.seconds_left([(first, 3.0), (others[0], 5.0)], others[1:]) == 20.0
