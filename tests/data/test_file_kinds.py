"""What a file is, is decided by its content behind its ending, or refused in one line: nothing is one plain document
by mistake."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ggm_lightning.data import file_kinds
from ggm_lightning.data.documents import Reader
from ggm_lightning.data.records import array_items, table_rows

TEXTS = ["one, with a comma", 'two "quoted"\nand a second line', "drei ☃", "", "five"]
FULL = [text for text in TEXTS if text]


def records(key: str = "text") -> list[dict[str, Any]]:
    return [{"id": i, key: text} for i, text in enumerate(TEXTS)]


def json_lines() -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records()).encode()


def table(delimiter: str) -> bytes:
    rows = ['"' + text.replace('"', '""') + '"' for text in TEXTS]
    return "\n".join([f"id{delimiter}text", *(f"{i}{delimiter}{row}" for i, row in enumerate(rows))]).encode()


def parquet() -> bytes:
    raw = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records()), raw)
    return raw.getvalue()


def read(path: Path, content: bytes, **kwargs: Any) -> list[str]:
    path.write_bytes(content)
    texts = [""]
    for piece in Reader(**kwargs).read(path):
        texts[-1] += piece.text
        if piece.last:
            texts.append("")
    return texts[:-1]


LINES, ARRAY = json_lines(), json.dumps(records()).encode()
READ = {
    "a.jsonl": LINES,
    "A.JSONL": LINES,
    "a.Ndjson": LINES,
    "a.json": LINES,
    "list.json": ARRAY,
    "pretty.JSON": json.dumps(records(), indent=2, ensure_ascii=False).encode(),
    "list.jsonl": ARRAY,
    "a.json.gz": gzip.compress(LINES),
    "a.JSON.GZ": gzip.compress(ARRAY),
    "a.jsonl.Zst": pa.compress(LINES, "zstd", asbytes=True),
    "packed.jsonl": gzip.compress(LINES),  # packed though its name does not say so
    "part-00000": LINES,
    "part-00001": gzip.compress(ARRAY),
    "part-00002": pa.compress(LINES, "zstd", asbytes=True),
    "lines.txt": LINES,
    "list.txt": ARRAY,
    "t.csv": table(","),
    "t.CSV": table(";"),
    "t.tsv": table("\t"),
    "t.TSV.GZ": gzip.compress(table("\t")),
    "excel.csv": b"\xef\xbb\xbf" + table(";").replace(b"\n", b"\r\n").replace(b'd""\r\n', b'd""\n'),
    "a.parquet": parquet(),
    "a.PARQUET": parquet(),
    "part-00003": parquet(),
}


@pytest.mark.parametrize("name", READ)
def test_records_are_read_by_content(tmp_path: Path, name: str) -> None:
    """With and without a byte-order mark where there may be one."""
    assert read(tmp_path / name, READ[name]) == FULL
    if name[0] in "aAlp" and READ[name][:1] in b"[{":
        assert read(tmp_path / name, b"\xef\xbb\xbf" + READ[name]) == FULL


@pytest.mark.parametrize("document", ["file", "line"])
@pytest.mark.parametrize(
    "content",
    ["plain\n", "{not json}\nat all", '{"a": 1}\nbut no object here\n', "[1] a note\n", "a,b\n1,2\n", "{", "["],
)
@pytest.mark.parametrize("name", ["a.txt", "A.TXT", "README", "notes.md", "wiki.test.raw", "a.txt.gz", "a.TXT.GZ"])
def test_plain_text_stays_plain_text(tmp_path: Path, document: str, content: str, name: str) -> None:
    raw = content.encode()
    raw = gzip.compress(raw) if name.lower().endswith("gz") else raw
    expected = [content] if document == "file" else content.splitlines()
    assert read(tmp_path / name, raw, document=document) == expected


def archive(how: str) -> bytes:
    raw = io.BytesIO()
    if how == "zip":
        with zipfile.ZipFile(raw, "w") as packed:
            packed.writestr("a.txt", "text")
    else:
        with tarfile.open(fileobj=raw, mode=how) as packed:
            packed.addfile(tarfile.TarInfo("a.txt"))
    return raw.getvalue()


FOREIGN = {
    "a zip as txt": ("a.txt", archive("zip"), "is a .zip archive"),
    "a zip": ("a.zip", archive("zip"), "is a .zip archive"),
    "a tar": ("a.tar", archive("w"), "is a .tar archive"),
    "a packed tar": ("a.tgz", archive("w:gz"), "is a .tar archive"),
    "bz2": ("a.jsonl.bz2", bz2.compress(LINES), "is packed as .bz2"),
    "xz": ("a.txt.xz", lzma.compress(LINES), "is packed as .xz"),
    "packed twice": ("a.txt.gz", gzip.compress(gzip.compress(LINES)), "is packed twice"),
    "packed parquet": ("a.parquet.gz", gzip.compress(parquet()), "is a packed parquet file"),
    "html": ("a.txt", b"\n<!DOCTYPE html>\n<html>", "is a page of markup"),
    "html as jsonl": ("a.jsonl", b"<html><head>", "is a page of markup"),
    "xml": ("a.xml", b'\xef\xbb\xbf<?xml version="1.0"?>', "is a page of markup"),
    "pdf": ("a.txt", b"%PDF-1.7 ...", "is a PDF"),
    "picture": ("a.txt", b"\x89PNG\r\n", "is a picture"),
    "utf-16": ("a.txt", "text".encode("utf-16"), "is text in UTF-16; convert it to UTF-8"),
    "utf-16 jsonl": ("a.jsonl", LINES.decode().encode("utf-16"), "is text in UTF-16; convert it to UTF-8"),
    "utf-16 without a mark": ("a.csv", "id,text".encode("utf-16-le"), "is binary, or text in UTF-16 or UTF-32"),
    "utf-32": ("a.txt", "text".encode("utf-32-be"), "is binary, or text in UTF-16 or UTF-32"),
    "arrow": ("data.arrow", b"ARROW1\0\0", "is an Arrow file"),
    "lfs": ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS"),
    "latin-1": ("a.txt", "naïve".encode("latin-1"), "not UTF-8 at byte 2"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_no_text_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    name, content, message = FOREIGN[what]
    for on_error in ("stop", "skip"):
        with pytest.raises(ValueError, match=message) as error:
            read(tmp_path / name, content, on_error=on_error)
        assert str(error.value).startswith(str(tmp_path / name))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("document", ["file", "line"])
def test_byte_order_marks_are_dropped(tmp_path: Path, name: str, document: str) -> None:
    raw = "\ufefffirst\nsecond \ufeff kept\n".encode()
    found = read(tmp_path / name, gzip.compress(raw) if name.endswith("gz") else raw, document=document)
    assert "\n".join(found).rstrip("\n") == "first\nsecond \ufeff kept"


def test_byte_order_marks_of_records_and_files_strung_together(tmp_path: Path) -> None:
    mark = "\ufeff".encode()
    lines = b"".join(mark + line for line in LINES.splitlines(keepends=True))  # cat of marked files
    assert read(tmp_path / "a.jsonl", lines + mark) == FULL
    marked = json.dumps([{"text": "\ufeffmarked"}, {"text": "a \ufeff"}])
    assert read(tmp_path / "a.json", marked.encode()) == ["marked", "a \ufeff"]
    assert read(tmp_path / "a.csv", mark + b"text\n\xef\xbb\xbfmarked\n") == ["marked"]
    with pytest.raises(ValueError, match=r"not UTF-8 at byte 23 \(line 2"):  # places count from the file's first byte
        read(tmp_path / "b.jsonl", mark + b'{"text": "fine"}\n' + b'{"t\xff')


WRONG = {
    "no column": (
        "a.csv",
        b"id,body\n1,x\n",
        r"a.csv: no column 'text', its first line names id, body; set",
    ),
    "two columns": ("a.csv", b"text,text\n1,x\n", r"a.csv: 2 columns 'text'"),
    "too many fields": (
        "a.csv",
        b"id,text\n1,a, b\n2,c\n",
        r"line 2 has 3 fields where the first line has 2; put",
    ),
    "quotes": ("a.csv", b'id,text\n1,"a" b\n2,c\n', r"the row that ends in line 2 is not of a table \("),
    "latin-1": ("a.csv", b"id,text\n1,\xe4\n2,c\n", r"the row that ends in line 2 is not UTF-8"),
    "no text": ("a.json", b'[{"text": 5}, {"text": "c"}]', r"item 1 has no text in 'text', it has a int there"),
    "no object": ("a.json", b'["a", {"text": "c"}]', r"item 1 has no text in 'text', it has a str; set data.text_key"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_records_are_named_and_single_ones_skipped(tmp_path: Path, what: str) -> None:
    name, content, message = WRONG[what]
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path / name, content)
    assert "\n" not in str(error.value)
    if "column" not in what:
        assert read(tmp_path / name, content, on_error="skip") == ["c"]


BROKEN = {
    "cut short": (b'[{"text": "a"}, {"text": "b', r"Unterminated string.*, behind item 1"),
    "cut behind a comma": (b'[{"text": "a"},', "Expecting value, behind item 1"),
    "not closed": (b'[{"text": "a"}', r"',' or '\]' expected, not 'the end', behind item 1"),
    "no comma": (b'[{"text": "a"} {"text": "b"}]', r"',' or '\]' expected, not '\{', behind item 1"),
    "more behind": (b'[{"text": "a"}] [', r"more text behind its closing '\]', behind item 1"),
    "a wrong value": (b"[nul" + b" " * 99 + b"]", "Expecting value, behind item 0"),
    "too deep": (b"[" * 100_000, "nested too deeply, behind item 0"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_array_is_refused(tmp_path: Path, what: str) -> None:
    content, message = BROKEN[what]
    with pytest.raises(ValueError, match=rf"^.*a.json: .*{message}") as error:
        read(tmp_path / "a.json", content, on_error="skip")
    assert "\n" not in str(error.value)


def test_arrays_in_parts_of_any_size() -> None:
    """Also numbers and escapes on both sides of a cut. A mistake is found without reading all that follows."""
    values = [{"text": 'a "☃" \\ b\n'}, 1234567, [], -1.5e-7, "x" * 50, None, {"a": [1, {"b": 2}]}]
    whole = json.dumps(values, indent=1)
    for size in (1, 2, 3, 7, 64, len(whole)):
        assert list(array_items(whole[i : i + size] for i in range(0, len(whole), size))) == values
    assert list(array_items(iter(["[", " ", "]"]))) == []
    asked = 0

    def parts() -> Iterator[str]:
        nonlocal asked
        yield "[1, oops "
        while asked < 1000:
            asked += 1
            yield "x" * 100

    with pytest.raises(ValueError, match="behind item 1"):
        list(array_items(parts()))
    assert asked <= 1


def test_long_fields_and_long_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "word " * 60_000
    assert [text for _, text in table_rows(["text\n", f'"{long}"\n'], ".csv", "text")] == [long]
    monkeypatch.setattr(file_kinds, "BLOCK", 1009)
    line = json.dumps({"text": long}).encode()
    assert read(tmp_path / "part-0", line) == [long]  # its first line is longer than what is looked at
    assert read(tmp_path / "a.json", b"[" + line + b"," + line + b"]") == [long, long]
