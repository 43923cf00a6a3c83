"""How measures are run: `lightning evaluate --measures [likelihood, text, ...]` (cli/measure.py says what one is).

evaluation/step1600-val-seed0/   evaluation.json, evaluation.csv, report.html, draws/ and cells/, one file for each
                                 finished piece of work
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ggm_lightning import __version__
from ggm_lightning.cli import drawn, measure_files, ranks, sweep_grid
from ggm_lightning.cli.bound_files import Settings
from ggm_lightning.cli.drawn import Draws
from ggm_lightning.cli.evaluate import checked_settings, how, ready
from ggm_lightning.cli.loading import Loaded, load_family, trusted_names
from ggm_lightning.cli.measure import Cell, Context, Measure, Plan, Sampling, options_of
from ggm_lightning.cli.measure_files import CellFile, place
from ggm_lightning.cli.parts import Arrays, Parts, divided
from ggm_lightning.report.evaluation_page import write_evaluation
from ggm_lightning.report.evaluation_rows import Row


def evaluate_measures(
    ckpt_path: str,
    measures: Sequence[Measure],
    sampling: Sampling | None = None,
    data: list[str] | None = None,
    split: str = "val",
    num_samples: int | None = None,
    seed: int | None = None,
    batch_size: int = 64,
    limit: int | None = None,
    estimator: str = "times",
    protocol: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    out: str | None = None,
    prepare: bool = False,
    again: bool = False,
    trust: str | None = None,
    section: dict[str, Any] | None = None,
    overrides: dict[str, Any] | None = None,
    named: Sequence[str] = (),
) -> list[Row]:
    """Several measures of one checkpoint, each with its error and what it depends on, and the page of them.

    An interrupted run goes on: the same call computes what is missing, and gives the same figures.

    Args:
        ckpt_path: file written by `lightning fit`.
        measures: objects such as `Text(judge="gpt2-large")`.
        sampling: how the samples are drawn that measures look at; without it by the family's first sampler.
        out: folder for the results; default evaluation/<settings>/ beside the checkpoint.
        again: measure again what is there already; samples that were drawn stay.

    The others are those of `cli.evaluate.evaluate`. Raises ValueError in one line, before anything is computed.
    """
    trusted = (*trusted_names(trust, {"data": section, "overrides": overrides}), *named)
    loaded = load_family(ckpt_path, device, trusted, precision)
    settings = checked_settings(loaded.model, split, num_samples, seed, batch_size, limit, estimator, protocol)
    draws, plans = _plans(loaded, measures, sampling or Sampling(), settings)
    sets = ready(loaded, settings, data, section, overrides, prepare, trusted)
    if plans:
        splits = [measure.real for measure in measures if measure.real != "train"]
        draws = drawn.of_classes(draws, loaded.model, sets[0], splits[0] if splits else "train")
    folder = place(loaded, settings, out)
    context = Context(loaded, sets, settings, plans, draws, Path(out) if out else None, folder, again, device, trusted)
    for measure in measures:
        measure.check(context)
    return _run(context, [(measure, cell) for measure in measures for cell in measure.cells(context)])


def _plans(
    loaded: Loaded, measures: Sequence[Measure], sampling: Sampling, settings: Settings
) -> tuple[Draws, list[Plan]]:
    if not measures:
        raise ValueError("--measures names no measure; give at least one")
    count = sampling.num_drawn or max(measure.num_drawn for measure in measures)
    draws = Draws(count, settings.seed, sampling.label, settings.batch_size)
    checked = replace(draws, label=None if draws.label == "data" else draws.label)  # the data are not ready
    if not any(measure.draws for measure in measures):
        if sampling != Sampling():
            raise ValueError("--sampler and its like are given, but no measure looks at samples; leave them out")
        return draws, []
    found = sweep_grid.contenders({loaded.results.resolve().name: loaded}, sampling.sampler or [], sampling.options)
    plans = sweep_grid.cells(found, sampling.num_steps, sampling.temperature, sampling.top_p)
    for plan in plans:
        drawn.check(plan, checked)
    return draws, plans


def _file(context: Context, measure: Measure, cell: Cell) -> CellFile:
    depends = {
        **measure_files.of_checkpoint(context.loaded),
        "measure": measure.name,
        "options": options_of(measure),
        **cell.depends,
    }
    return CellFile.of(context.folder, measure.name, cell.name, depends)


def _kept(context: Context, cell: Cell, file: CellFile) -> list[Row] | None:
    """Rows that were measured before."""
    return file.read() if cell.kept and not context.again else None


def _divide(context: Context, work: list[tuple[Measure, Cell]]) -> dict[int, list[Row]]:
    """What several ranks do together: first what they divide row by row, samples, bounds and features of pictures, then
    cells, each of which one rank computes. The rows of cells by their numbers, on rank 0."""
    here = ranks.current()
    files = [_file(context, measure, cell) for measure, cell in work]

    def missing() -> list[int]:
        return [i for i, (_, cell) in enumerate(work) if _kept(context, cell, files[i]) is None]

    waiting: list[int] = here.agree(missing)
    _draw_together(context, [work[i][1] for i in waiting])
    found: dict[int, list[Row]] = {}
    for i in [i for i in waiting if work[i][1].whose == "all"]:
        measure, cell = work[i]
        _see_samples(context, cell)
        found[i] = _computed(context, measure, cell)
        if cell.kept and here.is_first:
            files[i].write(found[i])
    of_one = [i for i in waiting if work[i][1].whose == "any"]
    parts = Parts(context.folder / ".parts", json.dumps([files[i].path.name for i in of_one]))
    if context.again and here.is_first:
        parts.remove()

    def make(start: int, stop: int) -> Arrays:
        measure, cell = work[of_one[start]]
        _see_samples(context, cell)
        with ranks.alone():
            rows = _computed(context, measure, cell)
        return {"rows": np.array(measure_files.as_text(rows))}

    made = divided(parts, [(i, i + 1) for i in range(len(of_one))], make)
    for i, arrays in zip(of_one, made or [], strict=False):
        found[i] = measure_files.from_text(str(arrays["rows"]))
        files[i].write(found[i])
    if here.is_first:
        parts.remove()
    return found


def _draw_together(context: Context, cells: Sequence[Cell]) -> None:
    """The samples that these cells ask for, each rank a share of the rows."""
    plans: list[Plan] = []
    for cell in cells:
        if cell.samples is not None and not any(cell.samples is plan for plan in plans):
            plans.append(cell.samples)
    for plan in plans:
        results = drawn.results_of(plan, context.draws, context.folder / "draws")
        if not ranks.current().agree(lambda: results.done):  # noqa: B023 - called at once
            drawn.draw(plan, context.draws, results)


def _see_samples(context: Context, cell: Cell) -> None:
    """Another node's files may be seen late."""
    if cell.samples is not None:
        find = partial(drawn.results_of, cell.samples, context.draws, context.folder / "draws")
        ranks.see(lambda: find().done, cell.name)


