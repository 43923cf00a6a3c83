"""`lightning sweep`: quality against budget, of samplers and families side by side.

    lightning sweep --ckpt_path runs/demo/last.ckpt --sampler ancestral remasking:rule=rate,eta=2 --num_steps 16 64 256

Every cell (checkpoint, sampler, steps, temperature) is drawn and judged once and kept; the same command again, after a
kill or with more cells, computes what is missing. Page, table and plots are written anew after each cell.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jsonargparse import ArgumentParser

from ggm_lightning.cli import drawn, ranks, several_values, sweep_cells, sweep_grid, sweep_judges
from ggm_lightning.cli.drawn import Draws
from ggm_lightning.cli.loading import Loaded, load_family, trusted_names
from ggm_lightning.cli.parts import Arrays, Parts, divided
from ggm_lightning.cli.sweep_grid import Cell
from ggm_lightning.cli.sweep_judges import Court
from ggm_lightning.metrics.frontier import Figures, figures_of
from ggm_lightning.report.sweep_page import Row, Sweep, summary, write_sweep
from ggm_lightning.rundir.exported import results_folder
from ggm_lightning.rundir.folder import refuse_unwritable_results, write_whole

STEPS = (8, 16, 32, 64, 128, 256, 512, 1024)
TEMPERATURES = (0.7, 0.8, 0.9, 1.0)
MARK = "sweep.json"  # of a folder that a sweep may write into
_LISTS: dict[str, Callable[[str], str]] = {
    "ckpt_path": json.dumps,
    "sampler": json.dumps,
    "data": json.dumps,
    "num_steps": str,
}
_LISTS |= {"temperature": str, "top_p": str}


def sweep(
    ckpt_path: list[str],
    sampler: list[str] | None = None,
    num_steps: list[int] = list(STEPS),  # noqa: B006 - never changed
    temperature: list[float] | None = None,
    top_p: list[float] | None = None,
    num_samples: int = 64,
    judge: str | None = None,
    order: int = 3,
    label: int | str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    out: str | None = None,
    data: list[str] | None = None,
    prepare: bool = False,
    device: str = "auto",
    trust: str | None = None,
    named: Sequence[str] = (),
    options: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Quality against budget: steps x sampler x temperature on one or several checkpoints, judged and plotted.

    Args:
        ckpt_path: files written by `lightning fit` on the same text, one behind the other.
        sampler: NAME or NAME:option=value,option=value, several one behind the other; each goes to the families that
            have it. Default: each family's first. Options may follow as --sampler.NAME VALUE for all that take them.
        num_steps: reverse steps, several; default 8 to 1,024 in powers of 2. Samplers that do not ask have one cell.
        temperature: several; default .7 .8 .9 1, and 1 where top_p is given.
        top_p: masses of the nucleus, several; default 1.
        num_samples: of each cell, at least 2.
        judge: checkpoint of an AutoregressiveModel on the same data; default: a model of order k that counts every
            other row of the held-out text.
        order: k of that model.
        label: class to condition on, or `each` for all of them in turn.
        seed: sample r is a function of (seed, r), whatever the batch size.
        batch_size: rows at once.
        out: folder; default sweep/ beside the first checkpoint. Another sweep's cells in it are left alone.
        data: a file with a section `data`; default: the data of the first checkpoint's training.
        prepare: prepare the data if they are not prepared, in a folder that is not there yet.
        device: auto, cpu, cuda, ...
        trust: packages or classes of your own that the checkpoints may build, separated by commas.
        named: (library) more such names.
        options: (library) of the samplers, as texts.
    """
    temperatures = temperature or ([1.0] if top_p else list(TEMPERATURES))
    _refuse_settings(num_steps, temperatures, top_p or [1.0], num_samples, batch_size, order)
    folder = Path(out) if out else results_folder(ckpt_path[0]) / "sweep"
    refuse_other_folder(folder)
    trusted = (*trusted_names(trust, {}), *named)
    checkpoints = _loaded(ckpt_path, device, trusted)
    contenders = sweep_grid.contenders(checkpoints, sampler or [], options)
    cells = sweep_grid.cells(contenders, num_steps, temperatures, top_p or [1.0])
    draws = Draws(num_samples, seed, label, batch_size)
    for cell in cells:
        drawn.check(cell, draws)
    court = _court(checkpoints, judge, order, draws, data, prepare, device, trusted)
    _compute(Progress(cells, draws, court, folder), {"checkpoints": list(ckpt_path), "judge": court.judge.title})


