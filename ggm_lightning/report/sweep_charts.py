"""Plots of a sweep as SVG: each is a file of its own, and stands in the page as it is.

They carry their own colours, for the light and for the dark, and their key, so that one may be shown anywhere.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ggm_lightning.report.chart import nice_ticks

COLOURS = 8  # after these they begin again
_ROW = 18  # height of a line of the key
_LETTER = 7.9  # width of a letter, in the mean of a wide font
STYLE = """
.sweep { --paper: #fff; --ink: #1f2430; --quiet: #6b7280; --line: #e5e7ec; --c0: #5b3fd6; --c1: #c8690f; --c2: #12805c;
  --c3: #c22f6d; --c4: #2270c4; --c5: #7a6a00; --c6: #8a4fb8; --c7: #4d5562; }
@media (prefers-color-scheme: dark) { .sweep { --paper: #14161b; --ink: #e4e6eb; --quiet: #9aa1ad; --line: #2b2f38;
  --c0: #a796ff; --c1: #f0a050; --c2: #4cc79b; --c3: #f47fae; --c4: #74b2f5; --c5: #d6c347; --c6: #cf9bf5;
  --c7: #aab2bf; } }
.sweep .paper { fill: var(--paper); }
.sweep text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; fill: var(--quiet);
  font-variant-numeric: tabular-nums; }
.sweep text.ink { fill: var(--ink); }
.sweep text.at { font-size: 11px; paint-order: stroke; stroke: var(--paper); stroke-width: 3px; fill: var(--series); }
.sweep .grid { stroke: var(--line); }
.sweep .real { stroke: var(--ink); stroke-dasharray: 5 4; }
.sweep .cross { stroke: var(--ink); stroke-width: 2; }
.sweep polyline { fill: none; stroke: var(--series); stroke-width: 2; stroke-linejoin: round; }
.sweep .error { stroke: var(--series); stroke-width: 1.4; }
.sweep circle { fill: var(--series); }
"""


@dataclass(frozen=True)
class Dot:
    """A point with its standard error in y; `text` stands beside it."""

    x: float
    y: float
    error: float = 0.0
    text: str = ""


@dataclass(frozen=True)
class Curve:
    """Points in their order. `key` is its line in the key, the same for curves of one colour; `strength` in 0..1."""

    key: str
    colour: int
    dots: list[Dot]
    strength: float = 1.0


@dataclass(frozen=True)
class Plot:
    """What is drawn.

    Attributes:
        x_name, y_name: with their units.
        curves: in the order of the key.
        log: whether both axes are logarithmic.
        level: real text as a line across, (y, its error).
        mark: real text as a cross, (x, its error, y, its error).
    """

    x_name: str
    y_name: str
    curves: Sequence[Curve]
    log: bool = False
    level: tuple[float, float] | None = None
    mark: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class _Axis:
    """From values to places between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low / 10))
        share = (value - low) / (high - low)
        return self.start + (self.end - self.start) * share

    def ticks(self, most: int) -> list[float]:
        return log_ticks(self.low, self.high, most) if self.log else nice_ticks(self.low, self.high, most)


def svg(plot: Plot, width: int = 760, kind: str = "") -> str:
    """One drawing; a narrow one is made for a phone, where a wide one's letters would be too small.

    kind: a class of page.css, for a drawing that stands in a page.
    """
    names = list(dict.fromkeys((curve.key, curve.colour) for curve in plot.curves))
    key, key_rows = _key(names, plot.level is not None or plot.mark is not None, width)
    top = 16 + _ROW * key_rows + 22
    height = top + (width * 5 // 8 if width < 500 else 400) + 46
    x, y = _axes(plot, width, top, height - 46)
    parts = [f'<rect class="paper" width="{width}" height="{height}"/>', key, _grid(plot, x, y, width)]
    parts += _real(plot, x, y)
    # faint ones first, so that they do not cover others
    parts += [_curve(curve, x, y) for curve in sorted(plot.curves, key=lambda curve: curve.strength)]
    about = html.escape(f"{plot.y_name} against {plot.x_name}")
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="sweep {kind}" {size} role="img" aria-label="{about}">'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>"
    )


def _axes(plot: Plot, width: int, top: int, floor: int) -> tuple[_Axis, _Axis]:
    dots = [dot for curve in plot.curves for dot in curve.dots]
    xs = [dot.x for dot in dots]
    ys = [dot.y + sign * dot.error for dot in dots for sign in (-1, 1)]
    if plot.level:
        ys.append(plot.level[0])
    if plot.mark:
        xs.append(plot.mark[0])
        ys.append(plot.mark[2])
    if plot.log:
        xs, ys = [v for v in xs if v > 0], [v for v in ys if v > 0]
    x_limits, y_limits = _limits(xs, plot.log), _limits(ys, plot.log)
    return _Axis(*x_limits, 56, width - 24, plot.log), _Axis(*y_limits, floor, top, plot.log)


