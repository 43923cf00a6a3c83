"""report.html of a run: one file that needs nothing else, for a browser in the light or in the dark, and for paper.

Its frame is page.html, its looks page.css. Everything that comes from a run is escaped here.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from ggm_lightning.report.chart import Line, chooser, duration
from ggm_lightning.report.curve import smoothed
from ggm_lightning.report.figures import Bounds, bounds_of, number, unit_of, words_of
from ggm_lightning.report.story import Run, read_run, sample_file
from ggm_lightning.report.trace import trace_fragment
from ggm_lightning.rundir.csv_log import Curve
from ggm_lightning.rundir.folder import write_whole

__all__ = ["Figure", "write_report", "write_run_page"]

PLAIN = "plain"  # the samples as they are, where others stand beside them
GENERATED = '<meta name="generator" content="ggm_lightning report">'  # pages that may be written again
_IMAGES = {".png": "png", ".gif": "gif"}

_ABOUT_BOUND = (
    "Each is an upper bound on the model's own figure, estimated on held-out examples; ± is one standard error over "
    "them."
)
_ABOUT_EXACT = (
    "Each is computed exactly, no bound, and averaged over held-out examples; ± is one standard error over them."
)
_ABOUT_CURVE = (
    "{} on held-out examples, in a band of one standard error, and the training loss on single batches and smoothed. "
    "Dashed: other models of the same data."
)
_STATES = {
    "running": "Running",
    "finished": "Finished",
    "stopped": "Stopped",
    "failed": "Ended by an error",
    "unknown": "Read from its folder",
}


@dataclass(frozen=True)
class Figure:
    """Pictures under a heading of their own.

    Attributes:
        heading: of the section.
        note: what is to be seen; what stands between backticks is set as code.
        images: caption -> PNG or GIF file; it goes into the page.
    """

    heading: str
    note: str
    images: dict[str, Path]


def write_run_page(folder: Path, path: Path | None = None) -> Path:
    """The page of a run folder, from its files alone; by default its report.html. Raises ValueError as `read_run`."""
    run = read_run(folder)
    path = path or folder / "report.html"
    try:
        write_page(path, f"{run.story.model}: {run.name}", _parts_of(run))
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(f"{folder}/story.json: is damaged ({type(error).__name__}: {error}); remove it") from error
    return path


def write_report(
    path: str | Path,
    title: str,
    charts: str | None,
    bound: Bounds,
    samples: list[str],
    trace_fragment: str,
    facts: dict[str, str],
    tables: dict[str, dict[str, float]],
    figures: Sequence[Figure] = (),
    exact: bool = False,
) -> None:
    """Writes a page of given parts; those that are empty are left out.

    Args:
        path: of the HTML file; it is replaced at once or not at all.
        title: of the page.
        charts: HTML of `chart.chooser`.
        bound: name with its unit -> (value, standard error or None).
        samples: texts.
        trace_fragment: from `trace.trace_html`.
        facts: hardware, steps, parameters, time, ...
        tables: heading -> row -> number; numbers within 0 and 1 are shown as shares.
        figures: what is shown of images.
        exact: whether the figures under `bound` are -log p itself.
    """
    parts = [
        f"<header><h1>{html.escape(title)}</h1></header>",
        cards(bound, exact, []),
        section("Learning curve", "", charts) if charts else "",
        *(figure_section(figure) for figure in figures),
        _trace(trace_fragment),
        _samples(samples, [], "Not selected."),
        *(_table(heading, rows) for heading, rows in tables.items() if rows),
        facts_section("The run", facts),
    ]
    write_page(Path(path), title, parts)


def write_page(path: Path, title: str, parts: Sequence[str]) -> None:
    """Parts are HTML, the title is not. The file is replaced as a whole or not at all."""
    here = Path(__file__)
    frame = Template(here.with_name("page.html").read_text(encoding="utf-8"))
    style = here.with_name("page.css").read_text(encoding="utf-8")
    body = "\n".join([*(part for part in parts if part), "<footer>Written by ggm_lightning.</footer>"])
    text = frame.substitute(title=html.escape(title), style=style, parts=body)
    # a sampler's text may hold half of a surrogate pair, which no file can
    write_whole(path, text.encode("utf-8", errors="replace"))


def _parts_of(run: Run) -> list[str]:
    story, metrics = run.story, run.metrics
    bounds = bounds_of(metrics, story.scale, story.by_class)
    about = story.measure[1] if story.measure else "-log p" if story.exact else "The bound"
    last = {name: curve[-1][1] for name, curve in metrics.items()}
    results = {title: last[f"val/{name}"] for name, title in story.results if f"val/{name}" in last}
    tables = {"On held-out pictures": results, **story.tables}
    curve = section("Learning curve", _ABOUT_CURVE.format(about[:1].upper() + about[1:]), curves_of(run))
    shown = [*_drawn_sections(run), *(_table(heading, rows) for heading, rows in tables.items() if rows)]
    return [
        _header(run),
        _task(run),
        cards(bounds, story.exact, words_of(run)),
        # a page with a text at its head is there to be read: what it speaks of comes first
        *([*shown, curve] if story.about else [curve, *shown]),
        facts_section("The run", {**_of_metrics(run), **story.facts}),
        _starts(story.starts),
        _configuration(run.config),
    ]


def _header(run: Run) -> str:
    story = run.story
    of = f" of {story.max_steps:,}" if story.max_steps else ""
    said = f": {story.said}" if story.said and story.state != "finished" else ""
    written = f"; written {story.written}" if story.written else ""
    if story.state == "running":
        written += "; if nothing runs any more, it was killed after that"
    state = f"<b>{_STATES.get(story.state, 'Unknown')}</b>, step {story.step:,}{of}{html.escape(said + written)}."
    kind = html.escape(story.state)
    title = f"{story.model}: {run.name}"
    about = f'<p class="about">{html.escape(story.about)}</p>' if story.about else ""
    return f'<header><h1>{html.escape(title)}</h1><p class="state {kind}">{state}</p>{about}</header>'


def _task(run: Run) -> str:
    """What the data asked for (report/tasks.py)."""
    task = run.story.task
    return figure_section(_figure_of(run.folder, task), below=_rows(task["table"])) if task else ""


def curves_of(run: Run) -> str:
    """Held-out figure and training loss over steps, tokens and time; a loss of another unit below."""
    story, metrics = run.story, run.metrics
    unit = 1.0 if story.scale is None else 1.0 / story.scale
    name = story.measure[0] if story.measure else "bpd"
    held_out = metrics.get(f"val/{name}", [])
    lines = [("held-out", "held-out" if story.measure or story.exact else "held-out bound", held_out, unit)]
    own_unit = story.loss == f"train/{name}"
    if metrics.get(f"train/{name}"):
        lines.append(("training", "training", metrics[f"train/{name}"], unit))
    stderr = {step: value * unit for step, value in metrics.get(f"val/{name}_stderr", [])}
    references = {title: bits * unit for title, bits in story.references.items()}
    charts = _over_all_axes(run, lines, stderr, unit_of(story, metrics), references)
    if not own_unit and metrics.get(story.loss):
        below = [("training", story.loss, metrics[story.loss], 1.0)]
        charts += f"<h3>Training loss</h3>{_over_all_axes(run, below, {}, story.loss.removeprefix('train/'), {})}"
    return charts


def _over_all_axes(
    run: Run,
    lines: list[tuple[str, str, Curve, float]],
    stderr: dict[int, float],
    unit: str,
    references: dict[str, float],
) -> str:
    axes: dict[str, list[Line]] = {}
    for kind, name, curve, scale in lines:
        for axis, (x, y, steps) in points_over(run, curve).items():
            drawn = axes.setdefault(axis, [])
            if kind == "training":
                drawn.append(Line(name, kind, x, y * scale, faint=True))
                drawn.append(Line(name, kind, x, smoothed(y * scale)))
            else:
                error = np.array([stderr.get(int(step), 0.0) for step in steps])
                drawn.append(Line(name, kind, x, y * scale, error, dots=True))
    return chooser(axes, unit, references)


def points_over(run: Run, curve: Curve) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Axis -> (x, y, steps) of the finite values; other axes than the steps where they are known."""
    points = np.array([(step, value) for step, value in curve if np.isfinite(value)], float).reshape(-1, 2)
    steps, y = points[:, 0], points[:, 1]
    axes = {"optimiser steps": (steps, y, steps)}
    if run.story.per_step:
        name, count = run.story.per_step
        axes[str(name)] = (steps * float(count), y, steps)
    seconds = run.metrics.get("seconds", [])
    if seconds:
        known = np.array(seconds, float)
        axes["time"] = (np.interp(steps, known[:, 0], known[:, 1]), y, steps)
    return axes


