"""The run folder: can it be written, has it room, and where does a file go that may be there already?

Nothing heavy is imported before it is needed: cli/together.py is read before the command is known.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def write_whole(path: Path, content: bytes) -> None:
    """The file as a whole, or as it was before: by a hidden file in the same folder, which reaches the disk first."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def refuse_unwritable(folder: Path, remedy: str = "choose another folder by --runs and --name") -> None:
    """OSError before hours of work instead of at the first save. The folder is made if it is not there."""
    probe = folder / f".probe-{os.urandom(4).hex()}"  # ranks in containers may have one number of a process
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{folder}: cannot be written ({reason}); {remedy}") from None


def refuse_unwritable_results(folder: Path) -> None:
    """The same for a folder that a command will write at its end: no empty one is left behind, should something else be
    wrong with the command."""
    made = missing(folder)
    refuse_unwritable(folder, "choose another folder by --out")
    remove_empty(made)


def missing(folder: Path) -> list[Path]:
    """The folder and those above it, as far as they are not there yet."""
    return [place for place in (folder, *folder.parents) if not place.exists()]


def remove_empty(made: list[Path]) -> None:
    """Removes folders of `missing` that this process has made since; one that holds anything stays."""
    with contextlib.suppress(OSError):
        for place in made:
            place.rmdir()


def unused_path(path: Path, content: bytes) -> Path:
    """Where `content` may be written so that nothing else is lost: `path`, or, where that holds something else, the
    first of bounds-2.csv, bounds-3.csv, ... that is free or holds just this."""
    numbered = (path.with_stem(f"{path.stem}-{i}") for i in itertools.count(2))
    return next(
        place for place in itertools.chain([path], numbered) if not place.exists() or place.read_bytes() == content
    )


def refuse_without_space(folder: Path, model: nn.Module) -> None:
    """A checkpoint holds every trained weight four times: averaged, raw, and Adam's two moments."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_warn

    weights = list(model.parameters())
    needed = sum(p.numel() * p.element_size() * (4 if p.requires_grad else 1) for p in weights)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder}: {free / 1e6:,.0f} MB of space are free, one checkpoint takes about {needed / 1e6:,.0f} MB; "
            "free some space, or choose another folder by --runs"
        )
    if free < 3 * needed:  # last.ckpt, best.ckpt, and the one that is being written
        rank_zero_warn(
            f"{folder}: {free / 1e6:,.0f} MB of space are free, and up to three checkpoints of about "
            f"{needed / 1e6:,.0f} MB stand beside each other; free some space before it runs out"
        )
