"""Fingerprints follow names, sizes and contents, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ggm_lightning.data import fingerprints
from ggm_lightning.data.fingerprints import fingerprint, folder_fingerprint


def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("hello" * 1000)
    before = fingerprint(path)
    os.utime(path, (0, 0))
    assert fingerprint(path) == before
    monkeypatch.setattr(fingerprints, "_WHOLE", 100)
    monkeypatch.setattr(fingerprints, "_BLOCK", 10)
    sampled = fingerprint(path)
    assert sampled["bytes"] == 5000
    assert sampled != before
    for changed in ("HELLO" + "hello" * 999, "hello" * 999 + "HELLO"):  # the first and the last block are read
        path.write_text(changed)
        assert fingerprint(path) != sampled


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five files of which three, the first and the last among them, are read."""
    monkeypatch.setattr(fingerprints, "_PROBED", 3)
    names = [f"{i}.png" for i in range(5)]

    def of(contents: list[str], names: list[str] = names) -> str:
        for name, content in zip(names, contents, strict=True):
            (tmp_path / name).write_text(content)
        return folder_fingerprint(tmp_path, names)["sha256"]

    before = of(["aa"] * 5)
    os.utime(tmp_path / "0.png", (0, 0))
    assert folder_fingerprint(tmp_path, names) == {"name": tmp_path.name, "files": 5, "sha256": before}
    for i in range(5):
        swapped = ["aa"] * 5
        swapped[i] = "bb"
        assert (of(swapped) != before) == (i in {0, 2, 4}), i
        swapped[i] = "aaa"
        assert of(swapped) != before
    renamed = [*names[:3], "5.png", names[4]]
    assert of(["aa"] * 5, renamed) != before
    assert of(["aa"] * 5) == before
