"""The bound of `lightning evaluate` as one of its measures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ggm_lightning.cli.bound_files import BoundFile
from ggm_lightning.cli.evaluate import bound_of, default_folder, files_of_sets
from ggm_lightning.cli.evaluation_sets import EvaluationSet
from ggm_lightning.cli.measure import Cell, Context, Measure
from ggm_lightning.cli.measure_files import WHOLE
from ggm_lightning.report.evaluation_rows import Row


@dataclass(frozen=True)
class Likelihood(Measure):
    """Upper bound on -log p of each set (-log p itself of families that know it), with the error of rows and of masks.

    Its figures lie where `lightning evaluate` alone puts them, evaluation-<settings>/ or --out, and are taken from
    there."""

    name: ClassVar[str] = "likelihood"

    def check(self, context: Context) -> None:
        if context.out is not None and any(f"{one.name}.json" == WHOLE for one in context.sets):
            raise ValueError(f"--out {context.out}: a set is called as the file of all figures, {WHOLE}; rename it")

    def cells(self, context: Context) -> list[Cell]:
        folder = context.out or default_folder(context.loaded, context.settings)
        files = files_of_sets(context.loaded, context.sets, context.settings, folder)

        def cell(one: EvaluationSet, file: BoundFile) -> Cell:
            return Cell(one.name, {}, lambda: _rows(context, one, file), kept=False, whose="all")

        return [cell(one, file) for one, file in zip(context.sets, files, strict=True)]


def _rows(context: Context, one: EvaluationSet, file: BoundFile) -> list[Row]:
    bound = bound_of(context.loaded, one, context.settings, file, context.again)
    if bound is None:  # rank 0 has it
        return []
    kind = "-log p" if context.loaded.model.exact else "upper bound on -log p"
    about = {
        "what": f"{kind}: nelbo in nats per example, bpd in bits per token or dimension",
        "protocol": file.what["protocol"] or "blocks of the data",
        "estimator": file.what["estimator"],
        "seed": file.what["set_seed"],
        "states_per_row": file.what["num_samples"],
        "split": one.split,
        "rows": len(bound.nats),
        "of_rows": bound.of_rows,
        "sites_per_row": bound.num_sites,
        "seconds": round(bound.seconds, 3),
        "reference_hash": file.what["measured_rows_hash"],
        "notes": ["upper bounds on -log p, no figure is -log p itself"] if not context.loaded.model.exact else [],
        "departures": list(bound.departures),
        **file.how(),
    }
    return [Row(context.key(one), bound.figures(), about)]
