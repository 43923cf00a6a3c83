"""What tests leave behind: nothing in runs/, where the user's own runs are."""

from __future__ import annotations

from pathlib import Path

import pytest

RUNS = Path(__file__).parents[1] / "runs"


def test_a_test_that_writes_into_runs_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a folder or a file, by a full or a relative path. Control: reading, and any other place."""
    monkeypatch.chdir(RUNS.parent)
    for write in (
        lambda: (RUNS / "left_behind").mkdir(parents=True),
        lambda: Path("runs", "left_behind.txt").write_text("x"),
    ):
        with pytest.raises(RuntimeError, match="a test writes into the user"):
            write()
    assert not list(RUNS.glob("left_behind*"))
    with pytest.raises(FileNotFoundError):
        (RUNS / "left_behind.txt").read_text()
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine.txt").write_text("x")
