"""Text files as a stream of documents, in bounded memory, with errors that name the file and the place.

A file of JSON objects holds a document per object, in one field (.jsonl: an object a line; .json: that, or an array);
a .parquet, .csv or .tsv file a document per row, in one column; plain text is one document, read in pieces, or a
document per line. All but parquet may be packed as .gz or .zst. What a file is, its content says (data/file_kinds.py).
Byte-order marks are dropped.
"""

from __future__ import annotations

import codecs
import glob
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ggm_lightning.data import file_kinds
from ggm_lightning.data.file_kinds import AGAIN, BOM, Kind, Line, Progress, unread, what_is, whole_lines
from ggm_lightning.data.records import array_items, table_rows
from ggm_lightning.data.rows import BadData

_ROWS = 256  # of a parquet file, read together
_KINDS = ".txt, .jsonl, .json, .csv, .tsv or .parquet files (all but parquet also as .gz or .zst)"


class Piece(NamedTuple):
    """Part of a document; `last` says that the document ends with it."""

    text: str
    last: bool


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


class Survey(NamedTuple):
    """What one pass over the files counts."""

    documents: int
    characters: int
    bytes: int


class Reader:
    """Reads documents, and counts those it left out.

    Args:
        text_key: field of a JSON object, or column of a table, that holds the text.
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
        if document == "row":
            raise ValueError(
                "data.document is 'row': examples of one text each are not supported yet, for their lengths would "
                "differ; take file or line, whose texts are joined and cut into windows of data.length, or cut and pad "
                "ids of your own to one length and give them to ggm_lightning.data.arrays.ArrayData"
            )
        if document not in ("file", "line"):
            raise ValueError(f"data.document is {document!r}; it must be file or line")
        if on_error not in ("stop", "skip"):
            raise ValueError(f"data.on_error is {on_error!r}; it must be stop or skip")
        self.text_key, self.document, self.on_error, self.detokenise = text_key, document, on_error, detokenise
        self.exact = exact
        self.skipped = self.empty = 0
        self.first_skipped = ""

    def read(self, path: Path, progress: Progress = unread) -> Iterator[Piece]:
        """The documents of one file; `progress` is told the bytes read. Empty ones are left out and counted."""
        kind = what_is(path)
        if kind.content == ".parquet":
            texts = self._rows(path, progress)
        elif kind.content == ".jsonl":
            texts = self._lines(path, kind, progress, self._json_text)
        elif kind.content == ".json":
            texts = self._array(path, kind, progress)
        elif kind.content in (".csv", ".tsv"):
            texts = self._table(path, kind, progress)
        elif self.document == "line":
            texts = self._lines(path, kind, progress, self._plain_text)
        else:
            yield from _read_text(path, kind, progress)
            return
        for text in texts:
            if not self.exact:
                text = text.removeprefix(BOM)
            text = text if self.detokenise is None else self.detokenise(text)
            if text or self.exact:
                yield Piece(text, last=True)
            else:
                self.empty += 1

    def survey(self, paths: list[Path], progress: Progress = unread) -> Survey:
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

    def _lines(self, path: Path, kind: Kind, progress: Progress, text_of: Callable[[Path, Line], str]) -> Iterator[str]:
        for line in whole_lines(path, kind.packing, progress):
            if not line.raw.removeprefix(codecs.BOM_UTF8).strip() and not (self.exact and text_of == self._plain_text):
                continue
            try:
                yield text_of(path, line)
            except BadData as error:
                self._leave_out(error)

    def _plain_text(self, path: Path, line: Line) -> str:
        text = _utf8(path, line)
        end = "\n" if self.exact and text.endswith("\n") else ""
        return text.rstrip("\r\n") + end

    def _json_text(self, path: Path, line: Line) -> str:
        where = f"{path}: line {line.number}"
        try:
            record = json.loads(_utf8(path, line))
        except BadData:
            raise
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error  # without its position
            raise BadData(f"{where} is not JSON ({reason}); {self._remedy('write one object per line')}") from None
        return self._field(record, where)

    def _field(self, record: Any, where: str) -> str:
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

    def _array(self, path: Path, kind: Kind, progress: Progress) -> Iterator[str]:
        parts = (piece.text for piece in _read_text(path, kind, progress))
        remedy = f"{AGAIN}, or write one object per line"
        for number, item in enumerate(_named(path, array_items(parts), remedy), 1):
            try:
                yield self._field(item, f"{path}: item {number}")
            except BadData as error:
                self._leave_out(error)

    def _table(self, path: Path, kind: Kind, progress: Progress) -> Iterator[str]:
        raw = (line.raw for line in whole_lines(path, kind.packing, progress))
        # bytes that are no UTF-8 become halves of surrogate pairs, by which their row is known
        lines = (line.decode("utf-8", errors="surrogateescape").removeprefix(BOM) for line in raw)
        rows = table_rows(lines, kind.content, self.text_key)
        for number, found in _named(path, rows, "set data.text_key"):
            try:
                yield self._cell(found, f"{path}: the row that ends in line {number}")
            except BadData as error:
                self._leave_out(error)

    def _cell(self, found: str | ValueError, where: str) -> str:
        if isinstance(found, ValueError):
            raise BadData(f"{where} {found}; {self._remedy('put texts with commas or quotes into quotes')}")
        try:
            found.encode("utf-8")
        except UnicodeEncodeError:
            raise BadData(f"{where} is not UTF-8; {self._remedy('convert the file')}") from None
        return found

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
            raise BadData(f"{path}: not a whole parquet file ({' '.join(str(error).split())}); {AGAIN}") from None
        progress(path.stat().st_size - told)

    def _check_column(self, path: Path, schema: Any) -> None:
        if self.text_key not in schema.names:
            raise BadData(f"{path}: no column '{self.text_key}', it has {', '.join(schema.names)}; set data.text_key")
        found = str(schema.field(self.text_key).type)
        # categories of pandas come as a dictionary of strings; its type is written out with its values' type first
        plain = found.removeprefix("dictionary<values=").split(",")[0]
        if plain not in ("string", "large_string", "string_view"):
            raise BadData(f"{path}: column '{self.text_key}' holds {found}, no text; set data.text_key")


def _named(path: Path, records: Iterator[Any], remedy: str) -> Iterator[Any]:
    """The records; what is wrong with all of them is said with the file's name."""
    try:
        yield from records
    except BadData:
        raise
    except ValueError as error:
        raise BadData(f"{path}: {error}; {remedy}") from None


