"""Records of files that are no lines: the items of a JSON array and the rows of a table, in bounded memory."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

_BEHIND_A_NUMBER = set(", ]\t\n\r")
_SPACE = re.compile(r"[ \t\n\r]*")
_DELIMITERS = {".csv": ",;\t|", ".tsv": "\t,;|"}  # the ending's own first; many a .csv has semicolons


class _Growing:
    """A text that arrives in parts, and how far it has been read."""

    def __init__(self, parts: Iterator[str]) -> None:
        self.parts, self.text, self.at = parts, "", 0

    def grow(self) -> bool:
        """One part more; what was read is forgotten. False: there is no more."""
        part = next(self.parts, None)
        if part is None:
            return False
        self.text, self.at = self.text[self.at :] + part, 0
        return True

    def next_sign(self) -> str:
        """The next character that is no white space, which is not passed over; "" at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.grow():
                return ""

    def take(self, *signs: str) -> str:
        """Passes over the next sign, which must be one of these."""
        sign = self.next_sign()
        if sign not in signs:
            raise ValueError(f"{' or '.join(map(repr, signs))} expected, not {sign or 'the end'!r}")
        self.at += 1
        return sign

    def value(self) -> Any:
        """The next value, which may need more parts."""
        self.next_sign()
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # what is only cut off fails at its end, or as a string that is not closed; a mistake fails before
                cut_off = error.msg.startswith("Unterminated") or error.pos > len(self.text) - 16
                if cut_off and self.grow():
                    continue
                raise ValueError(error.msg) from None
            closed = isinstance(value, dict | list | str) or self.text[end : end + 1] in _BEHIND_A_NUMBER
            if closed or not self.grow():  # a number might go on in the next part
                self.at = end
                return value


def array_items(parts: Iterator[str]) -> Iterator[Any]:
    """The items of the JSON array that the parts of a text make up.

    Raises:
        ValueError: it is not one; says behind which item.
    """
    text, number = _Growing(parts), 0
    try:
        text.take("[")
        if text.next_sign() == "]":
            return
        while True:
            value = text.value()
            number += 1
            yield value
            if text.take(",", "]") == "]":
                break
        if text.next_sign():
            raise ValueError("more text behind its closing ']'")
    except RecursionError:
        raise ValueError(f"JSON nested too deeply, behind item {number}") from None
    except ValueError as error:
        raise ValueError(f"not a whole JSON array ({error}, behind item {number})") from None


def table_rows(lines: Iterable[str], ending: str, column: str) -> Iterator[tuple[int, str | ValueError]]:
    """(number of the line in which a row ends, its text in `column`, or what is wrong with the row).

    The first row names the columns. The delimiter is the ending's own, or another under which there is such a column.

    Raises:
        ValueError: there is no such column.
    """
    csv.field_size_limit(sys.maxsize)  # of the whole process; the default of 128 KiB is less than many a document
    lines = iter(lines)
    first = next(lines, "")
    delimiter = next((sign for sign in _DELIMITERS[ending] if column in _named(first, sign)), None)
    if delimiter is None:
        listed = ", ".join(_named(first, _DELIMITERS[ending][0]))
        raise ValueError(f"no column '{column}', its first line names {listed}")
    names = _named(first, delimiter)
    if names.count(column) > 1:
        raise ValueError(f"{names.count(column)} columns '{column}'")
    place = names.index(column)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield rows.line_num + 1, ValueError(f"is not of a table ({error})")
            continue
        if row is None:
            return
        if len(row) == len(names):
            yield rows.line_num + 1, row[place]
        elif row:  # a blank line is none
            yield rows.line_num + 1, ValueError(f"has {len(row)} fields where the first line has {len(names)}")


def _named(line: str, delimiter: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
