"""Infilling as one of the measures of `lightning evaluate`: metrics/infilling.py on the held-out rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ggm_lightning.cli.evaluation_sets import EvaluationSet, rows_of
from ggm_lightning.cli.measure import Cell, Context, Measure, Plan
from ggm_lightning.core.arguments import whole_number
from ggm_lightning.data.fingerprints import hash_of_ids
from ggm_lightning.metrics import infilling
from ggm_lightning.metrics.infilling import Fill, Infilling
from ggm_lightning.models.base import Family
from ggm_lightning.networks.labels import labels_known
from ggm_lightning.report.evaluation_rows import Row
from ggm_lightning.sampling import conditional

_LN_2 = float(np.log(2))


@dataclass(frozen=True)
class Infill(Measure):
    """Held-out rows with some sites hidden and filled in again: the share that is right, for each way of drawing, and
    the bound on -log2 p(hidden | known) in bits per hidden site, which does not depend on it.

    Args:
        patterns: of the hidden sites, several of random (here and there), span (neighbours; of pictures a box) and end
            (the last ones); default random and span, of autoregressive models end, which is all they can.
        shares: of the sites that are hidden, several.
        infill_rows: how many held-out rows, the first ones.
        infill_states: states of each row for the bound.
    """

    patterns: list[str] | None = None
    shares: list[float] = field(default_factory=lambda: list(infilling.SHARES))
    infill_rows: int = 64
    infill_states: int = 4
    name: ClassVar[str] = "infill"

    @property
    def draws(self) -> bool:
        return True

    def patterns_of(self, model: Family) -> list[str]:
        return self.patterns or (["end"] if model.fills_beginnings_only else ["random", "span"])

    def check(self, context: Context) -> None:
        model = context.loaded.model
        whole_number("--infill_rows", self.infill_rows, 1)
        whole_number("--infill_states", self.infill_states, 1)
        if not self.shares:
            raise ValueError("--shares is empty; give at least one")
        for pattern in self.patterns_of(model):
            for share in self.shares:
                infilling.check(pattern, share)
            if model.fills_beginnings_only and pattern != "end":
                raise ValueError(
                    f"--patterns {pattern}: {type(model).__name__} draws from left to right and goes on from a known "
                    "beginning alone; give end, or leave it out"
                )
        for plan in context.plans:
            _try(plan)

    def cells(self, context: Context) -> list[Cell]:
        found = []
        for one in context.sets:
            rows = _rows(one, min(self.infill_rows, context.settings.limit or self.infill_rows))
            depends = {"set": one.name, "seed": context.settings.seed, "reference_hash": hash_of_ids(rows["x"])}
            found.append(Cell(f"{one.name} bound", depends, _work(self, context, one, rows, None)))
            for plan in context.plans:
                drawn = {key: value for key, value in context.depends_on(plan).items() if key != "num_samples"}
                name = f"{one.name} {plan.label}"
                found.append(Cell(name, depends | {"plan": drawn}, _work(self, context, one, rows, plan)))
        return found


def _rows(one: EvaluationSet, count: int) -> dict[str, Tensor]:
    source = one.data.rows(rows_of(one))
    return dict(source[np.arange(min(count, len(source)))])


def _try(plan: Plan) -> None:
    """ValueError where the model cannot fill in at all. With everything known a plan asks for nothing."""
    model = plan.contender.loaded.model
    if model.mask_id is None:
        return
    nothing = torch.zeros(1, *model.shape, dtype=torch.int64)
    label = torch.zeros(1, dtype=torch.int64) if labels_known(model.network) else None
    _filler(plan, seed=0, steps=1)(nothing, torch.ones_like(nothing, dtype=torch.bool), torch.zeros(1).long(), label)


def _filler(plan: Plan, seed: int, steps: int | None = None) -> Fill:
    one = plan.contender

    def fill(values: Tensor, known: Tensor, row: Tensor, label: Tensor | None) -> Tensor:
        with one.loaded.computing():
            return one.loaded.model.sample(
                len(values),
                steps or plan.steps_told,
                label=label,
                clamp=(values, known),
                row=row,
                sampler=one.sampler,
                seed=seed,
                temperature=plan.temperature,
                top_p=plan.top_p,
                **one.options,
            ).x

    return fill


def _work(measure: Infill, context: Context, one: EvaluationSet, rows: dict[str, Tensor], plan: Plan | None) -> Any:
    """What the cell computes: the bound where there is no plan, else the accuracy."""
    loaded, seed = context.loaded, context.settings.seed
    model = loaded.model
    fill = None if plan is None else _filler(plan, seed)
    x = rows["x"].long().to(model.device)
    label = rows["label"].long().to(model.device) if labels_known(model.network) and "label" in rows else None

    def compute() -> list[Row]:
        figures: dict[str, float | None] = {}
        for pattern in measure.patterns_of(model):
            for share in measure.shares:
                with loaded.computing():
                    found = infilling.measure(
                        model,
                        x,
                        torch.arange(len(x), device=x.device),
                        pattern,
                        share,
                        fill,
                        label,
                        ordered=one.data.ordered,
                        num_samples=measure.infill_states,
                        seed=seed,
                        batch_size=context.settings.batch_size,
                        bound=plan is None,
                    )
                figures |= _figures(found, of_bound=plan is None)
        return [Row(context.key(one, plan), figures, _about(measure, context, rows, plan))]

    return compute


def _figures(found: Infilling, of_bound: bool) -> dict[str, float | None]:
    where = f"{found.pattern}_{found.share:g}"
    if of_bound:
        figures: dict[str, float | None] = {f"infill_guess_{where}": found.guess}
        if found.nats is not None and found.nats_stderr is not None:
            figures[f"infill_bits_{where}"] = found.nats / _LN_2
            figures[f"infill_bits_{where}_stderr"] = found.nats_stderr / _LN_2
        return figures
    figures = {f"infill_accuracy_{where}": found.accuracy, f"infill_accuracy_{where}_stderr": found.accuracy_stderr}
    if found.distance is not None:
        figures[f"infill_distance_{where}"] = found.distance
        figures[f"infill_distance_{where}_stderr"] = found.distance_stderr
    return figures


def _about(measure: Infill, context: Context, rows: dict[str, Tensor], plan: Plan | None) -> dict[str, Any]:
    model = context.loaded.model
    about: dict[str, Any] = {"rows": len(rows["x"]), "seed": context.settings.seed}
    about["reference_hash"] = hash_of_ids(rows["x"])
    if plan is not None:
        about["what"] = "accuracy: share of the hidden sites that are right; distance: from the truth, in levels"
        options = {key: str(value) for key, value in plan.contender.options.items()}
        return about | {"sampler": plan.contender.called, "sampler_options": options}
    kind = "-log2 p(hidden | known)" if model.fills_beginnings_only else "upper bound on -log2 p(hidden | known)"
    about["what"] = f"bits: {kind} per hidden site; guess: accuracy of the most frequent class everywhere"
    reason = conditional.lacking(model)
    return about | {"states_per_row": measure.infill_states, "notes": [] if reason is None else [reason]}
