"""Altered shards: every changed byte is found by exactly the windows that touch its block, in every process."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from ggm_lightning.codecs.text import Integers
from ggm_lightning.data import blocks, shard_writer, tokens
from ggm_lightning.data.header import HEADER, read_header, sealed, staleness
from ggm_lightning.data.rows import check_ids
from ggm_lightning.data.tokens import TokenShards, Windows, write_shards
from tests.data.loaders import all_of

V, N, SHARD = 11, 101, 17  # files of 34 bytes: blocks of 16, 16 and 2 bytes
IDS = np.random.default_rng(0).integers(V, size=N)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shard_writer, "BLOCK_BYTES", 16)
    write_shards(tmp_path, Integers(V), {"train": [IDS], "val": [IDS[:23]]}, shard_tokens=SHARD)
    return tmp_path


def _flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def _block(token: int) -> tuple[int, int]:
    """(file, block of 8 tokens) by definition."""
    return token // SHARD, token % SHARD // 8


@pytest.mark.parametrize(("number", "byte"), [(0, 0), (0, 33), (2, 15), (2, 16), (5, 31)])
@pytest.mark.parametrize("length", [1, 5, 9, 40])
def test_exactly_the_windows_that_touch_the_block_fail(folder: Path, number: int, byte: int, length: int) -> None:
    _flip(folder / f"train-0000{number}.bin", byte)
    damaged = (number, byte // 16)
    end = min(byte // 16 * 16 + 16, 34 if number < 5 else 32) - 1
    fresh, failed = TokenShards(folder), 0
    for start in range(N - length + 1):
        touches = damaged in {_block(token) for token in range(start, start + length)}
        failed += touches
        if not touches:
            assert fresh.read("train", np.array([start]), length)[0].tolist() == IDS[start : start + length].tolist()
            continue
        message = (
            rf"train-0000{number}.bin: bytes {byte // 16 * 16}..{end} were altered .*; delete .* prepare it again$"
        )
        for shards in (fresh, TokenShards(folder)):  # whether its neighbours were read before or not
            with pytest.raises(ValueError, match=message):
                shards.read("train", np.array([start]), length)
    assert 0 < failed < N - length + 1
    assert np.array_equal(fresh.read("val", np.array([0]), 23)[0], IDS[:23])  # control: the other split is whole


def test_a_block_is_compared_once_in_a_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    crc32 = blocks.zlib.crc32
    monkeypatch.setattr(blocks.zlib, "crc32", lambda raw: (seen.append(raw), crc32(raw))[1])
    shards = TokenShards(folder)
    starts = np.arange(N - 5 + 1)
    for _ in range(3):
        shards.read("train", starts, 5)
    whole = b"".join((folder / f"train-0000{i}.bin").read_bytes() for i in range(6))
    assert b"".join(seen) == whole
    assert [len(raw) for raw in seen] == [16, 16, 2] * 5 + [16, 16]


def test_a_small_split_is_compared_before_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the check of all ids at setup; a large split (control) is left to the first touch."""
    _flip(folder / "train-00005.bin", 31)
    with pytest.raises(ValueError, match=r"train-00005.bin: bytes 16..31 were altered"):
        check_ids(Windows(TokenShards(folder), "train", 5), V, "train")
    monkeypatch.setattr(tokens, "SCAN_LIMIT", N - 1)
    check_ids(Windows(TokenShards(folder), "train", 5), V, "train")


def test_a_worker_checks_what_it_touches_and_says_so_in_one_line(folder: Path) -> None:
    """The parent has compared everything; then a byte changes. Control: a loader before the change."""
    windows = Windows(TokenShards(folder), "train", 5)
    check_ids(windows, V, "train")
    where: dict[str, Any] = {"batch_size": None, "num_workers": 1, "multiprocessing_context": "fork"}
    indices = [[i] for i in range(len(windows))]
    assert len(all_of(DataLoader(windows, sampler=indices, **where))) == len(windows) == 20
    _flip(folder / "train-00003.bin", 20)
    with pytest.raises(
        ValueError, match=r"^/.*train-00003.bin: bytes 16..31 were altered .* prepare it again$"
    ) as error:
        all_of(DataLoader(windows, sampler=indices, **where))
    assert "Traceback" not in str(error.value)


def test_what_was_compared_is_not_pickled(folder: Path) -> None:
    windows = Windows(TokenShards(folder), "train", 5)
    check_ids(windows, V, "train")
    _flip(folder / "train-00003.bin", 20)
    with pytest.raises(ValueError, match="were altered"):
        pickle.loads(pickle.dumps(windows))[[12]]


def test_a_shard_cut_short_after_the_start(folder: Path) -> None:
    """Before its first touch: an error that names the bytes, not a crash in the memory map."""
    shards = TokenShards(folder)
    shards.read("train", np.array([0]), 5)
    path = folder / "train-00002.bin"
    shards.read("train", np.array([34]), 2)  # maps the file, and compares its first block only
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"train-00002.bin: expected 34 bytes, found 27; delete"):
        shards.read("train", np.array([42]), 3)
    path.unlink()
    with pytest.raises(ValueError, match=r"train-00002.bin: expected 34 bytes, the file is missing; delete"):
        shards.read("train", np.array([42]), 3)


