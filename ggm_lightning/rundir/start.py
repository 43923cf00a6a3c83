"""`fit --init_from X`: a new run that starts from the weights of another one. What is new is everything else: the
optimiser, its schedule, the step, the data's order, the averages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.matching import same_tokens
from ggm_lightning.rundir import checkpoint as checkpoint_files
from ggm_lightning.rundir import codecs, exported, transfer_list
from ggm_lightning.rundir.building import Refused
from ggm_lightning.rundir.checkpoint import OfData
from ggm_lightning.rundir.transfer import Transfer, Vocabulary, planned, vocabulary_axes


@dataclass(frozen=True)
class Weights:
    """Weights to start from, and where they come from.

    Attributes:
        given: X, as the user wrote it.
        path: of the file.
        values: a state dict; the averaged weights where there are any.
        averaged: whether they are.
        about: what the file says of its model (rundir/checkpoint.py).
        step: optimiser steps, None where the file does not say.
        identity: tells this file's content from any other's.
    """

    given: str
    path: Path
    values: dict[str, Tensor]
    averaged: bool
    about: dict[str, Any]
    step: int | None
    identity: str

    @property
    def origin(self) -> dict[str, Any]:
        """Plain JSON, which the new run's checkpoints keep."""
        return {"given": self.given, "file": str(self.path), "step": self.step, "identity": self.identity}


def weights_of(given: str) -> Weights:
    """What X means: a checkpoint file, the folder of a run (its last.ckpt), or a model that was handed on.

    Raises:
        FileNotFoundError: there is no such file, or no last.ckpt in the folder.
        ValueError: see `checkpoint.read`.
    """
    path = checkpoint_path(given, "--init_from")
    checkpoint = checkpoint_files.read(path)
    return Weights(
        given,
        path,
        checkpoint["state_dict"],
        checkpoint_files.averaged(checkpoint),
        checkpoint_files.about(checkpoint),
        checkpoint_files.step_of(checkpoint),
        checkpoint_files.identity(path),
    )


def checkpoint_path(given: str, option: str) -> Path:
    """What a path names: a checkpoint file, last.ckpt of a run's folder, or the folder of a model that was handed on
    (rundir/exported.py). FileNotFoundError where there is none."""
    path = exported.local(given)
    if path.is_dir() and exported.is_exported(path):
        return path
    if path.is_dir():
        path = path / "last.ckpt"
    if not path.is_file():
        there = sorted(file.name for file in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
        found = f"; the folder has {', '.join(there[:4])}" if there else ""
        raise FileNotFoundError(f"{option} {given}: there is no {path}{found}; give a checkpoint or a run's folder")
    return path


def begin(model: LightningModule, weights: Weights, codec: Codec | None, trust: Sequence[str] = ()) -> list[str]:
    """Puts what fits of the weights into the model; the lines that say what became of every tensor.

    Args:
        model: as it was built for the new run; `started_from` of it is set.
        weights: of `weights_of`.
        codec: of the new run's data.
        trust: classes of the user's own that may be built, should the codec of the weights be one.

    Raises:
        ValueError: nothing of the weights fits.
    """
    vocabulary, tokens, note = None, "", ""
    if isinstance(model, OfData):
        vocabulary, tokens, note = _vocabulary(model.num_classes, weights, codec, trust)
    axes = {} if vocabulary is None or vocabulary.same else vocabulary_axes(model, vocabulary.ours)
    ours = model.state_dict()
    plan = planned(model, weights.values, axes, vocabulary)
    if not plan.weights:
        raise ValueError(
            f"--init_from {weights.given}: nothing of it fits: {_example(plan, weights)}; take a network of the same "
            "kind and width"
        )
    said = [_headline(weights), *transfer_list.lines(plan, ours, weights.values, tokens)]
    if note:
        said.append(f"  note       {note}")
    model.load_state_dict({**ours, **plan.weights}, strict=model.strict_loading)
    model.started_from = weights.origin  # type: ignore[assignment]
    return said


def _example(plan: Transfer, weights: Weights) -> str:
    """Why: by the first tensor that stands under one name in both and has another size, else by both sides' names."""
    for name, reason in plan.new.items():
        if name in weights.values and reason:
            return f"{name} is {reason}"
    return f"it holds {next(iter(weights.values), 'no tensor')}, this model {next(iter(plan.new), 'none')}"


def _headline(weights: Weights) -> str:
    family = (weights.about.get("model") or {}).get("class_path", "weights")
    name = str(family).rpartition(".")[2]
    step = "an unknown step" if weights.step is None else f"step {weights.step:,}"
    kind = "averaged" if weights.averaged else "raw (there are no averages in it)"
    return f"starts from {weights.path}: {name} at {step}, {kind}, identity {weights.identity}"


def _vocabulary(
    num_classes: int, weights: Weights, codec: Codec | None, trust: Sequence[str]
) -> tuple[Vocabulary, str, str]:
    """(both vocabularies, what is said of their tokens, what else is to be known)."""
    described = weights.about.get("codec")
    sizes = (weights.about.get("model") or {}).get("init_args") or {}
    theirs = sizes.get("num_classes", num_classes)
    theirs = theirs if isinstance(theirs, int) else num_classes
    other, reason = None, "the file does not say which tokens it knows"
    if described is not None:
        try:
            other, reason = codecs.codec_from_dict(described, trust), ""
        except (Refused, LookupError, TypeError, ValueError) as error:
            reason = f"its codec cannot be made ({' '.join(str(error).split())})"
    rows = None
    if codec is not None and other is not None and other.num_classes == theirs:
        matched = same_tokens(codec, other)
        rows = None if matched is None else torch.from_numpy(matched)
        reason = f"{type(other).__name__} and {type(codec).__name__} share no tokens that are known by name"
    if rows is not None:
        vocabulary = Vocabulary(num_classes, theirs, rows)
        return vocabulary, transfer_list.about_tokens(vocabulary, codec, other), ""
    if other is None and theirs == num_classes:
        same = Vocabulary(num_classes, theirs, torch.arange(num_classes))
        return same, "", f"{reason}; its {theirs} rows are taken for the same {num_classes} tokens, in their order"
    return Vocabulary(num_classes, theirs, None), "", f"{reason}; rows of tokens start as initialised"
