"""`--ckpt_path`: a checkpoint is compared with the command before a run goes on from it, and differences are said."""

from __future__ import annotations

import contextlib
import shlex
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from ggm_lightning.report.ending import timers
from ggm_lightning.rundir import checkpoint as checkpoint_files
from ggm_lightning.rundir import hub as hubs
from ggm_lightning.rundir import restore
from ggm_lightning.rundir.sections import differences, with_new_arguments

# settings of the optimiser may change when a run goes on; its state stays
_SETTINGS = ("model.optimizer", "model.exponent_lr")
_OF_TRAINING = ("model.optimizer", "model.exponent_lr", "model.seed", "model.label_dropout")  # of no concern elsewhere
# keys of the data that decide how, and not what, is read
_HOW = ("max_batch_per_device", "eval_batch_size", "num_workers", "processes", "folder", "global_batch_size")
_SHOWN = 3
_LATE = 60.0  # seconds that a shared file system may take to show what another node has written


@dataclass(frozen=True)
class Resumed:
    """What a checkpoint says of itself.

    Attributes:
        path: of the file.
        step: optimiser steps, None where it does not say.
        about: see checkpoint.about.
        model_section: see restore.model_section.
        seconds: of training, for each callback that has measured it.
        read: the whole of it, where it has been read: once, and by one rank.
    """

    path: Path
    step: int | None
    about: dict[str, Any]
    model_section: Any
    seconds: dict[str, float] = field(default_factory=dict)
    read: tuple[Path, dict[str, Any]] | None = None

    @property
    def started_from(self) -> dict[str, Any] | None:
        """The weights its run started from (rundir/start.py), None where it started from none."""
        found = self.about.get("started_from")
        return found if isinstance(found, dict) else None

    @property
    def config(self) -> dict[str, Any]:
        found = self.about.get("config")
        return found if isinstance(found, dict) else {}


def opened(path: str, whole: bool = True) -> Resumed:
    """Raises ValueError for what is no checkpoint (rundir/checkpoint.py). Not `whole`: its tensors are not read."""
    checkpoint = checkpoint_files.read(path) if whole else checkpoint_files.outline(path)
    return Resumed(
        Path(path),
        checkpoint_files.step_of(checkpoint),
        checkpoint_files.about(checkpoint),
        restore.model_section(checkpoint),
        _seconds(checkpoint),
        (Path(path), checkpoint) if whole else None,
    )


def agreed(resolved: Callable[[], str | None]) -> Resumed | None:
    """What all ranks go on from, None for a fresh start: rank 0 decides, since the others may see the folder later, or
    another one of that name.

    Args:
        resolved: finds the file, or raises.

    Raises:
        ValueError: this rank does not see the file of rank 0 within a minute.
    """
    hub = hubs.current()
    if hub is None:
        path = resolved()
        return None if path is None else opened(path)
    if hub.rank == 0:
        path = resolved()
        found = None if path is None else opened(path)
        told = None if found is None else [str(found.path), found.step, checkpoint_files.identity(found.path)]
        hub.tell("resume", told)
        return found
    told = hub.hear("resume")
    if told is None:
        return None
    _wait_for(told[0], told[1], told[2], hub.node)
    return opened(told[0], whole=False)


def _wait_for(path: str, step: int | None, identity: str, node: str) -> None:
    deadline = time.monotonic() + _LATE
    while True:
        with contextlib.suppress(OSError, zipfile.BadZipFile):
            if checkpoint_files.identity(path) == identity:
                return
        if time.monotonic() > deadline:
            seen = "another file" if Path(path).is_file() else "no such file"
            raise ValueError(
                f"rank 0 goes on from {path} of step {step}, and node {node} sees {seen} there after {_LATE:.0f} s; "
                "put --runs on a file system that all nodes share"
            )
        time.sleep(0.5)


def changed_model(resumed: Resumed, model: LightningModule, resuming: bool) -> list[str]:
    """The optimiser's settings that differ. A checkpoint of another family, vocabulary, shape or network is refused by
    key, before anything is loaded; evaluation may also differ in how the bound is estimated and how one trained."""
    theirs, ours = resumed.model_section, checkpoint_files.describe(model)["model"]
    if theirs is None or ours is None:
        return []
    found = differences(ours, with_new_arguments(theirs, ours))
    free = _SETTINGS if resuming else _OF_TRAINING
    wrong = [text for text in found if not text.startswith((*free, "model.eval_"))]
    if wrong:
        remedy = "make them agree"
        if resuming:
            remedy += ", or start a new run from its weights by --init_from"
        raise ValueError(f"--ckpt_path {resumed.path} is of another model: {_first(wrong)}; {remedy}")
    return [text for text in found if text.startswith(_SETTINGS)]


