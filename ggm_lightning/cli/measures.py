"""The frame of `lightning evaluate --measures [likelihood, text, ...]`: what a measure is, and how measures are run.

    evaluation/step1600-val-seed0/   evaluation.json, evaluation.csv, report.html, draws/ and cells/, one file for each
                                     finished piece of work

A measure is a dataclass whose fields are its options, in Python and on the command line (evaluation_command.py lists
the measures):

    @dataclass(frozen=True)
    class Speed(Measure):
        '''What `lightning evaluate --help` says of it.

        Args:
            repeats: how often each is timed.
        '''

        repeats: int = 3
        name: ClassVar[str] = "speed"

        def check(self, context): ...   # ValueError in one line, before any work
        def cells(self, context): ...   # pieces of work, each of which is done once and kept

All measures look at the same sets, at the same samples (`context.drawn`), and at the same held-out rows.
"""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from ggm_lightning import __version__
from ggm_lightning.cli import drawn, measure_files, ranks, sweep_grid
from ggm_lightning.cli.bound_files import Settings
from ggm_lightning.cli.drawn import Drawn, Draws
from ggm_lightning.cli.evaluate import checked_settings, how, ready
from ggm_lightning.cli.evaluation_sets import EvaluationSet, rows_of
from ggm_lightning.cli.loading import Loaded, load_family, trusted_names
from ggm_lightning.cli.measure_files import CellFile, place
from ggm_lightning.cli.parts import Arrays, Parts, divided
from ggm_lightning.core.arguments import whole_number
from ggm_lightning.report.evaluation_page import write_evaluation
from ggm_lightning.report.evaluation_rows import Key, Row

