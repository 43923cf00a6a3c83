"""A page of several runs: figures in one table, their curves over steps, tokens and time, samples side by side."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Sequence
from pathlib import Path

from ggm_lightning.report.chart import Line, chooser, duration
from ggm_lightning.report.curve import smoothed
from ggm_lightning.report.figures import bounds_of, number, unit_of, words_of
from ggm_lightning.report.page import drawn_of, image, plain_text, points_over, section, write_page
from ggm_lightning.report.story import Run, read_run

_COLOURS = 8
_SHOWN_TEXTS = 3
_LONGEST = 80  # characters of a file's name


def write_comparison(folders: Sequence[Path], path: Path) -> None:
    """Raises ValueError where a folder holds no run."""
    runs = [read_run(folder) for folder in folders]
    names = names_of(runs)
    title = f"Runs compared: {', '.join(names)}"
    shared = runs[0].story.example
    parts = [
        f"<header><h1>{html.escape(title)}</h1></header>",
        _words(runs, names),
        section("Figures", "± is one standard error over held-out examples.", _table(runs, names)),
        section("Held-out examples", "", _curves(runs, names, "val")),
        section("Training loss", "Smoothed; of single batches.", _curves(runs, names, "train")),
        section("Samples", "Not selected.", _samples(runs, names)),
        section("A held-out text of the first run", "", plain_text(shared[0]) if shared else ""),
    ]
    write_page(path, title, parts)


def names_of(runs: Sequence[Run]) -> list[str]:
    """Folder names; with the folder above where two are the same."""
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return names
    return [f"{run.folder.resolve().parent.name}/{run.name}" for run in runs]


def default_path(folders: Sequence[Path]) -> Path:
    """Beside the first run, named by all of them."""
    name = "-".join(folder.resolve().name for folder in folders)
    if len(name) > _LONGEST:
        name = f"{name[:_LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return folders[0].resolve().parent / f"compared-{name}.html"


def _words(runs: Sequence[Run], names: Sequence[str]) -> str:
    """What forbids to compare, and what each run's own page says of its figures."""
    words = []
    data = {run.story.facts.get("Data", "") for run in runs}
    if "" in data:
        words.append("A run is of an earlier version and does not say what its data were.")
    elif len(data) > 1:
        words.append("The runs are not of the same data (see the table): their figures do not compare.")
    units = {unit_of(run.story, run.metrics) for run in runs}
    if len(units) > 1:
        words.append(f"The runs are measured in {' and in '.join(sorted(units))}: one axis does not fit both.")
    words += [f"{name}: {word}" for run, name in zip(runs, names, strict=True) for word in words_of(run)]
    items = "".join(f"<li>{html.escape(word)}</li>" for word in words)
    return f'<ul class="words">{items}</ul>' if items else ""


def _table(runs: Sequence[Run], names: Sequence[str]) -> str:
    """A column for each run."""
    columns = [_figures(run) for run in runs]
    rows = list(dict.fromkeys(name for column in columns for name in column))
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row)}</th>'
        + "".join(f"<td>{html.escape(column.get(row, '-'))}</td>" for column in columns)
        + "</tr>"
        for row in rows
    )
    table = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide" tabindex="0">{table}</div>'


def _figures(run: Run) -> dict[str, str]:
    story = run.story
    found = {"Model": story.model, "State": story.state, "Optimiser steps": f"{story.step:,}"}
    for name, (value, stderr) in bounds_of(run.metrics, story.scale, story.by_class).items():
        error = "" if stderr is None else f" ± {number(stderr, value)}"
        found[name] = f"{number(value, value)}{error}{'' if story.exact else ' (bound)'}"
    for name, title in story.results:
        if f"val/{name}" in run.metrics:
            found[title] = f"{run.metrics[f'val/{name}'][-1][1]:,.4g}"
    if "seconds" in run.metrics:
        found["Time"] = duration(run.metrics["seconds"][-1][1])
    kept = ("Trained parameters", "Hardware", "Precision", "Weights", "Data")
    return {**found, **{name: str(story.facts[name]) for name in kept if name in story.facts}}


def _curves(runs: Sequence[Run], names: Sequence[str], kind: str) -> str:
    """Each run in its colour; training in the unit of its loss."""
    axes: dict[str, list[Line]] = {}
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        measure = run.story.measure[0] if run.story.measure else "bpd"
        curve = run.metrics.get(f"val/{measure}" if kind == "val" else run.story.loss, [])
        scale = 1.0 / (run.story.scale or 1.0) if kind == "val" or run.story.loss == "train/bpd" else 1.0
        for axis, (x, y, _) in points_over(run, curve).items():
            shown = y * scale if kind == "val" else smoothed(y * scale)
            axes.setdefault(axis, []).append(Line(name, f"run-{i % _COLOURS}", x, shown, dots=kind == "val"))
    known = max(map(len, axes.values()), default=0)
    axes = {axis: lines for axis, lines in axes.items() if len(lines) == known}  # one that a run lacks is left out
    unit = unit_of(runs[0].story, runs[0].metrics) if kind == "val" else "loss"
    spare = ["time is that of each run's own machine"] if "time" in axes else []
    return chooser(axes, unit, {}, spare)


def _samples(runs: Sequence[Run], names: Sequence[str]) -> str:
    """A column for each run: its first texts, or its picture of samples."""
    columns = []
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        figures, texts, note = drawn_of(run)
        shown = "".join(f"<pre>\n{html.escape(text)}</pre>" for text in texts[:_SHOWN_TEXTS])
        pictures = [file for figure in figures if figure.heading == "Samples" for file in figure.images.values()]
        shown += image(pictures[0], f"samples of {name}") if pictures else ""
        shown = shown or '<p class="note">None were drawn.</p>'
        said = f'<p class="note">{html.escape(note)}</p>' if texts or pictures else ""
        columns.append(f'<div class="run-{i % _COLOURS}"><h3>{html.escape(name)}</h3>{said}{shown}</div>')
    return f'<div class="runs">{"".join(columns)}</div>'
