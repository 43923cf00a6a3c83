"""What a sweep leaves: sweep.html (one file that needs nothing else), table.csv, and its three plots as SVG."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ggm_lightning.metrics.frontier import Compared, Figures, Point, compared
from ggm_lightning.report.page import section, write_page
from ggm_lightning.report.sweep_charts import Curve, Dot, Plot, svg
from ggm_lightning.rundir.folder import write_whole

_TITLE = "Quality against budget"
_COLUMNS = {
    "judge": ("judge", ".3f"),
    "judge_stderr": ("±", ".3f"),
    "entropy": ("entropy", ".3f"),
    "entropy_stderr": ("±", ".3f"),
    "distinct_2": ("distinct 2", ".3f"),
    "distinct_4": ("distinct 4", ".3f"),
    "duplicates": ("duplicates", ".3f"),
    "rows_per_sample": ("rows", ".4g"),
    "seconds_per_sample": ("seconds", ".3g"),
}


@dataclass(frozen=True)
class Row:
    """One cell. `num_steps` is None where the sampler does not ask for steps."""

    name: str
    num_steps: int | None
    temperature: float
    top_p: float
    figures: Figures


@dataclass(frozen=True)
class Sweep:
    """All that is shown.

    Attributes:
        rows: the cells that are done.
        real: figures of real rows, `real_rows` many.
        num_samples: of each cell.
        judge: who judges, in words.
        clock: what `seconds` are.
        cells: how many there are to be.
        left_out: cell -> why it has no figures.
        notes: what else a reader must know.
    """

    rows: Sequence[Row]
    real: Figures
    real_rows: int
    num_samples: int
    judge: str
    clock: str = "seconds"
    cells: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(row.name for row in self.rows))


def write_sweep(folder: Path, sweep: Sweep) -> None:
    """Each file is replaced as a whole or not at all."""
    for name, plot in plots(sweep).items():
        write_whole(folder / f"{name}.svg", svg(plot).encode())
    write_whole(folder / "table.csv", table_csv(sweep).encode())
    write_page(folder / "sweep.html", _TITLE, _parts(sweep))


# ---------------------------------------------------------------------- plots


def plots(sweep: Sweep) -> dict[str, Plot]:
    """rows, frontier, seconds. A point without a judge's figure is left out."""
    y_name = "judge, bits per token"
    plainest = _plainest(sweep)
    level = _pair(sweep.real, "judge")
    entropy = _pair(sweep.real, "entropy")
    found = {}
    for name, x_name in (("rows_per_sample", "network rows per sample"), ("seconds_per_sample", sweep.clock)):
        curves = []
        for colour, contender in enumerate(sweep.names):
            own = [row for row in sweep.rows if row.name == contender and (row.temperature, row.top_p) == plainest]
            dots = [Dot(_cost(row, name, sweep), *_of(row, "judge")) for row in own if _complete(row)]
            curves.append(Curve(contender, colour, sorted(dots, key=lambda dot: dot.x)))
        x_name = x_name if name == "rows_per_sample" else f"{x_name} per sample"
        found[name.removesuffix("_per_sample")] = Plot(x_name, y_name, curves, log=True, level=level)
    mark = (*entropy, *level) if entropy and level else None
    frontier = Plot("entropy of single tokens, bits", y_name, _frontier_curves(sweep), mark=mark)
    return {"rows": found["rows"], "frontier": frontier, "seconds": found["seconds"]}


def _plainest(sweep: Sweep) -> tuple[float, float]:
    """The temperature and nucleus that are nearest to the model's own law."""
    settings = {(row.temperature, row.top_p) for row in sweep.rows}
    return min(settings, key=lambda one: (abs(one[0] - 1) + abs(one[1] - 1), one), default=(1.0, 1.0))


