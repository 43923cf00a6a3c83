"""Protocols of published tables: their blocks, their words, and what departs from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggm_lightning.cli import protocols
from ggm_lightning.cli.evaluation_sets import EvaluationSet, Source
from ggm_lightning.cli.main import main
from ggm_lightning.codecs.text import Bytes
from ggm_lightning.data.rows import Rows
from ggm_lightning.data.toy.digits import Digits
from ggm_lightning.data.zeroshot import ZeroShotText

ZEROSHOT = "ggm_lightning.data.zeroshot.ZeroShotText"
LINES = ["the  first one", "a second", "third, and last but one", "end"]


def set_of(folder: Path, **options: Any) -> ZeroShotText:
    for part in ("valid", "test"):
        (folder / f"ptb.{part}.txt").write_text("".join(f" {line} of {part} \n" for line in LINES))
    data = ZeroShotText("ptb", path=str(folder), **options)
    data.complete(Bytes(), (11,))
    data.prepare_data()
    return data


def named(data: Any, name: str = "ptb") -> EvaluationSet:
    return EvaluationSet(name, {}, data, "test", "")


def test_mdlms_blocks_have_a_token_in_front_and_one_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`_group_texts` of MDLM's dataloader.py, written out: of the validation part. Control: SEDD's blocks."""
    monkeypatch.chdir(tmp_path)
    blocks = {}
    for protocol, part, inner in (("sedd", "test", 11), ("mdlm", "valid", 9)):
        data = set_of(tmp_path, protocol=protocol)
        stream = "".join(f"{line} of {part}\n" for line in LINES).encode()
        whole = [stream[i : i + inner] for i in range(0, len(stream) - inner + 1, inner)]
        blocks[protocol] = [bytes(row.tolist()) for row in data.rows("test")[np.arange(len(data.rows("test")))]["x"]]
        edge = b"\n" if protocol == "mdlm" else b""
        assert blocks[protocol] == [edge + block + edge for block in whole]
        assert data.characters_per_token == pytest.approx(inner / 11)
    assert blocks["sedd"] != blocks["mdlm"]


def test_sedds_shards_are_the_ones_of_before_there_was_a_choice(tmp_path: Path) -> None:
    options = {"path": str(tmp_path), "length": 11, "folder": str(tmp_path / "shards")}
    assert "protocol" not in ZeroShotText("ptb", **options).options
    assert ZeroShotText("ptb", protocol="mdlm", **options).options["protocol"] == "mdlm"
    with pytest.raises(ValueError, match="protocol is 'duo'; choose sedd or mdlm"):
        ZeroShotText("ptb", protocol="duo")
    with pytest.raises(ValueError, match="length is 2; it must be at least 3"):
        ZeroShotText("ptb", protocol="mdlm", length=2)


def test_what_departs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = protocols.departures(named(set_of(tmp_path)), None, 1000, "times")
    assert plain == ["sedd: published cuts are those of several processes, each with a share of the examples"]
    other = set_of(tmp_path, part="valid", group=None)
    found = protocols.departures(named(other), None, 4, "counts")
    for words in ("by counts, published by times", "the valid part", "strung together: all", "4 samples per row"):
        assert any(words in one for one in found), words
    framed = protocols.departures(named(set_of(tmp_path, protocol="mdlm")), None, 4, "times")
    assert not any("part" in one or "samples" in one for one in framed)
    assert any("in front and behind" in one for one in framed)
    assert protocols.departures(named(Digits()), None, 4, "counts") == []


def test_words_are_counted_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: counted block by block, a word that is cut counts twice."""
    monkeypatch.chdir(tmp_path)
    data = set_of(tmp_path)
    rows = data.rows("test")
    texts = data.codec.decode(rows[np.arange(len(rows))]["x"])
    assert protocols.words(named(data), rows, len(rows)) == len("".join(texts).split())
    assert sum(len(text.split()) for text in texts) > len("".join(texts).split())
    assert protocols.words(named(data), rows, 2) == len("".join(texts[:2]).split())
    blank = np.full((2, 11), ord(" "))
    assert protocols.words(named(data), Rows(blank), 2) == 0


def test_where_the_data_cannot_say_it_is_refused() -> None:
    protocols.check_set(named(Digits()), None)
    with pytest.raises(ValueError, match=r"--protocol words: digits has no words \(rows of shape"):
        protocols.check_set(named(Digits(), "digits"), "words")
    source = Source({"class_path": "ggm_lightning.data.toy.digits.Digits"}, None, True)
    with pytest.raises(ValueError, match=r"--protocol mdlm: digits is .*whose rows are not cut by any protocol"):
        protocols.applied({"digits": source}, "mdlm")
    assert protocols.applied({"digits": source}, None) == {"digits": source}
    text = Source({"class_path": ZEROSHOT, "init_args": {"dataset": "ptb"}}, None, True)
    given = protocols.applied({"ptb": text}, "mdlm")["ptb"].section
    assert given["init_args"] == {"dataset": "ptb", "protocol": "mdlm"}


def test_help_lists_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--help"])
    assert stop.value.code in (0, None)
    printed = capsys.readouterr().out
    options = "ckpt_path", "data", "estimator", "protocol", "num_samples", "split", "limit", "out"
    assert [option for option in options if f"--{option}" not in printed] == []
    assert "--section" not in printed
