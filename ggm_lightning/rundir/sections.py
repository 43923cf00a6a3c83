"""Sections of configurations, compared key by key."""

from __future__ import annotations

import inspect
from typing import Any

from ggm_lightning.rundir.building import named


def with_new_arguments(theirs: Any, ours: Any) -> Any:
    """A section of a checkpoint, with the defaults of the arguments that its classes have got since it was written.

    They are looked up only where our section names the same class, so none is imported for the checkpoint's sake.
    """
    if not isinstance(theirs, dict) or not isinstance(ours, dict):
        return theirs
    found = {name: with_new_arguments(value, ours.get(name)) for name, value in theirs.items()}
    class_path, arguments = ours.get("class_path"), ours.get("init_args")
    if class_path is None or class_path != theirs.get("class_path") or not isinstance(arguments, dict):
        return found
    taken = inspect.signature(named(class_path)).parameters
    defaults = {name: taken[name].default for name in arguments if name in taken}
    known = {name: value for name, value in defaults.items() if value is not inspect.Parameter.empty}
    return {**found, "init_args": {**known, **(found.get("init_args") or {})}}


def differences(ours: Any, theirs: Any, key: str = "model") -> list[str]:
    """Dotted keys at which two config sections differ, each as 'key: ours, theirs'."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = []
        for name in sorted({*ours, *theirs}):
            child = key if name == "init_args" else f"{key}.{name}"
            found += differences(ours.get(name), theirs.get(name), child)
        return found
    if isinstance(ours, tuple | list) and isinstance(theirs, tuple | list) and list(ours) == list(theirs):
        return []
    return [] if ours == theirs else [f"{key} is {_cut(str(ours))}, there {_cut(str(theirs))}"]


def _cut(text: str) -> str:
    """Rates of one's own are thousands of numbers."""
    return text if len(text) <= 200 else f"{text[:197]}..."
