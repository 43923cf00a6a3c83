"""Experiment files: composition before parsing, comparison of model sections, and errors in one line.

An experiment begins with `include: [../configs/trainer/cpu.yaml, ...]`: fragments of the same tree, merged in order,
the file itself last, later --config files after it. Mappings merge key by key, `name+` appends to the list `name`,
anything else replaces. We merge ourselves: a class that is chosen later (class_path) then drops the old class's
init_args, and a fragment may speak of model.init_args before any file names the class, which repeated --config
arguments cannot do.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml


def load_file(path: str) -> dict[str, Any]:
    """A YAML file with its includes expanded; `include` paths are relative to the file."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"--config {path}: no such file (working folder {Path.cwd().name}/)")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise ValueError(f"--config {path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from error
    if not isinstance(content, dict):
        raise ValueError(f"--config {path}: it must be a mapping with keys such as model, data, trainer")
    _refuse_doubled_keys(content, path)
    merged: dict[str, Any] = {}
    for part in content.pop("include", []):
        merged = merge(merged, load_file(str(file.parent / part)))
    return merge(merged, content)


def _refuse_doubled_keys(content: dict[str, Any], path: str) -> None:
    for key in content:
        parent = str(key).split(".")[0]
        if parent != key and parent in content:
            raise ValueError(
                f"--config {path}: '{parent}' and '{key}' both appear, and one would silently drop the other; "
                f"write the value inside '{parent}:', or take the file named there into `include:`"
            )


def merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """`top` over `base`, as the module docstring says; neither is changed."""
    if "class_path" in top and base.get("class_path", top["class_path"]) != top["class_path"]:
        base = {}
    result = dict(base)
    for key, value in top.items():
        if key.endswith("+"):
            result[key[:-1]] = [*result.get(key[:-1], []), *(value if isinstance(value, list) else [value])]
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merge(result[key], value)
        else:
            result[key] = merge({}, value) if isinstance(value, dict) else value
    return result


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
    return [] if ours == theirs else [f"{key} is {ours}, there {theirs}"]


# ---------------------------------------------------------------------------------------------- errors in one line


TOP_KEYS = ("model", "data", "trainer", "seed_everything", "name", "runs", "logger", "include", "ckpt_path", "config")


def one_line(message: str, known: Sequence[str] = TOP_KEYS) -> str:
    """The key, the value and the reason out of a parser's message of many lines, with a guess at what was meant.

    Args:
        message: of the parser.
        known: keys that may stand at the top.
    """
    keys = re.findall(r'(?:Parser key|Option|key) "([\w.+]+)"', message)
    key = ".".join(dict.fromkeys(keys)) if keys else ""
    classes = re.findall(r"class_path '([\w.]+)'", message)
    unknown = re.search(r"unrecognized arguments: --?([\w.+]+)", message)
    unknown = unknown or re.search(r"(?:Key|Option|Group) '([\w.+]+)' (?:is not|not|does not) \w+", message)
    unknown = unknown or re.search(r"[Nn]o action for (?:destination )?key [\"']([\w.+]+)[\"']", message)
    if unknown:
        name = unknown[1]
        whole = f"{key}.{name}" if key and not name.startswith(key) else name
        return f"unknown key '{whole}'{_guess(name, classes, known)}"
    wrong = re.search(r"Expected an? <class '([\w.]+)'>[.,:]? Got value: (.+)", message)
    if wrong:
        return f"{key}: expected {wrong[1].rsplit('.', 1)[-1]}, got {wrong[2].strip()!r}"
    value = re.search(r"Given value: (?:NestedArg\(key='\w+', val=)?'?([^')\n]+)", message)
    choices = re.findall(r"Expected a typing.Literal\[(.*)\]", message)
    if choices:
        return f"{key}: got {value[1] if value else 'another value'}; choose one of {', '.join(choices)}"
    path = re.search(r"Expected a dot import path string: (\S+)|module '[\w.]+' has no attribute '(\w+)'", message)
    if path:
        name = value[1] if value else path[1] or path[2]
        return (
            f"{key}: there is no class '{name}'; give its name or its full path, such as ggm_lightning.models.md4.MD4"
        )
    missing = re.search(r"arguments are required: (.+)", message)
    if missing:
        names = ", ".join(name.split(".")[-1] for name in missing[1].split(", "))
        hint = "--config experiments/<name>.yaml" if "model" in names else f"--{names.split(', ')[0]} VALUE"
        return f"missing: {names}; give {hint}"
    lines = [line.strip(" -\t") for line in message.splitlines()]
    noise = ("Parser key", "Subtypes", "Errors", "Given value", "Problem with given", "Expected a <class 'NoneType'")
    reasons = "; ".join(dict.fromkeys(line for line in lines if line and not line.startswith(noise)))
    return f"{key}: {reasons}" if key else reasons


def _guess(name: str, classes: list[str], known: Sequence[str]) -> str:
    first = name.split(".")[0]
    if classes:
        module, _, cls = classes[-1].rpartition(".")
        known = parameters(getattr(importlib.import_module(module), cls))
    elif first == "trainer":
        from lightning.pytorch import Trainer

        known, first = parameters(Trainer), name.split(".")[-1]
    close = difflib.get_close_matches(first, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known there: {', '.join(known)}"


def parameters(thing: Callable[..., Any]) -> list[str]:
    """Names of the parameters; where a class passes **kwargs on, those of its bases too."""
    names: list[str] = []
    for kind in getattr(thing, "__mro__", (thing,)):
        found = inspect.signature(kind).parameters.values()
        names += [p.name for p in found if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in names]
        if not any(p.kind == p.VAR_KEYWORD for p in found):
            break
    return names
