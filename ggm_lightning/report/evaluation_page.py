"""The page of an evaluation: one file that needs nothing else."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ggm_lightning.report import field_protocols
from ggm_lightning.report.evaluation_rows import Row, Table, said, tables
from ggm_lightning.report.page import facts_section, section, write_page

_FIGURES = (
    "A column for each way of drawing; ± is one standard error. evaluation.csv beside this page has all digits, "
    "evaluation.json also all that each figure depends on."
)
_TOGETHER = (
    "No figure of samples stands alone: read each beside that of real text. A judge likes likely tokens that repeat, "
    "an entropy likes noise; distances from held-out text and duplicates see both."
)
_FIELD = "Figures compare only where protocol, judge and number of samples are the same."
_ABOVE = ("checkpoint", "weights", "device", "precision", "precision_of_draws", "version")
_ELSEWHERE = {"measure", "notes", "departures", "checkpoint_identity", "step", *_ABOVE}


def write_evaluation(path: Path, about: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Replaced as a whole or not at all."""
    title = f"{about['model']}: evaluation"
    parts = [
        f'<header><h1>{html.escape(title)}</h1><p class="note">{html.escape(_state(about))}</p></header>',
        _words([*said(rows, "notes"), *(f"departs from the protocol: {one}" for one in said(rows, "departures"))]),
        section("Figures", _FIGURES, "".join(map(_table, tables(rows)))),
        section("Protocols of the field", _FIELD, _field()),
        _of_all(rows),
        "".join(map(_details, rows)),
    ]
    write_page(path, title, parts)


def _state(about: Mapping[str, Any]) -> str:
    done = f"{about['done']} of {about['of']} parts are done. " if about["done"] < about["of"] else ""
    return f"{done}{about['checkpoint']}, step {about['step']}. {_TOGETHER}"


def _words(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<section><ul class="words">{items}</ul></section>' if items else ""


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in ("", *table.columns))
    body = []
    for name, texts in table.lines:
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in texts)
        body.append(f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>')
    inside = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    heading = f"<h3>{html.escape(table.set)}: {html.escape(table.measure)}</h3>"
    return f'{heading}<div class="wide numbers" tabindex="0">{inside}</div>'


def _field() -> str:
    head = "".join(f'<th scope="col">{html.escape(one)}</th>' for one in field_protocols.HEAD)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(one)}</td>' for one in line)}</tr>" for line in field_protocols.PROTOCOLS
    )
    return f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _of_all(rows: Sequence[Row]) -> str:
    """What is the same for all figures."""
    shared = {}
    for name in _ABOVE:
        values = list(dict.fromkeys(str(row.about[name]) for row in rows if name in row.about))
        if values:
            shared[name.replace("_", " ")] = ", ".join(values)
    return facts_section("Where it was measured", shared)


def _details(row: Row) -> str:
    """All that a row depends on, folded up."""
    facts = {name.replace("_", " "): _text(value) for name, value in row.about.items() if name not in _ELSEWHERE}
    body = "".join(f'<tr><th scope="row">{html.escape(k)}</th><td>{html.escape(v)}</td></tr>' for k, v in facts.items())
    heading = html.escape(f"{row.measure}: {row.key.set}, {row.key.told}")
    return f'<details class="row"><summary>{heading}</summary><table><tbody>{body}</tbody></table></details>'


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
