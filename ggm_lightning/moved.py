"""Modules that have moved, under the names that configurations, checkpoints and scripts of before may still use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "ggm_lightning.callbacks.report": "ggm_lightning.report.callback",
    "ggm_lightning.data.demo": "ggm_lightning.data.toy.demo",
    "ggm_lightning.data.dictionary": "ggm_lightning.data.toy.dictionary",
    "ggm_lightning.data.digits": "ggm_lightning.data.toy.digits",
    "ggm_lightning.data.synthetic": "ggm_lightning.data.toy.synthetic",
    "ggm_lightning.data.vqgan": "ggm_lightning.vqgan.codes",
    "ggm_lightning.models.vqgan": "ggm_lightning.vqgan.training",
    "ggm_lightning.networks.vqgan": "ggm_lightning.vqgan.network",
}


_DEEPEST = 40  # levels of a section in which names are looked for; ours have four, a stranger's file any number


def current(section: Any, depth: int = 0) -> Any:
    """The same section, each class_path in it under today's name."""
    if depth > _DEEPEST:
        return section
    if isinstance(section, list):
        return [current(value, depth + 1) for value in section]
    if not isinstance(section, dict):
        return section
    renamed = {key: current(value, depth + 1) for key, value in section.items()}
    if "class_path" in section:
        renamed["class_path"] = _renamed(section["class_path"])
    return renamed


def _renamed(class_path: Any) -> Any:
    if not isinstance(class_path, str):
        return class_path
    module, _, name = class_path.rpartition(".")
    return f"{MOVED[module]}.{name}" if module in MOVED else class_path


class _Finder(MetaPathFinder, Loader):
    """`import` of an old name gives the module of today, the same object."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(MOVED[spec.name])
        self._own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own_spec  # the import system has just replaced it


def install() -> None:
    """Once, when the package is imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
