"""The files of an evaluation: a figure with its error and all it depends on, piece by piece and as a whole."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ggm_lightning.cli import ranks
from ggm_lightning.cli.bound_files import Settings
from ggm_lightning.cli.loading import Loaded
from ggm_lightning.cli.results import folder_name
from ggm_lightning.codecs.codec import dict_hash
from ggm_lightning.report.evaluation_rows import Key, Row, by_key, finite, said, tables
from ggm_lightning.rundir.folder import refuse_unwritable_results, write_whole

FORMAT = 1
WHOLE = "evaluation.json"
_OTHERS = ("evaluation.csv", "report.html")


@dataclass(frozen=True)
class CellFile:
    """cells/<measure>-<name>-<hash>.json: the rows of a finished piece of work, and what they depend on."""

    path: Path
    depends: dict[str, Any]

    @classmethod
    def of(cls, folder: Path, measure: str, name: str, depends: Mapping[str, Any]) -> CellFile:
        plain = json.loads(json.dumps(depends))
        slug = re.sub(r"[^\w.-]+", "_", f"{measure}-{name}")[:80]
        return cls(folder / "cells" / f"{slug}-{dict_hash(plain)[:8]}.json", plain)

    def read(self) -> list[Row] | None:
        """What was measured before, or None."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(content, dict) or (content.get("format"), content.get("depends")) != (FORMAT, self.depends):
            return None
        return _rows(content["rows"])

    def write(self, rows: Sequence[Row]) -> None:
        """As a whole, or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"format": FORMAT, "depends": self.depends, "rows": list(map(_plain, rows))}
        write_whole(self.path, f"{json.dumps(content, indent=1)}\n".encode())


def of_checkpoint(loaded: Loaded) -> dict[str, Any]:
    """What all figures of a checkpoint depend on."""
    return {"checkpoint_identity": loaded.identity, "step": loaded.step, **loaded.noted}


def _plain(row: Row) -> dict[str, Any]:
    return {"key": asdict(row.key), "figures": finite(row.figures), "about": dict(row.about)}


def _rows(plain: Sequence[Mapping[str, Any]]) -> list[Row]:
    return [Row(Key(**row["key"]), row["figures"], row["about"]) for row in plain]


def as_text(rows: Sequence[Row]) -> str:
    return json.dumps(list(map(_plain, rows)))


def from_text(text: str) -> list[Row]:
    return _rows(json.loads(text))


def place(loaded: Loaded, settings: Settings, out: str | None) -> Path:
    """The folder of an evaluation: --out, or evaluation/<settings>/ beside the checkpoint. Nothing is left in it yet.

    Raises:
        ValueError: it holds another checkpoint's evaluation, or files of these names that are none.
        OSError: it cannot be written.
    """
    if out is not None:
        folder = Path(out)
        if folder.is_file():
            raise OSError(f"--out {folder}: a file is there; name a folder for the figures")
    else:
        folder = _default(loaded, settings)
        if _identity(folder) not in (None, loaded.identity):
            folder = folder.with_name(f"{folder.name}-{loaded.identity[:8]}")
    identity = _identity(folder)
    if identity not in (None, loaded.identity):
        raise ValueError(f"--out {folder}: holds the evaluation of another checkpoint; name a new folder")
    taken = [name for name in (WHOLE, *_OTHERS) if (folder / name).exists()]
    if identity is None and taken:
        raise ValueError(f"--out {folder}: holds a {taken[0]} that is none of an evaluation; name a new folder")
    if ranks.current().is_first:
        refuse_unwritable_results(folder)
    return folder


def whole_of(folder: Path, identity: str) -> list[Row]:
    """The rows of a folder's evaluation of this checkpoint; none where it is another's, or cannot be read."""
    if _identity(folder) != identity:
        return []
    try:
        return _rows(json.loads((folder / WHOLE).read_text(encoding="utf-8"))["rows"])
    except (KeyError, TypeError):  # of another version
        return []


def _default(loaded: Loaded, settings: Settings) -> Path:
    name = folder_name(
        "evaluation",
        loaded.step,
        ("", settings.split, ""),
        ("seed", settings.seed, ""),
        ("limit", settings.limit, ""),
        ("", loaded.noted.get("precision"), ""),
    )
    return loaded.results / "evaluation" / name.removeprefix("evaluation-")


def _identity(folder: Path) -> str | None:
    """Of the checkpoint whose evaluation lies there."""
    try:
        content = json.loads((folder / WHOLE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("checkpoint_identity") if isinstance(content, dict) and content.get("rows") else None


def write_all(folder: Path, about: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """evaluation.json with everything, and evaluation.csv with a line for each key; each as a whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, **about, "rows": [_plain(row) for row in rows]}
    write_whole(folder / WHOLE, f"{json.dumps(content, indent=1)}\n".encode())
    write_whole(folder / _OTHERS[0], table_csv(rows).encode())


def table_csv(rows: Sequence[Row]) -> str:
    """The figures of all measures side by side, and of each measure what it says of them, as <measure>_<what>."""
    lines = []
    for key, found in by_key(rows).items():
        line: dict[str, Any] = {"set": key.set, "sampler": key.sampler, "num_steps": key.num_steps}
        line |= {"temperature": key.temperature, "top_p": key.top_p}
        for row in found:
            line |= finite(row.figures)
        for row in found:
            prefix = row.about.get("measure", "")
            line |= {f"{prefix}_{name}": _cell(value) for name, value in row.about.items() if name != "measure"}
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for line in lines for name in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value


def summary(rows: Sequence[Row]) -> str:
    """For a terminal: a table for each set and measure, and what is to be said of them."""
    blocks = []
    for table in tables(rows):
        lines = [[f"{table.set}: {table.measure}", *table.columns], *([name, *texts] for name, texts in table.lines)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        rows_of = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines]
        blocks.append("\n".join(line.rstrip() for line in rows_of))
    notes = said(rows, "notes") + [f"departs from the protocol: {one}" for one in said(rows, "departures")]
    return "\n\n".join([*blocks, "\n".join(notes)]).rstrip()
