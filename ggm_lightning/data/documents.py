"""A user's text files as a stream of documents, in bounded memory, with errors that name the file and the place.

A .jsonl (or .ndjson) file holds one document per line, in one field; any other file is one document, read in pieces.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

_BLOCK = 2**20  # bytes read at a time, and about the characters of a piece
_WHOLE = 2**28  # files up to this many bytes are hashed whole


class Piece(NamedTuple):
    """Part of a document; `last` says that the document ends with it."""

    text: str
    last: bool


Progress = Callable[[int], Any]


def find_files(patterns: str | list[str], key: str) -> list[Path]:
    """The files that a path, a glob or a list of them names, each glob in sorted order."""
    found: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        exact = Path(pattern).expanduser()
        matches = [exact] if exact.exists() else [Path(p) for p in sorted(glob.glob(str(exact), recursive=True))]
        files = [path for path in matches if path.is_file()]
        if not files:
            what = "is a folder" if exact.is_dir() else "matches no file"
            raise FileNotFoundError(f"data.{key}: '{pattern}' {what}; give the path or glob of .txt or .jsonl files")
        empty = [path for path in files if path.stat().st_size == 0]
        if empty:
            raise ValueError(
                f"data.{key}: {empty[0]}: 0 characters of text, the file is empty; copy it again, or leave it out"
            )
        found += files
    if not found:
        raise ValueError(f"data.{key} is an empty list; give at least one path of a .txt or .jsonl file")
    return found


def fingerprint(path: Path) -> dict[str, Any]:
    """Name, size and content hash of a file, whatever its date.

    Above 256 MiB the hash covers 257 evenly spaced blocks of 1 MiB, the first and last included, so that starting a
    run on a large corpus does not read all of it.
    """
    size = path.stat().st_size
    with open(path, "rb") as handle:
        if size <= _WHOLE:
            return {"name": path.name, "bytes": size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}
        digest = hashlib.sha256()
        for block in range(257):
            handle.seek((size - _BLOCK) * block // 256)
            digest.update(handle.read(_BLOCK))
    return {"name": path.name, "bytes": size, "sha256_of_257_blocks": digest.hexdigest()}


def read_documents(path: Path, text_key: str, progress: Progress = lambda _: None) -> Iterator[Piece]:
    """The documents of one file; `progress` is told the bytes read."""
    if path.suffix in (".jsonl", ".ndjson"):
        return _read_lines(path, text_key, progress)
    return _read_text(path, progress)


def _read_text(path: Path, progress: Progress) -> Iterator[Piece]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    waiting, done = "", 0
    with open(path, "rb") as handle:
        while block := handle.read(_BLOCK):
            waiting += _decoded(decoder, block, path, done)
            done += len(block)
            progress(len(block))
            cut = _cut(waiting)
            if cut:
                yield Piece(waiting[:cut], last=False)
                waiting = waiting[cut:]
        waiting += _decoded(decoder, b"", path, done)
    if done:
        yield Piece(waiting, last=True)


def _decoded(decoder: codecs.IncrementalDecoder, block: bytes, path: Path, done: int) -> str:
    kept = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, final=not block)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 at byte {done - kept + error.start} ({error.reason}); convert the file to UTF-8"
        ) from None


def _cut(text: str) -> int:
    """Where to end a piece: after the last newline that visible text follows, so that tokenizers which split at white
    space (GPT-2's and most byte-level ones) give the same tokens as on the whole text. 0: nowhere yet.
    """
    at = len(text)
    while (at := text.rfind("\n", 0, at)) > 0:
        if at + 1 < len(text) and not text[at + 1].isspace():
            return at + 1
    return 0 if len(text) < 16 * _BLOCK else len(text) // 2  # a line of 16 million characters is cut anywhere


def _read_lines(path: Path, text_key: str, progress: Progress) -> Iterator[Piece]:
    start = 0
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            text = _document(line, path, number, start, text_key)
            start += len(line)
            progress(len(line))
            if text:
                yield Piece(text, last=True)


def _document(line: bytes, path: Path, number: int, start: int, text_key: str) -> str:
    if not line.strip():
        return ""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 at byte {start + error.start} (line {number}, {error.reason}); convert it to UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", error)
        raise ValueError(f"{path}: line {number} is not JSON ({reason}); write one object per line") from None
    text = record.get(text_key) if isinstance(record, dict) else None
    if not isinstance(text, str):
        has = ", ".join(map(repr, record)) if isinstance(record, dict) else f"a {type(record).__name__}"
        if isinstance(record, dict) and text_key in record:
            has = f"a {type(text).__name__} there"
        raise ValueError(f"{path}: line {number} has no text in '{text_key}', it has {has}; set data.text_key")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{path}: line {number} has half of a surrogate pair (\\ud800..\\udfff); remove it") from None
    return text


class Survey(NamedTuple):
    """What one pass over the files counts."""

    documents: int
    characters: int
    bytes: int


def survey(paths: list[Path], text_key: str, progress: Progress = lambda _: None) -> Survey:
    documents = characters = 0
    for path in paths:
        for piece in read_documents(path, text_key, progress):
            characters += len(piece.text)
            documents += piece.last
    return Survey(documents, characters, sum(path.stat().st_size for path in paths))


def held_out_last(pieces: Iterator[Piece], counts: Survey, fraction: float) -> Iterator[tuple[str, Piece]]:
    """("train" or "val", piece): the last documents are held out, or the last characters of a single document."""
    if counts.documents > 1:
        first_held_out = min(max(1, round(counts.documents * (1 - fraction))), counts.documents - 1)
        seen = 0
        for piece in pieces:
            yield ("train" if seen < first_held_out else "val"), piece
            seen += piece.last
        return
    cut = int(counts.characters * (1 - fraction))
    for piece in pieces:
        head, tail = piece.text[: max(cut, 0)], piece.text[max(cut, 0) :]
        cut -= len(piece.text)
        if head:
            yield "train", Piece(head, last=not tail and piece.last)
        if tail:
            yield "val", Piece(tail, last=piece.last)
