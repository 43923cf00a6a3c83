"""report.html of a run: one file that needs nothing else, for a browser in the light or in the dark."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ggm_lightning.report import trace
from ggm_lightning.report.curve import curve_png

__all__ = ["curve_png", "write_report"]

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1f2430; --quiet: #6b7280; --line: #e5e7ec;
  --sunken: #f5f6f9; --accent: #5b3fd6; }
@media (prefers-color-scheme: dark) { :root { --paper: #14161b; --ink: #e4e6eb; --quiet: #9aa1ad; --line: #2b2f38;
  --sunken: #1c1f26; --accent: #a796ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 980px; margin: 0 auto; padding: 48px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 6px; text-wrap: balance; }
h2 { font-size: 19px; letter-spacing: -.005em; margin: 48px 0 4px; }
.note { color: var(--quiet); margin: 0 0 14px; font-size: 14px; max-width: 72ch; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin: 28px 0 12px; }
.card { border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.card .name { color: var(--quiet); font-size: 13px; }
.card .value { font-size: 27px; font-weight: 620; letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
.card .error { color: var(--quiet); font-size: 14px; font-variant-numeric: tabular-nums; }
.card:first-child .value { color: var(--accent); }
figure { margin: 0; } figure img { display: block; width: 100%; height: auto; border-radius: 10px; background: #fff;
  border: 1px solid var(--line); }
.pictures { display: flex; flex-wrap: wrap; gap: 16px 20px; align-items: flex-start; }
.pictures img { width: auto; max-width: 100%; image-rendering: pixelated; border-radius: 4px; }
.pictures figcaption { color: var(--quiet); font-size: 13px; margin-top: 4px; }
code { font: 13px ui-monospace, "SF Mono", Menlo, Consolas, monospace; background: var(--sunken); padding: 1px 5px;
  border-radius: 4px; }
.samples { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr)); gap: 12px; }
.samples pre { margin: 0; padding: 14px 16px; background: var(--sunken); border-radius: 8px; white-space: pre-wrap;
  overflow-wrap: anywhere; font: 13.5px/1.6 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
table { border-collapse: collapse; width: 100%; font-size: 15px; }
th, td { text-align: left; font-weight: 400; padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line);
  vertical-align: baseline; }
tr:last-child th, tr:last-child td { border-bottom: 0; }
th { color: var(--quiet); width: 34%; }
td.number { font-variant-numeric: tabular-nums; width: 6.5em; text-align: right; padding-right: 18px; }
td.gauge { width: 45%; } .gauge i { display: block; height: 9px; border-radius: 5px; min-width: 2px;
  background: var(--accent); opacity: .75; }
footer { color: var(--quiet); font-size: 13px; margin-top: 48px; border-top: 1px solid var(--line); padding-top: 14px; }
"""

_ABOUT_BOUND = (
    "Each is an upper bound on the model's own figure, estimated on held-out examples; ± is one standard error "
    "over them."
)

_ABOUT_EXACT = (
    "Each is computed exactly, no bound, and averaged over held-out examples; ± is one standard error over them."
)

_ABOUT_EXACT_CURVE = (
    "-log p of held-out examples, in a band of one standard error, and the training loss on single batches and "
    "smoothed. Dashed: other models of the same data."
)

_ABOUT_CURVE = (
    "The bound on held-out examples, in a band of one standard error, and the training loss on single batches and "
    "smoothed. Dashed: other models of the same data."
)


@dataclass(frozen=True)
class Figure:
    """Pictures under a heading of their own.

    Attributes:
        heading: of the section.
        note: what is to be seen, as HTML.
        images: caption -> PNG or GIF file; it goes into the page.
    """

    heading: str
    note: str
    images: dict[str, Path]


