"""Flat files of pictures: what is written is read, what is unfinished, cut or altered is refused in one line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ggm_lightning.codecs.pictures import Images
from ggm_lightning.codecs.text import Bytes
from ggm_lightning.data.pixels import Mirrored, PixelData, PixelFile, PixelWriter, read_header
from ggm_lightning.data.rows import Rows, check_ids, check_labels
from ggm_lightning.data.tokens import write_shards

SHAPE = (3, 7, 5)
CODEC = Images(256, SHAPE)
OPTIONS, SOURCE = {"a": 1}, [{"name": "x", "bytes": 2}]


class Flat(PixelData):
    """Pictures that are given, in a folder that is given."""

    mirror, shape, official = False, SHAPE, {"train": 23, "val": 3}
    codec, options, folder = CODEC, OPTIONS, Path()

    def __init__(self, folder: Path, x: np.ndarray | None = None, **changed: Any) -> None:
        super().__init__()
        self.folder, self.x = folder, x
        self.__dict__.update(changed)

    def open_source(self) -> tuple[list, np.ndarray]:
        if self.x is None:
            raise FileNotFoundError("data.path: no pictures")
        return SOURCE, self.x

    def build(self, source: list, opened: np.ndarray) -> str:
        _write(self.folder, opened)
        return "; a note"


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(23, *SHAPE)).astype(np.uint8)


def _write(folder: Path, x: np.ndarray, label: np.ndarray | None = None) -> Path:
    with PixelWriter(folder, CODEC, options=OPTIONS, source=SOURCE) as writer:
        for start in range(0, len(x), 10):
            part = slice(start, start + 10)
            writer.add("train", x[part], None if label is None else label[part])
        writer.add("val", x[:2])
    return folder


def test_round_trip(tmp_path: Path, x: np.ndarray) -> None:
    rows = PixelFile(_write(tmp_path, x, np.arange(23)), "train")
    assert (len(rows), rows.shape) == (23, SHAPE)
    batch = rows[[22, 0, 7, 7]]
    assert (batch["x"].numpy() == x[[22, 0, 7, 7]]).all()
    assert batch["label"].tolist() == [22, 0, 7, 7]
    assert batch["x"].dtype == batch["label"].dtype == torch.int64
    assert "label" not in PixelFile(tmp_path, "val")[[1]]
    assert (rows[5]["x"].numpy() == x[5]).all()
    check_ids(rows, 256, "train")
    with pytest.raises(ValueError, match=r"train-labels.bin \(train split\): label 22 at position 22 is outside 0..21"):
        check_labels(rows, 22, "train")
    with pytest.raises(IndexError):
        rows[23]
    with pytest.raises(ValueError, match="no test split, only train, val"):
        PixelFile(tmp_path, "test")


def test_mirrored_batches_are_those_that_were_turned_as_int64(tmp_path: Path, x: np.ndarray) -> None:
    """The turning is done on bytes, before the cast: bit for bit what it would be behind it."""
    label = np.arange(23)
    for rows in (PixelFile(_write(tmp_path, x, label), "train"), Rows(x, label)):
        mirrored, index = Mirrored(rows), np.random.default_rng(1).integers(46, size=64)
        plain, turned = rows[index % 23], torch.from_numpy(index >= 23)
        expected = plain["x"].clone()
        expected[turned] = expected[turned].flip(-1)
        batch = mirrored[index]
        assert torch.equal(batch["x"], expected)
        assert torch.equal(batch["label"], plain["label"])
        assert not torch.equal(expected, plain["x"])  # control: turning changes these pictures
        assert batch["x"].is_contiguous()
        assert batch["x"].dtype == torch.int64
        assert torch.equal(rows[np.arange(23)]["x"], torch.from_numpy(x.astype(np.int64)))  # storage is as it was


def test_a_worker_gets_the_files_name_and_not_its_contents(tmp_path: Path, x: np.ndarray) -> None:
    rows = PixelFile(_write(tmp_path, np.repeat(x, 50, 0)), "train")
    rows[[0]]
    sent = pickle.dumps(rows)
    assert len(sent) < 10_000 < x.nbytes * 50
    assert (pickle.loads(sent)[[53]]["x"].numpy() == x[1]).all()


def test_an_unfinished_folder_is_not_loadable_and_left_clean(tmp_path: Path, x: np.ndarray) -> None:
    _write(tmp_path, x)

    def fail() -> None:
        with PixelWriter(tmp_path, CODEC, options=OPTIONS, source=SOURCE) as writer:
            writer.add("train", x)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with pytest.raises(FileNotFoundError, match=r"no header.json, so no finished pictures"):
        PixelFile(tmp_path, "train")
    assert not list(tmp_path.glob("*.tmp"))
    assert Flat(tmp_path).staleness(SOURCE) == "no finished pictures there"


def test_wrong_pictures_and_labels(tmp_path: Path, x: np.ndarray) -> None:
    cases = [
        ("uint8 \\[7, 5\\], not uint8 \\[3, 7, 5\\]", x[:, 0], None),
        ("int64 \\[3, 7, 5\\]", x.astype(np.int64), None),
        ("23 pictures but 3 labels", x, np.arange(3)),
    ]
    for message, images, labels in cases:
        with (
            pytest.raises(ValueError, match=message),
            PixelWriter(tmp_path, CODEC, options={}, source=[]) as writer,
        ):
            writer.add("train", images, labels)
    for first, second in ((None, np.arange(23)), (np.arange(23), None)):
        writer = PixelWriter(tmp_path, CODEC, options={}, source=[])
        writer.add("train", x, first)
        with pytest.raises(ValueError, match="46 pictures but 23 labels"):
            writer.add("train", x, second)


def test_staleness(tmp_path: Path, x: np.ndarray) -> None:
    _write(tmp_path / "a", x)

    def why(source: list | None = SOURCE, **changed: Any) -> str | None:
        return Flat(tmp_path / "a", **changed).staleness(source)

    assert why() is why(source=None) is None
    assert why(source=[]) == "the source files differ"
    assert why(options={"a": 2}) == "made with other options (a)"
    assert why(codec=Images(256, (3, 5, 7))) is not None
    write_shards(tmp_path / "b", Bytes(), {"train": [np.arange(9)]})
    with pytest.raises(ValueError, match=r"holds token shards, not pictures; set data.folder"):
        Flat(tmp_path / "b").staleness(SOURCE)


def test_made_once_kept_and_made_again(tmp_path: Path, x: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    def prepare(*given: Any, **changed: Any) -> str:
        caplog.clear()
        with caplog.at_level("INFO"):
            Flat(tmp_path, *given, **changed).prepare_data()
        return caplog.messages[-1].removeprefix(f"{tmp_path}: ")

    with pytest.raises(FileNotFoundError, match="no pictures"):
        prepare()
    counts = "train 23 pictures; val 2 pictures (not the published 3)"
    assert prepare(x) == f"built (no finished pictures there): {counts}; a note"
    assert prepare(x) == f"kept ({counts})"
    assert prepare() == f"kept, though the files it was made from are gone ({counts})"
    _write(tmp_path, x)
    (tmp_path / "header.json").write_text((tmp_path / "header.json").read_text().replace('"a": 1', '"a": 3'))
    with pytest.raises(ValueError, match="altered after it was written"):
        prepare(x)
    (tmp_path / "header.json").unlink()
    with pytest.raises(FileNotFoundError, match="no pictures"):
        prepare()


def test_damage(tmp_path: Path, x: np.ndarray) -> None:
    rows = PixelFile(_write(tmp_path, x, np.arange(23)), "train")
    path = tmp_path / "train-pixels.bin"
    raw = path.read_bytes()
    path.write_bytes(raw[:500] + bytes([raw[500] ^ 1]) + raw[501:])
    with pytest.raises(ValueError, match=r"train-pixels.bin: bytes 0..2414 were altered") as error:
        rows[[0]]
    with pytest.raises(ValueError, match=r"train-pixels.bin: bytes 0..2414 were altered"):
        Flat(tmp_path).verify()
    assert "\n" not in str(error.value)
    path.write_bytes(raw[:-1])
    with pytest.raises(ValueError, match=r"train-pixels.bin: expected 2415 bytes, found 2414; delete"):
        PixelFile(tmp_path, "train")
    path.write_bytes(raw)
    assert (PixelFile(tmp_path, "train")[[22]]["x"].numpy() == x[22]).all()  # control
    assert Flat(tmp_path).verify().endswith("the files of train, val are as they were written")
    labels = tmp_path / "train-labels.bin"
    labels.write_bytes(b"\1" + labels.read_bytes()[1:])
    for read in (lambda: PixelFile(tmp_path, "train")[[3]], lambda: list(PixelFile(tmp_path, "train").labels())):
        with pytest.raises(ValueError, match=r"train-labels.bin: bytes 0..45 were altered"):
            read()
    header = json.loads((tmp_path / "header.json").read_text())
    header["splits"]["train"]["pictures"] = 22
    (tmp_path / "header.json").write_text(json.dumps(header))
    with pytest.raises(ValueError, match="altered after it was written"):
        read_header(tmp_path)
