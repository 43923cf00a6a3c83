"""The page of an evaluation: one file that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ggm_lightning.report.evaluation_rows import Row, by_key, shown_figures, told
from ggm_lightning.report.page import section, write_page


def write_evaluation(path: Path, about: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Replaced as a whole or not at all."""
    title = f"{about['model']}: evaluation"
    done = f"{about['done']} of {about['of']} parts, " if about["done"] < about["of"] else ""
    note = f"{done}{about['checkpoint']}, step {about['step']}. ± is one standard error."
    parts = [f'<header><h1>{html.escape(title)}</h1><p class="note">{html.escape(note)}</p></header>']
    for key, found in by_key(rows).items():
        parts += [section(told(key), "", "".join(map(_measure, found)))]
    write_page(path, title, parts)


def _measure(row: Row) -> str:
    figures = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>'
        for name, value in shown_figures(row.figures).items()
    )
    departures = "".join(f"<li>{html.escape(one)}</li>" for one in row.about.get("departures", ()))
    said = f'<ul class="words">{departures}</ul>' if departures else ""
    return f"<h3>{html.escape(str(row.about.get('measure', '')))}</h3><table><tbody>{figures}</tbody></table>{said}"
