"""Ranks that were started together begin together and end together: one line for all, whichever of them has failed.

A run under SLURM also notes its starts, hears signals from the first moment on, and goes back into the queue after the
loss of a rank if it has got on since it started.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import ggm_lightning
from ggm_lightning.cli.early import EarlySignals
from ggm_lightning.cli.launcher import Place
from ggm_lightning.rundir import endings, lives, requeue
from ggm_lightning.rundir import hub as hubs
from ggm_lightning.rundir.folder import missing, refuse_unwritable, remove_empty
from ggm_lightning.rundir.lock import FolderLock, Held
from ggm_lightning.rundir.terminal import counted

_MEETING = 300.0  # seconds within which all ranks must have come; GGM_MEETING_SECONDS
_COLLATERAL = 3.0  # seconds in which an error is known to be the consequence of a rank's end
_UNWINDING = 15.0  # seconds that a rank has to come out of its waiting for others by itself
_SAVING = 600.0
_LOCK_OF_A_LIFE_BEFORE = 60.0  # seconds that a requeued job waits for the folder

_once = threading.Lock()


class Session:
    """From the first line of `lightning fit` to the last.

    Args:
        place: of this process (cli/launcher.py).
        folder: of the run.
        fits: whether it trains, and so writes checkpoints.
        labelled: the streams whose lines begin with the rank, where SLURM does not see to it.
    """

    def __init__(self, place: Place, folder: Path, fits: bool, labelled: Sequence[str] = ("stdout", "stderr")) -> None:
        self.place, self.folder, self.fits, self.labelled = place, folder, fits, labelled
        self.lock: FolderLock | None = None
        self.made: list[Path] = []  # folders that were not there before
        self.is_noted = False  # in lives.jsonl
        self._noting = threading.Lock()  # the thread of early signals notes, too

    def begin(self) -> None:
        """Raises Apart where the ranks do not find each other."""
        place = self.place
        if place.is_together and not os.environ.get("SLURM_LABELIO"):
            for name in self.labelled:
                setattr(sys, name, Labelled(getattr(sys, name), f"rank {place.rank}: ", has_bars=place.rank == 0))
        if place.job is not None and self.fits and place.launcher != "lightning":
            EarlySignals(self.folder, place.job, place.rank, self.note_start, self.release).install()
        if place.is_together:
            hub = hubs.Hub(place.rank, place.ranks, place.node, _token(place), address(place))
            hub.when_over = self._end_by_force
            hubs.use(hub)
            hub.meet(float(os.environ.get("GGM_MEETING_SECONDS") or _MEETING))

    def take_folder(self) -> None:
        """ValueError where another process trains there. Of several ranks, rank 0 holds it."""
        if self.lock is not None or self.place.rank != 0 or self.place.launcher == "lightning":
            return
        lock = FolderLock(self.folder)
        try:
            lock.wait(self._say_waiting, _LOCK_OF_A_LIFE_BEFORE if self.place.restart else 0.0)
        except Held as held:
            raise ValueError(
                f"{self.folder}: in use by {held.holder}; wait for its end, stop it, or choose another --name"
            ) from None
        self.lock = lock
        self.note_start()

    def note_start(self) -> None:
        """Under SLURM a line of the run's lives.jsonl, once: when the folder is this run's, and before that where an
        early signal puts the job back into the queue. Not of a command that is refused (see `close`)."""
        place = self.place
        if place.job is None or place.rank != 0 or not self.fits:
            return
        with self._noting:
            if not self.is_noted:
                lives.begin(self.folder, place.job, place.restart, ranks=place.ranks, version=ggm_lightning.__version__)
            self.is_noted = True

    def make_folder(self) -> None:
        """OSError where it cannot be written. At the session's end it is removed again if nothing is in it, as after a
        command that was refused."""
        self.made = missing(self.folder)
        refuse_unwritable(self.folder)

    def _say_waiting(self, holder: str) -> None:
        if self.place.restart:
            print(f"{self.folder}: in use by {holder}; waiting for its end", file=sys.stderr, flush=True)

    def say_first_line(self, step: int | None) -> None:
        """What this life of the run is, where a launcher or a job are."""
        place = self.place
        if place.rank == 0 and place.launcher != "lightning" and (place.job is not None or place.is_together):
            print(self.first_line(step), file=sys.stderr, flush=True)

    def first_line(self, step: int | None) -> str:
        """`step`: that of the checkpoint it goes on from."""
        place = self.place
        job = f"job {place.job}, " if place.job is not None else ""
        start = f"restart {place.restart}" if place.restart else "first start"
        begins = "begins anew" if step is None else f"goes on from step {step}"
        nodes, ranks = counted(place.nodes, "node"), counted(place.ranks, "rank")
        return f"{job}{nodes}, {ranks}, {start}, ggm_lightning {ggm_lightning.__version__}: {self.folder} {begins}"

    def release(self) -> None:
        if self.lock is not None:
            with contextlib.suppress(OSError):
                self.lock.release()

    def close(self) -> None:
        """However it has ended; this rank is then not missed by the others."""
        if self.is_noted and self.place.job is not None and not endings.turn.is_settled():
            lives.take_back(self.folder, self.place.job, self.place.restart)
        self.release()
        remove_empty(self.made)
        hub = hubs.current()
        if hub is not None:
            hub.leave()
            hubs.use(None)
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if isinstance(stream, Labelled):
                setattr(sys, name, stream.stream)

    # ------------------------------------------------------------------ the end of one is the end of all

    def is_of_another(self) -> bool:
        """Whether what has ended this rank is the consequence of another one's end: asked in an exception."""
        hub = hubs.current()
        return hub is not None and hub.is_over.wait(_COLLATERAL)  # the news may be on its way

    def chosen(self, line: str) -> str:
        """What is printed on this rank, which failed by itself and for which `line` was written."""
        hub = hubs.current()
        return line if hub is None else hub.fail(line)

    def last_line(self) -> str:
        """That of the rank that has failed, or is gone; once, and on one rank."""
        hub = hubs.current()
        if hub is None or not _once.acquire(blocking=False):
            return ""
        if hub.lost is None:
            return hub.told_by_others() if hub.rank == 0 else ""
        gone = int(re.findall(r"\d+", hub.lost)[0])
        if hub.rank != (1 if gone == 0 else 0):
            return ""
        if self.place.job is None or not self.fits:
            return f"{hub.lost}; all ranks end"
        if not lives.has_progressed(self.folder, self.place.job, self.place.restart):
            return f"{hub.lost}; all ranks end; the job is not requeued, no step was saved since it started"
        print(f"{hub.lost}; all ranks end, and the job goes back into the queue", file=sys.stderr, flush=True)
        self.release()
        return requeue.requeue() or ""

    def _end_by_force(self) -> None:
        """For a main thread that waits where no error can reach it."""
        hub = hubs.current()
        time.sleep(_UNWINDING)
        for _ in range(int(_SAVING)):
            if hub is None or not hub.is_saving:
                break
            time.sleep(1.0)
        if hubs.current() is None:
            return
        line = self.last_line()
        if line:
            print(f"lightning: error: {line}", file=sys.stderr, flush=True)
        self.release()
        os._exit(1)