def _compute(progress: Progress, about: dict[str, object]) -> None:
    """Of several ranks each draws and judges its cells, which rank 0 then finds."""
    here = ranks.current()
    if here.is_first:
        _mark(progress.folder, about)
    if here.count > 1:
        _divide(progress.cells, progress.draws, progress.court, progress.folder)
    if not here.is_first:
        return
    with ranks.alone():
        print(summary(progress.run()))
    print(f"{progress.folder}/sweep.html", file=sys.stderr)


def _divide(cells: Sequence[Cell], draws: Draws, court: Court, folder: Path) -> None:
    """Each rank draws and judges its cells, which lie in the folder when this ends on rank 0."""
    here = ranks.current()
    results = [drawn.results_of(cell, draws, folder / "cells") for cell in cells]
    named = [one.folder.name for one in results]
    parts = Parts(folder / ".parts", json.dumps([court.judge.key, len(court.real), *named]))
    if here.is_first:
        parts.remove()  # the cells themselves are what a stopped sweep goes on with

    def make(number: int, stop: int) -> Arrays:
        cell = cells[number]
        print(f"cell {number + 1} of {len(cells)}: {cell.label}", file=sys.stderr, flush=True)
        try:
            with ranks.alone():
                sweep_cells.measured(cell, draws, court, folder / "cells")
        except ValueError:  # rank 0 will say so, and leave it out
            return {"measured": np.array(False)}
        return {"measured": np.array(True)}

    spans = [(number, number + 1) for number in range(len(cells))]
    found = divided(parts, spans, make, costs=[float(cell.steps_told) for cell in cells])
    if found is None:
        return
    for cell, one in zip(cells, found, strict=True):
        if one["measured"]:  # another node's files may be seen late
            ranks.see(partial(_is_there, cell, draws, court, folder / "cells"), cell.label)
    parts.remove()


def _is_there(cell: Cell, draws: Draws, court: Court, folder: Path) -> bool:
    results = drawn.results_of(cell, draws, folder)
    return results.done and sweep_cells.read_figures(sweep_cells.figures_file(results, court), court) is not None


def _refuse_settings(
    num_steps: list[int], temperatures: list[float], nuclei: list[float], num_samples: int, batch_size: int, order: int
) -> None:
    lists: dict[str, Sequence[float]] = {"num_steps": num_steps, "temperature": temperatures, "top_p": nuclei}
    for name, values in lists.items():
        if not values:
            raise ValueError(f"--{name} is empty; give at least one")
        if len(set(values)) < len(values):
            raise ValueError(f"--{name} names a value twice: {' '.join(f'{value:g}' for value in values)}")
    least = {"num_samples": (num_samples, 2), "batch_size": (batch_size, 1), "order": (order, 0)}
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise ValueError(f"--{name} is {value}; it must be at least {smallest}")


def refuse_other_folder(folder: Path) -> None:
    """Before anything is computed: it can be written, and holds nothing but a sweep. Of several ranks, rank 0 looks."""
    if not ranks.current().is_first:
        return
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder}: a file is there; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise ValueError(f"--out {folder}: holds files that are no sweep; name a new folder")
    refuse_unwritable_results(folder)


