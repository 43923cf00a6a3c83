"""Bad data ends in one line that names the file, the place and the remedy: never silence, never a deep traceback.

Shards have a file of their own (test_blocks.py). Each fault has its control: the same data without the fault loads.
"""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggm_lightning.data.arrays import ArrayData
from ggm_lightning.data.rows import Rows, check_ids, check_labels
from ggm_lightning.data.text import TextData
from ggm_lightning.data.text8 import Text8
from ggm_lightning.data.tokens import TokenShards
from ggm_lightning.data.toy.demo import DemoText, train_bpe

V, N, SHAPE = 7, 23, (3, 5)
X = np.random.default_rng(0).integers(V, size=(N, *SHAPE)).astype(np.int16)
LABEL = np.arange(N) % 5
LINES = [json.dumps({"text": f"document number {i}", "id": i}).encode() for i in range(20)]


def _one_line(load: Callable[[], Any]) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load()
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def _array(path: Path, x: np.ndarray = X, label: np.ndarray | None = None, **kwargs: Any) -> ArrayData:
    if path.suffix == ".npz":
        np.savez(path, x=x, **({} if label is None else {"label": label}))
    else:
        np.save(path, x)
    if label is not None and path.suffix == ".npy":
        np.save(path.with_name("label.npy"), label)
        kwargs["labels"] = str(path.with_name("label.npy"))
    return ArrayData(str(path), V, **kwargs)


def _changed(array: np.ndarray, place: tuple[int, ...], value: float, dtype: Any = None) -> np.ndarray:
    array = array.astype(dtype or array.dtype)
    array[place] = value
    return array


