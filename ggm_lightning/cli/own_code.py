"""The user's own classes in files of the working folder: `--model.network mynet.Tiny`, with mynet.py lying there.

`python -m` puts the working folder on the module path, an installed command does not. Both find such a file: the folder
is put in front of the path where the user names something that lies in it, and not before. So a checkpoint, whose names
never come here, opens no folder, and a stray yaml.py beside a checkpoint from somebody else is not run.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")


def open_folder(named: Iterable[str]) -> None:
    """Puts the working folder in front of sys.path if one of the names lies in it; `python -P` forbids it.

    Args:
        named: modules or classes, mynet or mynet.Tiny, that the user has named.
    """
    folder = Path.cwd()
    if sys.flags.safe_path or str(folder) in sys.path or "" in sys.path:
        return
    if any(_lies_in(folder, name.partition(".")[0]) for name in named):
        sys.path.insert(0, str(folder))


def _lies_in(folder: Path, module: str) -> bool:
    if module in ("", "ggm_lightning"):  # a checkout, and this package is imported already
        return False
    return (folder / f"{module}.py").is_file() or (folder / module).is_dir()


def dotted_names(section: Any) -> Iterator[str]:
    """All that may be the name of a class in arguments and configuration, at any depth."""
    if isinstance(section, str):
        yield from _DOTTED.findall(section)
    elif isinstance(section, dict):
        yield from dotted_names(list(section.values()))
    elif isinstance(section, list):
        for value in section:
            yield from dotted_names(value)
