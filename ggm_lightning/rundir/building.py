"""Objects from a description that somebody else wrote: which classes may be built, and building them, and no more.

A checkpoint says of which classes its model is made: {"class_path": "package.module.Class", "init_args": {...}}, nested
as deep as the model is. A general instantiator would import whatever is named there, and call it if it is a function.
Here three rules hold, in this order:

1. Every class_path, however deep, is compared with the trusted names before anything is imported: this package, and
   what the user named (`--trust mypackage`, the classes of a --config file, `load(path, trust=(...))`).
2. What is found under the name must be a class of a trusted package, and of the kind that the argument asks for.
3. All else is plain data: numbers, texts, lists and mappings of the annotated type. A text is never the name of
   something, a function is never found, and nothing is parsed.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

OWN = "ggm_lightning"
Spec = dict[str, Any]  # class_path and init_args
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_DEEPEST = 40  # levels of a description; ours have four
_PLAIN = (bool, int, float, str)


class Refused(ValueError):
    """The description names what may not be built here, or does not fit the class that it names."""


def class_paths(section: Any, depth: int = 0) -> Iterator[Any]:
    """Whatever stands under a key `class_path`, at any depth."""
    if depth > _DEEPEST:
        raise Refused(f"the description is nested more than {_DEEPEST} levels deep")
    if isinstance(section, Mapping):
        if "class_path" in section:
            yield section["class_path"]
        for value in section.values():
            yield from class_paths(value, depth + 1)
    elif isinstance(section, list | tuple):
        for value in section:
            yield from class_paths(value, depth + 1)


def trusted(class_path: str, trust: Sequence[str]) -> bool:
    """Whether the name lies in this package, is one of the trusted names, or lies below one."""
    return any(class_path == name or class_path.startswith(f"{name}.") for name in (OWN, *trust))


def foreign(section: Any) -> list[str]:
    """The classes of other packages that a description names, each once."""
    return sorted({path for path in class_paths(section) if isinstance(path, str) and not trusted(path, ())})


def trust_option(section: Any) -> str:
    """What a command needs, behind its checkpoint, to build the foreign classes that a description names: " --trust
    mine,theirs"; "" where there are none."""
    modules = sorted({path.rpartition(".")[0] for path in foreign(section)})
    return f" --trust {','.join(modules)}" if modules else ""


def check_names(section: Any, trust: Sequence[str] = ()) -> None:
    """Rule 1, for a whole description. Raises Refused, which names the class and says how to allow it."""
    for path in class_paths(section):
        if not isinstance(path, str) or not _NAME.fullmatch(path):
            raise Refused(f"class_path is {_shown(path)}, which is no name of a class")
        if not trusted(path, trust):
            package = path.rpartition(".")[0]
            raise Refused(
                f"it names the class {path}, which is not of this package; where you know that code, allow it: "
                f"--trust {package} on the command line, load(path, trust=({package!r},)) in Python"
            )


def build(
    section: Any,
    kind: type,
    trust: Sequence[str] = (),
    first_format: bool = False,
    outline: bool = False,
    **given: Any,
) -> Any:
    """The object that `section` describes, an instance of `kind`.

    Args:
        section: class_path and init_args.
        kind: the class must be this one or a subclass.
        trust: names of packages, modules or classes that may be built besides this package's.
        first_format: the description is of a checkpoint of format 1. What it leaves open then means what the class
            says in `defaults_before`, a mapping of argument names to values, and not today's default.
        outline: the modules inside are made on the meta device, where they have sizes and take no memory.
        given: arguments that are added where the constructor takes them, as the command line links them.

    Raises:
        Refused: by one of the three rules.
    """
    check_names(section, trust)
    return _Builder(trust, first_format, outline).object_of(section, kind, "", given)


def completed(section: Any, kind: type) -> Any:
    """A description of a checkpoint of format 1 in today's terms: what it leaves open and what had another default then
    is filled in (`defaults_before`). One that names no class of this package is given back as it is."""
    try:
        check_names(section)
        cls = _Builder((), True, False).class_of(section.get("class_path"), kind, "")
    except (Refused, AttributeError):
        return section
    before = getattr(cls, "defaults_before", {})
    return {**section, "init_args": {**before, **_mapping(section, "init_args", "")}} if before else section