def _of_metrics(run: Run) -> dict[str, str]:
    facts = {"Optimiser steps": f"{run.story.step:,}"}
    if "seconds" in run.metrics:
        facts["Time"] = duration(run.metrics["seconds"][-1][1])
    if "val/ppl" not in run.metrics and "train/examples_per_s" in run.metrics:
        facts["Speed"] = f"{run.metrics['train/examples_per_s'][-1][1]:,.0f} examples per second"
    elif "train/tokens_per_s" in run.metrics:
        facts["Speed"] = f"{run.metrics['train/tokens_per_s'][-1][1]:,.0f} tokens per second"
    return facts


def written_here(path: Path) -> bool:
    """Whether a page may be written there: nothing is, or a page that can be made again."""
    if not path.exists():
        return True
    try:
        return GENERATED in path.read_text(encoding="utf-8", errors="replace")[:1000]
    except OSError:
        return False


def drawn_of(run: Run) -> tuple[list[Figure], list[str], str]:
    """(pictures, texts, note): what was drawn last, by the report itself or by callbacks/samples.py."""
    story = run.story
    figures = [_figure_of(run.folder, each) for each in story.figures]
    at = "" if story.sampled_at is None else f"Drawn at step {story.sampled_at:,}, not selected."
    newer = _newer_drawing(run)
    if newer is None:
        return figures, [str(text) for text in story.samples], at
    step, file = newer
    note = f"Drawn at step {step:,}, not selected."
    if file.suffix == ".png":
        kept = [figure for figure in figures if figure.heading not in ("Samples", "Step by step")]
        return [Figure("Samples", note, {"drawn from the model": file}), *kept], [], note
    text = file.read_text(encoding="utf-8", errors="replace")
    return figures, [part.strip("\n") for part in re.split(r"^----- sample \d+ -----$", text, flags=re.M)[1:]], note


