"""Sections of configurations, compared key by key."""

from __future__ import annotations

from typing import Any


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
