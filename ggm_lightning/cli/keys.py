"""Which key was meant by one that does not exist: `--lr 0.1` meant `--model.optimizer.lr`."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

_LINKED = ("seed", "num_classes", "num_labels", "shape")  # taken from elsewhere, never given
_MOST = 2  # of several that fit, so many are named
_SHORTEST = 4  # letters of a word that is looked for inside other words


def meant(name: str, experiment: dict[str, Any], top: Sequence[str]) -> list[str]:
    """Full keys, such as model.optimizer.lr, that an unknown one may stand for; those of its own section first.

    Args:
        name: the unknown key, as far as it is known where it stood.
        experiment: merged --config files; their classes say what there is below model and data.
        top: keys that may stand at the top.
    """
    name = name.replace(".init_args", "")
    known = list(_known(experiment, top))
    section, _, below = name.partition(".")
    own_section = [key for key in known if key.startswith(f"{section}.")]
    # below data or model a word is meant as it stands: data.train is no part of limit_train_batches
    others = [key for key in known if _last(key) == _last(name)] if below and own_section else known
    for keys in (own_section, others):
        found = _alike(_last(name), keys)
        if found:
            return found[:_MOST]
    return []


def _alike(word: str, keys: list[str]) -> list[str]:
    """Keys that end in the word, else in one that contains it (batchsize, global_batch_size), else in a close one."""
    same = [key for key in keys if _last(key) == word]
    if same:
        return same
    plain = word.replace("_", "")
    if len(plain) >= _SHORTEST:
        containing = [key for key in keys if plain in _last(key).replace("_", "")]
        if containing:
            return containing
    close = difflib.get_close_matches(word, [_last(key) for key in keys], n=1, cutoff=0.75)
    return [key for key in keys if close and _last(key) == close[0]]


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _known(experiment: dict[str, Any], top: Sequence[str]) -> Iterator[str]:
    """Every key that can be given on the command line."""
    sections = ("trainer", "data", "model")
    yield from (key for key in top if key not in (*sections, "include", "config"))
    if "trainer" in top:
        from lightning.pytorch import Trainer

        yield from (f"trainer.{name}" for name in _arguments(Trainer))
    for section in sections[1:]:
        if section in top:
            yield from _below(section, experiment.get(section))


def _below(key: str, section: Any) -> Iterator[str]:
    """What a description with class_path and init_args takes, its nested classes and dataclasses too."""
    if not isinstance(section, dict) or "." not in str(section.get("class_path")):
        return
    module, _, name = section["class_path"].rpartition(".")
    given = section.get("init_args") or {}
    for argument, hint in _arguments(getattr(importlib.import_module(module), name)).items():
        yield f"{key}.{argument}"
        if inspect.isclass(hint) and dataclasses.is_dataclass(hint):
            yield from (f"{key}.{argument}.{field.name}" for field in dataclasses.fields(hint))
        else:
            yield from _below(f"{key}.{argument}", given.get(argument))


def _arguments(kind: Any) -> dict[str, Any]:
    from ggm_lightning.rundir.building import parameters_of  # needs torch, which most commands never wait for

    return {name: hint for name, hint in parameters_of(kind).items() if name not in _LINKED and name != "self"}
