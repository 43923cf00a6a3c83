"""What a text file is, by its content behind its name's ending, and its unpacked bytes.

The ending says what a file should be, in capitals or not: .parquet, .jsonl, .ndjson, .json, .csv, .tsv; anything else
is plain text. Its first bytes say what it is: packed or not, JSON (objects a line, or an array of them) or plain. What
is none of these, such as a picture, an archive or a page of the web, is refused: read as text it would be trained on.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ggm_lightning.data.rows import BadData

BLOCK = 2**20  # bytes read at a time
BOM = "\ufeff"  # a byte-order mark: not a part of the text
AGAIN = "get the file again"
Progress = Callable[[int], Any]

_HEAD = 2**16  # bytes that are looked at
_PACKINGS = {".gz": ".gz", ".gzip": ".gz", ".zst": ".zst", ".zstd": ".zst"}
_PACKED = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
_LINES, _TABLES = (".jsonl", ".ndjson"), (".csv", ".tsv")
_FOREIGN = {
    b"PK\x03\x04": "a .zip archive (or .docx, .npz, ..)",
    b"PK\x05\x06": "an empty .zip archive",
    b"BZh": "packed as .bz2",
    b"\xfd7zXZ\x00": "packed as .xz",
    b"7z\xbc\xaf": "packed as .7z",
    b"Rar!": "packed as .rar",
    b"\x1f\x8b": "packed twice",
    b"\x28\xb5\x2f\xfd": "packed twice",
    b"PAR1": "a packed parquet file",
    b"ARROW1": "an Arrow file",
    b"\x93NUMPY": "a .npy array",
    b"%PDF": "a PDF",
    b"{\\rtf": "an RTF document",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"\x89HDF": "an HDF5 file",
    b"SQLite format 3": "a database",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself",
}
_MARKUP = (b"<!doctype", b"<html", b"<?xml")
_FIRST_KEY = re.compile(r'\s*(\[\s*)?\{\s*"(?:[^"\\]|\\.)*"\s*:')


class Kind(NamedTuple):
    """`content` is .txt, .jsonl, .json (an array), .csv, .tsv or .parquet; `packing` is .gz, .zst or empty."""

    packing: str
    content: str


def unread(_: int) -> None:
    """Progress that nobody watches."""


def what_is(path: Path) -> Kind:
    """See above.

    Raises:
        BadData: it is nothing that is read; says what it is.
    """
    endings = [ending.lower() for ending in path.suffixes]
    packing = _PACKINGS.get(endings[-1], "") if endings else ""
    ending = "".join(endings[-2:-1] if packing else endings[-1:])
    with open(path, "rb") as raw:
        first = raw.read(_HEAD)
    packing = packing or next((name for magic, name in _PACKED.items() if first.startswith(magic)), "")
    if not packing and (ending == ".parquet" or first.startswith(b"PAR1")):
        return Kind("", ".parquet")
    head = first
    if packing:
        with unpacked(path, packing) as lines:
            head = _beginning(lines)
    _refuse_foreign(path, head)
    return Kind(packing, _content(ending, head))


def _beginning(lines: Iterator[bytes]) -> bytes:
    head = b""
    for line in lines:
        head += line
        if len(head) >= _HEAD:
            break
    return head[:_HEAD]


def _refuse_foreign(path: Path, head: bytes) -> None:
    what = next((what for magic, what in _FOREIGN.items() if head.startswith(magic)), None)
    remedy = "text is read: .txt, .jsonl, .json, .csv, .tsv or parquet, packed as .gz or .zst or not at all"
    if what is None and head[257:262] == b"ustar":
        what = "a .tar archive"
    if what is None and head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        what, remedy = "text in UTF-16", "convert it to UTF-8"
    if what is None and head.count(0) * 100 > len(head):
        what, remedy = "binary, or text in UTF-16 or UTF-32 (it has bytes of value 0)", "convert text to UTF-8"
    if what is None and head.removeprefix(codecs.BOM_UTF8).lstrip().lower().startswith(_MARKUP):
        what = "a page of markup (HTML or XML)"
        remedy = "take the text out of it; markup that is itself to be learnt is given as .jsonl"
    if what is not None:
        raise BadData(f"{path}: is {what}; {remedy}")


def _content(ending: str, head: bytes) -> str:
    """The kind of unpacked content, of which `head` is the beginning."""
    if ending in _TABLES:
        return ending
    text = head.decode("utf-8", errors="replace").removeprefix(BOM)
    if ending in (*_LINES, ".json"):
        return ".json" if text.lstrip().startswith("[") else ".jsonl"
    return _json_without_its_ending(text, whole=len(head) < _HEAD) or ".txt"


def _json_without_its_ending(text: str, whole: bool) -> str | None:
    """.json or .jsonl for text that can only be meant as such: an array of objects, or an object in every line."""
    first_key = _FIRST_KEY.match(text)
    if first_key is None:
        return None
    if first_key[1]:
        return ".json"
    lines = text.split("\n")
    complete = [line for line in (lines if whole else lines[:-1]) if line.strip()]
    return ".jsonl" if all(map(_is_object, complete)) else None


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


@contextmanager
def unpacked(path: Path, packing: str, progress: Progress = unread) -> Iterator[Iterator[bytes]]:
    """The file's bytes in lines; `progress` is told of the file's own bytes. Damage of its packing is one line."""
    with open(path, "rb") as raw:
        try:
            yield _told(_stream(packing, raw), raw, progress)
        except BadData:
            raise
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BadData(f"{path}: not a whole .gz file ({error}); {AGAIN}") from None
        except OSError as error:
            if packing != ".zst" or error.errno is not None:
                raise
            raise BadData(f"{path}: not a whole .zst file ({error}); {AGAIN}") from None


def _stream(packing: str, raw: BinaryIO) -> BinaryIO:
    if packing == ".gz":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if packing == ".zst":
        import pyarrow  # a dependency of datasets, and with it there

        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"), BLOCK)
    return raw


def _told(stream: BinaryIO, raw: BinaryIO, progress: Progress) -> Iterator[bytes]:
    """Lines, of at most a block each: a file without newlines is not read whole."""
    told = 0
    while line := stream.readline(BLOCK):
        yield line
        here = raw.tell()
        if here - told >= BLOCK:
            progress(here - told)
            told = here
    progress(raw.tell() - told)


class Line(NamedTuple):
    """A whole line with its end, its number from 1 and its first byte's place in the unpacked file."""

    raw: bytes
    number: int
    start: int


def whole_lines(path: Path, packing: str, progress: Progress) -> Iterator[Line]:
    start, number, parts = 0, 0, list[bytes]()
    with unpacked(path, packing, progress) as lines:
        for part in lines:
            parts.append(part)
            if not part.endswith(b"\n"):  # a line longer than a block, or the last one
                continue
            number += 1
            yield Line(b"".join(parts), number, start)
            start += sum(map(len, parts))
            parts.clear()
    if parts:
        yield Line(b"".join(parts), number + 1, start)
