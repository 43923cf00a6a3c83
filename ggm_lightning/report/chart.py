"""Learning curves as SVG inside a page: they take its colours, and their labels keep their size on a phone.

Each axis has two drawings, of which the page shows the one for its width; a chooser among the axes needs no script.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_MOST_POINTS = 400  # of one line: more than its drawing has pixels
_FEW_POINTS = 50  # of a line in the background: then it is to be seen as a whole
_ROW = 15.0  # height of a line of text
_charts = itertools.count()  # so that choosers of one page do not share their buttons


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: in the key below the chart, with the last value.
        kind: CSS class that gives the colour: held-out, training, run-0, ...
        x, y: Float[k], finite, in the order of x.
        error: Float[k], half the height of a band; None for none.
        faint: drawn in the background and not named.
        dots: each point is marked, as validations are.
    """

    name: str
    kind: str
    x: np.ndarray
    y: np.ndarray
    error: np.ndarray | None = None
    faint: bool = False
    dots: bool = False


def chooser(
    axes: Mapping[str, Sequence[Line]], unit: str, references: dict[str, float], spare: Sequence[str] = ()
) -> str:
    """HTML: a chart for each axis (name -> its lines), of which one is shown; the first to begin with.

    Args:
        axes: "optimiser steps", "tokens", "time" -> lines; those without points are left out.
        unit: what stands on the y axis.
        references: name -> level, dashed.
        spare: lines for the key that stand for no curve.
    """
    shown = {axis: [line for line in lines if len(line.x)] for axis, lines in axes.items()}
    shown = {axis: lines for axis, lines in shown.items() if lines}
    group = f"axis-{next(_charts)}"
    parts = []
    for i, (axis, lines) in enumerate(shown.items()):
        chosen = " checked" if i == 0 else ""
        label = f'<label for="{group}-{i}">{html.escape(axis)}</label>'
        if len(shown) == 1:
            label = "<label hidden></label>"
        parts.append(f'<input type="radio" name="{group}" id="{group}-{i}"{chosen}>{label}')
        parts.append(f'<div class="chart">{_chart(axis, lines, unit, references)}{_key(lines, spare)}</div>')
    return f'<div class="axes">{"".join(parts)}</div>' if parts else ""


