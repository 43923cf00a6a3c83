"""What a measure of `lightning evaluate --measures [likelihood, text, ...]` is (cli/measures.py runs them).

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

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from ggm_lightning.cli import drawn, sweep_grid
from ggm_lightning.cli.bound_files import Settings
from ggm_lightning.cli.drawn import Drawn, Draws
from ggm_lightning.cli.evaluation_sets import EvaluationSet, rows_of
from ggm_lightning.cli.loading import Loaded
from ggm_lightning.core.arguments import whole_number
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


def options_of(measure: Measure) -> dict[str, Any]:
    return asdict(measure)  # type: ignore[call-overload]
