"""A cell of a sweep: its samples and its figures, each drawn or computed once and kept.

    DIR/cells/demo-ancestral-16steps-temp0.7-seed0-n64-1f3a9c02/   samples.npz, settings.json, figures-ar-5b21d0aa.json

The folder is named by the setting and by the checkpoint's content, the figures by the judge: another checkpoint,
setting or judge is another file. settings.json and each figures file are written last and at once; batches that a
stopped sweep has drawn are gone on with.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ggm_lightning.cli import drawing
from ggm_lightning.cli.results import Results, folder_name, place
from ggm_lightning.cli.sweep_grid import Cell
from ggm_lightning.cli.sweep_judges import Court
from ggm_lightning.metrics.frontier import Figures, figures_of
from ggm_lightning.rundir.folder import write_whole
from ggm_lightning.sampling import naming
from ggm_lightning.sampling.request import checked


@dataclass(frozen=True)
class Draws:
    """What all cells have in common: how many samples, with which seed, of which class, how many at once."""

    num_samples: int
    seed: int
    label: int | str | None
    batch_size: int


@dataclass(frozen=True)
class Measured:
    """A finished cell.

    Attributes:
        figures: `metrics.frontier.figures_of`, and rows_per_sample, network_calls, seconds (on a CPU: the processor's).
        new: whether something was drawn or judged now.
    """

    figures: Figures
    new: bool


def check(cell: Cell, draws: Draws) -> None:
    """ValueError for a request that the family cannot mean, before anything is drawn."""
    model = cell.contender.loaded.model
    labels = drawing.labels_of(model, draws.label, draws.num_samples)
    checked(model, draws.num_samples, cell.steps_told, labels, seed=draws.seed)
    naming.sharpening({"temperature": cell.temperature, "top_p": cell.top_p, **cell.contender.options})


def results_of(cell: Cell, draws: Draws, folder: Path) -> Results:
    """Where the cell's samples are, or will be."""
    one = cell.contender
    settings = {
        "command": "sweep",
        "checkpoint_identity": one.loaded.identity,
        "step": one.loaded.step,
        "sampler": one.called,
        **one.options,
        "num_steps": cell.num_steps,
        "temperature": cell.temperature,
        "top_p": cell.top_p,
        "label": draws.label,
        "seed": draws.seed,
        "num_samples": draws.num_samples,
    }
    top_p = None if cell.top_p == 1 else cell.top_p
    name = folder_name(
        one.checkpoint.replace("/", "_"),
        one.loaded.step,
        ("", one.called, ""),
        *((name, value, "") for name, value in one.options.items()),
        ("", cell.num_steps, "steps"),
        ("temp", float(cell.temperature), ""),
        ("top_p", top_p, ""),
        ("label", draws.label, ""),
        ("seed", draws.seed, ""),
        ("n", draws.num_samples, ""),
        ("", one.loaded.identity[:8], ""),
    )
    return place(folder, name, settings, None, again=False)


def measured(cell: Cell, draws: Draws, court: Court, folder: Path) -> Measured:
    """The cell's figures: drawn and judged now, or read."""
    results = results_of(cell, draws, folder)
    if not results.done:
        _draw(cell, draws, results)
    file = results.folder / f"figures-{court.judge.key}.json"
    found = read_figures(file, court)
    if found is not None:
        return Measured(found, new=not results.done)
    x, cost = _samples(results.folder / "samples.npz")
    bits = court.judge.bits(x)
    figures = figures_of(x, bits, min(len(x), len(court.real))) | {
        "rows_per_sample": cost["rows"] / len(x),
        "network_calls": cost["calls"],
        "seconds": cost["seconds"],
    }
    write_figures(file, court, figures)
    return Measured(figures, new=True)


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


def _draw(cell: Cell, draws: Draws, results: Results) -> None:
    """All batches, each kept when it is finished, and then samples.npz."""
    model = cell.contender.loaded.model
    labels = drawing.labels_of(model, draws.label, draws.num_samples)
    # a GPU works while the process waits, and a CPU may be shared with others
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter

    def part(start: int, stop: int) -> dict[str, np.ndarray]:
        row = torch.arange(start, stop, device=model.device)
        begin = clock()
        drawn = model.sample(
            len(row),
            cell.steps_told,
            label=None if labels is None else labels[row],
            row=row,
            progress=True,
            sampler=cell.contender.sampler,
            seed=draws.seed,
            temperature=cell.temperature,
            top_p=cell.top_p,
            **cell.contender.options,
        )
        x = drawn.x.cpu().numpy()
        cost = np.array([drawn.network_calls, drawn.rows, clock() - begin])
        return {"x": x.astype(np.int32), "cost": cost}

    parts = []
    for start in range(0, draws.num_samples, draws.batch_size):
        stop = min(start + draws.batch_size, draws.num_samples)
        parts.append(results.part(start, stop, lambda: part(start, stop)))  # noqa: B023 - called at once
    with results.writing() as folder:
        cost = np.sum([one["cost"] for one in parts], axis=0)
        np.savez_compressed(folder / "samples.npz", x=np.concatenate([one["x"] for one in parts]), cost=cost)


def _samples(file: Path) -> tuple[Tensor, dict[str, Any]]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            x, cost = torch.from_numpy(arrays["x"]).long(), arrays["cost"].tolist()
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{file}: cannot be read ({error}); remove its folder, and it is drawn again") from None
    return x, {"calls": int(cost[0]), "rows": int(cost[1]), "seconds": float(cost[2])}