def _frontier_curves(sweep: Sweep) -> list[Curve]:
    """One for each contender and budget; small budgets are faint, and a curve says its steps at its most varied end."""
    steps = sorted({row.num_steps for row in sweep.rows if row.num_steps is not None})
    curves = []
    for colour, contender in enumerate(sweep.names):
        for budget in [None, *steps]:
            own = [row for row in sweep.rows if (row.name, row.num_steps) == (contender, budget) and _complete(row)]
            dots = [Dot(_of(row, "entropy")[0], *_of(row, "judge")) for row in _by_sharpness(own)]
            if not dots:
                continue
            last = dots[-1]
            dots[-1] = Dot(last.x, last.y, last.error, "" if budget is None else str(budget))
            strength = 1.0 if budget is None else 0.35 + 0.65 * (steps.index(budget) + 1) / len(steps)
            curves.append(Curve(contender, colour, dots, strength))
    return curves


def _by_sharpness(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.temperature, row.top_p))


def _complete(row: Row) -> bool:
    return row.figures["judge"] is not None and row.figures["entropy"] is not None


def _of(row: Row, name: str) -> tuple[float, float]:
    """(value, its standard error), of a complete row."""
    return row.figures[name] or 0.0, row.figures[f"{name}_stderr"] or 0.0


def _pair(figures: Figures, name: str) -> tuple[float, float] | None:
    value = figures[name]
    return None if value is None else (value, figures[f"{name}_stderr"] or 0.0)


def _cost(row: Row, name: str, sweep: Sweep) -> float:
    return float(_value(row.figures, name, sweep) or 0.0)


def _value(figures: Figures, name: str, sweep: Sweep) -> float | None:
    if name == "seconds_per_sample":
        seconds = figures.get("seconds")
        return None if seconds is None else seconds / sweep.num_samples
    return figures.get(name)


# ---------------------------------------------------------------------- who is ahead


def verdicts(sweep: Sweep) -> list[str]:
    """For each number of steps, in words: who is ahead at equal entropy, and by how much; less than two standard errors
    are no lead."""
    real = sweep.real["entropy"]
    steps = sorted({row.num_steps for row in sweep.rows if row.num_steps is not None})
    if real is None:
        return []
    found = []
    budgets: list[int | None] = [*steps] or [None]
    for budget in budgets:
        curves: dict[str, list[Point]] = {}
        for row in sweep.rows:
            if row.num_steps in (None, budget) and _complete(row):
                curves.setdefault(row.name, []).append(Point(*_of(row, "entropy"), *_of(row, "judge")))
        if len(curves) > 1:
            found.append(_verdict(budget, compared(curves, real)))
    return found


def _verdict(budget: int | None, result: Compared | None) -> str:
    head = "" if budget is None else f"{budget} steps: "
    if result is None or len(result.ranked) < 2:
        return f"{head}no entropy that two of the curves have in common."
    ranked = ", ".join(f"{name} {judge:.3f} ± {error:.3f}" for name, judge, error in result.ranked)
    words = []
    for (first, *_), (second, *_), (lead, error) in zip(result.ranked, result.ranked[1:], result.leads, strict=False):
        ahead = f"{first} is ahead of {second} by {lead:.3f} ± {error:.3f}"
        words.append(ahead if lead > 2 * error else f"{first} and {second} cannot be told apart")
    words += [f"{name} does not reach it" for name in result.unreached]
    return f"{head}at entropy {result.entropy:.3f} {ranked}: {'; '.join(words)}."


# ---------------------------------------------------------------------- table and page


def _cells(sweep: Sweep) -> list[list[str]]:
    """The lines of the table, the real text first; what stands in no column is empty."""
    lines = [["real text", "", "", "", *_texts(sweep.real, sweep)]]
    for row in sweep.rows:
        steps = "" if row.num_steps is None else str(row.num_steps)
        lines.append([row.name, steps, f"{row.temperature:g}", f"{row.top_p:g}", *_texts(row.figures, sweep)])
    return lines


def _used(lines: Sequence[Sequence[str]]) -> list[int]:
    """The columns that say something: not all empty, and not a nucleus of 1 throughout."""
    return [i for i in range(len(lines[0])) if any(line[i] not in ("", "1") or i == 2 for line in lines[1:])]