def _newer_drawing(run: Run) -> tuple[int, Path] | None:
    newest, own = sample_file(run), run.story.sampled_at
    return None if newest is None or (own is not None and newest[0] <= own) else newest


def _drawn_sections(run: Run) -> list[str]:
    figures, texts, note = drawn_of(run)
    is_own = _newer_drawing(run) is None  # and not of callbacks/samples.py
    trace = run.story.trace if is_own else None
    further = run.story.further if is_own else {}
    return [
        *(figure_section(figure) for figure in figures),
        _trace(trace_fragment(trace) if trace else ""),
        _samples(texts, run.story.example, note, further),
    ]


def _figure_of(folder: Path, told: dict[str, Any]) -> Figure:
    """Files of the folder alone, whatever story.json names."""
    images = {str(caption): folder / Path(str(file)).name for caption, file in told["images"].items()}
    return Figure(str(told["heading"]), str(told["note"]), images)


def section(heading: str, note: str, body: str) -> str:
    """`note` and `body` are HTML."""
    if not body:
        return ""
    note = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{html.escape(heading)}</h2>{note}{body}</section>"


def cards(bound: Bounds, exact: bool, words: list[str]) -> str:
    """The figures, large, and what has to be said of them."""
    shown = []
    kind, about = ("", _ABOUT_EXACT) if exact else (", upper bound", _ABOUT_BOUND)
    for name, (value, stderr) in bound.items():
        error = "" if stderr is None else f'<div class="error">± {number(stderr, value)}</div>'
        shown.append(
            f'<div class="card"><div class="name">{html.escape(name)}{kind}</div>'
            f'<div class="value">{number(value, value)}</div>{error}</div>'
        )
    said = "".join(f"<li>{html.escape(word)}</li>" for word in words)
    said = f'<ul class="words">{said}</ul>' if said else ""
    figures = f'<div class="cards">{"".join(shown)}</div><p class="note">{about}</p>' if shown else ""
    return f"<section>{figures}{said}</section>" if figures or said else ""


