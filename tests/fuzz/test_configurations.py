"""Generated configurations: valid ones instantiate and train a step, invalid ones end in one line that says where.

Each test counts its cases and asserts on the counts, so that the check cannot shrink unnoticed.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ggm_lightning.rundir.sections import differences
from tests.fuzz import faults, structure
from tests.fuzz.strategies import Tree, configurations, corpus
from tests.fuzz.writing import Case, leaves, refused, run, written

STRUCTURE = (structure.unknown_keys, structure.wrong_classes, structure.missing_parts)
FILES = (structure.broken_files, structure.broken_includes, structure.wrong_commands)


@pytest.fixture(scope="module")
def files() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield corpus(Path(folder))


@pytest.fixture(autouse=True)
def _no_traceback_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GGM_DEBUG", raising=False)


def check_all(strategy: st.SearchStrategy[Any], check: Callable[[Any], str], cases: int) -> Counter[str]:
    """`check` says the outcome of each of `cases` generated cases; the same cases every time."""
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=cases,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),  # shrinking would take minutes, and the first case says enough
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(case: Any) -> None:
        outcomes[check(case)] += 1

    each()
    return outcomes


def check_refused(case: Case) -> str:
    refused(case)
    return "refused"


@st.composite
def pairs(draw: st.DrawFn, files: Path) -> tuple[Tree, Case]:
    tree = draw(configurations(files))
    return tree, draw(written(tree))


def ran(case: Case) -> None:
    code, printed = run(case)
    assert code is None, f"a valid configuration was refused: {printed[-2000:]}\n{case}"


def check_trained(pair: tuple[Tree, Case]) -> str:
    ran(pair[1])
    return "trained a step"


def check_instantiated(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[Tree, Case]], str]:
    """Everything is built as for a run, from the values that were written; only the run itself is left out."""
    from ggm_lightning.cli import fit as trainer_cli

    built: list[Any] = []
    monkeypatch.setattr(trainer_cli._CLI, "_run_subcommand", lambda cli, command: built.append(cli))

    def check(pair: tuple[Tree, Case]) -> str:
        tree, case = pair
        built.clear()
        ran(case)
        (cli,) = built
        assert (cli.model.num_classes, cli.model.shape) == (cli.datamodule.num_classes, cli.datamodule.shape)
        assert cli.model.network.num_classes == cli.datamodule.num_classes
        assert cli.trainer.max_steps == 1
        resolved = dict(leaves(cli.model.resolved_config))
        for path, value in leaves(tree):
            if value == {} or path[-1] in ("callbacks", "check_val_every_n_epoch"):
                continue
            if path[-1] == "class_path":
                assert resolved[path].endswith(value), (path, case)
            elif path[-1] in ("precision", "devices"):
                assert str(resolved[path]) == str(value), case  # '1' and 1 are the same there
            else:
                assert differences(resolved[path], value) == [], (path, resolved[path], case)
        given = [c["class_path"].rsplit(".", 1)[-1] for c in tree["trainer"]["callbacks"]]
        assert [c for c in (type(c).__name__ for c in cli.trainer.callbacks) if c in given] == given, case
        return "instantiated"

    return check


# name: (strategies of invalid cases or None for valid ones, cases in `make test`, cases in `make test-slow`)
SETS: dict[str, tuple[tuple[Any, ...] | None, int, int]] = {
    "trained a step": (None, 4, 110),
    "instantiated": (None, 8, 100),
    "refused structure": (STRUCTURE, 12, 480),
    "refused files": (FILES, 12, 480),
}


def value_counts() -> list[int]:
    """For each key of WRONG_VALUES as many cases as it has wrong values, so that none is left out by chance."""
    return [len(values) for _, _, _, values in faults.WRONG_VALUES]


def test_the_slow_sets_are_large_enough() -> None:
    assert sum(slow for _, _, slow in SETS.values()) + sum(value_counts()) >= 2000
    assert SETS["trained a step"][2] >= 100


def check_set(name: str, cases: int, files: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What was found, to be printed."""
    kinds, began = SETS[name][0], time.process_time()
    if kinds is not None:
        outcomes = check_all(structure.invalid(files, kinds), check_refused, cases)
        assert outcomes["refused"] >= cases
    else:
        check = check_trained if name == "trained a step" else check_instantiated(monkeypatch)
        outcomes = check_all(pairs(files), check, cases)
        assert outcomes[name] >= cases
    return f"{name}: {dict(outcomes)}, {time.process_time() - began:.0f} s of processor time"


def check_values(files: Path, counts: dict[int, int]) -> str:
    """What was found, to be printed."""
    outcomes: Counter[str] = Counter()
    for number, cases in counts.items():
        outcomes += check_all(faults.bad_values(files, number), check_refused, cases)
    assert outcomes["refused"] >= sum(counts.values())
    return f"refused wrong values of {len(counts)} keys: {dict(outcomes)}"


def test_quick_wrong_values(files: Path) -> None:
    check_values(files, dict.fromkeys(range(0, len(faults.WRONG_VALUES), 5), 1))


@pytest.mark.slow
def test_slow_wrong_values(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = check_values(files, dict(enumerate(value_counts())))
    with capsys.disabled():
        print(f"\n{found}")


@pytest.mark.parametrize("name", SETS)
def test_quick_set(name: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_set(name, SETS[name][1], files, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_slow_set(name: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = check_set(name, SETS[name][2], files, monkeypatch)
    with capsys.disabled():
        print(f"\n{found}")