@dataclasses.dataclass(frozen=True)
class _Builder:
    trust: Sequence[str]
    first_format: bool
    outline: bool

    def object_of(self, section: Any, kind: type, where: str, given: Mapping[str, Any]) -> Any:
        if not isinstance(section, Mapping) or not section.keys() <= {"class_path", "init_args", "dict_kwargs"}:
            raise Refused(f"{where or 'the description'} is {_shown(section)}; it must be class_path and init_args")
        cls = self.class_of(section.get("class_path"), kind, where)
        described = {**_mapping(section, "init_args", where), **_mapping(section, "dict_kwargs", where)}
        known = parameters_of(cls)
        if self.first_format:
            described = {**getattr(cls, "defaults_before", {}), **described}
        described |= {name: value for name, value in given.items() if name in known}
        with self._without_memory(cls) if self.outline and where else nullcontext():
            return cls(**self.arguments(described, known, where or cls.__name__))

    @staticmethod
    def _without_memory(cls: type) -> AbstractContextManager[Any]:
        import torch  # here: processes that encode text (data/encoding.py) build a codec, and start sooner without it

        return torch.device("meta") if issubclass(cls, torch.nn.Module) else nullcontext()

    def class_of(self, path: Any, kind: type, where: str) -> type:
        if not isinstance(path, str):
            raise Refused(f"{where or 'the description'} names no class")
        try:
            found = named(path)
        except (ImportError, AttributeError) as error:
            raise Refused(f"there is no class {path} here ({error})") from None
        if not inspect.isclass(found):
            raise Refused(f"{path} is no class (a {type(found).__name__}), and only classes are built")
        home = f"{found.__module__}.{found.__qualname__}"
        if not trusted(home, self.trust):
            raise Refused(f"{path} is {home}, a class of another package that was only imported there")
        if not issubclass(found, kind):
            raise Refused(f"{path} is no {kind.__name__}, which {where or 'a checkpoint'} must be")
        return found

    def arguments(self, described: Mapping[str, Any], known: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The arguments with nested descriptions built, each checked against its annotation."""
        unknown = sorted(described.keys() - known.keys())
        if unknown:
            raise Refused(f"{where} takes no argument {unknown[0]!r}; it takes {', '.join(known)}")
        return {name: self.value(value, known[name], f"{where}.{name}") for name, value in described.items()}

    def value(self, value: Any, hint: Any, where: str) -> Any:
        """One argument as its annotation wants it."""
        found = self._try(value, hint, where)
        if found is _NO:
            raise Refused(f"{where} is {_shown(value)}; it must be {_name_of(hint)}")
        return found

    def _try(self, value: Any, hint: Any, where: str) -> Any:
        """The value, or _NO where it is not of that type."""
        if hint is Any or hint is inspect.Parameter.empty:
            return _plain(value, where)
        origin, options = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            found = (self._try(value, option, where) for option in options)
            return next((one for one in found if one is not _NO), _NO)
        if origin is typing.Annotated:
            return self._try(value, options[0], where)
        if origin is typing.Literal:
            return value if value in options else _NO
        if origin in (list, tuple, Sequence, Mapping, dict):
            return self._collection(value, origin, options, where)
        if origin is not None or not inspect.isclass(hint):
            return _NO  # functions, and types that no text file can describe
        return self._instance(value, hint, where)

    def _collection(self, value: Any, origin: Any, options: tuple[Any, ...], where: str) -> Any:
        if origin in (dict, Mapping):
            if not isinstance(value, Mapping):
                return _NO
            return {self.value(k, options[0], where): self.value(v, options[1], where) for k, v in value.items()}
        if not isinstance(value, list | tuple):
            return _NO
        wanted = [options[0]] * len(value)
        if origin is tuple and options[-1:] != (...,):
            wanted = list(options)
        if len(value) != len(wanted):
            return _NO
        parts = [self._try(one, option, where) for one, option in zip(value, wanted, strict=True)]
        if _NO in parts:
            return _NO
        return tuple(parts) if origin is tuple else parts

    def _instance(self, value: Any, kind: type, where: str) -> Any:
        if kind is type(None):
            return None if value is None else _NO
        if kind is float and type(value) is int:
            return float(value)
        if kind in (*_PLAIN, list, dict, tuple):
            return value if type(value) is kind and _plain(value, where) is not _NO else _NO
        if kind is Path:
            return Path(value) if isinstance(value, str) else _NO
        if issubclass(kind, enum.Enum):
            return kind[value] if isinstance(value, str) and value in kind.__members__ else _NO
        if not isinstance(value, Mapping):
            return _NO
        if dataclasses.is_dataclass(kind) and "class_path" not in value:
            return kind(**self.arguments(value, parameters_of(kind), where))
        return self.object_of(value, kind, where, {})


def named(class_path: str) -> Any:
    """What stands under that name; to be called for names that are trusted, since it imports. Raises ImportError,
    AttributeError."""
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


_NO = object()  # not of that type


def _plain(value: Any, where: str) -> Any:
    """Data as it is, where the annotation leaves open what it is; a class is not built there."""
    for _ in class_paths(value):
        raise Refused(f"{where} names a class, but its annotation asks for none")
    return value


def _mapping(section: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    found = section.get(key) or {}
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise Refused(f"{where or 'the description'}: {key} is {_shown(found)}; it must map names to values")
    return dict(found)


def parameters_of(thing: Callable[..., Any]) -> dict[str, Any]:
    """The annotation of each parameter; where a class passes **kwargs on, those of its bases too, but for those that it
    settles itself and names in its attribute `settles`."""
    found: dict[str, Any] = {}
    for kind in getattr(thing, "__mro__", (thing,)):
        if inspect.isclass(kind) and "__init__" not in vars(kind):
            continue
        parameters = inspect.signature(kind).parameters.values()
        named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        found |= {p.name: _hint(p, kind) for p in named if p.name not in found}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return {name: hint for name, hint in found.items() if name not in getattr(thing, "settles", ())}


def _hint(parameter: inspect.Parameter, kind: Any) -> Any:
    """The annotation, evaluated where the constructor stands; one that cannot be is left open."""
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    alone = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        return typing.get_type_hints(alone, vars(importlib.import_module(kind.__module__)))[parameter.name]
    except (NameError, TypeError, SyntaxError, AttributeError):
        return Any


def _name_of(hint: Any) -> str:
    return hint.__name__ if inspect.isclass(hint) else str(hint).replace("typing.", "")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
