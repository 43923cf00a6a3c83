"""What an evaluation says: a line for each set and way of drawing, on it the figures of all measures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Key:
    """A line of the table: of which set, drawn how.

    Attributes:
        set: the data set's name.
        sampler: as it was written; `real` are held-out rows; None where nothing was drawn.
        num_steps: None where the sampler does not ask for steps.
    """

    set: str
    sampler: str | None = None
    num_steps: int | None = None
    temperature: float | None = None
    top_p: float | None = None

    @property
    def told(self) -> str:
        """'ancestral, 64 steps, temperature 0.9', without the set."""
        if self.sampler is None:
            return "the model"
        words = ["real text" if self.sampler == REAL else self.sampler]
        words += [] if self.num_steps is None else [f"{self.num_steps} steps"]
        words += [] if self.temperature in (None, 1) else [f"temperature {self.temperature:g}"]
        words += [] if self.top_p in (None, 1) else [f"top_p {self.top_p:g}"]
        return ", ".join(words)


REAL = "real"  # in the place of a sampler


@dataclass(frozen=True)
class Row:
    """What a measure says of one line.

    Attributes:
        figures: name -> value, and name_stderr -> its standard error where it has one. None: not defined here.
        about: plain JSON: protocol, seed, seconds, hashes, ...; `departures` from the published protocol and `notes`,
            each a list of texts. The frame adds measure, options, seconds, device, precision, weights and version.
    """

    key: Key
    figures: Mapping[str, float | None]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def measure(self) -> str:
        return str(self.about.get("measure", ""))


@dataclass(frozen=True)
class Table:
    """What one measure says of one set: a column for each way of drawing, a line for each figure.

    Attributes:
        lines: (name of the figure, the texts of its columns).
    """

    set: str
    measure: str
    columns: list[str]
    lines: list[tuple[str, list[str]]]


def finite(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    """Not a number is no figure."""
    return {name: None if value is None or math.isnan(value) else value for name, value in figures.items()}


def by_key(rows: Sequence[Row]) -> dict[Key, list[Row]]:
    """What all measures say of each line, the lines in the order of their first measure."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault(row.key, []).append(row)
    return found


def tables(rows: Sequence[Row]) -> list[Table]:
    """In the order in which the rows came."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.key.set, row.measure), []).append(row)
    return [_table(name, measure, own) for (name, measure), own in found.items()]


def _table(name: str, measure: str, rows: Sequence[Row]) -> Table:
    columns = [shown_figures(row.figures) for row in rows]
    figures = list(dict.fromkeys(figure for column in columns for figure in column))
    lines = [(figure.replace("_", " "), [column.get(figure, "") for column in columns]) for figure in figures]
    return Table(name, measure, [row.key.told for row in rows], lines)


def said(rows: Sequence[Row], what: str) -> list[str]:
    """All `departures` or all `notes`, each once, with the measure and the lines that it is said of."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for text in row.about.get(what, ()):
            found.setdefault((row.measure, str(text)), []).append(f"{row.key.set}: {row.key.told}")
    lines = []
    for (measure, text), keys in found.items():
        everywhere = len(keys) == sum(row.measure == measure for row in rows)
        lines.append(f"{measure}: {text}" + ("" if everywhere else f" ({'; '.join(dict.fromkeys(keys))})"))
    return lines


def shown_figures(figures: Mapping[str, float | None]) -> dict[str, str]:
    """Name -> 'value ± error'; what is not defined, and parts of errors, are left out."""
    found = {}
    for name, value in figures.items():
        base = name.removesuffix("_stderr")
        if value is None or math.isnan(value) or (base != name and base in figures) or "_stderr_" in name:
            continue
        error = figures.get(f"{name}_stderr")
        found[name] = _rounded(value) if error is None else f"{_rounded(value)} ± {_rounded(error)}"
    return found


def _rounded(value: float) -> str:
    """As many digits as a reader compares."""
    size = abs(value)
    if not math.isfinite(value) or size >= 100_000:
        return f"{value:.4g}"
    if size >= 100:
        return f"{value:,.1f}"
    return f"{value:.2f}" if size >= 10 else f"{value:.4f}"
