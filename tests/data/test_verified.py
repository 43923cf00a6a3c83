"""A set is compared with its checksums once for each node and preparation; altered shards are found all the same."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from ggm_lightning.codecs.text import Integers
from ggm_lightning.data import blocks, shard_writer, verified
from ggm_lightning.data.rows import check_ids
from ggm_lightning.data.tokens import TokenShards, Windows, write_shards
from tests.data.loaders import all_of

V, N, SHARD = 11, 101, 17  # files of 34 bytes: blocks of 16, 16 and 2 bytes
IDS = np.random.default_rng(0).integers(V, size=N)
BLOCKS, VAL_BLOCKS = 17, 4


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shards that were written a while ago."""
    monkeypatch.setattr(shard_writer, "BLOCK_BYTES", 16)
    write_shards(tmp_path, Integers(V), {"train": [IDS], "val": [IDS[:23]]}, shard_tokens=SHARD)
    _dated(tmp_path, 100)
    return tmp_path


def _dated(folder: Path, seconds_ago: float) -> None:
    date = time.time() - seconds_ago
    for path in folder.glob("*.bin"):
        os.utime(path, (date, date))


def _flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the blocks that are compared from here on."""
    sizes: list[int] = []
    crc32 = blocks.zlib.crc32
    monkeypatch.setattr(blocks.zlib, "crc32", lambda raw, *more: (sizes.append(len(raw)), crc32(raw, *more))[1])
    return sizes


def _read_all(shards: TokenShards) -> None:
    found = shards.read("train", np.arange(N - 5 + 1), 5)
    assert np.array_equal(found[:, 0], IDS[: N - 4])


def test_a_second_start_compares_nothing_again(folder: Path, compared: list[int]) -> None:
    _read_all(TokenShards(folder))
    assert len(compared) == BLOCKS
    again = TokenShards(folder)
    _read_all(again)
    check_ids(Windows(again, "train", 5), V, "train")
    assert len(compared) == BLOCKS
    again.read("val", np.array([0]), 23)  # the other split was not touched yet
    assert len(compared) == BLOCKS + VAL_BLOCKS


def test_processes_share_what_they_have_compared(folder: Path, compared: list[int]) -> None:
    """Two that run side by side, each with half of the windows, and one that has begun before both."""
    one, two, three = (TokenShards(folder) for _ in range(3))
    three.read("val", np.array([0]), 23)
    one.read("train", np.arange(40), 5)
    compared.clear()
    two.read("train", np.arange(40), 5)
    assert compared == []
    two.read("train", np.arange(40, N - 4), 5)
    assert 0 < len(compared) < BLOCKS
    compared.clear()
    _read_all(one)
    _read_all(three)
    assert compared == []


@pytest.mark.parametrize("name", ["train-00003.bin", "val-00000.bin"])
def test_an_altered_shard_is_found_after_all_was_compared(folder: Path, name: str) -> None:
    """At the start and by the loader's processes, before a row of it is handed out. Control: before it was altered."""
    check_ids(Windows(TokenShards(folder), "train", 5), V, "train")
    check_ids(Windows(TokenShards(folder), "val", 5), V, "val")
    split = name.partition("-")[0]
    running = Windows(TokenShards(folder), split, 5)
    where = {"batch_size": None, "num_workers": 1, "multiprocessing_context": "fork"}
    indices = [[i] for i in range(len(running))]
    assert len(all_of(DataLoader(running, sampler=indices, **where))) == len(running)
    _flip(folder / name, 20)
    message = rf"{name}: bytes 16..31 were altered .*; delete .* prepare it again$"
    with pytest.raises(ValueError, match=message):
        check_ids(Windows(TokenShards(folder), split, 5), V, split)
    with pytest.raises(ValueError, match=message):
        all_of(DataLoader(running, sampler=indices, **where))