def _texts(figures: Figures, sweep: Sweep) -> list[str]:
    values = [(_value(figures, name, sweep), form) for name, (_, form) in _COLUMNS.items()]
    return ["" if value is None else f"{value:{form}}" for value, form in values]


_HEAD = ["sampler", "steps", "temperature", "top_p"]


def table_csv(sweep: Sweep) -> str:
    """All figures in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_HEAD, *_COLUMNS])
    writer.writerow(["real text", "", "", "", *(_value(sweep.real, name, sweep) for name in _COLUMNS)])
    for row in sweep.rows:
        values = [_value(row.figures, name, sweep) for name in _COLUMNS]
        writer.writerow([row.name, row.num_steps, row.temperature, row.top_p, *values])
    return text.getvalue()


def summary(sweep: Sweep) -> str:
    """The table and the verdicts for a terminal."""
    lines = [[*_HEAD, *(title for title, _ in _COLUMNS.values())], *_cells(sweep)]
    used = _used(lines)
    widths = {i: max(len(line[i]) for line in lines) for i in used}
    texts = ["  ".join(line[i].ljust(widths[i]) for i in used).rstrip() for line in lines]
    return "\n".join([f"Judged by {sweep.judge}, bits per token", *texts, "", *verdicts(sweep)]).rstrip()


def _parts(sweep: Sweep) -> list[str]:
    """Of the page, HTML."""
    lines = [[*_HEAD, *(title for title, _ in _COLUMNS.values())], *_cells(sweep)]
    used = _used(lines)
    head = "".join(f"<th>{html.escape(lines[0][i])}</th>" for i in used)
    body = []
    for number, line in enumerate(lines[1:]):
        kind = ' class="real"' if number == 0 else ""
        body.append(f"<tr{kind}>{''.join(f'<td>{html.escape(line[i])}</td>' for i in used)}</tr>")
    table = f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
    drawn = plots(sweep)
    return [
        f'<header><h1>{_TITLE}</h1><p class="note">{html.escape(_about(sweep))}</p></header>',
        _list("At equal entropy", verdicts(sweep)),
        _figure("Judge against network rows", _ABOUT_ROWS.format(*_plainest(sweep)), drawn["rows"]),
        _figure("Judge against entropy", _ABOUT_FRONTIER, drawn["frontier"]),
        _figure("Judge against time", f"{_ABOUT_SECONDS} {sweep.clock.capitalize()}.", drawn["seconds"]),
        section("All figures", "", f'<div class="wide numbers"><table>{table}</table></div>'),
        _list("Left out", [f"{cell}: {reason}" for cell, reason in sweep.left_out.items()]),
    ]


_ABOUT_ROWS = (
    "A row is one example sent through the network once. Temperature {0:g}, top_p {1:g}; bars are one standard error "
    "over the samples; dashed is real held-out text."
)
_ABOUT_FRONTIER = (
    "Samplers may be compared at equal entropy only: a lower temperature pleases every judge and makes samples alike. "
    "A point for each temperature, a curve for each sampler and number of steps, which stands at its most varied end; "
    "fewer steps are fainter. The cross is real held-out text. Lower is better."
)
_ABOUT_SECONDS = "The same points as in the first plot, over the time of sampling."


def _about(sweep: Sweep) -> str:
    done = f"{len(sweep.rows)} of {sweep.cells} cells, " if len(sweep.rows) < sweep.cells else ""
    text = f"{done}{sweep.num_samples} samples each. The judge is {sweep.judge}: -log2 p per token, lower is likelier. "
    text += (
        f"Entropy and the shares of distinct 2- and 4-grams and of duplicates are of {sweep.real_rows} rows each, of "
    )
    text += "samples and of real held-out text alike, as they depend on the number of rows."
    return " ".join([text, *sweep.notes])


def _list(heading: str, lines: Sequence[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return section(heading, "", f"<ul>{items}</ul>" if lines else "")


def _figure(heading: str, note: str, plot: Plot) -> str:
    both = svg(plot, kind="wide-only") + svg(plot, width=380, kind="narrow")
    return section(heading, html.escape(note), f'<figure class="chart">{both}</figure>')
