"""Shards: what was written is what is read, what is unfinished or damaged never loads, and errors say what to do."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggm_lightning.codecs.text import Bytes, Integers
from ggm_lightning.data import shard_writer
from ggm_lightning.data.header import staleness
from ggm_lightning.data.prepared import folder_lock
from ggm_lightning.data.shard_writer import ShardWriter
from ggm_lightning.data.tokens import TokenShards, Windows, write_shards

V = 11


def _ids(n: int, seed: int = 0, num_classes: int = V) -> np.ndarray:
    return np.random.default_rng(seed).integers(num_classes, size=n)


def _shards(folder: Path, train: int = 101, val: int = 23, shard_tokens: int = 17) -> tuple[TokenShards, np.ndarray]:
    ids = _ids(train)
    documents = [ids[:5], ids[5:5], ids[5:60], ids[60:]]
    shards = write_shards(folder, Integers(V), {"train": documents, "val": [_ids(val, 1)]}, shard_tokens=shard_tokens)
    return shards, ids


@pytest.mark.parametrize(("num_classes", "dtype"), [(2, "uint16"), (65536, "uint16"), (65537, "uint32")])
def test_ids_keep_their_width(tmp_path: Path, num_classes: int, dtype: str) -> None:
    ids = np.array([0, 1, num_classes - 1, 1])
    shards = write_shards(tmp_path, Integers(num_classes), {"train": [ids]})
    assert shards.header["dtype"] == dtype
    assert (tmp_path / "train-00000.bin").stat().st_size == 4 * np.dtype(dtype).itemsize
    assert shards.read("train", np.array([0]), 4).tolist() == [ids.tolist()]
    assert shards.header["splits"]["train"]["largest_id"] == num_classes - 1


def test_reading_crosses_files_and_the_header_counts(tmp_path: Path) -> None:
    shards, ids = _shards(tmp_path)
    assert [f["tokens"] for f in shards.header["splits"]["train"]["files"]] == [17, 17, 17, 17, 17, 16]
    assert shards.tokens("train") == 101
    assert shards.documents("train") == 4
    for length in (1, 5, 17, 18, 40, 101):
        starts = np.arange(101 - length + 1)
        assert np.array_equal(shards.read("train", starts, length), ids[starts[:, None] + np.arange(length)])
    with pytest.raises(IndexError, match="exceed 101"):
        shards.read("train", np.array([97]), 5)
    with pytest.raises(ValueError, match="no test split, only train, val"):
        shards.tokens("test")


@pytest.mark.parametrize(("length", "stride"), [(7, None), (7, 1), (7, 3), (101, None), (30, 50)])
def test_windows_by_definition(tmp_path: Path, length: int, stride: int | None) -> None:
    shards, ids = _shards(tmp_path)
    windows = Windows(shards, "train", length, stride)
    step = stride or length
    expected = [ids[s : s + length].tolist() for s in range(0, 101 - length + 1, step)]
    assert len(windows) == len(expected)
    assert windows[list(range(len(windows)))]["x"].tolist() == expected
    assert windows[0]["x"].tolist() == expected[0]
    with pytest.raises(IndexError):
        windows[len(windows)]


def test_a_window_longer_than_the_data_names_both_numbers(tmp_path: Path) -> None:
    shards, _ = _shards(tmp_path)
    with pytest.raises(
        ValueError, match=r"sequence longer than the data: data.length is 24, .* val split has 23 tokens"
    ):
        Windows(shards, "val", 24)
    with pytest.raises(ValueError, match="at least 1"):
        Windows(shards, "val", 5, 0)


def test_a_truncated_shard_names_file_bytes_and_remedy(tmp_path: Path) -> None:
    _shards(tmp_path)
    path = tmp_path / "train-00001.bin"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"train-00001.bin: expected 34 bytes, found 31; delete .* prepare it again"):
        TokenShards(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"train-00001.bin: expected 34 bytes, the file is missing; delete"):
        TokenShards(tmp_path)


def test_damage_that_keeps_the_size_is_found(tmp_path: Path) -> None:
    shards, _ = _shards(tmp_path)
    shards.verify()
    path = tmp_path / "train-00002.bin"
    raw = np.fromfile(path, dtype="<u2")
    raw[4] = (raw[4] + 1) % V
    raw.tofile(path)
    with pytest.raises(ValueError, match=r"train-00002.bin: sha256"):
        TokenShards(tmp_path).verify()


def _write_and_die(folder: Path, when: int) -> None:
    """Three shards of at most ten tokens; the process is gone before the file number `when` gets its name."""
    publish, calls = shard_writer._publish, [0]

    def dying(*args: Any) -> None:
        if calls[0] == when:
            os._exit(9)
        calls[0] += 1
        publish(*args)

    shard_writer._publish = dying
    writer = ShardWriter(folder, Integers(V), shard_tokens=10)
    writer.add("train", np.zeros(25, dtype=int))
    writer.close()


@pytest.mark.parametrize("when", [0, 2, 3])
def test_a_writer_killed_before_the_header_leaves_nothing_to_load(tmp_path: Path, when: int) -> None:
    """Killed before the first of three shards, before the last, and between the last and the header."""
    _shards(tmp_path)  # an older, complete build lies there
    child = multiprocessing.get_context("fork").Process(target=_write_and_die, args=(tmp_path, when))
    child.start()
    child.join(60)
    assert child.exitcode == 9
    with pytest.raises(FileNotFoundError, match=r"no header.json, so no finished token shards"):
        TokenShards(tmp_path)
    rebuilt, ids = _shards(tmp_path)
    rebuilt.verify()
    assert rebuilt.read("train", np.array([0]), 101)[0].tolist() == ids.tolist()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_writer_that_fails_leaves_nothing_to_load(tmp_path: Path) -> None:
    def failing() -> None:
        with ShardWriter(tmp_path, Integers(V)) as writer:
            writer.add("train", np.zeros(5, dtype=int))
            raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        failing()
    with pytest.raises(FileNotFoundError):
        TokenShards(tmp_path)


def test_a_smaller_rebuild_removes_old_shards_and_nothing_else(tmp_path: Path) -> None:
    _shards(tmp_path)
    (tmp_path / "pytorch_model-00001.bin").write_bytes(b"someone's weights")
    (tmp_path / "notes.txt").write_text("mine")
    _shards(tmp_path, train=10, val=3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["header.json", "notes.txt", "pytorch_model-00001.bin", "train-00000.bin", "val-00000.bin"]


def test_foreign_ids_are_not_written(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, Integers(V)) as writer:
        writer.add("train", np.array([3]))
        for wrong in (V, -1):
            with pytest.raises(ValueError, match=rf"\(train split\): id {wrong} at position 2 is outside 0..10"):
                writer.add("train", np.array([0, wrong]))
        for ids in (np.array([1.5]), np.array([np.nan]), np.array([[1, 2]]), np.array([True])):
            with pytest.raises(ValueError, match=rf"train: ids of dtype {ids.dtype}, shape .*; give integers"):
                writer.add("train", ids)
    assert TokenShards(tmp_path).tokens("train") == 1


def test_pickling_carries_no_tokens(tmp_path: Path) -> None:
    """A spawned worker gets the header and maps the files itself."""
    shards = write_shards(tmp_path, Integers(V), {"train": [_ids(100_000)]})
    windows = Windows(shards, "train", 100)
    expected = windows[[3, 999]]["x"]
    raw = pickle.dumps(windows)
    assert len(raw) < 5000
    assert (pickle.loads(raw)[[3, 999]]["x"] == expected).all()


def test_two_builds_are_identical_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _shards(tmp_path / name)
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()
    }


def test_staleness_says_what_differs(tmp_path: Path) -> None:
    how = {"options": {"fraction": 0.1}, "source": [{"name": "a.txt", "sha256": "1"}]}
    assert staleness(tmp_path, **how) == "no finished shards there"
    write_shards(tmp_path, Bytes(), {"train": [np.array([1])]}, **how)
    assert staleness(tmp_path, **how) is None
    assert staleness(tmp_path, **how, tokenizer_hash=Bytes().tokenizer_hash) is None
    assert staleness(tmp_path, **how, tokenizer_hash="other") == "made with another tokenizer"
    assert "(fraction)" in str(staleness(tmp_path, options={"fraction": 0.2}, source=how["source"]))
    assert "source files differ" in str(staleness(tmp_path, options=how["options"], source=[]))


def test_the_lock_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom ggm_lightning.rundir.lock import FolderLock, Held\n"
        "try:\n    FolderLock(sys.argv[1]).take()\nexcept Held:\n    sys.exit(5)\n"
    )
    with folder_lock(tmp_path):
        assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 5
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0
