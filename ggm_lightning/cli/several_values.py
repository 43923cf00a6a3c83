"""Several values behind one key of the command line, as `--num_steps 8 16`."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def joined(args: list[str], lists: Mapping[str, Callable[[str], str]]) -> list[str]:
    """['--num_steps', '8', '16', '--seed', '1'] as ['--seed', '1', '--num_steps=[8, 16]'].

    Args:
        lists: keys that take several values, without dashes, each with how a value is written into a YAML list.

    Raises ValueError for a key without a value.
    """
    rest: list[str] = []
    values: dict[str, list[str]] = {}
    key: str | None = None
    for word in args:
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in lists:
            values[name] = [value] if equals else []  # what is given twice is what was given last, as elsewhere
            key = None if equals else name
        elif key is not None and not word.startswith("--"):
            values[key].append(word)
        else:
            key = None
            rest.append(word)
    for name, given in values.items():
        if not given:
            raise ValueError(f"--{name} needs at least one value behind it")
        whole = len(given) == 1 and given[0].startswith("[")  # a list as YAML has it
        rest.append(f"--{name}={given[0]}" if whole else f"--{name}=[{', '.join(map(lists[name], given))}]")
    return rest
