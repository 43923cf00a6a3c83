"""Files that may be there already."""

from __future__ import annotations

from pathlib import Path

from ggm_lightning.rundir.folder import unused_path


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "bounds.csv"
    assert unused_path(file, b"first") == file
    file.write_bytes(b"first")
    assert unused_path(file, b"first") == file
    second = unused_path(file, b"second")
    assert second == tmp_path / "bounds-2.csv"
    second.write_bytes(b"second")
    assert unused_path(file, b"second") == second
    assert unused_path(file, b"third") == tmp_path / "bounds-3.csv"