def _limits(values: Sequence[float], log: bool) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (1.0, 2.0)
    if log:
        margin = max((high / low) ** 0.06, 1.02)
        return low / margin, high * margin
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 0.1
    return low - margin, high + margin


def _grid(plot: Plot, x: _Axis, y: _Axis, width: int) -> str:
    parts = [f'<text x="6" y="{y.end - 12}">{html.escape(plot.y_name)}</text>']
    for value in y.ticks(7):
        at = y.at(value)
        parts.append(f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{x.start - 8}" y="{at + 4:.1f}" text-anchor="end">{value:,.4g}</text>')
    below = f'y="{y.start + 18}" text-anchor="middle"'
    parts += [f'<text x="{x.at(value):.1f}" {below}>{value:,.4g}</text>' for value in x.ticks(5 if width < 500 else 9)]
    middle = (x.start + x.end) / 2
    parts.append(f'<text x="{middle}" y="{y.start + 38}" text-anchor="middle">{html.escape(plot.x_name)}</text>')
    return "".join(parts)


def _real(plot: Plot, x: _Axis, y: _Axis) -> list[str]:
    parts = []
    if plot.level:
        at = y.at(plot.level[0])
        parts.append(f'<line class="real" x1="{x.start}" x2="{x.end}" y1="{at:.1f}" y2="{at:.1f}"/>')
    if plot.mark:
        entropy, x_error, judge, y_error = plot.mark
        left, right, middle = x.at(entropy - x_error), x.at(entropy + x_error), x.at(entropy)
        high, low, level = y.at(judge + y_error), y.at(judge - y_error), y.at(judge)
        # never smaller than can be seen
        left, right, high, low = (
            min(left, middle - 5),
            max(right, middle + 5),
            min(high, level - 5),
            max(low, level + 5),
        )
        parts.append(f'<path class="cross" d="M{left:.1f} {level:.1f}H{right:.1f}M{middle:.1f} {high:.1f}V{low:.1f}"/>')
    return parts


def _curve(curve: Curve, x: _Axis, y: _Axis) -> str:
    places = [(x.at(dot.x), y.at(dot.y)) for dot in curve.dots]
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    parts = [f'<polyline points="{points}"/>'] if len(places) > 1 else []
    for dot, (a, b) in zip(curve.dots, places, strict=True):
        parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3"/>')
        if dot.error:
            high, low = y.at(dot.y + dot.error), y.at(dot.y - dot.error)
            parts.append(f'<line class="error" x1="{a:.1f}" x2="{a:.1f}" y1="{high:.1f}" y2="{low:.1f}"/>')
        if dot.text:
            parts.append(f'<text class="at" x="{a + 6:.1f}" y="{b + 4:.1f}">{html.escape(dot.text)}</text>')
    style = f"--series: var(--c{curve.colour % COLOURS}); opacity: {curve.strength:.2f}"
    return f'<g style="{style}">{"".join(parts)}</g>'


def _key(names: Sequence[tuple[str, int]], real: bool, width: int) -> tuple[str, int]:
    """(its drawing above the plot, how many lines it has)."""
    parts: list[str] = []
    x, row = 10.0, 0
    for name, colour in [*names, *([("real text", -1)] if real else [])]:
        length = 26 + _LETTER * len(name)
        if x > 10 and x + length > width - 6:
            x, row = 10.0, row + 1
        y = 18 + _ROW * row
        mark = f'<circle style="--series: var(--c{colour % COLOURS})" cx="{x + 5}" cy="{y - 4}" r="5"/>'
        if colour < 0:
            mark = f'<path class="cross" d="M{x} {y - 4}h10M{x + 5} {y - 9}v10"/>'
        parts.append(f'{mark}<text class="ink" x="{x + 15:.1f}" y="{y}">{html.escape(name)}</text>')
        x += length
    return "".join(parts), row + 1


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers between low and high: powers of ten with 2 and 5, or 3, between them; of a short range ticks as on
    a straight axis."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    found: list[float] = []
    for between in ((1, 2, 5), (1, 3), (1,)):
        found = [k * 10.0**e for e in range(first, last + 1) for k in between if low <= k * 10.0**e <= high]
        if len(found) <= most:
            break
    return found if len(found) >= 3 else nice_ticks(low, high, most)
