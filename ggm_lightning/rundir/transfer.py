"""Weights of one model put into another: what fits by name and shape, and the rows of a vocabulary by their tokens.

A new model starts from a trained one that may have another vocabulary, length, head, or belong to another family. Each
of its tensors is carried whole, carried in part, or new; each of the other model's is used or left out; and
rundir/transfer_list.py says all of it.

Which axes of a tensor are a vocabulary is not guessed from sizes, which may agree by chance: the model is outlined once
more with one class more, without memory, and the axes that grow by one are those.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from ggm_lightning.rundir import building
from ggm_lightning.rundir.checkpoint import describe

Axes = Mapping[str, Mapping[int, int | None]]  # tensor -> axis -> rows behind those of the classes; None: not by rows


@runtime_checkable
class AlsoNamed(Protocol):
    """A network whose parts stand under other names in networks of the same kind.

    Attributes:
        also_named: (pattern, replacement) of re.sub, from its own names of parameters to theirs.
    """

    also_named: Sequence[tuple[str, str]]


@runtime_checkable
class Grows(Protocol):
    """A module of which a larger one begins as a smaller one does, such as a table of learned positions.

    Attributes:
        begins_alike: names of its parameters whose first rows (columns) mean the same in every size.
    """

    begins_alike: Sequence[str]


@runtime_checkable
class BeginsAnew(Protocol):
    """A model part of whose state belongs to a run or its data, and not to what was learnt."""

    def of_the_run(self) -> Sequence[str]:
        """Names, or patterns with *, of its state that is never carried into another run."""


@dataclass(frozen=True)
class Vocabulary:
    """The classes of both models.

    Attributes:
        ours, theirs: how many there are.
        rows: Int64[ours], for each of our classes theirs, -1 for none; None where that is not known.
    """

    ours: int
    theirs: int
    rows: Tensor | None

    @property
    def same(self) -> bool:
        return self.rows is not None and self.ours == self.theirs and bool((self.rows == torch.arange(self.ours)).all())


@dataclass
class Transfer:
    """What becomes of every tensor. Names are those of the state dicts; texts say why.

    Attributes:
        weights: our tensors that are replaced.
        whole: our name -> theirs.
        rows: those of which the rows of common tokens are carried.
        beginnings: name -> both sizes, of those whose first rows are carried.
        new: name -> why it starts as initialised.
        left_out: names of theirs that are nobody's here.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)
    beginnings: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def vocabulary_axes(model: LightningModule, num_classes: int) -> Axes:
    """The axes of the model's tensors that have as many entries as there are classes, or some more."""
    ours = model.state_dict()
    larger = _outlined(model, num_classes)
    if larger is None or larger.keys() != ours.keys():
        return dict(_tables(model, num_classes))
    found: dict[str, dict[int, int | None]] = {}
    for name, value in ours.items():
        changed = [axis for axis, size in enumerate(larger[name].shape) if size != value.shape[axis]]
        for axis in changed:
            by_rows = len(changed) == 1 and larger[name].shape[axis] == value.shape[axis] + 1
            found.setdefault(name, {})[axis] = value.shape[axis] - num_classes if by_rows else None
    return found


def _outlined(model: LightningModule, num_classes: int) -> dict[str, Tensor] | None:
    """The state of this model with one class more, on the meta device; None where it cannot be built so."""
    section = describe(model)["model"]
    if section is None:
        return None
    try:
        larger = _with_classes(section, num_classes)
        return building.build(larger, LightningModule, building.foreign(larger), outline=True).state_dict()
    except Exception:  # a constructor of the user's own that knows one number of classes only
        return None


def _with_classes(section: Any, num_classes: int) -> Any:
    """The description, with one class more wherever it says how many there are."""
    if not isinstance(section, dict):
        return section
    found = {name: _with_classes(value, num_classes) for name, value in section.items()}
    if found.get("num_classes") == num_classes:
        found["num_classes"] = num_classes + 1
    return found


def _tables(model: nn.Module, num_classes: int) -> Iterator[tuple[str, dict[int, int | None]]]:
    """The same by the kind of the modules: tables of tokens, and a linear `head`."""
    for name, module in model.named_modules():
        sizes = (num_classes, num_classes + 1)
        if isinstance(module, nn.Embedding) and module.num_embeddings in sizes:
            yield f"{name}.weight", {0: module.num_embeddings - num_classes}
        if name.endswith("head") and isinstance(module, nn.Linear) and module.out_features == num_classes:
            for part, _ in module.named_parameters():
                yield f"{name}.{part}", {0: 0}


