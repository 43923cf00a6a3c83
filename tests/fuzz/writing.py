"""From a tree to files and arguments, as users write them: includes, dotted keys, later files, the command line."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from ggm_lightning.cli.main import main
from tests.fuzz.strategies import Tree

Leaf = tuple[tuple[str, ...], Any]


@dataclass
class Case:
    """What a user has: files, and a command line. `mark` is what an error must name: any of these words."""

    files: dict[str, str | bytes]
    args: list[str]
    mark: list[str] = field(default_factory=list)


def leaves(tree: Tree, above: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """(path, value) of everything that is no mapping, classes before their arguments."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key), value


def planted(found: list[Leaf], dotted: set[str]) -> Tree:
    """The tree of these leaves; sections in `dotted` are written as a.b.c: value."""
    tree: Tree = {}
    for path, value in found:
        place = tree
        if path[0] in dotted:
            path = (".".join(path),)
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = value
    return tree


def argument(path: tuple[str, ...], value: Any, short: bool) -> str:
    """--a.b=value; `short` leaves init_args out."""
    key = ".".join(part for part in path if not (short and part == "init_args"))
    if isinstance(value, float) and not math.isfinite(value):
        text = str(yaml.safe_dump(value)).split()[0]
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    return f"--{key}={text}"


def on_the_line(path: tuple[str, ...], value: Any) -> bool:
    """Classes, whose arguments may stand in files, and what is a text there (5, null) stay in files."""
    texts = ("class_path", "callbacks", "name", "runs", "text_key")
    return path[-1] not in texts and value is not None and value != {}


@st.composite
def written(draw: st.DrawFn, tree: Tree, last: Leaf | None = None) -> Case:
    """The tree in up to three files and on the command line; `last`, if given, is written last, over all."""
    schedule = tree.get("model", {}).get("init_args", {}).get("schedule") if isinstance(tree.get("model"), dict) else 0
    found = list(leaves(tree))
    places = draw(st.lists(st.sampled_from("bbbmmmol"), min_size=len(found), max_size=len(found)))
    line_form = draw(st.booleans())
    parts: dict[str, list[Leaf]] = {"b": [], "m": [], "o": [], "l": []}
    whole = draw(st.booleans()) if isinstance(schedule, dict) and "class_path" in schedule else False
    for (path, value), place in zip(found, places, strict=True):
        if whole and path[:3] == ("model", "init_args", "schedule"):
            continue
        parts["m" if place == "l" and not on_the_line(path, value) else place].append((path, value))
    args = [argument(path, value, line_form) for path, value in parts["l"]]
    if whole:
        key = ("model", "init_args", "schedule")
        args.append(argument(key, schedule["class_path"], line_form))
        args += [argument((*key, "init_args", k), v, line_form) for k, v in schedule.get("init_args", {}).items()]
    _split_callbacks(draw, parts)
    _add_overridden(draw, parts)
    dotted = [set(draw(st.lists(st.sampled_from(["model", "data", "trainer"]), max_size=1))) for _ in "bmo"]
    files = {f"{name}.yaml": planted(parts[name], away) for name, away in zip("bmo", dotted, strict=True)}
    if last is not None:
        files["last.yaml"] = planted([last], set())
    used = {name: content for name, content in files.items() if content or name == "m.yaml"}
    if "b.yaml" in used:
        used["m.yaml"] = {"include": ["b.yaml"], **used["m.yaml"]}
    behind = [word for name in used if name in ("o.yaml", "last.yaml") for word in ("--config", name)]
    texts: dict[str, str | bytes] = {name: yaml.safe_dump(content, sort_keys=False) for name, content in used.items()}
    if len(texts["m.yaml"]) < 4:
        texts["m.yaml"] = "name: toy\n"
    return Case(texts, ["fit", "--config", "m.yaml", *behind, *args])


def _split_callbacks(draw: st.DrawFn, parts: dict[str, list[Leaf]]) -> None:
    """Sometimes the first callback in the included file, the others behind `callbacks+`."""
    for name in "mo":
        for i, (path, value) in enumerate(parts[name]):
            if path == ("trainer", "callbacks") and isinstance(value, list) and len(value) > 1 and draw(st.booleans()):
                parts["b"].append((path, value[:1]))
                parts[name][i] = (("trainer", "callbacks+"), value[1:])


def _add_overridden(draw: st.DrawFn, parts: dict[str, list[Leaf]]) -> None:
    """Sometimes another value in the included file, which the later one must beat."""
    for path, other in ((("trainer", "max_steps"), 77), (("data", "init_args", "eval_batch_size"), 3)):
        later = [given for name in "mol" for given, _ in parts[name]]
        if path in later and draw(st.booleans()):
            parts["b"].append((path, other))


def run(case: Case) -> tuple[int | None, str]:
    """(exit code, what stderr got) of the real entry point, in a folder of its own; anything else raised passes."""
    stderr = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name, content in case.files.items():
            Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
            try:
                main(case.args)
            except SystemExit as stop:
                return stop.code if isinstance(stop.code, int) else 1, stderr.getvalue()
    return None, stderr.getvalue()


RIDDLES = (
    *("union subtypes", "namespace(", "has no attribute", "not iterable", "implicit class_path", "not supported"),
    *("nonetype", "subscriptable", "positional argument", "unexpected keyword", "tensor with", "division", "overflow"),
)


def refused(case: Case) -> str:
    """The one line of an error; AssertionError for an accepted case, a traceback, or an error that names nothing."""
    assert "GGM_DEBUG" not in os.environ
    try:
        code, printed = run(case)
    except Exception as error:
        raise AssertionError(f"traceback instead of a line: {type(error).__name__}: {error}\n{case}") from error
    lines = printed.strip().splitlines()
    assert code == 2, f"accepted in silence (exit code {code}): {case}"
    assert lines[-1].startswith("lightning: error: "), f"{lines[-1]}\n{case}"
    assert sum(line.startswith("lightning: error:") for line in lines) == 1, case
    assert "Traceback" not in printed, case
    message = lines[-1].removeprefix("lightning: error: ").lower()
    assert len(message) > 10, f"{message}\n{case}"
    for riddle in RIDDLES:
        assert riddle not in message, f"a riddle: {message}\n{case}"
    assert not case.mark or any(word.lower() in message for word in case.mark), f"unnamed: {message}\n{case}"
    return lines[-1]
