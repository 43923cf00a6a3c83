"""What a sweep compares: checkpoints with samplers, and cells of steps and temperatures; how long they will take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggm_lightning.cli import drawing
from ggm_lightning.cli.loading import Loaded
from ggm_lightning.models.base import Family
from ggm_lightning.sampling import naming
from ggm_lightning.sampling.sampler import Sampler

Texts = Mapping[str, str]
_OF_ALL = ("top_k", "nucleus", "guidance")  # options that every sampler has
_AXES = ("temperature", "top_p")


@dataclass(frozen=True)
class Contender:
    """A checkpoint with a sampler.

    Attributes:
        name: for tables and plots: that of the checkpoint, where there are several, and the sampler as it was written.
        loaded: the checkpoint.
        checkpoint: its short name.
        sampler: its name or path, as `Family.sample` takes it; None is the family's first.
        options: of the sampler and of the denoiser.
        called: the sampler's own name.
        takes_num_steps: whether the number of steps matters to it.
    """

    name: str
    loaded: Loaded
    checkpoint: str
    sampler: str | None
    options: dict[str, Any]
    called: str
    takes_num_steps: bool


@dataclass(frozen=True)
class Cell:
    """One setting. num_steps is None where the sampler does not ask for it."""

    contender: Contender
    num_steps: int | None
    temperature: float
    top_p: float

    @property
    def steps_told(self) -> int:
        """What a sampler is told, which has to be told something."""
        return 1 if self.num_steps is None else self.num_steps

    @property
    def label(self) -> str:
        words = [self.contender.name]
        words += [] if self.num_steps is None else [f"{self.num_steps} steps"]
        words += [f"temperature {self.temperature:g}"]
        words += [] if self.top_p == 1 else [f"top_p {self.top_p:g}"]
        return ", ".join(words)


def contenders(checkpoints: Mapping[str, Loaded], samplers: Sequence[str], shared: Texts) -> list[Contender]:
    """Every checkpoint with every sampler that its family has.

    Args:
        checkpoints: by their short names.
        samplers: NAME or NAME:option=value,option=value; without any each family's first.
        shared: options given by --sampler.NAME; each goes to the samplers that take it.

    Raises ValueError for a sampler that no family has, a checkpoint without one, and an option that nothing takes.
    """
    asked = [_parsed(word) for word in samplers] or [("", None, {})]
    found = []
    used: set[str] = set()
    for short, loaded in checkpoints.items():
        own = [one for one in asked if _has(loaded.model, one[1])]
        if not own:
            naming.maker(loaded.model, asked[0][1])  # which says what the family has
        for word, sampler, given in own:
            taken = {name: text for name, text in shared.items() if _takes(loaded.model, sampler, name)}
            used |= taken.keys()
            prefix = short if len(checkpoints) > 1 else ""
            found.append(_contender(prefix, word, loaded, short, sampler, {**taken, **given}))
    for word, sampler, _ in asked:
        if not any(one.sampler == sampler for one in found):
            naming.maker(next(iter(checkpoints.values())).model, sampler)
            raise ValueError(f"--sampler {word}: no checkpoint of this sweep has it; leave it out")
    if unused := sorted(shared.keys() - used):
        raise ValueError(f"--sampler.{unused[0]}: no sampler of this sweep has that option; leave it out")
    return found


def _contender(
    prefix: str, word: str, loaded: Loaded, short: str, sampler: str | None, texts: dict[str, str]
) -> Contender:
    for axis in _AXES:
        if axis in texts:
            raise ValueError(f"--sampler {word}: {axis} is an axis of the sweep; give --{axis} {texts[axis]}")
    options = drawing.typed(loaded.model, sampler, texts)
    made = checked_sampler(loaded.model, sampler, options)
    name = " ".join(part for part in (prefix, word or made.name) if part)
    return Contender(name, loaded, short, sampler, options, made.name, made.takes_num_steps)


def checked_sampler(model: Family, sampler: str | None, options: Mapping[str, Any]) -> Sampler:
    """The sampler as `Family.sample` will make it. Raises ValueError for options that it does not have."""
    left = dict(options)
    naming.sharpening(left)
    left.pop("guidance", None)
    return naming.chosen(model, sampler, left)[0]


def _parsed(word: str) -> tuple[str, str | None, dict[str, str]]:
    """(as it was written, the name, its own options)."""
    name, _, rest = word.partition(":")
    pairs = [pair.partition("=") for pair in rest.split(",")] if rest else []
    wrong = [key for key, equals, value in pairs if not (key and equals and value)]
    if wrong or not name:
        raise ValueError(f"--sampler {word}: write NAME, or NAME:option=value,option=value")
    return word, name, {key: value for key, _, value in pairs}


def _has(model: Family, sampler: str | None) -> bool:
    return sampler is None or sampler in model.samplers or "." in sampler


def _takes(model: Family, sampler: str | None, option: str) -> bool:
    make = naming.maker(model, sampler)
    of_denoiser = option in model.denoiser_options and naming.class_of(make).asks_denoiser
    return option in naming.parameters(make) or of_denoiser or option in _OF_ALL


def short_names(paths: Sequence[str]) -> list[str]:
    """Of checkpoints: the run's folder, with the file where it is not last.ckpt; of a model that was handed on its own
    folder; the whole path where two are alike."""
    short = []
    for path in map(Path, paths):
        if path.is_dir():
            short.append(path.resolve().name)
            continue
        run = path.resolve().parent.name
        short.append(run if path.name == "last.ckpt" else f"{run}/{path.stem}")
    return [path if short.count(name) > 1 else name for path, name in zip(paths, short, strict=True)]


def cells(
    found: Sequence[Contender], num_steps: Sequence[int], temperatures: Sequence[float], nuclei: Sequence[float]
) -> list[Cell]:
    """Few steps first. What does not ask for steps has one cell for each temperature and nucleus, at the beginning."""
    return [
        Cell(one, steps, temperature, top_p)
        for steps in [None, *sorted(num_steps)]
        for one in found
        for temperature in temperatures
        for top_p in nuclei
        if one.takes_num_steps == (steps is not None)
    ]


def seconds_left(done: Sequence[tuple[Cell, float]], waiting: Sequence[Cell]) -> float | None:
    """What the waiting cells will take if seconds grow with the steps: an upper guess for samplers whose calls end when
    all is revealed. None before the first one is done."""
    if not done:
        return None
    return sum(_expected(cell, done) for cell in waiting)


def _expected(cell: Cell, done: Sequence[tuple[Cell, float]]) -> float:
    alike = [(other, seconds) for other, seconds in done if other.contender is cell.contender] or done
    other, seconds = min(alike, key=lambda one: abs(math.log(one[0].steps_told / cell.steps_told)))
    if cell.num_steps is None or other.num_steps is None:
        return seconds
    return seconds * cell.num_steps / other.num_steps
