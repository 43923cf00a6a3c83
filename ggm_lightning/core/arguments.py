"""Values that callers give, and what to say of wrong ones: one line, what came and what was wanted."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor


def shown(value: Any) -> str:
    """A value as a message names it: short ones themselves, others by kind and size."""
    if isinstance(value, Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, Tensor) else "NumPy array"
        return f"a {kind} of {str(value.dtype).removeprefix('torch.')}, shape {tuple(value.shape)}"
    if isinstance(value, list | tuple | dict | set):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_whole(value: Any) -> bool:
    """Python's and NumPy's whole numbers; True and False are no numbers here."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """The value as an int. Raises ValueError for other kinds, and below `least`."""
    if not is_whole(value):
        wanted = "a whole number" if least is None else f"a whole number of at least {least}"
        raise ValueError(f"{name} is {shown(value)}; it must be {wanted}")
    if least is not None and value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}")
    return int(value)


def seed_number(value: Any, name: str = "seed") -> int:
    """A seed: any whole number of 64 bits, negative ones too."""
    seed = whole_number(name, value)
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"{name} is {seed}; it must fit into 64 bits")
    return seed
