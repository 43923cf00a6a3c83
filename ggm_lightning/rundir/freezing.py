"""`fit --freeze PATTERN`: parameters that a run leaves as they are."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Takes the parameters whose names fit one of the patterns out of training; returns their names.

    They get no gradient, no weight decay, no optimiser state and no averages. To be called before the optimiser is made
    and before ranks are told which gradients to expect.

    Args:
        model: names are those of `model.named_parameters()`: network.blocks.0.attention.query.weight.
        patterns: with *, ? and [..]; a pattern that names a module stands for all parameters below it.

    Raises:
        ValueError: a pattern that fits no name, with names that it may have meant; nothing is left to be trained.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen = {name for pattern in patterns for name in _fitting(pattern, names)}
    if patterns and len(frozen) == len(names):
        raise ValueError(
            f"--freeze {' '.join(patterns)}: all {len(names)} parameters, so that nothing would be trained"
        )
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return [name for name in names if name in frozen]


def _fitting(pattern: str, names: Sequence[str]) -> list[str]:
    found = [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]
    if not found:
        raise ValueError(f"--freeze {pattern}: no parameter has such a name; {_near(pattern, names)}")
    return found


def _near(pattern: str, names: Sequence[str]) -> str:
    """Names of parameters and of modules that look like it, else where names begin."""
    modules = {".".join(name.split(".")[:count]) for name in names for count in range(1, name.count(".") + 2)}
    inside = sorted(name for name in modules if name.endswith(f".{pattern.strip('*.')}"))
    close = inside or difflib.get_close_matches(pattern.strip("*."), sorted(modules), n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close[:3])}?"
    first = sorted({".".join(name.split(".")[:2]) for name in names})
    return f"names begin with {', '.join(first[:6])}"