def write_report(
    path: str | Path,
    title: str,
    curve_png_path: str | Path | None,
    bound: dict[str, tuple[float, float | None]],
    samples: list[str],
    trace_fragment: str,
    facts: dict[str, str],
    tables: dict[str, dict[str, float]],
    figures: Sequence[Figure] = (),
    about_curve: str | None = None,
    exact: bool = False,
) -> None:
    """Writes the whole report; parts that are empty are left out.

    Args:
        path: of the HTML file; it is replaced at once or not at all.
        title: of the page.
        curve_png_path: the learning curve; it goes into the file.
        bound: name with its unit -> (value, standard error or None).
        samples: texts.
        trace_fragment: from `trace.trace_html`.
        facts: hardware, steps, parameters, time, ...
        tables: heading -> row -> number; numbers within 0 and 1 are shown as shares.
        figures: what is shown of images.
        about_curve: what the learning curve shows; None: the figures of `bound` and the training loss.
        exact: whether the figures under `bound` are -log p itself.
    """
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}{trace.STYLE}</style></head>"
    )
    parts = [
        f"<header><h1>{html.escape(title)}</h1></header>",
        _cards(bound, exact),
        _curve(curve_png_path, about_curve or (_ABOUT_EXACT_CURVE if exact else _ABOUT_CURVE)),
        *(_figure(figure) for figure in figures),
        _trace(trace_fragment),
        _samples(samples),
        *(_table(heading, rows) for heading, rows in tables.items() if rows),
        _facts(facts),
        "<footer>Written by ggm_lightning.</footer>",
    ]
    text = f"{head}\n<body><main>\n{chr(10).join(part for part in parts if part)}\n</main></body></html>\n"
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        # a sampler's text may hold half of a surrogate pair, which no file can
        partial.write_text(text, encoding="utf-8", errors="replace")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _section(heading: str, note: str, body: str) -> str:
    note = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{html.escape(heading)}</h2>{note}{body}</section>"


def _cards(bound: dict[str, tuple[float, float | None]], exact: bool) -> str:
    cards = []
    kind, about = ("", _ABOUT_EXACT) if exact else (", upper bound", _ABOUT_BOUND)
    for name, (value, stderr) in bound.items():
        error = "" if stderr is None else f'<div class="error">± {_digits(stderr, value)}</div>'
        cards.append(
            f'<div class="card"><div class="name">{html.escape(name)}{kind}</div>'
            f'<div class="value">{_digits(value, value)}</div>{error}</div>'
        )
    if not cards:
        return ""
    return f'<section><div class="cards">{"".join(cards)}</div><p class="note">{about}</p></section>'


def _digits(number: float, like: float) -> str:
    """As many decimals as five significant digits of `like` have."""
    decimals = 4 if abs(like) < 10 else 3 if abs(like) < 100 else 2 if abs(like) < 1000 else 1
    return f"{number:,.{decimals}f}"


def _image(path: str | Path, description: str) -> str:
    data = base64.b64encode(Path(path).read_bytes()).decode()
    kind = Path(path).suffix.removeprefix(".")
    return f'<img alt="{html.escape(description)}" src="data:image/{kind};base64,{data}">'


def _curve(path: str | Path | None, about: str) -> str:
    if path is None:
        return ""
    figure = f"<figure>{_image(path, 'learning curve: held-out bound and training loss over the steps')}</figure>"
    return _section("Learning curve", about, figure)


def _trace(fragment: str) -> str:
    note = (
        "The reverse process from the prior to a sample. A token's colour is the step at which it took its final "
        "value; hold the pointer over it to read the step."
    )
    return _section("One sample, step by step", note, fragment) if fragment else ""


def _figure(figure: Figure) -> str:
    pictures = [
        f"<figure>{_image(path, caption)}<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, path in figure.images.items()
    ]
    return _section(figure.heading, figure.note, f'<div class="pictures">{"".join(pictures)}</div>')


def _samples(samples: list[str]) -> str:
    # a line break right after <pre> is swallowed by the parser, so the text gets one of its own
    blocks = "".join(f"<pre>\n{html.escape(text)}</pre>" for text in samples)
    note = "Drawn from the final weights, not selected."
    return _section("Samples", note, f'<div class="samples">{blocks}</div>') if samples else ""


def _table(heading: str, rows: dict[str, float]) -> str:
    shares = all(0 <= value <= 1 for value in rows.values())
    body = []
    for name, value in rows.items():
        number = f"{100 * value:.1f}%" if shares else f"{value:,.4g}"
        gauge = f'<td class="gauge"><i style="width:{100 * value:.2f}%"></i></td>' if shares else ""
        body.append(f'<tr><th scope="row">{html.escape(name)}</th><td class="number">{number}</td>{gauge}</tr>')
    return _section(heading, "", f"<table><tbody>{''.join(body)}</tbody></table>")


def _facts(facts: dict[str, str]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>'
        for name, value in facts.items()
    )
    return _section("The run", "", f"<table><tbody>{rows}</tbody></table>") if facts else ""