def image(path: Path, description: str) -> str:
    """The file inside the page; nothing where it is gone."""
    kind = _IMAGES.get(path.suffix)
    if kind is None or not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/{kind};base64,{data}">'


def figure_section(figure: Figure, below: str = "") -> str:
    """`below` is HTML."""
    pictures = [
        f"<figure>{shown}<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, path in figure.images.items()
        if (shown := image(path, caption))
    ]
    note = re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(figure.note))
    shown = f'<div class="pictures">{"".join(pictures)}</div>' if pictures else ""
    return section(figure.heading, note, shown + below)


def _trace(fragment: str) -> str:
    note = (
        "The reverse process from the prior to a sample. A token's colour is the step at which it took its final "
        "value; hold the pointer over it to read the step."
    )
    return section("One sample, step by step", note, fragment)


def _samples(samples: list[str], real: list[str], note: str, further: dict[str, list[str]] | None = None) -> str:
    """Those of `further` below their own names, and the first ones then named too."""
    if not samples:
        return ""
    groups = [_texts(samples)]
    if further:
        named = {PLAIN: samples, **further}
        groups = [f"<h3>{html.escape(name)}</h3>{_texts(texts)}" for name, texts in named.items()]
    if real:
        shown = f'<span class="which">For comparison, a held-out text:</span>{plain_text(real[0])}'
        groups.append(f'<div class="samples"><div>{shown}</div></div>')
    return section("Samples", html.escape(note), "".join(groups))


def _texts(texts: list[str]) -> str:
    # a line break right after <pre> is swallowed by the parser, so the text gets one of its own
    blocks = "".join(f"<pre>\n{html.escape(text)}</pre>" for text in texts)
    return f'<div class="samples">{blocks}</div>'


def plain_text(text: str) -> str:
    """A real text, set apart from those that were drawn."""
    return f'<pre class="real">\n{html.escape(text)}</pre>'


def _table(heading: str, rows: dict[str, float]) -> str:
    return section(heading, "", _rows(rows))


def _rows(rows: dict[str, float]) -> str:
    """A table of numbers; where all lie within 0 and 1, of shares with bars."""
    shares = all(0 <= value <= 1 for value in rows.values())
    body = []
    for name, value in rows.items():
        shown = f"{100 * value:.1f}%" if shares else f"{value:,.4g}"
        gauge = f'<td class="gauge"><i style="width:{100 * value:.2f}%"></i></td>' if shares else ""
        body.append(f'<tr><th scope="row">{html.escape(name)}</th><td class="number">{shown}</td>{gauge}</tr>')
    return f"<table><tbody>{''.join(body)}</tbody></table>"


def facts_section(heading: str, facts: dict[str, str]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>'
        for name, value in facts.items()
    )
    return section(heading, "", f"<table><tbody>{rows}</tbody></table>" if facts else "")


def _starts(starts: list[dict[str, str]]) -> str:
    """The last one, and those before it."""
    parts = []
    for i, start in enumerate(reversed(starts)):
        heading = "How it was started" if i == 0 else f"Start {len(starts) - i} of {len(starts)}"
        parts.append(facts_section(heading, {str(name): str(value) for name, value in start.items()}))
    return "".join(parts)


def _configuration(text: str) -> str:
    if not text:
        return ""
    return f'<details><summary>Configuration</summary><pre class="file">\n{html.escape(text)}</pre></details>'
