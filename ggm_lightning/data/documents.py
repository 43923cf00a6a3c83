"""Text files as a stream of documents, in bounded memory, with errors that name the file and the place.

A .jsonl (or .ndjson) file holds a document per line, in one field; a .parquet file a document per row, in one column;
any other file is one document, read in pieces, or a document per line. All but parquet may be packed as .gz or .zst.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ggm_lightning.data.rows import BadData

_BLOCK = 2**20  # bytes read at a time, and about the characters of a piece
_ROWS = 256  # of a parquet file, read together
_AGAIN = "get the file again"
_KINDS = ".txt, .jsonl or .parquet files (.txt and .jsonl also as .gz or .zst)"
_JSON_LINES = (".jsonl", ".ndjson")


class Piece(NamedTuple):
    """Part of a document; `last` says that the document ends with it."""

    text: str
    last: bool


Progress = Callable[[int], Any]


def _unread(_: int) -> None:
    """Progress that nobody watches."""


def kind(path: Path) -> str:
    """The suffix that decides how a file is read, that of the packing left out."""
    inner = path.with_suffix("") if path.suffix in (".gz", ".zst") else path
    return inner.suffix


def find_files(patterns: str | list[str], key: str) -> list[Path]:
    """The files that a path, a glob or a list of them names, each glob in sorted order."""
    found: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        exact = Path(pattern).expanduser()
        matches = [exact] if exact.exists() else [Path(p) for p in sorted(glob.glob(str(exact), recursive=True))]
        files = [path for path in matches if path.is_file()]
        if not files:
            what = "is a folder" if exact.is_dir() else "matches no file"
            raise FileNotFoundError(f"data.{key}: '{pattern}' {what}; give the path or glob of {_KINDS}")
        empty = [path for path in files if path.stat().st_size == 0]
        if empty:
            raise ValueError(
                f"data.{key}: {empty[0]}: 0 characters of text, the file is empty; copy it again, or leave it out"
            )
        found += files
    if not found:
        raise ValueError(f"data.{key} is an empty list; give at least one path of {_KINDS}")
    return found


@contextmanager
def _unpacked(path: Path, progress: Progress) -> Iterator[Iterator[bytes]]:
    """The file's bytes in lines; `progress` is told of the file's own bytes. Damage of its packing is one line."""
    with open(path, "rb") as raw:
        try:
            yield _told(_stream(path, raw), raw, progress)
        except BadData:
            raise
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BadData(f"{path}: not a whole .gz file ({error}); {_AGAIN}") from None
        except OSError as error:
            if path.suffix != ".zst" or error.errno is not None:
                raise
            raise BadData(f"{path}: not a whole .zst file ({error}); {_AGAIN}") from None


def _stream(path: Path, raw: BinaryIO) -> BinaryIO:
    if path.suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if path.suffix == ".zst":
        import pyarrow  # a dependency of datasets, and with it there

        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"), _BLOCK)
    return raw


def _told(stream: BinaryIO, raw: BinaryIO, progress: Progress) -> Iterator[bytes]:
    """Lines, of at most a block each: a file without newlines is not read whole."""
    told = 0
    while line := stream.readline(_BLOCK):
        yield line
        here = raw.tell()
        if here - told >= _BLOCK:
            progress(here - told)
            told = here
    progress(raw.tell() - told)


class Survey(NamedTuple):
    """What one pass over the files counts."""

    documents: int
    characters: int
    bytes: int


class Reader:
    """Reads documents, and counts those it left out.

    Args:
        text_key: field of a .jsonl line, or column of a .parquet file, that holds the text.
        document: of other files: "file", the whole of it is one document, or "line", each line is one.
        on_error: "stop", or "skip": lines and rows without readable text are left out and counted in `skipped`.
        detokenise: applied to each document, for corpora that are distributed as separated words; documents of whole
            files cannot be.
        exact: each line and row is a document, empty ones among them, and lines keep their ends: for sets whose
            examples are numbered. Blank lines of .jsonl are no documents even then.
    """

    def __init__(
        self,
        text_key: str = "text",
        document: str = "file",
        on_error: str = "stop",
        detokenise: Callable[[str], str] | None = None,
        exact: bool = False,
    ) -> None:
        if document not in ("file", "line"):
            raise ValueError(f"data.document is {document!r}; it must be file or line")
        if on_error not in ("stop", "skip"):
            raise ValueError(f"data.on_error is {on_error!r}; it must be stop or skip")
        self.text_key, self.document, self.on_error, self.detokenise = text_key, document, on_error, detokenise
        self.exact = exact
        self.skipped = self.empty = 0
        self.first_skipped = ""

    def read(self, path: Path, progress: Progress = _unread) -> Iterator[Piece]:
        """The documents of one file; `progress` is told the bytes read. Empty ones are left out and counted."""
        if kind(path) == ".parquet":
            texts = self._rows(path, progress)
        elif kind(path) in _JSON_LINES:
            texts = self._lines(path, progress, self._json_text)
        elif self.document == "line":
            texts = self._lines(path, progress, self._plain_text)
        else:
            yield from _read_text(path, progress)
            return
        for text in texts:
            text = text if self.detokenise is None else self.detokenise(text)
            if text or self.exact:
                yield Piece(text, last=True)
            else:
                self.empty += 1

    def survey(self, paths: list[Path], progress: Progress = _unread) -> Survey:
        documents = characters = 0
        for path in paths:
            for piece in self.read(path, progress):
                characters += len(piece.text)
                documents += piece.last
        return Survey(documents, characters, sum(path.stat().st_size for path in paths))

    def note(self) -> str:
        """What was left out, for the one line that a preparation prints; empty where nothing was."""
        empty = f"; {self.empty:,} empty documents left out" if self.empty else ""
        return empty + (f"; {self.skipped:,} unreadable skipped, the first: {self.first_skipped}" * (self.skipped > 0))

    def _leave_out(self, error: ValueError) -> None:
        if self.on_error == "stop":
            raise error
        self.first_skipped = self.first_skipped or str(error)
        self.skipped += 1

    def _lines(self, path: Path, progress: Progress, text_of: Callable[..., str]) -> Iterator[str]:
        start, number, parts = 0, 0, list[bytes]()
        with _unpacked(path, progress) as lines:
            for part in lines:
                parts.append(part)
                if not part.endswith(b"\n"):  # a line longer than a block, or the last one
                    continue
                number += 1
                yield from self._one(b"".join(parts), path, number, start, text_of)
                start += sum(map(len, parts))
                parts.clear()
        if parts:
            yield from self._one(b"".join(parts), path, number + 1, start, text_of)

    def _one(self, line: bytes, path: Path, number: int, start: int, text_of: Callable[..., str]) -> Iterator[str]:
        if not line.strip() and not (self.exact and text_of == self._plain_text):
            return
        try:
            yield text_of(line, path, number, start)
        except BadData as error:
            self._leave_out(error)

    def _plain_text(self, line: bytes, path: Path, number: int, start: int) -> str:
        text = _utf8(line, path, number, start)
        end = "\n" if self.exact and text.endswith("\n") else ""
        return text.rstrip("\r\n") + end

    def _json_text(self, line: bytes, path: Path, number: int, start: int) -> str:
        where = f"{path}: line {number}"
        try:
            record = json.loads(_utf8(line, path, number, start))
        except BadData:
            raise
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error  # without its position
            raise BadData(f"{where} is not JSON ({reason}); {self._remedy('write one object per line')}") from None
        text = record.get(self.text_key) if isinstance(record, dict) else None
        if not isinstance(text, str):
            has = ", ".join(map(repr, record)) if isinstance(record, dict) else f"a {type(record).__name__}"
            if isinstance(record, dict) and self.text_key in record:
                has = f"a {type(text).__name__} there"
            raise BadData(f"{where} has no text in '{self.text_key}', it has {has}; set data.text_key")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise BadData(f"{where} has half of a surrogate pair (\\ud800..\\udfff); remove it") from None
        return text

    def _remedy(self, words: str) -> str:
        return words if self.exact else f"{words}, or set data.on_error: skip"

    def _rows(self, path: Path, progress: Progress) -> Iterator[str]:
        with open(path, "rb") as raw:
            for number, text in enumerate(self._column(path, raw, progress), 1):
                if text is None:
                    self._leave_out(BadData(f"{path}: row {number} has no text; {self._remedy('fill it')}"))
                else:
                    yield text

    def _column(self, path: Path, raw: BinaryIO, progress: Progress) -> Iterator[str | None]:
        import pyarrow.parquet

        told = 0
        try:
            table = pyarrow.parquet.ParquetFile(raw)
            self._check_column(path, table.schema_arrow)
            for batch in table.iter_batches(batch_size=_ROWS, columns=[self.text_key], use_threads=False):
                yield from batch.column(0).to_pylist()
                here = max(told, raw.tell())  # where the reader has got to; it goes back for other columns
                progress(here - told)
                told = here
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the file's content
                raise
            raise BadData(f"{path}: not a whole parquet file ({' '.join(str(error).split())}); {_AGAIN}") from None
        progress(path.stat().st_size - told)

    def _check_column(self, path: Path, schema: Any) -> None:
        if self.text_key not in schema.names:
            raise BadData(f"{path}: no column '{self.text_key}', it has {', '.join(schema.names)}; set data.text_key")
        found = str(schema.field(self.text_key).type)
        if found not in ("string", "large_string", "string_view"):
            raise BadData(f"{path}: column '{self.text_key}' holds {found}, no text; set data.text_key")


def _utf8(line: bytes, path: Path, number: int, start: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadData(
            f"{path}: not UTF-8 at byte {start + error.start} (line {number}, {error.reason}); convert it to UTF-8"
        ) from None


def _read_text(path: Path, progress: Progress) -> Iterator[Piece]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    waiting, parts, done, size = "", list[bytes](), 0, 0
    with _unpacked(path, progress) as lines:
        for line in lines:
            parts.append(line)
            size += len(line)
            if size < _BLOCK:
                continue
            waiting += _decoded(decoder, b"".join(parts), path, done)
            done, size = done + size, 0
            parts.clear()
            cut = _cut(waiting)
            if cut:
                yield Piece(waiting[:cut], last=False)
                waiting = waiting[cut:]
    waiting += _decoded(decoder, b"".join(parts), path, done, final=True)
    if done + size:
        yield Piece(waiting, last=True)


def _decoded(decoder: codecs.IncrementalDecoder, block: bytes, path: Path, done: int, final: bool = False) -> str:
    kept = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, final=final)
    except UnicodeDecodeError as error:
        raise BadData(
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


def held_out_last(pieces: Iterator[Piece], counts: Survey, fraction: float) -> Iterator[tuple[str, Piece]]:
    """("train" or "val", piece): the last documents are held out, or the last characters of a single document."""
    if counts.documents > 1:
        first_held_out = min(max(1, round(counts.documents * (1 - fraction))), counts.documents - 1)
        yield from held_out_from(pieces, first_held_out)
        return
    cut = int(counts.characters * (1 - fraction))
    for piece in pieces:
        head, tail = piece.text[: max(cut, 0)], piece.text[max(cut, 0) :]
        cut -= len(piece.text)
        if head:
            yield "train", Piece(head, last=not tail and piece.last)
        if tail:
            yield "val", Piece(tail, last=piece.last)


def held_out_from(pieces: Iterator[Piece], first_held_out: int) -> Iterator[tuple[str, Piece]]:
    """("train" or "val", piece): documents from number `first_held_out` on are held out."""
    seen = 0
    for piece in pieces:
        yield ("train" if seen < first_held_out else "val"), piece
        seen += piece.last
