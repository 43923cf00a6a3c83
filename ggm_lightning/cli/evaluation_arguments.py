"""The words of `lightning evaluate`: several values behind one key, and keys below --data."""

from __future__ import annotations

import json
from typing import Any

import yaml

from ggm_lightning.cli import config as config_files
from ggm_lightning.cli.evaluation_sets import Section


def joined(args: list[str]) -> list[str]:
    """['--data', 'a', 'b', '--seed', '1'] as ['--data=["a", "b"]', '--seed', '1']."""
    rest: list[str] = []
    files: list[str] = []
    taking = False
    for argument in args:
        if argument == "--data" or argument.startswith("--data="):
            taking = argument == "--data"
            files += [] if taking else [argument.removeprefix("--data=")]
        elif taking and not argument.startswith("--"):
            files.append(argument)
        else:
            taking = False
            rest.append(argument)
    if not files and any(argument == "--data" for argument in args):
        raise ValueError("--data needs at least one file behind it, such as configs/data/zeroshot_ptb.yaml")
    return [*rest, f"--data={json.dumps(files)}"] if files else rest


def take_overrides(args: list[str]) -> tuple[list[str], Section]:
    """--data.init_args.length 128 (or =128) out of the arguments, as nested sections."""
    rest: list[str] = []
    found: Section = {}
    waiting = iter(args)
    for argument in waiting:
        if not argument.startswith("--data."):
            rest.append(argument)
            continue
        key, equals, value = argument.removeprefix("--data.").partition("=")
        value = value if equals else next(waiting, None)  # type: ignore[assignment]
        if value is None:
            raise ValueError(f"--data.{key} needs a value behind it")
        nested: Any = yaml.safe_load(value)
        parts = key.split(".")
        for part in reversed(parts if parts[0] in ("init_args", "class_path") else ["init_args", *parts]):
            nested = {part: nested}
        found = config_files.merge(found, nested)
    return rest, found
