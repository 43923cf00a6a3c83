"""What sampling costs, as one of the measures of `lightning evaluate`: metrics/speed.py for each way of drawing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from ggm_lightning.cli.measure import Cell, Context, Measure, Plan
from ggm_lightning.core.arguments import whole_number
from ggm_lightning.metrics import speed
from ggm_lightning.report.evaluation_rows import Row
from ggm_lightning.sampling.request import Samples


@dataclass(frozen=True)
class Speed(Measure):
    """Seconds per sample and rows through the network per second, for each way of drawing: medians, with the device and
    the number of threads. What else the machine did meanwhile is in them.

    Args:
        repeats: runs behind a first one that is not counted.
        timed_samples: drawn at once in each run.
    """

    repeats: int = 5
    timed_samples: int = 8
    name: ClassVar[str] = "speed"

    @property
    def draws(self) -> bool:
        return True

    def check(self, context: Context) -> None:
        whole_number("--repeats", self.repeats, 1)
        whole_number("--timed_samples", self.timed_samples, 1)

    def cells(self, context: Context) -> list[Cell]:
        """No set has a part in it; the figures stand on the lines of the first."""
        device = context.loaded.model.device
        machine = {"device": speed.named(device), "threads": torch.get_num_threads()}
        found = []
        for plan in context.plans:
            depends = {"plan": context.depends_on(plan), **machine}
            found.append(Cell(plan.label, depends, self._work(context, plan), whose="first"))
        return found

    def _work(self, context: Context, plan: Plan) -> Callable[[], list[Row]]:
        one, draws = plan.contender, context.draws
        model = one.loaded.model
        labels = draws.labels(model, self.timed_samples)

        def draw() -> Samples:
            with one.loaded.computing():
                return model.sample(
                    self.timed_samples,
                    plan.steps_told,
                    label=labels,
                    sampler=one.sampler,
                    seed=draws.seed,
                    temperature=plan.temperature,
                    top_p=plan.top_p,
                    **one.options,
                )

        def compute() -> list[Row]:
            found = speed.measure(draw, model.device, self.repeats)
            figures: dict[str, float | None] = {
                "seconds_per_sample": found.seconds_per_sample,
                "samples_per_second": found.samples_per_second,
                "rows_per_second": found.rows_per_second,
                "rows_per_sample": found.rows_per_sample,
            }
            told = f"{found.device}, {found.threads} threads" if model.device.type == "cpu" else found.device
            runs = f"median of {found.repeats} runs of {found.samples} samples at once"
            spread = f"{found.fastest:.3g} to {found.slowest:.3g} s each"
            about = {
                "what": "seconds of the wall; rows: examples sent through the network",
                "device_name": found.device,
                "threads": found.threads,
                "fastest_run": found.fastest,
                "slowest_run": found.slowest,
                "notes": [f"{runs}, {spread}, {told}"],
            }
            return [Row(context.key(context.sets[0], plan), figures, about)]

        return compute