def limits(curves: Sequence[np.ndarray], levels: Sequence[float] = ()) -> tuple[float, float]:
    """(low, high) of the y axis. Where the first points of a curve (at most a quarter, at least one of three) make the
    range more than three times that of all else, they leave the picture at the top.

    Args:
        curves: Float[k] each, in the order of their steps.
        levels: must be inside.
    """
    kept = [curve[len(curve) // 20 :] for curve in curves if len(curve)]
    low, high = _range(kept, levels)
    later = [curve[max(1, len(curve) // 4) :] if len(curve) > 2 else curve for curve in kept]
    _, later_high = _range(later, levels)
    if later_high > low and high - low > 3 * (later_high - low):
        high = later_high
    margin = 0.06 * (high - low) or 0.1
    return low - margin, high + margin


def _range(curves: Sequence[np.ndarray], levels: Sequence[float]) -> tuple[float, float]:
    values = np.concatenate([*curves, np.asarray(levels, float)]) if curves or len(levels) else np.zeros(1)
    return float(values.min()), float(values.max())


def _chart(axis: str, lines: Sequence[Line], unit: str, references: dict[str, float]) -> str:
    bold = [line.y for line in lines if not line.faint or len(line.x) < _FEW_POINTS]
    y_limits = limits(bold, list(references.values()))
    above = [float(curve.max()) for curve in bold if curve.max() > y_limits[1]]
    note = ""
    if above:
        note = f'<p class="note">The first values are above the picture, up to {max(above):,.4g}.</p>'
    wide = _Drawing(880, 400, "wide-only").drawn(axis, lines, unit, references, y_limits)
    narrow = _Drawing(360, 300, "narrow").drawn(axis, lines, unit, references, y_limits)
    return wide + narrow + note


@dataclass(frozen=True)
class _Drawing:
    width: int
    height: int
    kind: str
    left: int = 52
    right: int = 14
    top: int = 26
    bottom: int = 44

    def drawn(
        self,
        axis: str,
        lines: Sequence[Line],
        unit: str,
        references: dict[str, float],
        y_limits: tuple[float, float],
    ) -> str:
        x_high = max(float(line.x.max()) for line in lines) or 1.0
        parts = [self._grid(axis, unit, x_high, y_limits)]
        inside = []
        for level in references.values():
            y = self._y(level, y_limits)
            inside.append(f'<line class="reference" x1="{self.left}" x2="{self._end}" y1="{y:.1f}" y2="{y:.1f}"/>')
        inside += [self._line(line, x_high, y_limits) for line in sorted(lines, key=lambda line: not line.faint)]
        left, top, width, height = self.left - 4, self.top - 4, self._end - self.left + 8, self._floor - self.top + 8
        frame = f'x="{left}" y="{top}" width="{width}" height="{height}" viewBox="{left} {top} {width} {height}"'
        parts.append(f"<svg {frame}>{''.join(inside)}</svg>")  # what lies outside it is cut off
        parts += self._reference_names(references, y_limits)
        description = html.escape(f"{unit} over {axis}")
        return (
            f'<svg class="{self.kind}" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{description}">{"".join(parts)}</svg>'
        )

    @property
    def _end(self) -> int:
        return self.width - self.right

    @property
    def _floor(self) -> int:
        return self.height - self.bottom

    def _x(self, value: float, high: float) -> float:
        return self.left + (self._end - self.left) * value / high

    def _y(self, value: float, y_limits: tuple[float, float]) -> float:
        low, high = y_limits
        # far outside, numbers of a drawing must stay numbers
        share = min(10.0, max(-10.0, (value - low) / (high - low)))
        return self._floor - (self._floor - self.top) * share

    def _grid(self, axis: str, unit: str, x_high: float, y_limits: tuple[float, float]) -> str:
        parts = [f'<text x="4" y="{self.top - 12}">{html.escape(unit)}</text>']
        ticks = nice_ticks(*y_limits, 6)
        step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        for value in ticks:
            y = self._y(value, y_limits)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{self._end}" y1="{y:.1f}" y2="{y:.1f}"/>')
            text = f"{value:,.{decimals}f}" if abs(value) < 1e5 else f"{value:.3g}"
            parts.append(f'<text x="{self.left - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
        for value in nice_ticks(0.0, x_high, 4 if self.width < 500 else 7):
            x = self._x(value, x_high)
            anchor = "end" if x > self._end - 24 else "middle"
            label = tick_text(value, axis)
            parts.append(f'<text x="{x:.1f}" y="{self._floor + 18}" text-anchor="{anchor}">{label}</text>')
        middle = (self.left + self._end) / 2
        parts.append(f'<text x="{middle}" y="{self._floor + 38}" text-anchor="middle">{html.escape(axis)}</text>')
        return "".join(parts)

    def _line(self, line: Line, x_high: float, y_limits: tuple[float, float]) -> str:
        index = np.unique(np.linspace(0, len(line.x) - 1, min(len(line.x), _MOST_POINTS)).round().astype(int))
        xs = [self._x(float(line.x[i]), x_high) for i in index]
        ys = [self._y(float(line.y[i]), y_limits) for i in index]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        parts = [f'<polyline class="{"faint" if line.faint else "bold"}" points="{points}"/>']
        if line.error is not None and len(index) > 1:
            upper = [self._y(float(line.y[i] + line.error[i]), y_limits) for i in index]
            lower = [self._y(float(line.y[i] - line.error[i]), y_limits) for i in index]
            around = [*zip(xs, upper, strict=True), *zip(xs[::-1], lower[::-1], strict=True)]
            parts.insert(0, '<polygon points="' + " ".join(f"{x:.1f},{y:.1f}" for x, y in around) + '"/>')
        if line.dots and len(index) <= 60:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in zip(xs, ys, strict=True)]
        return f'<g class="{line.kind}">{"".join(parts)}</g>'

    def _reference_names(self, references: dict[str, float], y_limits: tuple[float, float]) -> list[str]:
        """Above their lines on the left, where curves are still high; pushed up where two would lie on one another."""
        names = []
        free = float(self._floor)
        for name, level in sorted(references.items(), key=lambda item: item[1]):
            y = min(self._y(level, y_limits) - 5, free)
            free = y - _ROW
            text = html.escape(f"{name} {level:.2f}")
            names.append(f'<text class="reference" x="{self.left + 4}" y="{y:.1f}">{text}</text>')
        return names


def _key(lines: Sequence[Line], spare: Sequence[str]) -> str:
    items = [
        f'<li class="{line.kind}">{html.escape(line.name)} {line.y[-1]:,.4g}</li>' for line in lines if not line.faint
    ]
    items += [f'<li class="off">{html.escape(text)}</li>' for text in spare]
    return f'<ul class="key">{"".join(items)}</ul>'


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """At most about so many round numbers between low and high."""
    raw = (high - low) / max(1, most - 1)
    if not raw > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float, axis: str) -> str:
    """1,600 steps, 2.5M tokens, 90 s, 12 min, 3 h."""
    if axis == "time":
        return duration(value)
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if letter == 'k' else size):,.4g}{letter}"
    return f"{value:,.4g}"


def duration(seconds: float) -> str:
    """In the two largest units that it needs."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min" if minutes else f"{hours} h"
    if minutes:
        return f"{minutes} min {rest:02d} s" if rest else f"{minutes} min"
    return f"{rest} s"
