"""A cell of a sweep: its samples and its figures, each drawn or computed once and kept.

    DIR/cells/demo-ancestral-16steps-temp0.7-seed0-n64-1f3a9c02/   samples.npz, settings.json, figures-ar-5b21d0aa.json

The folder is named by the setting and by the checkpoint's content, the figures by the judge: another checkpoint,
setting or judge is another file. settings.json and each figures file are written last and at once; batches that a
stopped sweep has drawn are gone on with.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ggm_lightning.cli import drawn
from ggm_lightning.cli.drawn import Draws
from ggm_lightning.cli.results import Results
from ggm_lightning.cli.sweep_grid import Cell
from ggm_lightning.cli.sweep_judges import Court
from ggm_lightning.metrics.frontier import Figures, figures_of
from ggm_lightning.rundir.folder import write_whole


@dataclass(frozen=True)
class Measured:
    """A finished cell.

    Attributes:
        figures: `metrics.frontier.figures_of`, and rows_per_sample, network_calls, seconds (on a CPU: the processor's).
        new: whether something was drawn or judged now.
    """

    figures: Figures
    new: bool


def measured(cell: Cell, draws: Draws, court: Court, folder: Path) -> Measured:
    """The cell's figures: drawn and judged now, or read."""
    results = drawn.results_of(cell, draws, folder)
    if not results.done:
        drawn.draw(cell, draws, results)
    file = figures_file(results, court)
    found = read_figures(file, court)
    if found is not None:
        return Measured(found, new=not results.done)
    samples = drawn.read(results)
    bits = court.judge.bits(samples.x)
    figures = figures_of(samples.x, bits, min(len(samples.x), len(court.real))) | {
        "rows_per_sample": samples.rows / len(samples.x),
        "network_calls": samples.network_calls,
        "seconds": samples.seconds,
    }
    write_figures(file, court, figures)
    return Measured(figures, new=True)


def figures_file(results: Results, court: Court) -> Path:
    return results.folder / f"figures-{court.judge.key}.json"


def write_figures(file: Path, court: Court, figures: Figures) -> None:
    text = json.dumps({"of": court.identity, "figures": figures}, indent=1)
    write_whole(file, f"{text}\n".encode())


def read_figures(file: Path, court: Court) -> Figures | None:
    """Kept figures of just this judge and these real rows; None where there are none."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept["figures"] if isinstance(kept, dict) and kept.get("of") == court.identity else None