Plan = sweep_grid.Cell  # a checkpoint with a sampler, steps, temperature and nucleus


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn, for the measures that look at samples.

    Args:
        sampler: NAME or NAME:option=value,option=value, several one behind the other; default the family's first.
            Options may follow as --sampler.NAME VALUE for all that take them.
        num_steps: reverse steps, several; samplers that do not ask have one row.
        temperature: several; 1 draws from the model.
        top_p: masses of the nucleus, several; 1 draws from the model.
        num_drawn: how many samples each of them draws: 256, of pictures 50,000. (--num_samples is the number of states
            of a bound.)
        label: class to condition on; `each` for all of them in turn; or `data`, each as often as among the real rows,
            the default where model and data know classes.
        options: (library) of the samplers, as texts.
    """

    sampler: list[str] | None = None
    num_steps: list[int] = field(default_factory=lambda: [256])
    temperature: list[float] = field(default_factory=lambda: [1.0])
    top_p: list[float] = field(default_factory=lambda: [1.0])
    num_drawn: int | None = None
    label: int | str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lists: dict[str, Sequence[float]] = {"num_steps": self.num_steps}
        lists |= {"temperature": self.temperature, "top_p": self.top_p}
        for name, values in lists.items():
            if not values or len(set(values)) < len(values):
                raise ValueError(f"--{name} {list(values)}: give at least one value, and none twice")
        if self.num_drawn is not None:
            whole_number("--num_drawn", self.num_drawn, 2)


@dataclass(frozen=True)
class Cell:
    """A piece of work that is done once and kept.

    Attributes:
        name: for a person, and in the name of its file.
        depends: plain JSON: all that the rows depend on besides the checkpoint, its precision, the measure and its
            options.
        compute: the rows; each is completed by the frame with what is known of all.
        kept: False where the measure keeps them itself.
        samples: the plan whose samples it asks for. Of several ranks all draw them before it is computed.
        whose: of several ranks "any" computes it; "first": rank 0, when the others are done; "all": they come to it
            together and divide what is in it, and rank 0 has the rows.
    """

    name: str
    depends: Mapping[str, Any]
    compute: Callable[[], list[Row]]
    kept: bool = True
    samples: Plan | None = None
    whose: str = "any"


@dataclass(frozen=True)
class Context:
    """What measures look at.

    Attributes:
        loaded: the checkpoint.
        sets: prepared and checked against the model.
        settings: split, states of a bound, seed, batch size, limit, estimator, protocol.
        plans: how samples are drawn, one for each row of samples.
        draws: what all plans have in common.
        out: the folder that the user named, or None.
        folder: of this evaluation.
        again: whether what is there already is measured again.
        device, trusted: as the user gave them, for further checkpoints such as a judge's.
    """

    loaded: Loaded
    sets: Sequence[EvaluationSet]
    settings: Settings
    plans: Sequence[Plan]
    draws: Draws
    out: Path | None
    folder: Path
    again: bool = False
    device: str = "auto"
    trusted: tuple[str, ...] = ()

    def drawn(self, plan: Plan) -> Drawn:
        """The samples of a plan, drawn at the first call and kept in the folder."""
        return drawn.drawn(plan, self.draws, self.folder / "draws")

    def depends_on(self, plan: Plan) -> dict[str, Any]:
        """What these samples depend on, for `Cell.depends`."""
        return drawn.results_of(plan, self.draws, self.folder / "draws").settings

    def key(self, one: EvaluationSet, plan: Plan | None = None) -> Key:
        if plan is None:
            return Key(one.name)
        return Key(one.name, plan.contender.name, plan.num_steps, float(plan.temperature), float(plan.top_p))

    def about(self, plan: Plan, samples: Drawn) -> dict[str, Any]:
        """How these samples were drawn, for `Row.about`."""
        return {
            "seed": self.draws.seed,
            "sampler": plan.contender.called,
            "sampler_options": {key: str(value) for key, value in plan.contender.options.items()},
            "samples": len(samples.x),
            "label": self.draws.label,
            "rows_per_sample": samples.rows / len(samples.x),
            "network_calls": samples.network_calls,
            "sampling_seconds": samples.seconds,
            "samples_hash": samples.hash,
        }

    def real(self, one: EvaluationSet) -> Int64[Tensor, " rows *s"]:
        """The held-out rows of a set, the first `limit` of them."""
        rows = one.data.rows(rows_of(one))
        count = min(len(rows), self.settings.limit or len(rows))
        return rows[np.arange(count)]["x"].long().cpu()


class Measure(ABC):
    """Base of all measures.

    Attributes:
        name: behind --measures.
        num_drawn: how many samples it wants where the user does not say.
    """

    name: ClassVar[str]
    num_drawn: ClassVar[int] = 256

    @property
    def real(self) -> str:
        """The split whose rows the samples are compared with."""
        return "train"

    @property
    def draws(self) -> bool:
        """Whether it looks at samples that are drawn."""
        return False

    @abstractmethod
    def check(self, context: Context) -> None:
        """ValueError in one line for all that can be wrong, before anything is computed."""

    @abstractmethod
    def cells(self, context: Context) -> list[Cell]:
        """The pieces of work; nothing is computed yet."""


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


def _common(loaded: Loaded) -> dict[str, Any]:
    return {"checkpoint_identity": loaded.identity, "step": loaded.step, **loaded.noted}


def _file(context: Context, measure: Measure, cell: Cell) -> CellFile:
    depends = {**_common(context.loaded), "measure": measure.name, "options": options_of(measure), **cell.depends}
    return CellFile.of(context.folder, measure.name, cell.name, depends)


def _kept(context: Context, cell: Cell, file: CellFile) -> list[Row] | None:
    """Rows that were measured before."""
    return file.read() if cell.kept and not context.again else None


def _divide(context: Context, work: list[tuple[Measure, Cell]]) -> dict[int, list[Row]]:
    """What several ranks do together: first what they divide row by row, bounds and samples, then cells, each of which
    one rank computes. The rows of cells by their numbers, on rank 0."""
    here = ranks.current()
    files = [_file(context, measure, cell) for measure, cell in work]

    def missing() -> list[int]:
        return [i for i, (_, cell) in enumerate(work) if _kept(context, cell, files[i]) is None]

    waiting: list[int] = here.agree(missing)
    found = {i: _computed(context, *work[i]) for i in waiting if work[i][1].whose == "all"}
    _draw_together(context, [work[i][1] for i in waiting])
    of_one = [i for i in waiting if work[i][1].whose == "any"]
    parts = Parts(context.folder / ".parts", json.dumps([files[i].path.name for i in of_one]))
    if context.again and here.is_first:
        parts.remove()

    def make(start: int, stop: int) -> Arrays:
        measure, cell = work[of_one[start]]
        if cell.samples is not None:  # another node's files may be seen late
            ranks.see(partial(_has_samples, context, cell.samples), cell.name)
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


def _has_samples(context: Context, plan: Plan) -> bool:
    return drawn.results_of(plan, context.draws, context.folder / "draws").done


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
    common = _common(loaded)
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


def options_of(measure: Measure) -> dict[str, Any]:
    return asdict(measure)  # type: ignore[call-overload]


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
