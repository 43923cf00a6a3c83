"""Reading users' files: every document, in bounded pieces that tokenise as the whole; errors name the place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ggm_lightning.codecs.text import Subwords
from ggm_lightning.data import file_kinds
from ggm_lightning.data.documents import Piece, Reader, Survey, find_files, held_out_last
from ggm_lightning.data.toy.demo import reference_text, train_bpe


def _write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _texts(path: Path) -> list[str]:
    texts, open_text = [], ""
    for piece in Reader().read(path):
        open_text += piece.text
        if piece.last:
            texts.append(open_text)
            open_text = ""
    assert open_text == ""
    return texts


def test_paths_globs_and_lists(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.jsonl"):
        _write(tmp_path / name, "x")
    assert [p.name for p in find_files(str(tmp_path / "*.txt"), "train")] == ["a.txt", "b.txt"]
    assert [p.name for p in find_files([str(tmp_path / "c.jsonl"), str(tmp_path / "b*")], "train")] == [
        "c.jsonl",
        "b.txt",
    ]
    for wrong, message in ((tmp_path / "no*.txt", "matches no file"), (tmp_path, "is a folder")):
        with pytest.raises(FileNotFoundError, match=rf"data.val: '.*' {message}; give"):
            find_files(str(wrong), "val")
    with pytest.raises(ValueError, match="empty list"):
        find_files([], "train")


@pytest.mark.parametrize("block", [3, 64, 1009])
def test_pieces_join_to_the_file_and_tokenise_as_the_whole(tmp_path: Path, monkeypatch, block: int) -> None:
    """With blocks small enough to cut characters and lines. Control: cutting anywhere gives other tokens."""
    text = reference_text()[0][:20_000] + "naïve ☃ snow\n\n   end"
    path = _write(tmp_path / "a.txt", text)
    monkeypatch.setattr(file_kinds, "BLOCK", block)
    pieces = list(Reader().read(path))
    assert "".join(p.text for p in pieces) == text
    assert [p.last for p in pieces] == [False] * (len(pieces) - 1) + [True]
    assert Reader().survey([path]) == Survey(1, len(text), len(text.encode()))
    if block == 1009:
        codec = Subwords(train_bpe(text, 300))
        assert len(pieces) > 10
        assert [i for p in pieces for i in codec.encode(p.text)] == codec.encode(text)
        cuts = [text[i : i + 501] for i in range(0, len(text), 501)]
        assert [i for cut in cuts for i in codec.encode(cut)] != codec.encode(text)


def test_broken_utf8_names_the_byte(tmp_path: Path, monkeypatch) -> None:
    good = "ab☃" * 50
    for block in (7, 2**20):
        monkeypatch.setattr(file_kinds, "BLOCK", block)
        path = _write(tmp_path / "a.txt", good.encode() + b"\xff" + good.encode())
        with pytest.raises(ValueError, match=rf"a.txt: not UTF-8 at byte {len(good.encode())} .*; convert"):
            list(Reader().read(path))
        path = _write(tmp_path / "b.txt", good.encode()[:-1])  # cut in the middle of a character
        with pytest.raises(ValueError, match=rf"b.txt: not UTF-8 at byte {len(good.encode()) - 3} "):
            list(Reader().read(path))


def test_jsonl_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"text": t, "id": 3}) for t in ("one", "", "zwei\nlines ☃", "drei")]
    path = _write(tmp_path / "a.jsonl", "\n".join([lines[0], "", *lines[1:]]))
    assert _texts(path) == ["one", "zwei\nlines ☃", "drei"]
    assert Reader().survey([path]).documents == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', r"line 2 is not JSON \(.*\); write one object per line"),
        (b'{"body": "a", "id": 1}', r"line 2 has no text in 'text', it has 'body', 'id'; set data.text_key"),
        (b'{"text": 5}', r"line 2 has no text in 'text'"),
        (b"[1, 2]", r"line 2 has no text in 'text', it has a list"),
        (b'{"text": "\xff"}', r"not UTF-8 at byte 27 \(line 2"),
        (b'{"text": "\\ud800"}', r"line 2 has half of a surrogate pair"),
    ],
)
def test_bad_lines_are_named_by_number(tmp_path: Path, line: bytes, message: str) -> None:
    path = _write(tmp_path / "a.jsonl", b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=message):
        list(Reader().read(path))


def test_holding_out_the_last_documents_or_characters() -> None:
    docs = [Piece(f"{i}", last=True) for i in range(10)]
    split = list(held_out_last(iter(docs), Survey(10, 10, 10), 0.25))
    assert [p.text for s, p in split if s == "val"] == ["8", "9"]  # round(7.5) documents stay
    two = list(held_out_last(iter(docs[:2]), Survey(2, 2, 2), 0.01))
    assert [s for s, _ in two] == ["train", "val"]  # at least one each
    one = [Piece("abcdef", last=False), Piece("ghij", last=True)]
    split = list(held_out_last(iter(one), Survey(1, 10, 10), 0.5))
    assert "".join(p.text for s, p in split if s == "train") == "abcde"
    assert "".join(p.text for s, p in split if s == "val") == "fghij"


def test_one_text_a_row_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"^data.document is 'row': .* not supported yet.*; take .*ArrayData$"):
        Reader(document="row")
    with pytest.raises(ValueError, match=r"data.document is 'page'; it must be file or line"):
        Reader(document="page")
