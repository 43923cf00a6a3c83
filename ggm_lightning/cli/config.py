"""Experiment files: composition before parsing, comparison of model sections, and errors in one line.

An experiment begins with `include: [../configs/trainer/cpu.yaml, ...]`: fragments of the same tree, merged in order,
the file itself last, later --config files after it. An included file lies relative to the one that includes it, else it
is the package's (packaged.py), so that `include: [experiments/md4_demo.yaml]` is understood anywhere.

Mappings merge key by key, `name+` appends to the list `name`, anything else replaces. We merge ourselves: a class that
is chosen later (class_path) then drops the old class's init_args, and a fragment may speak of model.init_args before
any file names the class, which repeated --config arguments cannot do.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from ggm_lightning import moved
from ggm_lightning.cli import keys, packaged
from ggm_lightning.rundir.building import named, parameters_of


class _Loader(yaml.SafeLoader):
    """Keys are text and stand once: YAML would silently keep the last of two, and read `on:` as true."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            text = key.tag in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
            if not text or key.value in seen:
                problem = f"the key '{key.value}' {'appears twice' if text else 'is no text: put it in quotes'}"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return node


def load_file(path: str, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A YAML file with its includes expanded.

    Args:
        path: of the file, or a name that `packaged.find` knows.
        above: the files whose includes led here, to notice a circle.
    """
    try:
        file = packaged.find(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--config {path}: {error}") from None
    if file.resolve() in above:
        circle = " -> ".join(part.name for part in (*above, file))
        raise ValueError(f"--config {path}: it includes itself ({circle}); take one of the includes out")
    try:
        content = _nested(_parsed(file, path), path)
    except RecursionError:
        raise ValueError(f"--config {path}: nested too deeply, or an alias (*name) stands inside itself") from None
    parts = content.pop("include", [])
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"--config {path}: include is {_short(parts)}; it must be a list of paths, [base.yaml]")
    merged: dict[str, Any] = {}
    for part in parts:
        try:
            included = packaged.find_included(part, file)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"--config {path}: {error}") from None
        merged = merge(merged, load_file(str(included), (*above, file.resolve())))
    return merge(merged, moved.current(content))


def included_files(file: Path) -> list[Path]:
    """The files that an experiment of the package includes, directly or not, each once, those it rests on first."""
    found: list[Path] = []
    for part in _parsed(file, str(file)).get("include", []):
        included = packaged.find_included(part, file)
        found += [*included_files(included), included]
    return list(dict.fromkeys(found))


def _parsed(file: Path, path: str) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except UnicodeDecodeError:
        raise ValueError(f"--config {path}: not a text file; it must be YAML in UTF-8") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-99-99
        line, problem = "", str(error)
        if isinstance(error, yaml.MarkedYAMLError):
            line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
            problem = str(error.problem)
        raise ValueError(f"--config {path}{line}: not valid YAML ({problem})") from error
    if not isinstance(content, dict):
        raise ValueError(f"--config {path}: it must be a mapping with keys such as model, data, trainer")
    return content


def _nested(content: dict[str, Any], path: str) -> dict[str, Any]:
    """{'trainer.max_steps': 3} as {'trainer': {'max_steps': 3}}, at every level, so that files merge key by key."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        parts = key.split(".")
        above = [".".join(parts[:i]) for i in range(1, len(parts))]
        twin = next((other for other in (*above, f"{key}+") if other in content), None)
        if twin is not None:
            raise ValueError(
                f"--config {path}: '{twin}' and '{key}' both appear, and one would silently drop the other; "
                f"write the value inside '{twin}:', or take the file named there into `include:`"
            )
        place = result
        for part in parts[:-1]:
            place = place.setdefault(part, {})
        place[parts[-1]] = _nested(value, path) if isinstance(value, dict) else _in_list(value, path)
    return result


def _in_list(value: Any, path: str) -> Any:
    if not isinstance(value, list):
        return value
    return [_nested(item, path) if isinstance(item, dict) else _in_list(item, path) for item in value]


def _short(value: Any) -> str:
    return "null" if value is None else _cut(repr(value))


def _cut(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """`top` over `base`, as the module docstring says; neither is changed."""
    if "class_path" in top and base.get("class_path", top["class_path"]) != top["class_path"]:
        base = {}
    result = dict(base)
    for key, value in top.items():
        if key.endswith("+"):
            name = key[:-1] if key[:-1] in result else key  # with nothing to append to yet, it waits for a lower file
            result[name] = [*_as_list(result.get(name)), *_as_list(value)]
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merge(result[key], value)
        else:
            result[key] = merge({}, value) if isinstance(value, dict) else value
            result.pop(f"{key}+", None)
    return result


def without_appends(section: dict[str, Any]) -> dict[str, Any]:
    """`name+` as `name` where no file below had a list to append to."""
    return {
        key.removesuffix("+"): without_appends(value) if isinstance(value, dict) else value
        for key, value in section.items()
    }


def _as_list(value: Any) -> list[Any]:
    """A section may name one callback without a list around it."""
    return [] if value is None else value if isinstance(value, list) else [value]


_MAPPINGS = ("trainer", "init_args", "optimizer")  # where the parser takes null or 5 in silence for the defaults
_CLASS_KEYS = {"class_path", "init_args", "dict_kwargs"}


def check_sections(section: dict[str, Any], above: str = "") -> None:
    """ValueError for what the parser would take in silence or refuse in riddles: values where mappings belong, keys
    beside init_args, and seeds, which come from seed_everything."""
    for name, value in section.items():
        key = f"{above}.{name}" if above else name
        if name in _MAPPINGS and not isinstance(value, dict):
            raise ValueError(f"{key} is {_short(value)}; it must be a mapping of keys to values")
        if name == "class_path" and not isinstance(value, str):
            raise ValueError(f"{key} is {_short(value)}; it must be the name of a class, such as Linear")
        if key in ("model.init_args.seed", "data.init_args.seed"):
            raise ValueError(f"{key} is {_short(value)}, but it is taken from seed_everything; leave it out")
        for part in value if isinstance(value, list) else [value]:
            if isinstance(value, list) and isinstance(part, dict) and part.keys() == {"init_args"}:
                raise ValueError(f"{key}: init_args without class_path; say of which class")
            if isinstance(part, dict):
                check_sections(part, key)
    beside = sorted(section.keys() - _CLASS_KEYS) if section.keys() & _CLASS_KEYS else []
    if beside:
        raise ValueError(
            f"unknown key '{above}.{beside[0]}'; beside class_path stands init_args alone, with the arguments in it"
        )


_LINKED = ("num_classes", "num_labels", "shape")  # still None while the data has not been asked


def check_nulls(section: Any, key: str) -> None:
    """ValueError for a null whose argument takes none: the parser lets it pass in the arguments of a class.

    Args:
        section: parsed, with class_path and init_args.
        key: where it stands.
    """
    cls = named(section.class_path)
    kinds = cls.__mro__ if inspect.isclass(cls) else ()
    known = {p.name: p for kind in reversed(kinds) for p in inspect.signature(kind).parameters.values()}
    for argument, value in vars(section.init_args).items() if section.get("init_args") else ():
        taken = known.get(argument)
        if value is None and taken and argument not in _LINKED:
            if taken.default is not None and "None" not in str(taken.annotation):
                raise ValueError(f"{key}.{argument} is null; leave it out for the default, or say which")
        elif hasattr(value, "class_path"):
            check_nulls(value, f"{key}.{argument}")


def take_config_arguments(args: list[str]) -> tuple[list[str], list[str]]:
    """Splits ['fit', '--config', 'a.yaml', '-c=b.yaml', '--x', '1'] into the config paths and the other arguments."""
    paths, rest, i = [], [], 0
    while i < len(args):
        name, _, value = args[i].partition("=")
        if name in ("--config", "-c"):
            if not value and i + 1 >= len(args):
                raise ValueError("--config needs the path of a YAML file behind it")
            i, value = (i, value) if value else (i + 1, args[i + 1])
            paths.append(value)
        else:
            rest.append(args[i])
        i += 1
    return paths, rest


def take_nulls(merged: dict[str, Any], args: list[str]) -> tuple[dict[str, Any], list[str]]:
    """`--model.network.dropout null` as if a --config file had said it, and the other arguments.

    jsonargparse 4.53 hands null on as the text None where it belongs to a class inside a class. What was said of the
    same key before it is dropped, what comes behind it stays and counts.
    """
    nulls: dict[str, Any] = {}
    kept: list[tuple[str, list[str]]] = []  # (key, its words)
    waiting = list(args)
    while waiting:
        words = [waiting.pop(0)]
        option, given, value = words[0].partition("=")
        if option.startswith("--") and not given and waiting and not waiting[0].startswith("--"):
            value = waiting.pop(0)
            words.append(value)
        key = option.removeprefix("--").replace(".init_args.", ".")
        section, *below = key.split(".")
        # of a class that is chosen here the parser says itself what it cannot take
        is_chosen_here = any(key.startswith(f"{above}.") for above, _ in kept)
        if value == "null" and section in ("model", "data") and len(below) > 1 and not is_chosen_here:
            kept = [one for one in kept if one[0] != key]
            nulls = merge(nulls, _at(merged, [section, *below]))
        else:
            kept.append((key, words))
    return merge(merged, nulls), [word for _, words in kept for word in words]


def _at(section: Any, names: list[str]) -> dict[str, Any]:
    """{names[0]: ... {names[-1]: None}}, with init_args where `section` names a class."""
    below = section.get(names[0]) if isinstance(section, dict) else None
    if len(names) == 1:
        return {names[0]: None}
    if isinstance(below, dict) and below.keys() & _CLASS_KEYS:
        return {names[0]: {"init_args": _at(below.get("init_args"), names[1:])}}
    return {names[0]: _at(below, names[1:])}


# ---------------------------------------------------------------------------------------------- errors in one line


_OF_TEXT = ("data.train", "data.tokenizer", "data.val")
TOP_KEYS = (
    *("model", "data", "trainer", "seed_everything", "name", "runs", "logger", "include", "ckpt_path", "config"),
    *("init_from", "freeze"),
)


def one_line(message: str, known: Sequence[str] = TOP_KEYS, experiment: dict[str, Any] | None = None) -> str:
    """The key, the value and the reason out of a parser's message of many lines, with a guess at what was meant.

    Args:
        message: of the parser.
        known: keys that may stand at the top.
        experiment: what the --config files say; its classes say which keys there are below model and data.
    """
    bare = re.search(r"unrecognized arguments: ([^-\s]\S*)", message)
    if bare:
        is_checkpoint = "config" not in known or bare[1].endswith(".ckpt")
        return f"'{bare[1]}' stands alone; did you mean --{'ckpt_path' if is_checkpoint else 'config'} {bare[1]}?"
    named = re.findall(r'(?:Parser key|Option|key) "([\w.+]+)"', message)
    key = ".".join(dict.fromkeys(named)) if named else ""
    classes = re.findall(r"class_path '([\w.]+)'", message)
    unknown = _unknown_key(message)
    if unknown:
        whole = f"{key}.{unknown}" if key and not unknown.startswith(key) else unknown
        full = [] if experiment is None else keys.meant(whole, experiment, known)
        if full:
            return f"unknown key '{whole}'; did you mean {' or '.join(f'--{one}' for one in full)}?"
        if whole in _OF_TEXT:
            return (
                f"unknown key '{whole}' of this data; a text of your own: --config text_file after the first --config"
            )
        return f"unknown key '{whole}'{_guess(unknown, classes, known)}"
    wrong = re.search(r"Expected an? <class '([\w.]+)'>[.,:]? Got value: (.+)", message)
    if wrong:
        return f"{key}: expected {wrong[1].rsplit('.', 1)[-1]}, got {wrong[2].strip()!r}"
    given = re.search(r"Given value: (?:NestedArg\(key='[\w.]+', val=(.+)\)|(.+))$", message, re.MULTILINE)
    value = (given[1] or given[2]).strip("'") if given else "another value"
    choices = re.findall(r"Expected a typing.Literal\[(.*)\]", message)
    if choices:
        choices += [word for kind, word in _OF_UNIONS.items() if f"Expected a <class '{kind}'>" in message]
        return f"{key}: got {value}; choose one of {', '.join(choices)}"
    path = re.search(r"Expected a dot import path string: (\S*)|module '[\w.]+' has no attribute '(\w+)'", message)
    if path:
        name = path[1] or path[2] or ""
        return (
            f"{key}: there is no class '{name}'; give its name or its full path, such as ggm_lightning.models.md4.MD4"
        )
    missing = re.search(r"arguments are required: (.+)", message)
    if missing:
        names = ", ".join(name.split(".")[-1] for name in missing[1].split(", "))
        where = f" in {key}" if key else ""
        option = f"{key}.{names.split(', ')[0]}".lstrip(".")
        hint = "--config experiments/<name>.yaml" if "model" in names else f"--{option} VALUE"
        return f"missing{where}: {names}; give {hint}"
    lines = list(dict.fromkeys(line.strip(" -\t") for line in message.splitlines()))
    reasons = [line for line in lines if line and not line.startswith(_NOISE)]
    if reasons:
        return f"{key}: {'; '.join(reasons)}" if key else "; ".join(reasons)
    types = [name for name in re.findall(r"Expected a <class '([\w.]+)'>", message) if name != "NoneType"]
    if types:
        return f"{key}: expected {' or '.join(dict.fromkeys(types))}, got {_cut(value)}"
    kinds = re.findall(r"Not a valid subclass of (\w+)", message) or ["value of another kind"]
    return f"{key}: expected a {kinds[0]}, as the name of a class or as class_path and init_args; got {_cut(value)}"


_OF_UNIONS = {"bool": "true, false", "NoneType": "null"}
_NOISE = (
    *("Parser key", "Subtypes", "Errors", "Given value", "Problem with given", "Does not validate against any of"),
    *("Expected a path but", "Expected a <class", "Not a valid subclass", "Subclass types expect one of"),
    *("a class path (str)", "a dict with"),
)


def _unknown_key(message: str) -> str | None:
    group = re.search(r"Group '([\w.+]+)' does not accept option '([\w.+]+)'", message)
    if group:
        return f"{group[1]}.{group[2]}"
    for pattern in (
        r"unrecognized arguments: --?([\w.+]+)",
        r"does not accept option '([\w.+]+)'",
        r"(?:Key|Option|Group) '([\w.+]+)' (?:is not|not|does not) \w+",
        r"[Nn]o action for (?:destination )?key [\"']([\w.+]+)[\"']",
    ):
        found = re.search(pattern, message)
        if found:
            return found[1]
    return None


def _guess(name: str, classes: list[str], known: Sequence[str]) -> str:
    first = name.split(".")[0]
    if classes:
        known = parameters(named(classes[-1]))
    elif first == "trainer":
        from lightning.pytorch import Trainer

        known, first = parameters(Trainer), name.split(".")[-1]
    if first in known:
        return ""  # a wrong name further down, inside a known one
    if not known:
        return "; its class is not named (class_path)"
    close = difflib.get_close_matches(first, known, n=1)
    close += [name for name in known if name.startswith(first)]  # temp, of temperature, is not close
    return f"; did you mean '{close[0]}'?" if close else f"; known there: {', '.join(known)}"


def parameters(thing: Callable[..., Any]) -> list[str]:
    """Names of the parameters; where a class passes **kwargs on, those of its bases too."""
    return list(parameters_of(thing))