# Bytes of a file made from those of a whole one.
CUTS: dict[str, Callable[[bytes], bytes]] = {
    "zero bytes": lambda raw: b"",
    "half of it": lambda raw: raw[: len(raw) // 2],
    "all but a byte": lambda raw: raw[:-1],
    "the header alone": lambda raw: raw[:128],
    "a pickle": lambda raw: pickle.dumps([1, 2, 3]),
    "text": lambda raw: b"1 2 3\n" * 100,
}


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "label.npy"])
@pytest.mark.parametrize("cut", CUTS)
def test_arrays_cut_short_or_of_another_kind(tmp_path: Path, name: str, cut: str) -> None:
    def load() -> None:
        given = {"labels": str(tmp_path / "label.npy")} if name == "label.npy" else {}
        ArrayData(str(tmp_path / ("x.npz" if name == "x.npz" else "x.npy")), V, **given).setup("fit")

    _array(tmp_path / "x.npz", label=LABEL)
    _array(tmp_path / "x.npy", label=LABEL)
    load()
    path = tmp_path / name
    path.write_bytes(CUTS[cut](path.read_bytes()))
    message = _one_line(load)
    assert message.startswith(f"{path}: cannot be read as .npy or .npz (")
    assert message.endswith("; write it again with numpy.save or savez")


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "packed.npz"])
def test_every_altered_byte_of_an_array_is_one_line_or_harmless(tmp_path: Path, name: str) -> None:
    """A .npz has checksums, so it never gives other numbers; a .npy has none, so ids may become other legal ids."""
    path = tmp_path / name
    _array(tmp_path / name.replace("packed", "x"))
    if name == "packed.npz":
        np.savez_compressed(path, x=X)
    whole = path.read_bytes()
    errors = 0
    for at in range(0, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        try:
            with warnings.catch_warnings(action="ignore"):
                data = ArrayData(str(path), V, val=str(path))
                found = data.rows("train")[np.arange(len(data.rows("train")))]["x"].numpy()
        except ValueError as error:
            errors += 1
            assert str(error).startswith(str(path))  # noqa: PT017 - not every byte must raise
            assert "\n" not in str(error)  # noqa: PT017
            continue
        assert (found.shape == X.shape and (found == X).all()) or name == "x.npy"
    assert errors > len(whole) // 3


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X.astype(np.float32), "x of dtype float32, not integers"),
        (_changed(X, (3, 1, 1), np.nan, float), "x of dtype float64, not integers"),
        (X > 3, "x of dtype bool, not integers"),
        (X.astype(object), "x of dtype object, not integers"),
        (X[:, 0, 0], r"shape (23,); it must be [rows, sites, ...]"),
        (X[:, :0], r"shape (23, 0, 5); it must be [rows, sites, ...]"),
        (X[:0], "the train split has no rows; give it data"),
        (_changed(X, (20, 2, 4), -1), "(train split): id -1 at position [20, 2, 4] is outside 0..6"),
        (_changed(X, (22, 0, 3), V), "(val split): id 7 at position [22, 0, 3] is outside 0..6"),
        (_changed(X, (0, 0, 0), 2**64 - 1, np.uint64), "id 18446744073709551615 at position [0, 0, 0] is outside 0..6"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_of_wrong_numbers(tmp_path: Path, x: np.ndarray, message: str, suffix: str) -> None:
    found = _one_line(lambda: _array(tmp_path / f"x{suffix}", x).setup("fit"))
    assert message in found
    assert "no rows" in message or found.startswith(str(tmp_path / f"x{suffix}"))


def test_a_missing_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", y=X)
    message = f"{tmp_path}/x.npz: no array named x, it has y; write it with numpy.savez(path, x=..., label=...)"
    assert _one_line(lambda: ArrayData(str(tmp_path / "x.npz"), V)) == message
    np.savez(tmp_path / "l.npz", x=X)
    assert "l.npz: has x, none of label, labels, y" in _one_line(
        lambda: _array(tmp_path / "x.npy", labels=str(tmp_path / "l.npz")).setup("fit")
    )


def test_rows_that_are_no_integers_are_refused_whoever_gives_them() -> None:
    """NaN is neither below 0 nor above V-1, so the dtype decides."""
    for wrong in (np.full((2, 3), np.nan), np.ones((2, 3)), np.ones((2, 3), dtype=bool)):
        with pytest.raises(ValueError, match=rf"^n \(val split\): ids of dtype {wrong.dtype}, not integers"):
            check_ids(Rows(wrong, name="n"), V, "val")
    with pytest.raises(ValueError, match=r"^l \(val split\): labels of dtype float64, not integers"):
        check_labels(Rows(X[:2], np.array([1.0, np.nan]), name="n", label_name="l"), V, "val")


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize(
    ("row", "value", "split"), [(4, -1, "train"), (4, 5, "train"), (22, 9, "val"), (22, -7, "val")]
)
def test_labels_out_of_range(tmp_path: Path, name: str, row: int, value: int, split: str) -> None:
    bad = _array(tmp_path / name, label=_changed(LABEL, (row,), value), num_labels=5)
    where = tmp_path / ("label.npy" if name == "x.npy" else name)
    assert _one_line(lambda: bad.setup("fit")) == (
        f"{where} ({split} split): label {value} at position {row} is outside 0..4; "
        f"fix the labels or set num_labels to more than the largest one"
    )
    good = _array(tmp_path / name, label=LABEL, num_labels=5)
    good.setup("fit")
    assert good.num_labels == 5


def test_the_number_of_labels_comes_from_the_training_file(tmp_path: Path) -> None:
    assert _array(tmp_path / "x.npy").num_labels is None
    assert _array(tmp_path / "x.npy", label=LABEL).num_labels == 5
    np.savez(tmp_path / "v.npz", x=X, label=_changed(LABEL, (3,), 5))
    data = _array(tmp_path / "x.npz", label=LABEL, val=str(tmp_path / "v.npz"))
    assert data.num_labels == 5
    assert "v.npz (val split): label 5 at position 3 is outside 0..4" in _one_line(lambda: data.setup("fit"))
    for wrong, message in (
        (_changed(LABEL, (7,), -1), "label -1 at position 7 is outside 0..4"),
        (np.full(N, -1), "label -1 at position 0 is outside 0..0"),
        (LABEL.astype(float), "label of dtype float64, not integers"),
        (LABEL[:, None], "labels of shape (23, 1); give one whole number per row"),
        (LABEL[1:], "23 rows but 22 labels; give one label per row"),
        (LABEL.astype(object), "label of dtype object, not integers"),
    ):
        for name in ("x.npy", "x.npz"):
            data = _array(tmp_path / name, label=wrong)
            assert message in _one_line(lambda data=data: data.setup("fit"))
    message = f"data.num_labels is 5, but {tmp_path}/x.npy has no labels; give data.labels"
    assert _one_line(lambda: _array(tmp_path / "x.npy", num_labels=5).setup("fit")) == message
    assert "data.num_labels is 0; it must be at least 1" in _one_line(lambda: _array(tmp_path / "x.npy", num_labels=0))


def _text(folder: Path, name: str, content: bytes, **kwargs: Any) -> TextData:
    (folder / name).write_bytes(content)
    shutil.rmtree(folder / "shards", ignore_errors=True)
    return TextData(str(folder / name), length=4, **{"folder": str(folder / "shards"), **kwargs})


TEXTS: list[tuple[str, bytes, str]] = [
    ("a.txt", b"", "data.train: {}: 0 characters of text, the file is empty; copy it again, or leave it out"),
    ("a.jsonl", b"", "data.train: {}: 0 characters of text, the file is empty; copy it again, or leave it out"),
    ("a.jsonl", b"\n \n", "data.train: {}: 0 characters of text in all; give more text"),
    ("a.txt", b"good " * 9 + b"\xff", "{}: not UTF-8 at byte 45 (invalid start byte); convert the file to UTF-8"),
    ("a.txt", "UTF-16".encode("utf-16"), "{}: is text in UTF-16; convert it to UTF-8"),
    ("a.txt", "grün".encode()[:3], "{}: not UTF-8 at byte 2 (unexpected end of data); convert the file to UTF-8"),
    ("a.jsonl", LINES[0] + b"\n" + b'{"text": "\xe9"}', "{}: not UTF-8 at byte 49 (line 2, "),
    ("a.jsonl", LINES[0] + b'\n{"body": "a"}', "{}: line 2 has no text in 'text', it has 'body'; set data.text_key"),
    ("a.jsonl", b'{"text": null}', "{}: line 1 has no text in 'text', it has a NoneType there; set data.text_key"),
    ("a.jsonl", b'"text"', "{}: line 1 has no text in 'text', it has a str; set data.text_key"),
    ("a.jsonl", b"\n".join(LINES)[:-9], "{}: line 20 is not JSON (Expecting property name"),
    ("a.jsonl", b'{"a": ' + b"[" * 10**5, "{}: line 1 is not JSON (maximum recursion depth exceeded"),
    ("a.jsonl", b"[" * 10**5, "{}: JSON nested too deeply, behind item 0; get the file again, or write one object"),
    ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "{}: line 1 is not JSON (Exceeds the limit (4300 digits)"),
]


