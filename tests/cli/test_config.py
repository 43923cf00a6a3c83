"""Experiment files: merging, refusals, and parser messages in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ggm_lightning.cli import config


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_includes_are_merged_in_order_and_the_file_itself_last(tmp_path: Path) -> None:
    write(
        tmp_path, "a.yaml", "trainer: {max_steps: 1, devices: 1, callbacks: [x]}\nmodel: {init_args: {net: {dim: 3}}}\n"
    )
    write(tmp_path, "b.yaml", "include: [a.yaml]\ntrainer: {max_steps: 2}\n")
    (tmp_path / "sub").mkdir()
    top = write(
        tmp_path / "sub",
        "c.yaml",
        "include: [../b.yaml]\nmodel: {class_path: M}\ntrainer: {'callbacks+': y, max_time: 5}\n",
    )
    assert config.load_file(top) == {
        "trainer": {"max_steps": 2, "devices": 1, "callbacks": ["x", "y"], "max_time": 5},
        "model": {"class_path": "M", "init_args": {"net": {"dim": 3}}},
    }


def test_appending_reaches_below_the_file_that_appends(tmp_path: Path) -> None:
    below = {"trainer": {"callbacks": ["x"], "devices": 1}}
    fragment = config.load_file(write(tmp_path, "a.yaml", "trainer.callbacks+: [y]\n"))
    top = config.load_file(write(tmp_path, "b.yaml", "include: [a.yaml]\ntrainer: {callbacks+: [z]}\n"))
    assert config.merge(below, fragment) == {"trainer": {"callbacks": ["x", "y"], "devices": 1}}
    assert config.merge(below, top)["trainer"]["callbacks"] == ["x", "y", "z"]
    assert config.without_appends(top) == {"trainer": {"callbacks": ["y", "z"]}}
    assert config.merge(top, below)["trainer"] == {"callbacks": ["x"], "devices": 1}


def test_another_class_drops_the_arguments_of_the_old_one() -> None:
    base = {"class_path": "A", "init_args": {"x": 1}}
    assert config.merge(base, {"class_path": "B", "init_args": {"y": 2}}) == {"class_path": "B", "init_args": {"y": 2}}
    assert config.merge(base, {"class_path": "A", "init_args": {"y": 2}})["init_args"] == {"x": 1, "y": 2}
    assert config.merge(base, {"init_args": {"x": 3}}) == {"class_path": "A", "init_args": {"x": 3}}
    assert base == {"class_path": "A", "init_args": {"x": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: piece.yaml\ntrainer.max_steps: 3\n", "'trainer' and 'trainer.max_steps' both appear"),
        ("model: [\n", r"line 2: not valid YAML"),
        ("- 1\n", "must be a mapping"),
        ("include: [nowhere.yaml]\n", r"nowhere.yaml: no such file"),
        ("include: x.yaml\n", r"include is 'x.yaml'; it must be a list of paths"),
        ("include: [x.yaml]\n", r"it includes itself \(x.yaml -> x.yaml\)"),
        ("a: 1\nb: 2\na: 3\n", r"line 3: not valid YAML \(the key 'a' appears twice\)"),
        ("on: 1\n", r"line 1: .*the key 'on' is no text"),
        ("a: {b: {c: 1}, b.c: 2}\n", "'b' and 'b.c' both appear"),
        ("a: {b+: 1, b: 2}\n", r"'b\+' and 'b' both appear"),
    ],
)
def test_refusals(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        config.load_file(write(tmp_path, "x.yaml", text))


def test_config_arguments_are_taken_out_of_the_command_line() -> None:
    args = ["--config", "a.yaml", "--x", "1", "-c=b.yaml", "--config=c.yaml"]
    assert config.take_config_arguments(args) == (["a.yaml", "b.yaml", "c.yaml"], ["--x", "1"])
    with pytest.raises(ValueError, match="--config needs the path"):
        config.take_config_arguments(["--config"])


def test_null_reaches_a_class_inside_a_class() -> None:
    network = {"class_path": "N", "init_args": {"a": 1, "b": 2}}
    merged = {"model": {"class_path": "M", "init_args": {"network": network, "k": 3}}}

    def taken(*args: str) -> tuple[Any, list[str]]:
        found, rest = config.take_nulls(merged, list(args))
        return found["model"]["init_args"]["network"]["init_args"]["a"], rest

    for key in ("model.network.a", "model.network.init_args.a", "model.init_args.network.init_args.a"):
        assert taken("--print_config", f"--{key}", "null", "x") == (None, ["--print_config", "x"])
        assert taken(f"--{key}=null", "--b=1") == (None, ["--b=1"])
    assert taken("--model.network.a=3", "--model.network.a", "null") == (None, [])
    assert taken("--model.network.a", "null", "--model.network.a", "-1") == (None, ["--model.network.a", "-1"])
    for args in (["--model.k", "null"], ["--model.network", "O", "--model.network.a", "null"], ["--name=null"]):
        assert taken(*args) == (1, args)
    assert network["init_args"] == {"a": 1, "b": 2}


def test_guesses_come_from_the_class_and_its_bases() -> None:
    class Base:
        def __init__(self, width: int = 1) -> None: ...

    class Child(Base):
        def __init__(self, depth: int = 1, **rest: int) -> None: ...

    assert config.parameters(Child) == ["depth", "width"]
    assert config.one_line("unrecognized arguments: --num_stepz=3", ["num_steps"]).endswith("did you mean 'num_steps'?")
