"""What preparing a text loses is counted, kept, said, and refused above one character in a hundred."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggm_lightning.data.header import HEADER, read_header, sealed
from ggm_lightning.data.openwebtext import OpenWebText
from ggm_lightning.data.text import TextData, read_codec
from ggm_lightning.data.tokens import TokenShards
from ggm_lightning.data.zeroshot import ZeroShotText
from tests.codecs.tokenizers_of_all_kinds import TEXTS, byte_level, unigram, word_piece
from tests.data.small_text import ids, json_lines, prepared

STRANGE = "伓劍哇呫吜亁倊"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(name).propagate = True
    caplog.set_level(logging.INFO)
    return caplog


def write(path: Path, texts: list[str]) -> Path:
    path.write_bytes(json_lines(texts))
    return path


def tokenizer(folder: Path, description: dict[str, Any]) -> str:
    path = folder / f"tokenizer{len(list(folder.iterdir()))}.json"
    path.write_text("\ufeff" + json.dumps(description), encoding="utf-8")  # with a mark, as some editors leave one
    return str(path)


@pytest.mark.parametrize("kind", ["characters", "word_piece", "unigram"])
@pytest.mark.parametrize("held_out", ["documents", "blocks"])
def test_an_unknown_script_is_refused_and_then_allowed(tmp_path: Path, kind: str, held_out: str) -> None:
    name = {"word_piece": word_piece("[SEP]"), "unigram": unigram("</s>")}.get(kind)
    given = "characters" if name is None else tokenizer(tmp_path, name)
    path = write(tmp_path / "a.jsonl", [STRANGE, *TEXTS, STRANGE])
    how: dict[str, Any] = {"tokenizer": given, "length": 2, "held_out": held_out}
    prepared(path, tmp_path / "control", **how)  # one half of a percent
    path = write(path, [STRANGE, *TEXTS[:20], STRANGE])
    total = sum(map(len, TEXTS[:20])) + 14
    share = rf"14 of {total:,} characters \({14 / total:.2%}\)"
    part = f"{share} are unknown to the tokenizer and lost, the first: '{STRANGE}'"
    remedy = "take data.tokenizer: bytes, or characters with data.alphabet: data, or set data.allow_loss: true"
    with pytest.raises(ValueError, match=rf"^data.train: .*a.jsonl: {part}.*; {remedy}") as error:
        prepared(path, tmp_path / "s", **how)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "s" / HEADER).exists()
    data = prepared(path, tmp_path / "s", allow_loss=True, **how)
    assert data.characters_per_token is None
    assert len(data.rows("train")) > 0
    without = TextData(str(path), folder=str(tmp_path / "s"), **how)
    without.prepare_data()
    with pytest.raises(ValueError, match=r"14 of .* are unknown .*set data.allow_loss: true"):
        without.rows("train")


def test_what_changes_is_said_and_kept_and_has_no_figures_per_character(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.jsonl", TEXTS)
    data = prepared(path, tmp_path / "s", tokenizer=tokenizer(tmp_path, word_piece("[SEP]")), length=2)
    note = "60 of 60 texts do not decode to themselves, the first: 'Sentence 0: a small ' became 'sentence 0 : a small'"
    for _ in range(2):
        assert f"; {note}; therefore no bits/character" in said.messages[-1]
        data.prepare_data()  # once built, then kept
    assert data.losses() == f"{note}; therefore no bits/character"
    assert read_header(tmp_path / "s")["loss"] == {
        "texts": 60,
        "characters": sum(map(len, TEXTS)),
        "lost": 0,
        "changed": 60,
        "first_changed": "'Sentence 0: a small ' became 'sentence 0 : a small'",
        "control_words": 0,
        "first_control_word": "",
    }
    assert data.characters_per_token is None
    exact = prepared(path, tmp_path / "t", tokenizer=tokenizer(tmp_path, byte_level("</s>")), length=2)
    assert exact.losses() == ""
    assert exact.characters_per_token is not None
    assert "bits/character" not in said.messages[-1]


def test_control_words_in_a_text_are_text_and_counted(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    texts = [f"the marker <|endoftext|> stands in post {i}" for i in range(60)]
    given = tokenizer(tmp_path, byte_level("<|endoftext|>"))
    data = prepared(write(tmp_path / "a.jsonl", texts), tmp_path / "s", tokenizer=given, held_out="blocks")
    assert (
        "; 60 control words spelled out in the text are encoded as text, the first: '<|endoftext|>'"
        in said.messages[-1]
    )
    end = data.codec.token_id("<|endoftext|>")
    assert (ids(data) == end).sum() == 59
    parts = np.split(ids(data), np.flatnonzero(ids(data) == end))
    found = [data.codec.decode(part[part != end][None])[0] for part in parts]
    assert found == texts
    assert data.characters_per_token == sum(map(len, texts)) / len(ids(data))


@pytest.mark.parametrize("processes", [1, 2])
def test_the_count_does_not_depend_on_processes(
    tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ggm_lightning.data import tokenising

    monkeypatch.setattr(tokenising, "_BATCH", 500)
    given = tokenizer(tmp_path, word_piece("[SEP]"))
    path = write(tmp_path / "a.jsonl", [*TEXTS, "a [SEP] ☃"])
    data = prepared(path, tmp_path / "s", tokenizer=given, length=2, processes=processes)
    loss = TokenShards(data.folder).loss
    # WordPiece knows neither the snowman nor the five signs and letters of [SEP]
    assert (loss.texts, loss.lost, loss.changed, loss.control_words) == (61, 6, 61, 1)
    assert loss.first_changed.startswith("'Sentence 0")


def test_the_end_of_a_text_or_a_question_for_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", TEXTS)
    how: dict[str, Any] = {"held_out": "blocks", "length": 2}
    for description, end in (
        (word_piece("[CLS]", "[SEP]"), "[SEP]"),
        (byte_level("<|end_of_text|>"), "<|end_of_text|>"),
        (unigram("</s>"), "</s>"),
    ):
        data = prepared(path, tmp_path / end.strip("</>"), tokenizer=tokenizer(tmp_path, description), **how)
        assert (ids(data) == data.codec.token_id(end)).sum() == 59
    given = tokenizer(tmp_path, word_piece("[BREAK]"))
    with pytest.raises(ValueError, match=r"^data.separator: the tokenizer has no end-of-text token"):
        prepared(path, tmp_path / "n", tokenizer=given, **how)
    named = prepared(path, tmp_path / "n", tokenizer=given, separator="[BREAK]", **how)
    assert (ids(named) == named.codec.token_id("[BREAK]")).sum() == 59
    (tmp_path / "one.txt").write_text("\n".join(TEXTS))  # a single document needs none
    prepared(tmp_path / "one.txt", tmp_path / "t", tokenizer=given, **how)


def test_zero_shot_sets_likewise(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    (tmp_path / "ptb.test.txt").write_text("a small heron\nwaits at pond\na Grey heron\n")

    def opened(description: dict[str, Any], name: str, **more: Any) -> ZeroShotText:
        given = {"tokenizer": tokenizer(tmp_path, description), "length": 2, "group": None}
        data = ZeroShotText("ptb", str(tmp_path), folder=str(tmp_path / name), **given, **more)
        data.prepare_data()
        return data

    data = opened(word_piece("[SEP]"), "a")
    tokens = TokenShards(data.folder).read("test", np.array([0]), 8)[0]
    assert (tokens == data.codec.token_id("[SEP]")).sum() == 2
    assert data.characters_per_token is None
    assert "1 of 3 texts do not decode to themselves, the first: 'a Grey heron'" in said.messages[-1]
    assert "1 of 3 texts" in data.losses()
    with pytest.raises(ValueError, match=r"^data.separator: the tokenizer has no end-of-text"):
        opened(word_piece("[BREAK]"), "b")
    named = opened(word_piece("[BREAK]"), "b", separator="[BREAK]")
    tokens = TokenShards(named.folder).read("test", np.array([0]), 8)[0]
    assert (tokens == named.codec.token_id("[BREAK]")).sum() == 2
    (tmp_path / "ptb.test.txt").write_text(f"a small heron\n{STRANGE}\n")
    with pytest.raises(ValueError, match=r"^data.path: .*7 of 20 characters .*; set data.allow_loss: true to go on"):
        opened(word_piece("[SEP]"), "c")
    assert opened(word_piece("[SEP]"), "c", allow_loss=True).rows("test")
    unchanged = ZeroShotText("ptb", tokenizer="bytes", length=3).options
    assert "separator" not in unchanged  # folders of older versions keep their names
    assert "allow_loss" not in unchanged


def test_the_alphabet_of_the_data(tmp_path: Path) -> None:
    """Known before anything is prepared, the same from the shards, and other when the text is."""
    path = write(tmp_path / "a.jsonl", ["naïve ☃", STRANGE, "a\ufffdb"])
    val = write(tmp_path / "v.jsonl", ["ß only here"])
    how: dict[str, Any] = {"tokenizer": "characters", "alphabet": "data", "length": 2, "val": str(val)}
    expected = "".join(sorted({*"naïve ☃\n", *STRANGE, *"ab", *"ß only here"}))
    before = TextData(str(path), folder=str(tmp_path / "s"), **how)
    assert before.num_classes == len(expected) + 1
    data = prepared(path, tmp_path / "s", **how)
    assert data.codec.alphabet == expected
    assert data.characters_per_token == 1.0
    again = TextData(str(path), folder=str(tmp_path / "s"), **how)
    path.rename(tmp_path / "gone.jsonl")
    assert again.codec.alphabet == expected  # of the shards
    write(path, ["xyz", "z"])
    changed = TextData(str(path), folder=str(tmp_path / "s"), **how)
    assert changed.num_classes == len({*"xyz\n", *"ß only here"}) + 1
    changed.prepare_data()
    assert changed.rows("train")[[0]]["x"].max() < changed.num_classes
    assert OpenWebText(str(path), tokenizer="characters", alphabet="data").num_classes == 5
    assert changed.folder == tmp_path / "s"
    assert TextData(str(path), tokenizer="characters", alphabet="data").folder != TextData(str(path)).folder


def test_preparations_of_older_versions(tmp_path: Path) -> None:
    """Without a count: read as before; figures per character where nothing can be lost."""
    path = write(tmp_path / "a.jsonl", TEXTS)
    for number, (given, exact) in enumerate(
        [
            ("bytes", True),
            (tokenizer(tmp_path, byte_level("</s>")), True),
            (tokenizer(tmp_path, word_piece("[SEP]")), False),
            ("characters", False),
        ]
    ):
        data = prepared(path, tmp_path / str(number), tokenizer=given, length=2)
        header = read_header(data.folder)
        assert header.pop("loss")["texts"] == 60
        (data.folder / HEADER).write_bytes(sealed(header))
        again = prepared(path, data.folder, tokenizer=given, length=2)
        assert read_header(data.folder) == header  # kept
        assert again.rows("train")[[0]]["x"].tolist() == data.rows("train")[[0]]["x"].tolist()
        assert (again.characters_per_token is not None) == exact
        assert ("older version" in again.losses()) == (not exact)


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "vocab.txt", "merges.txt", "bpe.spm"])
def test_other_tokenizers_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\xff")
    for given in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match=rf"^data.tokenizer: .*{name} is .*, which is not read; .*tokenizer.json"):
            read_codec(str(given))
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"tokenizer.json: binary, not a `tokenizers` JSON"):
        read_codec(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text(json.dumps(byte_level()))
    assert read_codec(str(tmp_path)).num_classes == 300
