"""`lightning copy`: a file that comes with the package as a file of one's own, with the pieces that it includes."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from jsonargparse import ArgumentParser

from ggm_lightning.cli import config as config_files
from ggm_lightning.cli import packaged


def run(args: list[str]) -> None:
    """Parses the command's arguments."""
    if not args:
        raise ValueError("copy needs a name, as in `lightning copy md4_demo [FOLDER]`; `lightning list` shows them")
    parser = ArgumentParser(
        prog="lightning copy",
        description="Copy an experiment and the pieces that it includes, to change them.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("name", type=str, help="of an experiment or a data set (`lightning list`), or its path")
    parser.add_argument("folder", type=str, nargs="?", default=".", help="where to; made if it is not there")
    given = parser.parse_args(args)
    copy(given.name, Path(given.folder))


def copy(name: str, folder: Path) -> None:
    """Writes experiments/<name>.yaml below `folder` and, at their places beside it, the pieces that it includes, byte
    for byte: the paths in `include:` hold there as they do in the package. A piece that is there already is the user's
    and stays.

    Raises:
        ValueError: the package has no such file.
        FileExistsError: the file itself is there already; nothing was written.
    """
    first = packaged.find_packaged(name)
    target = folder / first
    if os.path.lexists(target):
        raise FileExistsError(f"{target} is there already and stays as it is; name another folder, or move it away")
    for path in [*_pieces(first), first]:  # the file itself last: what is there, is complete
        if os.path.lexists(folder / path):
            print(f"stays as it is: {folder / path}")
            continue
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with (folder / path).open("xb") as file:
            file.write((packaged.root() / path).read_bytes())
        print(f"copied: {folder / path}")
    if first.startswith("experiments/") and first.endswith(".yaml"):
        print(f"train it: lightning fit --config {shlex.quote(str(target))}")


def _pieces(path: str) -> list[str]:
    """What a file of the package includes, directly or not, as paths below the package's root."""
    if not path.endswith(".yaml"):
        return []
    root = packaged.root()
    files = config_files.included_files(root / path)
    return [file.resolve().relative_to(root.resolve()).as_posix() for file in files]
