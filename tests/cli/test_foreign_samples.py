"""`lightning evaluate --samples`: what was drawn by a model of another alphabet is refused, and never measured."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ggm_lightning.cli import drawing, foreign_samples, measure_text
from ggm_lightning.cli import drawn as drawn_samples
from ggm_lightning.cli.main import main
from ggm_lightning.cli.parts import Parts
from ggm_lightning.cli.results import Results
from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.text import Bytes, Characters, Subwords
from ggm_lightning.data.text import TextData
from ggm_lightning.report.drawing import numbered_texts
from tests.cli.small_checkpoints import write
from tests.cli.test_sweep import linear_calls

LETTERS = Characters("abcdefghijklmnopqrstuvwxyz ")
N = 11


def model_of(codec: Codec) -> Any:
    return SimpleNamespace(codec=codec, shape=(N,), num_classes=codec.num_classes)


def words(*known: str) -> Subwords:
    """A tokenizer of whole words, all others of which are one token."""
    ids = {word: i for i, word in enumerate(("<unk>", *known))}
    kind = {"type": "WordLevel", "vocab": ids, "unk_token": "<unk>"}
    return Subwords(json.dumps({"version": "1.0", "pre_tokenizer": {"type": "Whitespace"}, "model": kind}))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(codec: Codec, *texts: str, lossy: bool = False) -> str:
    Path("mine.txt").write_text("\n".join(texts), encoding="utf-8")
    with pytest.raises(ValueError, match=r"--samples mine\.txt") as error:
        foreign_samples.read("mine.txt", model_of(codec), lossy)
    (line,) = str(error.value).splitlines()
    return line


def test_texts_with_characters_that_the_model_does_not_have_are_refused() -> None:
    """Control: all of them are bytes, and so are measured."""
    texts = ("hello world a", "ÄÖÜßABCDÄÖÜß", "ABCDEFGHIJKL")
    line = refused(LETTERS, *texts)
    assert "does not have 24 of 37 characters (64.86%), the first 'Ä', 'Ö', 'Ü', 'ß', 'A' in sample 1" in line
    assert "give samples of the same alphabet" in line
    assert "character 'Ä' at position 0" in refused(Characters(LETTERS.alphabet, unknown=None), *texts)
    assert foreign_samples.read("mine.txt", model_of(Bytes())).x.shape == (3, N)
    assert "the first ('no o no way' became 'no <unk> no way') in sample 0" in refused(
        words("no", "way"), "no o no way", "way no no no no no"
    )


def test_characters_are_lost_as_the_data_lost_them() -> None:
    """Up to 1 %, which a preparation only tells. Control: 2 % are refused, and of data that lost none all are."""
    rows = ["abcdefghij" * 10 + "é", "klmnopqrst" * 10 + "k"]
    assert "does not have 1 of 202" in refused(LETTERS, *rows)
    found = foreign_samples.read("mine.txt", model_of(LETTERS), lossy=True)
    assert found.told[0].startswith("1 of 202 characters (0.50%) of the samples are lost, as some of the data")
    assert "does not have 3 of 202" in refused(LETTERS, "é" + rows[0][1:], rows[1][1:] + "é", lossy=True)
    # what a model of such data writes in their place is one of its characters
    Path("own.txt").write_text("abc\ufffdabcabca\n" * 2, encoding="utf-8")
    assert foreign_samples.read("own.txt", model_of(LETTERS)).told == []


@pytest.mark.parametrize(("text", "loses"), [("abc" * 100 + "é", True), ("abc" * 100, False)])
def test_whether_data_lost_characters(text: str, loses: bool) -> None:
    Path("mine").write_text(text, encoding="utf-8")
    data = TextData("mine", length=N, tokenizer="characters", folder="data")
    data.prepare_data()
    one: Any = SimpleNamespace(data=data)
    assert measure_text._loses_characters(one) is loses


AHEAD, BACK = (Characters(letters, unknown=None) for letters in ("abcdefg", "gfedcba"))


def drawn(*more: str) -> Path:
    """By `lightning sample` and a model of BACK."""
    write(Path("back/last.ckpt"), "md4", codec=BACK)
    main(["sample", "--ckpt_path", "back/last.ckpt", "--num_samples", "5", "--num_steps", "2", *more])
    (found,) = Path("back").glob("samples-*")
    return found


def without_hash(folder: Path) -> None:
    """As older versions wrote it."""
    with np.load(folder / "samples.npz") as arrays:
        kept = {name: arrays[name] for name in arrays.files if name != "tokenizer_hash"}
        assert len(kept) < len(arrays.files)
    np.savez_compressed(folder / "samples.npz", **kept)


@pytest.mark.parametrize("older", [False, True])
def test_ids_of_another_tokenizer_are_refused(older: bool) -> None:
    """Equal numbers of ids, which stand for other letters. Controls: the same tokenizer, and the texts alone."""
    folder = drawn()
    if older:
        without_hash(folder)
    for path in (folder, folder / "samples.npz"):
        found = foreign_samples.read(str(path), model_of(BACK))
        with pytest.raises(ValueError, match="its ids are of another tokenizer than the checkpoint's; give a check"):
            foreign_samples.read(str(path), model_of(AHEAD))
    texts = foreign_samples.read(str(folder / "samples.txt"), model_of(AHEAD))
    assert AHEAD.decode(texts.x) == BACK.decode(found.x)
    if older:  # nothing is known of ids alone
        (folder / "samples.txt").unlink()
        assert foreign_samples.read(str(folder), model_of(AHEAD)).x.equal(found.x)


def test_texts_are_compared_as_a_file_is_read() -> None:
    """Bytes write \\r, and broken sequences; an older folder of them is still known for the same tokenizer's."""
    x = np.random.default_rng(0).integers(0, 256, (5, 7 * N))
    x[:, :4] = [13, 10, 13, 200]
    Path("old").mkdir()
    Path("old/samples.txt").write_text(numbered_texts(Bytes().decode(x)), encoding="utf-8")
    np.savez("old/samples.npz", x=x)
    assert len(foreign_samples.read("old", model_of(Bytes())).x) == 5
    Path("old/samples.txt").write_text(numbered_texts(Bytes().decode(x[::-1])), encoding="utf-8")
    with pytest.raises(ValueError, match="of another tokenizer"):
        foreign_samples.read("old", model_of(Bytes()))