class Labelled(io.TextIOBase):
    """A stream whose lines begin with the rank.

    Args:
        stream: that is written to.
        label: of every line.
        has_bars: whether bars may be drawn on it, if it is a terminal: those of several ranks would mix.
    """

    def __init__(self, stream: Any, label: str, has_bars: bool = True) -> None:
        self.stream, self.label, self.has_bars = stream, label, has_bars
        self._at_start = True

    def write(self, text: str) -> int:
        marked = re.sub(r"(?m)^(?=.)", self.label, text)
        if not self._at_start and marked.startswith(self.label):
            marked = marked.removeprefix(self.label)
        if text:
            self._at_start = text.endswith("\n")
        self.stream.write(marked)
        return len(text)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(self.stream.encoding)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.has_bars and bool(self.stream.isatty())

    def fileno(self) -> int:
        return int(self.stream.fileno())


def put_back(is_preempted: bool, exit_code: int) -> NoReturn:
    """Requeues this job, whose checkpoint is saved and of which all is said, and ends the process.

    Where that fails in a job that is being preempted, SLURM requeues it itself, if it is alive when its time is over.
    """
    reason = requeue.requeue()
    if reason is None:
        sys.exit(0)
    print(reason, file=sys.stderr, flush=True)
    if is_preempted:
        print("waiting until SLURM puts the preempted job back", file=sys.stderr, flush=True)
        time.sleep(3600.0)
    sys.exit(exit_code)


def _token(place: Place) -> str:
    step = os.environ.get("SLURM_STEP_ID") if place.launcher == "srun" else None
    return hubs.token(place.job, step, place.restart)


def address(place: Place) -> str:
    """Of rank 0's node."""
    given = os.environ.get("MASTER_ADDR")
    if given:
        return given
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST") or "127.0.0.1"
    return first_node(nodes)


def first_node(nodes: str) -> str:
    """`gpu[007-009,011],cpu1` as gpu007."""
    head = re.match(r"([^,\[]*)(?:\[(\w+)[^\]]*\])?([^,\[]*)", nodes)
    return nodes if head is None else f"{head[1]}{head[2] or ''}{head[3]}"


def folder_of(merged: dict[str, Any], rest: list[str]) -> Path:
    """The run's, as the parser will understand it, before there is one."""
    found = {"runs": merged.get("runs", "runs"), "name": merged.get("name", "run")}
    for position, argument in enumerate(rest):
        option, equals, value = argument.partition("=")
        key = option.removeprefix("--")
        if key in found and option.startswith("--"):
            found[key] = value if equals else next(iter(rest[position + 1 :]), "")
    return Path(str(found["runs"])) / str(found["name"])


_session: Session | None = None


def session() -> Session | None:
    return _session


def open_session(place: Place, folder: Path, fits: bool, labelled: Sequence[str] = ("stdout", "stderr")) -> Session:
    """Begins it, too."""
    global _session
    _session = Session(place, folder, fits, labelled)
    _session.begin()
    return _session


def close_session() -> None:
    global _session
    if _session is not None:
        _session.close()
    _session = None