def test_a_shard_of_the_same_date_and_size_at_another_place_is_compared(folder: Path, compared: list[int]) -> None:
    """As copying a folder with its dates leaves it."""
    _read_all(TokenShards(folder))
    path = folder / "train-00003.bin"
    date = path.stat().st_mtime_ns
    raw = bytearray(path.read_bytes())
    raw[20] ^= 1
    (folder / "new").write_bytes(raw)
    os.utime(folder / "new", ns=(date, date))
    os.replace(folder / "new", path)
    with pytest.raises(ValueError, match=r"train-00003.bin: bytes 16..31 were altered"):
        _read_all(TokenShards(folder))


def test_what_was_compared_with_another_header_is_compared_again(folder: Path, compared: list[int]) -> None:
    _read_all(TokenShards(folder))
    write_shards(folder, Integers(V), {"train": [IDS[::-1]], "val": [IDS[:23]]}, shard_tokens=SHARD)
    _dated(folder, 100)
    compared.clear()
    TokenShards(folder).read("train", np.arange(N - 4), 5)
    assert len(compared) == BLOCKS


def test_shards_that_were_just_written_are_not_remembered(folder: Path, compared: list[int]) -> None:
    """They might be changed once more without another date."""
    _dated(folder, -100)  # newer than any reading of them, however long this test waits for a core
    for times in (1, 2):
        _read_all(TokenShards(folder))
        assert len(compared) == times * BLOCKS
    assert not list(folder.glob(".verified-*"))


@pytest.mark.slow
def test_where_the_folder_cannot_be_written_each_process_compares_for_itself(
    folder: Path, compared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(verified, "_begin", read_only)
    for times in (1, 2):
        _read_all(TokenShards(folder))
        assert len(compared) == times * BLOCKS


@pytest.mark.slow
def test_nothing_is_left_in_the_folder_of_another_user(
    folder: Path, compared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it could be written, as by root. Control: in one's own it is remembered."""
    before = sorted(folder.iterdir())
    owner = os.geteuid()
    monkeypatch.setattr(verified.os, "geteuid", lambda: owner + 1)
    _read_all(TokenShards(folder))
    assert sorted(folder.iterdir()) == before
    _read_all(TokenShards(folder))
    assert len(compared) == 2 * BLOCKS
    monkeypatch.undo()
    TokenShards(folder).read("train", np.array([0]), 5)
    assert len(sorted(folder.iterdir())) == len(before) + 1


def test_a_spoiled_memory_is_begun_anew(folder: Path, compared: list[int]) -> None:
    _read_all(TokenShards(folder))
    (memory,) = folder.glob(".verified-*")
    assert memory.stat().st_size == 32 + BLOCKS + VAL_BLOCKS
    for content in (b"", memory.read_bytes()[:-1], b"x" * memory.stat().st_size):
        memory.write_bytes(content)
        compared.clear()
        _read_all(TokenShards(folder))
        assert len(compared) == BLOCKS
        compared.clear()
        _read_all(TokenShards(folder))
        assert compared == []


def test_two_that_begin_at_once_share_one_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second finds the first's file between its own look and its own attempt."""
    begin, first = verified._begin, []

    def both(path: Path, digest: bytes, count: int) -> None:
        begin(path, digest, count)
        first.append(path.stat().st_ino)
        monkeypatch.setattr(Path, "exists", lambda self: False)  # as it was when the second looked
        begin(path, digest, count)

    monkeypatch.setattr(verified, "_begin", both)
    _read_all(TokenShards(folder))
    (memory,) = folder.glob(".verified-*")
    assert first == [memory.stat().st_ino]
    assert not list(folder.glob("*.tmp"))


def test_the_same_shards_under_another_seal_are_compared_again(folder: Path) -> None:
    """Dates alone do not say with which checksums they were compared: the header may have been exchanged since."""
    names = sorted(path.name for path in folder.glob("*.bin"))
    verified.remembered(folder, "a", names, 3)[:] = 1
    assert verified.remembered(folder, "a", names, 3).tolist() == [1, 1, 1]
    assert verified.remembered(folder, "b", names, 3).tolist() == [0, 0, 0]