def _mark(folder: Path, about: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": 1, **about}, indent=1)
    write_whole(folder / MARK, f"{text}\n".encode())


def _loaded(paths: Sequence[str], device: str, trust: tuple[str, ...]) -> dict[str, Loaded]:
    """The checkpoints by their short names."""
    if not paths:
        raise ValueError("--ckpt_path names no checkpoint; give at least one")
    loaded = [load_family(path, device, trust) for path in paths]
    for i, one in enumerate(loaded):
        twice = [other.path for other in loaded[:i] if other.identity == one.identity]
        if twice:
            raise ValueError(f"--ckpt_path {one.path}: holds the same as {twice[0]}; name each checkpoint once")
    found = dict(zip(sweep_grid.short_names(paths), loaded, strict=True))
    sweep_judges.refuse_unlike(found)
    return found


def _court(
    checkpoints: Mapping[str, Loaded],
    judge: str | None,
    order: int,
    draws: Draws,
    data: list[str] | None,
    prepare: bool,
    device: str,
    trust: tuple[str, ...],
) -> Court:
    """The judge is found before the data are, which may have to be prepared."""
    name, first = next(iter(checkpoints.items()))
    found = None
    if judge is None:
        sweep_judges.refuse_many_classes(first.model)
    else:
        found = sweep_judges.judge_of(judge, device, trust, first.model, name, draws.batch_size)
    _, rows = sweep_judges.held_out(first, data, prepare, trust)
    if found is None:
        return sweep_judges.counted(rows, first.model.num_classes, order, draws.num_samples)
    if len(rows) < 2:
        raise ValueError(f"the held-out data have {len(rows)} rows; at least 2 are needed beside the samples")
    return Court(found, sweep_judges.spaced(rows, draws.num_samples))


@dataclass
class Progress:
    """The cells one after the other, with the time that is left, and the page after each."""

    cells: list[Cell]
    draws: Draws
    court: Court
    folder: Path
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def run(self) -> Sweep:
        real = self._real()
        done: list[tuple[Cell, float]] = []
        kept = 0
        sweep = self._sweep(real)
        for i, cell in enumerate(self.cells):
            begin = time.monotonic()
            self._tell(i, done)
            try:
                found = sweep_cells.measured(cell, self.draws, self.court, self.folder / "cells")
            except ValueError as error:  # what one family cannot do must not end the others'
                self.left_out[cell.label] = str(error)
                print(f"left out: {cell.label}: {error}", file=sys.stderr)
                continue
            if found.new:
                done.append((cell, time.monotonic() - begin))
            kept += not found.new
            self.rows.append(_row(cell, found.figures))
            sweep = self._sweep(real)
            write_sweep(self.folder, sweep)
        if not self.rows:
            raise ValueError(f"no cell could be drawn: {next(iter(self.left_out.values()))}")
        if kept:
            print(f"{kept} of {len(self.cells)} cells were there already", file=sys.stderr)
        return sweep

    def _real(self) -> Figures:
        """The figures of the real rows, kept beside the cells."""
        file = self.folder / f"real-{self.court.judge.key}-n{len(self.court.real)}.json"
        found = sweep_cells.read_figures(file, self.court)
        if found is None:
            found = figures_of(self.court.real, self.court.judge.bits(self.court.real))
            sweep_cells.write_figures(file, self.court, found)
        return found

    def _tell(self, number: int, done: list[tuple[Cell, float]]) -> None:
        cell = self.cells[number]
        results = drawn.results_of(cell, self.draws, self.folder / "cells")
        if results.done:
            return
        left = sweep_grid.seconds_left(done, self.cells[number:])
        told = "" if left is None else f"; about {_duration(left)} left"
        print(f"cell {number + 1} of {len(self.cells)}: {cell.label}{told}", file=sys.stderr, flush=True)

    def _sweep(self, real: Figures) -> Sweep:
        judged = [cell.contender.checkpoint for cell in self.cells if self._is_judge(cell)]
        notes = [f"{name} judges its own samples." for name in dict.fromkeys(judged)]
        on_cpu = self.cells[0].contender.loaded.model.device.type == "cpu"
        return Sweep(
            rows=self.rows,
            real=real,
            real_rows=len(self.court.real),
            num_samples=self.draws.num_samples,
            judge=self.court.judge.title,
            clock="processor seconds" if on_cpu else "seconds",
            cells=len(self.cells),
            left_out=self.left_out,
            notes=notes,
        )

    def _is_judge(self, cell: Cell) -> bool:
        return cell.contender.loaded.identity == self.court.judge.identity.get("checkpoint_identity")


def _row(cell: Cell, figures: Figures) -> Row:
    return Row(cell.contender.name, cell.num_steps, cell.temperature, cell.top_p, figures)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def run(args: list[str], named: Sequence[str], options: Mapping[str, str]) -> None:
    """Parses the command's arguments: several values behind one key."""
    parser = ArgumentParser(
        prog="lightning sweep",
        description=(sweep.__doc__ or "").split("\n")[0],
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_function_arguments(sweep, as_group=False, skip={"named", "options"})
    ranks.add_option(parser)
    given = parser.parse_args(joined(args)).as_dict()
    sweep(**ranks.without_option(given), named=named, options=options)


def joined(args: list[str]) -> list[str]:
    """['--num_steps', '8', '16', '--seed', '1'] as ['--seed', '1', '--num_steps=[8, 16]']."""
    return several_values.joined(args, _LISTS)
