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


REAL = "real"  # in the place of a sampler


@dataclass(frozen=True)
class Row:
    """What a measure says of one line.

    Attributes:
        figures: name -> value, and name_stderr -> its standard error where it has one. None: not defined here.
        about: protocol, seed, seconds, hashes, departures (a list of texts), ...: plain JSON. The frame adds measure,
            options, seconds, device, precision, weights and version.
    """

    key: Key
    figures: Mapping[str, float | None]
    about: Mapping[str, Any] = field(default_factory=dict)


def finite(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    """Not a number is no figure."""
    return {name: None if value is None or math.isnan(value) else value for name, value in figures.items()}


def by_key(rows: Sequence[Row]) -> dict[Key, list[Row]]:
    """What all measures say of each line, the lines in the order of their first measure."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault(row.key, []).append(row)
    return found


def told(key: Key) -> str:
    """'TextData, ancestral, 64 steps, temperature 0.9'."""
    words = [key.set]
    if key.sampler is not None:
        words.append("real held-out rows" if key.sampler == REAL else key.sampler)
    words += [] if key.num_steps is None else [f"{key.num_steps} steps"]
    words += [] if key.temperature in (None, 1) else [f"temperature {key.temperature:g}"]
    words += [] if key.top_p in (None, 1) else [f"top_p {key.top_p:g}"]
    return ", ".join(words)


def shown_figures(figures: Mapping[str, float | None]) -> dict[str, str]:
    """Name -> 'value ± error'; what is not defined is left out."""
    found = {}
    for name, value in figures.items():
        base = name.removesuffix("_stderr")
        if value is None or (base != name and base in figures) or "_stderr_" in name:
            continue
        error = figures.get(f"{name}_stderr")
        found[name] = f"{value:.4g}" if error is None else f"{value:.4f} ± {error:.4f}"
    return found