def _utf8(path: Path, line: Line) -> str:
    try:
        return line.raw.decode("utf-8").removeprefix(BOM)
    except UnicodeDecodeError as error:
        raise BadData(
            f"{path}: not UTF-8 at byte {line.start + error.start} (line {line.number}, {error.reason}); "
            f"convert it to UTF-8"
        ) from None


def _read_text(path: Path, kind: Kind, progress: Progress) -> Iterator[Piece]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    waiting, parts, done, size = "", list[bytes](), 0, 0
    with file_kinds.unpacked(path, kind.packing, progress) as lines:
        for line in lines:
            parts.append(line)
            size += len(line)
            if size < file_kinds.BLOCK:
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
        text = decoder.decode(block, final=final)
    except UnicodeDecodeError as error:
        raise BadData(
            f"{path}: not UTF-8 at byte {done - kept + error.start} ({error.reason}); convert the file to UTF-8"
        ) from None
    return text if done else text.removeprefix(BOM)


def _cut(text: str) -> int:
    """Where to end a piece: after the last newline that visible text follows, so that tokenizers which split at white
    space (GPT-2's and most byte-level ones) give the same tokens as on the whole text. 0: nowhere yet.
    """
    at = len(text)
    while (at := text.rfind("\n", 0, at)) > 0:
        if at + 1 < len(text) and not text[at + 1].isspace():
            return at + 1
    return 0 if len(text) < 16 * file_kinds.BLOCK else len(text) // 2  # a line of 16 million characters is cut anywhere


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
