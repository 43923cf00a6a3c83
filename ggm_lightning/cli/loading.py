"""The model of a checkpoint on the device that a command was given, and which checkpoint it is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ggm_lightning.cli import ranks
from ggm_lightning.models.base import Family
from ggm_lightning.rundir import checkpoint as checkpoint_files
from ggm_lightning.rundir import exported, restore

PRECISIONS = ("auto", "32", "bf16")


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that was read once.

    Attributes:
        model: with averaged weights, in eval mode, on the device.
        path: of the file, or of the folder of a model that was handed on (rundir/exported.py).
        results: below which folder its results go.
        step: optimiser steps, None where the file does not say.
        identity: tells this file's content from any other's.
        about: what the command line wrote into it: model, config, codec, versions.
        precision: of the network's products, "32" or "bf16"; draws and sums keep theirs.
        averaged: whether the weights are averages, as callbacks.ema keeps them; else those of the last step.
    """

    model: Family
    path: Path
    step: int | None
    identity: str
    about: dict[str, Any]
    precision: str = "32"
    averaged: bool = False
    results: Path = Path()

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration of the training, empty where there is none."""
        found = self.about.get("config")
        return found if isinstance(found, dict) else {}

    def computing(self) -> AbstractContextManager[Any]:
        """In which the network is called."""
        if self.precision == "32":
            return nullcontext()
        return torch.autocast(self.model.device.type, torch.bfloat16)

    @property
    def noted(self) -> dict[str, str]:
        """For the settings of results: what makes them others than those of full precision."""
        return {} if self.precision == "32" else {"precision": self.precision}


def load_family(ckpt_path: str, device: str = "auto", trust: Sequence[str] = (), precision: str = "auto") -> Loaded:
    """Reads a checkpoint and builds its model; device auto is cuda where there is one (of several ranks each takes its
    own), precision auto is there that of the training, and 32 elsewhere.

    Raises:
        ValueError: no such device or precision; see `rundir.restore.load`; not a model of data (a Family).
    """
    if precision not in PRECISIONS:
        raise ValueError(f"--precision {precision}: choose one of {', '.join(PRECISIONS)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        ranks.take_own_gpu()
    try:
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:  # torch's words for no such device, and for a build without it
        words = " ".join(str(error).split())
        if "Expected one of" in words:  # a list of twenty
            words = "torch knows no such device"
        raise ValueError(f"--device {device}: {words}; give auto, cpu or cuda") from None
    path = exported.local(ckpt_path)
    checkpoint = checkpoint_files.read(path, device)
    model = restore.restored(checkpoint, ckpt_path, device, trust)
    if not isinstance(model, Family):
        raise ValueError(
            f"--ckpt_path {ckpt_path}: holds a {type(model).__name__}, which can be neither sampled nor evaluated"
        )
    loaded = Loaded(
        model,
        path,
        checkpoint_files.step_of(checkpoint),
        checkpoint_files.identity(path),
        checkpoint_files.about(checkpoint),
        averaged=checkpoint_files.averaged(checkpoint),
        results=exported.results_folder(ckpt_path),
    )
    return replace(loaded, precision=_precision(loaded) if precision == "auto" else precision)


def _precision(loaded: Loaded) -> str:
    """What `auto` means."""
    trained_in = str(loaded.config.get("trainer", {}).get("precision", "32"))
    return "bf16" if loaded.model.device.type == "cuda" and trained_in.startswith("bf16") else "32"


def trusted_names(trust: str | None, experiment: dict[str, Any]) -> tuple[str, ...]:
    """What the user named in the same command: --trust, separated by commas, and the classes of the --config files."""
    from ggm_lightning.rundir.building import class_paths

    given = [name.strip() for name in (trust or "").split(",")]
    named = [path for path in class_paths(experiment) if isinstance(path, str)]
    return tuple(name for name in (*given, *named) if name)
