"""`lightning evaluate --samples`: what was drawn by a model of another alphabet is refused, and never measured."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ggm_lightning.cli import foreign_samples, measure_text
from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.text import Bytes, Characters, Subwords
from ggm_lightning.data.text import TextData

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