def planned(model: nn.Module, theirs: dict[str, Tensor], axes: Axes, vocabulary: Vocabulary | None) -> Transfer:
    """What `model` takes of the weights `theirs`; nothing is changed yet.

    Args:
        model: its state is what new tensors, and new rows, start from.
        theirs: a state dict.
        axes: of the vocabulary, see `vocabulary_axes`.
        vocabulary: None: the model has no classes that are tokens.
    """
    ours, result = model.state_dict(), Transfer()
    of_the_run = model.of_the_run() if isinstance(model, BeginsAnew) else ()
    sources = _sources(model, list(ours), theirs)
    growing = {f"{prefix}{name}" for prefix, module in _parts(model, Grows) for name in module.begins_alike}
    for name, value in ours.items():
        source = sources.get(name)
        if any(fnmatchcase(name, pattern) for pattern in of_the_run):
            result.new[name] = "of a run and its data, not of what was learnt"
        elif source is None:
            result.new[name] = ""
        else:
            _take(result, name, source, value, theirs[source], axes.get(name, {}), vocabulary, name in growing)
    used = {*result.whole.values(), *(sources[name] for name in (*result.rows, *result.beginnings))}
    # what does not fit the tensor of the same name is said there
    result.left_out = [name for name in theirs if name not in used and name not in result.new]
    return result


def _parts(model: nn.Module, kind: type) -> Iterator[tuple[str, Any]]:
    """(prefix of its names, module) of the modules of a kind."""
    for name, module in model.named_modules():
        if isinstance(module, kind):
            yield (f"{name}." if name else ""), module


def _sources(model: nn.Module, ours: Sequence[str], theirs: Mapping[str, Tensor]) -> dict[str, str]:
    """Our name -> theirs. The same name comes first; each of theirs is taken once."""
    found = {name: name for name in ours if name in theirs}
    free = set(theirs.keys() - found.keys())
    for prefix, module in _parts(model, AlsoNamed):
        own = [name for name in ours if name.startswith(prefix) and name not in found]
        for name in own:
            others = [prefix + other for other in _other_names(module, name.removeprefix(prefix))]
            taken = [other for other in others if other in free][:1]
            if taken:
                found[name] = taken[0]
                free.discard(taken[0])
    return found


def _other_names(module: AlsoNamed, name: str) -> Iterator[str]:
    """What its part of this name is called in networks of the same kind."""
    for pattern, replacement in module.also_named:
        if re.search(pattern, name):
            yield re.sub(pattern, replacement, name)


def _take(
    result: Transfer,
    name: str,
    source: str,
    ours: Tensor,
    theirs: Tensor,
    axes: Mapping[int, int | None],
    vocabulary: Vocabulary | None,
    grows: bool,
) -> None:
    """One tensor's fate."""
    sizes = f"{_sizes(theirs)} there, {_sizes(ours)} here"
    if ours.is_floating_point() != theirs.is_floating_point() or ours.dim() != theirs.dim():
        result.new[name] = sizes
    elif axes and vocabulary is not None and not vocabulary.same:
        _take_rows(result, name, ours, theirs, axes, vocabulary, sizes)
    elif ours.shape == theirs.shape:
        result.whole[name], result.weights[name] = source, theirs
    elif grows and sum(a != b for a, b in zip(ours.shape, theirs.shape, strict=True)) == 1:
        common = tuple(slice(min(a, b)) for a, b in zip(ours.shape, theirs.shape, strict=True))
        value = ours.clone()
        value[common] = theirs[common].to(value)
        result.beginnings[name], result.weights[name] = sizes, value
    else:
        result.new[name] = sizes


def _take_rows(
    result: Transfer,
    name: str,
    ours: Tensor,
    theirs: Tensor,
    axes: Mapping[int, int | None],
    vocabulary: Vocabulary,
    sizes: str,
) -> None:
    """The rows of tokens that both know, and those behind them (the mask's)."""
    ((axis, behind), *others) = axes.items()
    expected = list(ours.shape)
    if behind is not None:
        expected[axis] = vocabulary.theirs + behind
    if vocabulary.rows is None:
        result.new[name] = "of a vocabulary that is not known there"
    elif behind is None or others or list(theirs.shape) != expected:
        result.new[name] = f"of another vocabulary, {sizes}"
    else:
        rows = torch.cat([vocabulary.rows, torch.arange(behind) + vocabulary.theirs])
        known = rows >= 0
        value = ours.clone()
        carried = theirs.to(value).index_select(axis, rows[known])
        value.index_copy_(axis, known.nonzero()[:, 0], carried)
        if bool(known.any()):
            result.rows[name], result.weights[name] = sizes, value
        else:
            result.new[name] = "of another vocabulary, without a common token"


def _sizes(value: Tensor) -> str:
    return str(list(value.shape))