def _run(context: Context, work: list[tuple[Measure, Cell]]) -> list[Row]:
    here = ranks.current()
    done = _divide(context, work) if here.count > 1 else {}
    if not here.is_first:
        return []
    with ranks.alone():
        return _one_by_one(context, work, done)


def _one_by_one(context: Context, work: list[tuple[Measure, Cell]], done: dict[int, list[Row]]) -> list[Row]:
    """The cells one after the other; the files of the whole are written anew after each. `done`: what several ranks
    have computed, by the number of the cell."""
    loaded = context.loaded
    common = measure_files.of_checkpoint(loaded)
    rows: list[Row] = []
    kept = 0
    for number, (measure, cell) in enumerate(work, 1):
        file = _file(context, measure, cell)
        found = done.get(number - 1)
        is_kept = False
        if found is None:
            found = _kept(context, cell, file)
            is_kept = found is not None
        if found is None:
            print(f"{number} of {len(work)}: {measure.name}, {cell.name}", file=sys.stderr, flush=True)
            found = _computed(context, measure, cell)
            if cell.kept:
                file.write(found)
        kept += is_kept
        rows += found
        about = {**common, "checkpoint": str(loaded.path), "model": type(loaded.model).__name__}
        about |= {"done": number, "of": len(work)}
        measure_files.write_all(context.folder, about, rows)
        write_evaluation(context.folder / "report.html", about, rows)
    if kept:
        print(f"{kept} of {len(work)} were there already; --again true measures them again", file=sys.stderr)
    print(measure_files.summary(rows))
    print(f"{context.folder}/report.html", file=sys.stderr)
    return rows


def _computed(context: Context, measure: Measure, cell: Cell) -> list[Row]:
    """The cell's rows, with what is to be said of all figures."""
    begin = time.monotonic()
    found = cell.compute()
    of_all: dict[str, Any] = {
        "measure": measure.name,
        "options": options_of(measure),
        "seconds": round(time.monotonic() - begin, 3),
        **how(context.loaded),
        "precision_of_draws": "float64",  # core/categorical.py draws in no other
        "version": __version__,
    }
    return [replace(row, about={**of_all, **row.about}) for row in found]