def test_a_folder_of_an_older_version_is_still_found() -> None:
    folder = drawn()
    assert "tokenizer_hash" not in json.loads((folder / "settings.json").read_text())
    without_hash(folder)
    before = (folder / "samples.npz").read_bytes()
    with linear_calls() as calls:
        assert drawn() == folder
    assert (calls, (folder / "samples.npz").read_bytes()) == ([], before)


def damaged(content: bytes) -> Iterator[bytes]:
    """A file cut short and with a byte changed, at every eleventh place."""
    for at in range(0, len(content), 11):
        yield content[:at]
        yield content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]


def test_damaged_samples_are_one_line() -> None:
    """Of every reader; what is not refused is what was written. Control: both zipfile and zlib find damage."""
    x = np.random.default_rng(0).integers(0, 7, (5, N))
    file = Path("samples.npz")
    np.savez_compressed(file, x=x, cost=np.array([1.0, 2.0, 3.0]), settings=np.array("{}"))
    whole, seen = file.read_bytes(), set()
    lines: list[str] = []
    results = Results(Path(), {"command": "samples"}, done=True)
    model = SimpleNamespace(**{**vars(model_of(AHEAD)), "shape": (N,)})
    readers: list[Callable[[], Any]] = [
        lambda: foreign_samples.read("samples.npz", model).x.numpy(),
        lambda: drawn_samples.read(results).x.numpy(),
        lambda: drawing.show(results, model, 5),
    ]
    for content in damaged(whole):
        file.write_bytes(content)
        for reader in readers:
            try:
                found = reader()
                assert found is None or np.array_equal(found, x)
            except ValueError as error:
                lines.append(str(error))
        Path("rows-0-5.npz").write_bytes(content)
        part = Parts(Path(), "{}").read((0, 5))
        assert part is None or np.array_equal(part["x"], x)
        try:
            with np.load(file) as arrays:
                arrays["x"], arrays["cost"]
        except Exception as error:
            seen.add(type(error))
    assert {zipfile.BadZipFile, zlib.error} <= seen
    assert len(lines) > 3 * 80
    assert all(str(file) in line and "\n" not in line for line in lines)