def changed_data(resumed: Resumed, config: dict[str, Any]) -> list[str]:
    """Keys of the data that say what is read, and say otherwise than the checkpoint's configuration."""
    ours, theirs = config.get("data"), resumed.config.get("data")
    if not isinstance(theirs, dict):
        return []
    found = differences(ours, with_new_arguments(theirs, ours), "data")
    return [text for text in found if not text.startswith(tuple(f"data.{key} " for key in _HOW))]


def refuse_other_freeze(resumed: Resumed, patterns: list[str]) -> None:
    """The optimiser's state is of the parameters that were trained."""
    theirs = resumed.config.get("freeze") or []
    if sorted(theirs) != sorted(patterns):
        said = " ".join(f"--freeze '{pattern}'" for pattern in theirs) or "no --freeze"
        raise ValueError(
            f"--ckpt_path {resumed.path}: its run has {said}, which cannot change when it goes on; give the same, or "
            "start a new run from its weights by --init_from"
        )


def what_is_restored(resumed: Resumed, folder: Path, settings: list[str], data: list[str]) -> list[str]:
    """Lines for whoever goes on with another run's checkpoint, with other data, or with other settings."""
    found = []
    if not is_own(resumed, folder):
        found.append(
            f"--ckpt_path {resumed.path} is of another run: its step count ({resumed.step}) and its optimiser are "
            f"restored; to start afresh from its weights, give --init_from {shlex.quote(str(resumed.path))} instead"
        )
    if data:
        found.append(f"the data is not that of the checkpoint ({_first(data)}): it goes on with this one")
    if settings:
        found.append(f"the optimiser goes on with other settings: {_first(settings)}")
    return found


def is_own(resumed: Resumed, folder: Path) -> bool:
    """Whether it is a checkpoint of this run's folder."""
    return resumed.path.resolve().parent == folder.resolve()


@dataclass(frozen=True)
class Finished:
    """A run in which nothing is left to be done.

    Attributes:
        state: at which step, and by which limit.
        remedy: how it goes on.
    """

    state: str
    remedy: str


def finished(resumed: Resumed, trainer: Trainer) -> Finished | None:
    """Whether all steps, or all the time, that are asked for are used up."""
    if resumed.step is None:
        return None
    step, most = resumed.step, trainer.max_steps
    if most != -1 and step > most:
        return Finished(
            f"at step {step:,} already, beyond trainer.max_steps, which is {most:,}",
            f"raise trainer.max_steps above {step}",
        )
    if step == most:
        return Finished(f"finished, at step {step:,} (trainer.max_steps is {most})", "raise trainer.max_steps")
    if trainer.min_epochs or step < (trainer.min_steps or 0):
        return None  # which come before any time limit
    for timer in timers(trainer):
        limit = timer.time_remaining()  # all of it: what the checkpoint says is not loaded yet
        if limit is not None and resumed.seconds.get(timer.state_key, 0.0) >= limit:
            return Finished(
                f"finished by its time limit, at step {step:,} (trainer.max_time is {as_max_time(limit)})",
                "raise trainer.max_time",
            )
    return None


def nothing_left(resumed: Resumed, end: Finished, folder: Path, changed: bool) -> str:
    """The line of a run in which nothing is left to be done.

    Raises:
        ValueError: the same, where the command asks for something else than the run did: another run's folder, other
            data, other settings.
    """
    remedy = f"to go on, {end.remedy}; to start a new run from its weights, give --init_from"
    if not is_own(resumed, folder):
        raise ValueError(
            f"--ckpt_path {resumed.path} restores the step count of another run, which is {end.state}: nothing "
            f"would be trained; {remedy} {shlex.quote(str(resumed.path))} instead of --ckpt_path"
        )
    remedy += f" {shlex.quote(str(folder))} and another --name"
    if changed:
        raise ValueError(
            f"{folder}: this run is {end.state}, and nothing would be trained with what is changed; {remedy}"
        )
    return f"{folder}: this run is {end.state}; {remedy}"


def time_of(trainer: Trainer) -> tuple[float, float]:
    """(seconds that the training may take, seconds that it has taken); (0, 0) where nothing limits them."""
    for timer in timers(trainer):
        left, used = timer.time_remaining(), timer.time_elapsed()
        if left is not None:
            return left + used, used
    return 0.0, 0.0


def as_max_time(seconds: float) -> str:
    """As trainer.max_time takes it: days, hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days:02}:{hours:02}:{minutes:02}:{seconds:02}"


def _seconds(checkpoint: dict[str, Any]) -> dict[str, float]:
    """Name of a callback that measures the time of the training, as Lightning's Timer does -> that time."""
    found = {}
    states = checkpoint.get("callbacks")
    for name, state in (states if isinstance(states, dict) else {}).items():
        elapsed = state.get("time_elapsed") if isinstance(state, dict) else None
        trained = elapsed.get("train") if isinstance(elapsed, dict) else None
        if isinstance(trained, int | float):
            found[str(name)] = float(trained)
    return found


def _first(found: list[str]) -> str:
    more = f" (and {len(found) - _SHOWN} more)" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more
