"""The lives of a run under SLURM: a job that is put back into the queue starts again, and must not do so for ever.

Each start is a line of <run folder>/lives.jsonl, with what last.ckpt was then. A life has made progress when last.ckpt
has changed. Lines of other jobs, which may have been started for the same folder, count for nothing. Nothing heavy is
imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

FILE = "lives.jsonl"
MOST = 3  # starts of a job, one after another, that may end without a step and be repeated


def last_of(folder: Path) -> list[int] | None:
    """What tells this last.ckpt from any other of the folder, without reading it; None where there is none."""
    try:
        found = (folder / "last.ckpt").stat()
    except OSError:
        return None
    return [found.st_mtime_ns, found.st_size]


def begin(folder: Path, job: str, restart: int, **more: Any) -> None:
    """Notes a start. An OSError is left to the checks of the folder that follow."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        life = {"job": job, "restart": restart, "last": last_of(folder), "at": time.strftime("%Y-%m-%dT%H:%M:%S")}
        with (folder / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**life, **more}) + "\n")


def take_back(folder: Path, job: str, restart: int) -> None:
    """The line of a start that came to nothing, as that of a command that was refused, if it is the last one."""
    path = folder / FILE
    with contextlib.suppress(OSError, ValueError, AttributeError):
        *before, last = path.read_bytes().splitlines(keepends=True)
        life = json.loads(last)
        if (life.get("job"), life.get("restart")) != (job, restart):
            return
        if before:
            os.truncate(path, sum(len(line) for line in before))
        else:
            path.unlink()


def of(folder: Path) -> list[dict[str, Any]]:
    """Oldest first; lines that a full disk has cut are left out."""
    try:
        lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [life for life in found if isinstance(life, dict)]


def has_progressed(folder: Path, job: str, restart: int) -> bool:
    """Whether steps were saved since this start of the job was noted."""
    ours = [life for life in _of_job(folder, job) if life.get("restart") == restart]
    return bool(ours) and ours[-1].get("last") != last_of(folder)


def without_step(folder: Path, job: str) -> int:
    """How many starts of this job, up to and with the present one, have left last.ckpt as it is now."""
    count = 0
    for life in reversed(_of_job(folder, job)):
        if life.get("last") != last_of(folder):
            break
        count += 1
    return count


def _of_job(folder: Path, job: str) -> list[dict[str, Any]]:
    return [life for life in of(folder) if life.get("job") == job]


def may_start_again(folder: Path, job: str) -> bool:
    return without_step(folder, job) <= MOST