def test_ids_out_of_range_under_good_checksums(tmp_path: Path) -> None:
    """Shards of another program, or of a wrong vocabulary: named with file and position, scanned or not."""
    ids = np.zeros(30, dtype=int)
    ids[SHARD + 6] = V - 1
    write_shards(tmp_path, Integers(V), {"train": [ids]}, shard_tokens=SHARD)
    (tmp_path / HEADER).write_bytes(sealed({**read_header(tmp_path), "num_classes": V - 1}))
    shards = TokenShards(tmp_path)
    place = r"train-00001.bin \(train split\): id 10 at position 6 is outside 0..9"
    with pytest.raises(ValueError, match=place):
        shards.read("train", np.array([0, SHARD - 3]), 11)
    with pytest.raises(ValueError, match=place):
        check_ids(Windows(shards, "train", 5), V - 1, "train")
    shards.read("train", np.array([0, SHARD - 3]), 9)  # control


def _edits() -> dict[str, Any]:
    """Changes of the header that a person might make, each leaving valid JSON."""

    def in_split(key: str, value: Any) -> Any:
        return lambda h: h["splits"]["train"].__setitem__(key, value)

    return {
        "tokens": in_split("tokens", 1000),
        "largest id": in_split("largest_id", 3),
        "file tokens": lambda h: h["splits"]["train"]["files"][0].update(tokens=16),
        "file name": lambda h: h["splits"]["train"]["files"][0].update(name="val-00000.bin"),
        "files of a wrong type": in_split("files", None),
        "block checksum": lambda h: h["splits"]["train"]["files"][0].update(crc32="0" * 24),
        "codec": lambda h: h["codec"].update(num_classes=12),
        "vocabulary": lambda h: h.update(num_classes=12),
        "text for a number": lambda h: h.update(num_classes="11"),
        "width": lambda h: h.update(dtype="uint8"),
        "tokenizer hash": lambda h: h.update(tokenizer_hash="0" * 64),
        "missing splits": lambda h: h.pop("splits"),
        "missing codec": lambda h: h.pop("codec"),
        "missing seal": lambda h: h.pop("seal"),
        "another seal": lambda h: h.update(seal=5),
        "added key": lambda h: h.update(note="mine"),
    }


@pytest.mark.parametrize("what", _edits())
def test_an_edited_header_never_loads(folder: Path, what: str) -> None:
    path = folder / HEADER
    header = json.loads(path.read_bytes())
    path.write_text(json.dumps(header))  # control: other spacing is the same header
    TokenShards(folder)
    _edits()[what](header)
    path.write_text(json.dumps(header))
    message = "altered after it was written (its seal does not fit)"
    with pytest.raises(ValueError, match=r"header.json: .*; delete /.* and prepare it again$") as error:
        TokenShards(folder)
    assert message in str(error.value)
    assert staleness(folder, options={}, source=[]) == f"header.json is {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"not valid JSON \(Expecting value"),
        (b'{"format": 2,', "not valid JSON"),
        (b'{"\xff": 2}', r"not valid JSON \('utf-8' codec can't decode byte 0xff in position 2"),
        (b"[" * 100_000, r"not valid JSON \(maximum recursion depth"),
        (b'{"format": 1, "num_classes": 11}', "format 1, this version reads 2"),
    ],
)
def test_a_broken_header_never_loads(folder: Path, content: bytes, message: str) -> None:
    (folder / HEADER).write_bytes(content)
    with pytest.raises(ValueError, match=rf"header.json: {message}.*; delete /.* and prepare it again$") as error:
        TokenShards(folder)
    assert "\n" not in str(error.value)
    assert str(staleness(folder, options={}, source=[])).startswith("header.json is ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": "pixels-1"}', "of format pixels-1, no shards of ours"),
        ("{}", "of format None, no shards of ours"),
        ('{"http": {"accept": "*/*"}}', "of format None, no shards of ours"),
        ("[1, 2]", "a list, no header of ours"),
    ],
)
def test_something_elses_header_is_neither_read_nor_replaced(folder: Path, content: str, message: str) -> None:
    (folder / HEADER).write_text(content)
    for attempt in (lambda: TokenShards(folder), lambda: staleness(folder, options={}, source=[])):
        with pytest.raises(ValueError, match=rf"{message}; choose another data\.folder"):
            attempt()


def test_a_codec_that_this_version_reads_differently(folder: Path) -> None:
    (folder / HEADER).write_bytes(sealed({**read_header(folder), "tokenizer_hash": "0" * 64}))
    with pytest.raises(ValueError, match="the codec does not have the stated tokenizer_hash; delete"):
        _ = TokenShards(folder).codec


def test_the_header_of_nine_billion_tokens_stays_small() -> None:
    """18 GB in 34 shards: 137 KiB of block checksums; a tokenizer of 50,257 ids beside it is 2 MB."""
    digest = blocks.FileDigest(blocks.BLOCK_BYTES)
    digest.update(bytes(3 * blocks.BLOCK_BYTES + 5))
    assert len(digest.to_dict()["crc32"]) == 8 * 4
    assert 8 * 2 * 9e9 / blocks.BLOCK_BYTES < 140 * 1024