@pytest.mark.parametrize(("name", "content", "message"), TEXTS, ids=range(len(TEXTS)))
def test_texts(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    _text(tmp_path, "control" + name[1:], b"\n".join(LINES)).prepare_data()
    data = _text(tmp_path, name, content)
    assert _one_line(data.prepare_data).startswith(message.format(tmp_path / name))
    _one_line(lambda: data.setup("fit"))  # and nothing was left that would load


def test_an_empty_file_among_others(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"")
    data = _text(tmp_path, "a.txt", b"some text" * 9)
    data.train = str(tmp_path / "*.txt")
    assert _one_line(data.prepare_data).startswith(
        f"data.train: {tmp_path / 'b.txt'}: 0 characters of text, the file is empty"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "text8: 0 characters, but train, val and test take 50"),
        (b"a" * 49, "text8: 49 characters, but train, val and test take 50"),
        (b"a" * 33 + b"\n" + b"a" * 16, r"text8 (val split): byte b'\n' at position 33 is outside a-z and space"),
        (b"a" * 33 + "é".encode() + b"a" * 16, r"text8 (val split): byte b'\xc3' at position 33 is outside"),
    ],
)
def test_text8(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "text8"
    data = Text8(str(path), length=4, train_chars=30, val_chars=10, test_chars=10)
    path.write_bytes(b"abc z" * 10)
    data.setup("fit")
    path.write_bytes(content)
    data = Text8(str(path), length=4, train_chars=30, val_chars=10, test_chars=10)
    assert message in _one_line(lambda: data.setup("fit"))


def test_shards_of_another_tokenizer(tmp_path: Path) -> None:
    """A given folder that was not prepared for this tokenizer: by another run, on another node, or an older file."""
    content = b"a small text, to be cut into tokens " * 9
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(train_bpe(content.decode(), 265))
    data = _text(tmp_path, "a.txt", content, tokenizer=str(tokenizer))
    data.prepare_data()
    data.setup("fit")
    made = TokenShards(data.folder).header["tokenizer_hash"]
    trained = json.loads(tokenizer.read_text())
    trained["model"]["merges"].reverse()  # as many ids, which mean something else
    tokenizer.write_text(json.dumps(trained))
    for given, classes in ((str(tokenizer), 265), ("bytes", 256), ("characters", 97)):
        other = TextData(str(tmp_path / "a.txt"), length=4, folder=str(data.folder), tokenizer=given)
        found = other.codec.tokenizer_hash
        assert _one_line(lambda other=other: other.setup("fit")) == (
            f"{data.folder}: made with tokenizer {made[:12]}.. of 265 ids, but the data is configured for "
            f"{found[:12]}.. of {classes} ids; set the tokenizer the shards were made with, or prepare another "
            f"data.folder"
        )
    message = _one_line(lambda: DemoText(folder=str(data.folder)).setup("fit"))
    assert f"made with tokenizer {made[:12]}.. of 265 ids, but the data is configured for 1024 ids" in message


def test_a_tokenizer_file_that_is_none(tmp_path: Path) -> None:
    whole = train_bpe("a small text", 260).encode()
    for content, reason in (
        (b"", "not a `tokenizers` JSON"),
        (whole[:-40], "not a `tokenizers` JSON"),
        (b"{}", "not a `tokenizers` JSON"),
        (b"\xff", "binary, not a `tokenizers` JSON; give a tokenizer.json"),
    ):
        (tmp_path / "t.json").write_bytes(content)
        data = _text(tmp_path, "a.txt", b"a small text", tokenizer=str(tmp_path / "t.json"))
        assert _one_line(data.prepare_data).startswith(f"data.tokenizer: {tmp_path / 't.json'}: {reason}")
