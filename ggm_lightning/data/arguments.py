"""Constructor arguments compared with their annotations, so that Python callers hear what the command line's parser
tells those who write YAML: one line instead of a comparison of 'str' and 'int' somewhere below."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from numbers import Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from ggm_lightning.core.arguments import is_whole, shown

_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "True or False",
    list: "a list",
    NoneType: "None",
}


def checked_by_annotations(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that raises ValueError where a plain annotation (int, float, str, bool, a list, None, or several of
    these) does not fit. NumPy's numbers are numbers and paths are texts; other annotations are left to the class."""

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(init).bind_partial(self, *args, **kwargs).arguments
        kinds = _annotations(init)
        for name, value in given.items():
            if name in kinds and not any(_fits(value, kind) for kind in kinds[name]):
                wanted = " or ".join(_NAMES[kind] for kind in kinds[name])
                raise ValueError(f"data.{name} is {shown(value)}; it must be {wanted}")
        init(self, *args, **kwargs)

    return checked


def _annotations(init: Callable[..., None]) -> dict[str, list[type]]:
    """The kinds that each plainly annotated argument takes."""
    try:
        hints = get_type_hints(init)
    except (NameError, TypeError, AttributeError):  # of a user's class: names that exist for type checkers only
        return {}
    found = {}
    rest = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)  # whose annotation is that of each part
    names = [p.name for p in inspect.signature(init).parameters.values() if p.kind not in rest]
    for name, hint in ((name, hints[name]) for name in names if name in hints):
        members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kinds = [list if get_origin(member) is list else member for member in members]
        if all(kind in _NAMES for kind in kinds):
            found[name] = kinds
    return found


def _fits(value: Any, kind: type) -> bool:
    if kind is int:
        return is_whole(value)
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    accepted = {str: (str, os.PathLike), bool: (bool, np.bool_), list: (list, tuple), NoneType: (NoneType,)}
    return isinstance(value, accepted[kind])
