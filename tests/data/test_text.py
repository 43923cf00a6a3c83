"""A user's text through two lines of YAML: right tokens, rebuilt only when needed, errors in one line."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggm_lightning.codecs.text import Bytes
from ggm_lightning.data import file_kinds, tokenising
from ggm_lightning.data.text import TextData
from ggm_lightning.data.tokens import TokenShards
from ggm_lightning.data.toy.demo import train_bpe

TEXT = "".join(f"line {i} of the text, naïve\n" for i in range(300))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def _data(source: Path, **kwargs: Any) -> TextData:
    data = TextData(str(source), **{"length": 32, "folder": str(source.parent / "shards"), **kwargs})
    data.prepare_data()
    data.setup("fit")
    return data


def _tokens(data: TextData, split: str) -> list[int]:
    shards = TokenShards(data.folder)
    return shards.read(split, np.array([0]), shards.tokens(split))[0].tolist()


def test_one_text_is_cut_once_and_nothing_is_lost(source: Path) -> None:
    data = _data(source, val_fraction=0.1)
    assert (data.num_classes, data.shape) == (256, (32,))
    assert bytes(_tokens(data, "train") + _tokens(data, "val")).decode() == TEXT
    shards = TokenShards(data.folder)
    assert shards.characters("train") == int(0.9 * len(TEXT))
    assert shards.characters("train") + shards.characters("val") == len(TEXT)
    val = bytes(_tokens(data, "val")).decode()
    assert data.characters_per_token == len(val) / len(val.encode())
    batch = next(iter(data.val_dataloader()))["x"]
    assert data.decode(batch[:1]) == [val[: len(data.decode(batch[:1])[0])]]


def test_training_windows_may_overlap_and_validation_windows_never(source: Path) -> None:
    data = _data(source, stride=5)
    tokens = _tokens(data, "train")
    assert data.rows("train")[3]["x"].tolist() == tokens[15:47]
    assert len(data.rows("val")) == len(_tokens(data, "val")) // 32


def test_documents_are_separated(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": f"doc{i}"}) + "\n" for i in range(20)))
    path = tmp_path / "a.jsonl"
    data = _data(path, text_key="body", val_fraction=0.2, length=4)
    assert bytes(_tokens(data, "train")).decode() == "\n".join(f"doc{i}" for i in range(16))
    assert bytes(_tokens(data, "val")).decode() == "\n".join(f"doc{i}" for i in range(16, 20))
    assert TokenShards(data.folder).documents("val") == 4
    assert TokenShards(data.folder).characters("val") == 4 * 5 + 3

    trained = json.loads(train_bpe("doc1 doc2 doc3 document " * 9, 260))
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    trained["added_tokens"] = [{"id": 260, "content": "<|endoftext|>", **special}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(trained))
    tokenizer = str(tmp_path / "tokenizer.json")
    other = str(tmp_path / "other")
    data = _data(path, text_key="body", val_fraction=0.2, length=4, tokenizer=tokenizer, folder=other)
    assert data.num_classes == 261
    assert _tokens(data, "val").count(260) == 3
    assert TokenShards(data.folder).characters("val") == 4 * 5


def test_many_batches_of_pieces_give_the_same_tokens(source: Path, monkeypatch) -> None:
    whole = _tokens(_data(source), "train")
    monkeypatch.setattr(tokenising, "_BATCH", 1)
    monkeypatch.setattr(file_kinds, "BLOCK", 100)
    again = _data(source, folder=str(source.parent / "other"))
    assert _tokens(again, "train") == whole


def test_own_validation_files_and_several_texts(source: Path) -> None:
    (source.parent / "b.txt").write_text("second")
    (source.parent / "v.txt").write_text("validation")
    data = TextData(
        [str(source), str(source.parent / "b.txt")],
        val=str(source.parent / "v.txt"),
        length=5,
        folder=str(source.parent / "shards"),
    )
    data.prepare_data()
    assert bytes(_tokens(data, "train")).decode() == TEXT + "\n" + "second"
    assert bytes(_tokens(data, "val")).decode() == "validation"


def test_rebuilt_only_if_needed_and_says_why(source: Path, caplog) -> None:
    def prepare(**kwargs: Any) -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            _data(source, **kwargs)
        return "\n".join(record.message for record in caplog.records)

    logging.getLogger("lightning.pytorch.utilities.rank_zero").propagate = True
    logging.getLogger("lightning.pytorch").propagate = True
    assert "built (no finished shards there)" in prepare()
    header = source.parent / "shards" / "header.json"
    written = header.stat().st_mtime_ns
    source.touch()
    assert "kept (train 1 document(s)" in prepare(length=16, stride=3)  # windows are not stored
    assert header.stat().st_mtime_ns == written
    for other, how in (
        ({"val_fraction": 0.2}, r"other options \(val_fraction\)"),
        ({"tokenizer": "characters"}, "another"),
    ):
        with pytest.raises(ValueError, match=f"holds data made with {how}.*left as they are; give data.folder another"):
            prepare(**other)
    assert header.stat().st_mtime_ns == written
    elsewhere = {"tokenizer": "characters", "folder": str(source.parent / "elsewhere")}
    with pytest.raises(
        ValueError, match=r"300 of 8,290 characters \(3\.62%\) are unknown .* data.allow_loss: true to go"
    ):
        prepare(**elsewhere)
    said = prepare(**elsewhere, allow_loss=True)
    assert f"{TEXT.count('ï')} of {len(TEXT):,} characters (3.62%) lost: unknown to the tokenizer" in said
    source.write_text(TEXT.replace("line 7 ", "LINE 7 "))
    assert "the source files differ" in prepare()


def test_the_default_folder_follows_the_options(source: Path) -> None:
    folders = [
        TextData(str(source)).folder,
        TextData(str(source), length=7, seed=5).folder,
        TextData(str(source), tokenizer="characters").folder,
        TextData(str(source), val_fraction=0.1).folder,
    ]
    assert folders[0] == folders[1]
    assert len(set(folders)) == 3
    assert all(f.parent == Path("runs/data") and f.name.startswith("a-") for f in folders)


def test_mistakes_are_named(source: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data.train: '.*none.txt' matches no file"):
        _data(source.parent / "none.txt")
    with pytest.raises(FileNotFoundError, match=r"data.tokenizer: no file 'byte'; give bytes, characters, or"):
        _ = TextData(str(source), tokenizer="byte").num_classes
    with pytest.raises(ValueError, match=r"data.tokenizer: .*a.txt: not a `tokenizers` JSON"):
        _ = TextData(str(source), tokenizer=str(source)).num_classes
    with pytest.raises(ValueError, match=r"val_fraction is 1\.0"):
        TextData(str(source), val_fraction=1.0)
    with pytest.raises(ValueError, match="leave one out"):
        TextData(str(source), alphabet="abc")
    with pytest.raises(
        ValueError,
        match=r"held out has 430 tokens, and a row of data.length 5000 needs 5000; "
        r"give about 100,000 tokens of text \(there are 8,590\), a smaller data.length, or --data.val FILE",
    ):
        _data(source, length=5000)
    for content, message in (
        ("", "a.txt: 0 characters of text, the file is empty"),
        ("x", "a.txt: 1 characters of text in all"),
    ):
        source.write_text(content)
        with pytest.raises(ValueError, match=rf"data.train: .*{message}"):
            _data(source)


def test_tiny_shakespeare(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "tinyshakespeare" / "input.txt"
    data = _data(path, tokenizer="characters", length=256, folder=str(tmp_path))
    raw = path.read_text(encoding="utf-8")
    assert data.codec.replaced == 0
    assert data.codec.decode(np.array([_tokens(data, "train") + _tokens(data, "val")]))[0] == raw
    assert data.characters_per_token == 1.0


def test_openwebtext_by_gpt2_subwords(real_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "owt.jsonl"
    with open(real_data / "openwebtext" / "openwebtext-000-699.jsonl", encoding="utf-8") as handle:
        path.write_text("".join(line for line, _ in zip(handle, range(60), strict=False)), encoding="utf-8")
    tokenizer = real_data / "gpt2_bpe" / "tokenizer.json"
    data = _data(path, tokenizer=str(tokenizer), length=512, folder=str(tmp_path / "shards"))
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    found = data.codec.decode(np.array([_tokens(data, "train")]))[0].split("<|endoftext|>")
    assert found == texts[: len(found)]
    assert (len(found), TokenShards(data.folder).documents("val")) == (57, 3)
    assert 3.5 < data.characters_per_token < 5.5
    assert data.num_classes == 50257


def test_openwebtext_as_bytes(real_data: Path, tmp_path: Path) -> None:
    data = _data(real_data / "openwebtext" / "openwebtext-000-699.jsonl", folder=str(tmp_path))
    shards = TokenShards(tmp_path)
    assert shards.documents("train") + shards.documents("val") == 700
    assert Bytes().decode(data.rows("train")[[0]]["x"])[0] == "A magazine supplement with an im"
