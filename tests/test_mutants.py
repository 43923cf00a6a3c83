"""The mutants' own runner, on a package of three lines; and that no mutant of the table is stale."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.mutants import runner
from tests.mutants.__main__ import HERE, ROOT, TABLES
from tests.mutants.runner import Mutant

SOURCE = "def half(x):\n    return x / 2\n\n\ndef unwatched(x):\n    return x + 1\n"
TEST = """
import pytest
from ggm_lightning.area.maths import half

def test_half():
    assert half(4) == 2

def test_nothing():
    assert half

def test_wrong():
    assert half(4) == 3
"""
judge = partial(runner.judge, preload=("pytest",))
GOOD, IDLE = "tests/test_maths.py::test_half", "tests/test_maths.py -k nothing"


def mutant(name: str, old: str, new: str, test: str = GOOD, file: str = "area/maths.py") -> Mutant:
    return Mutant(name, file, old, new, test)


KILLED = mutant("doubles", "x / 2", "x * 2")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # of which some import torch, for seconds
    for folder in ("ggm_lightning/area", "tests"):
        (tmp_path / folder).mkdir(parents=True)
    for package in ("ggm_lightning", "ggm_lightning/area", "tests"):
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "ggm_lightning/area/maths.py").write_text(SOURCE)
    (tmp_path / "tests/test_maths.py").write_text(TEST)
    return tmp_path


def contents(tree: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()}


def test_killed_survived_and_broken_are_told_apart_and_the_tree_stays(tree: Path) -> None:
    before, said = contents(tree), []
    mutants = [
        KILLED,
        mutant("not looked at", "x + 1", "x - 1"),  # control: the test does not call it
        mutant("looked at idly", "x / 2", "x * 2", IDLE),  # control: the test looks, but not at the value
        mutant("no name", "x / 2", "y / 2"),
        mutant("no syntax", "x / 2", "x / / 2"),
    ]
    results = judge(mutants, tree, said.append)
    assert [result.verdict for result in results] == ["killed", "SURVIVED", "SURVIVED", "BROKEN", "BROKEN"]
    assert results[3].said.startswith("NameError: name 'y' is not defined")
    assert contents(tree) == before
    assert len(said) == 5 + 2  # each of two tests is asked once by itself
    assert said[-1].endswith(" 0 min 0 s left")
    lines = runner.table(results).splitlines()
    assert "doubles" in lines[1]
    assert lines[-1] == "1 of 5 mutants killed"


@pytest.mark.parametrize(
    ("stale", "message"),
    [
        (mutant("gone", "x / 3", "x * 3"), "gone: stale, 'x / 3' stands 0 times in ggm_lightning/area/maths.py"),
        (mutant("both", "return x", "return -x"), "both: stale, 'return x' stands 2 times"),
        (mutant("moved", "x / 2", "x * 2", file="area/other.py"), "moved: stale, there is no file"),
        (mutant("untested", "x / 2", "x * 2", "tests/test_gone.py"), r"untested: stale, there is no test tests/test_g"),
        (mutant("same", "x / 2", "x / 2"), "same: it must change something"),
        (mutant("doubles", "x + 1", "x - 1"), "doubles: the name is taken twice"),
    ],
)
def test_a_stale_mutant_stops_everything(tree: Path, stale: Mutant, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge([KILLED, stale], tree, lambda line: pytest.fail("a test has run"))


def test_a_test_that_fails_by_itself_kills_nothing(tree: Path) -> None:
    alone = mutant("doubles", "x / 2", "x * 2", "tests/test_maths.py::test_wrong")
    with pytest.raises(ValueError, match=r"test_wrong does not pass without a mutant \(failed: .*mend it first"):
        judge([alone], tree, lambda line: None)


def test_the_table_fits_the_package() -> None:
    mutants = runner.load(TABLES)
    runner.check(mutants, ROOT)
    assert len(mutants) >= 60
    assert sorted(HERE.glob("*.yaml")) == sorted(TABLES)
    for room in ("core", "models", "sampling", "callbacks", "data"):
        assert any(each.file.startswith(f"{room}/") for each in mutants)
