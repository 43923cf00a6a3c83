"""Several processes that do one evaluation together: which of them this is, and how they agree.

    srun lightning sample --ckpt_path X ...           the tasks of the step are the ranks
    lightning sample --ckpt_path X --devices 8 ...    this command starts eight of itself, and is none of them

Each rank computes its share of the rows (cli/parts.py) and writes it into files; rank 0 puts them together. Nothing is
sent between them but what rank 0 has decided, over the line of rundir/hub.py, and no group of torch's is formed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from ggm_lightning.cli import launcher, together
from ggm_lightning.cli.launcher import Mismatch, Place
from ggm_lightning.rundir import hub as hubs
from ggm_lightning.rundir.hub import Apart, Hub

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

DIVIDED = ("sample", "evaluate", "sweep")  # commands whose work is divided
OPTION = "--devices"
HELP = "so many processes on this machine divide the work, each with a GPU of its own; under srun its tasks do"
LOOK = 0.2  # seconds between two looks for a file
_PATIENCE = 1800.0  # seconds without news of a rank that is alive; GGM_PART_SECONDS. A dead one is known at once
_UNWINDING = 30.0  # seconds that the processes have to end by themselves once one of them has failed


@dataclass
class Ranks:
    """This process among those that work on the same command.

    Attributes:
        rank: 0 puts the parts together, and alone says and writes results.
        count: how many there are.
        local_rank: among those of this node, which is the number of its GPU.
        hub: the line to the others, None where there are none.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    hub: Hub | None = None
    agreements: int = 0  # so far: all ranks come to the same ones, in the same order

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def agree(self, decide: Callable[[], Any]) -> Any:
        """What `decide` returns on rank 0, plain JSON, on all ranks. It is called when all have come so far.

        Raises Apart where a rank does not come, or is gone.
        """
        if self.hub is None:
            return decide()
        self.agreements += 1
        name = f"agreement {self.agreements}"
        if not self.is_first:
            self.hub.arrive(name)
            return self.hub.hear(name)
        seconds = patience()
        missing = self.hub.gather(name, seconds)
        if missing:
            self.give_up(missing[0], f"has not come to share the work within {seconds:.0f} s")
        decision = decide()
        self.hub.tell(name, decision)
        return decision

    def give_up(self, rank: int, what: str) -> None:
        """Apart, with the line that names the rank; all others end too."""
        node = ""
        if self.hub is not None:
            node = f" on {self.hub.node_of(rank)}"
            self.hub.end_all()
        raise Apart(
            f"rank {rank}{node} {what}; look at it, and give the same command again: what is finished is kept "
            "(GGM_PART_SECONDS is the time limit)"
        )

    def check_alive(self) -> None:
        """Apart where one of the ranks is gone: whoever waits for a file asks."""
        if self.hub is not None and self.hub.is_over.is_set():
            raise Apart("")


def patience() -> float:
    """Seconds."""
    return float(os.environ.get("GGM_PART_SECONDS") or _PATIENCE)


_current: ContextVar[Ranks | None] = ContextVar("ranks", default=None)


def current() -> Ranks:
    return _current.get() or Ranks()


@contextmanager
def working_as(ranks: Ranks) -> Iterator[Ranks]:
    """In this thread."""
    token = _current.set(ranks)
    try:
        yield ranks
    finally:
        _current.reset(token)


@contextmanager
def alone() -> Iterator[None]:
    """What is computed here, this rank does by itself: nothing in it is divided or agreed."""
    with working_as(replace(current(), rank=0, count=1, hub=None)):
        yield


def take_own_gpu() -> None:
    """`cuda` then means this rank's, where it sees several; a launcher may have hidden the others'."""
    import torch

    if torch.cuda.is_available() and torch.cuda.device_count() > 1 and current().count > 1:
        torch.cuda.set_device(current().local_rank % torch.cuda.device_count())


def first_alone(work: Callable[[], None]) -> None:
    """Rank 0 does it, and then the others, which find what it has written."""
    here = current()
    if here.is_first:
        work()
    here.agree(lambda: True)
    if not here.is_first:
        work()


def see(is_there: Callable[[], bool], what: str) -> None:
    """Waits until a file that another rank has written is seen here too. Raises Apart where it is not, in time."""
    here = current()
    deadline = time.monotonic() + patience()
    while not is_there():
        here.check_alive()
        if time.monotonic() > deadline:
            raise Apart(
                f"rank {here.rank} does not see what another rank has written ({what}); name a folder by "
                "--out that all nodes share"
            )
        time.sleep(LOOK)


# ------------------------------------------------------------------ how they come to be


def begin(place: Place, args: Sequence[str]) -> list[str]:
    """The arguments behind the command without --devices; the ranks have then found each other. Where this command is
    to start them it does, and does not return.

    Args:
        place: of this process.
        args: the command and its arguments.

    Raises:
        Mismatch: the command cannot be divided; --devices and the launcher mean different numbers.
        Apart: the ranks do not find each other.
    """
    command = args[0]
    if command not in DIVIDED or place.launcher == "mpirun":
        launcher.refuse_several(place, command)
        return list(args[1:])
    number, rest = _take_devices(args[1:])
    if place.is_together:
        here = place.per_node[min(place.node_rank, len(place.per_node) - 1)]
        if number not in (None, here):
            raise Mismatch(
                f"{place.launcher} started {here} processes on this node, but {OPTION} is {number}; leave it out"
            )
        together.open_session(place, Path(), fits=False, labelled=("stderr",))
        _current.set(Ranks(place.rank, place.ranks, place.local_rank, hubs.current()))
    elif number is not None and number > 1 and not {"-h", "--help"} & set(rest):
        sys.exit(_start(number, args))
    return rest


def end() -> None:
    _current.set(None)


def add_option(parser: ArgumentParser) -> None:
    """For `--help`: it is taken out before, by `begin`."""
    parser.add_argument(OPTION, type=int, default=1, help=HELP)


def without_option(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if f"--{name}" != OPTION}


def _take_devices(args: Sequence[str]) -> tuple[int | None, list[str]]:
    """(the number, the other arguments)."""
    rest: list[str] = []
    given = None
    waiting = iter(args)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if name != OPTION:
            rest.append(argument)
            continue
        given = value if equals else next(waiting, "")
    if given is None:
        return None, rest
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"{OPTION} is {given!r}; give the number of processes, at least 1")
    return int(given), rest


def _start(number: int, args: Sequence[str]) -> int:
    """Runs the command as so many ranks; the exit code of all."""
    shared = dict(os.environ)
    # together they have the cores that one would have
    shared.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
    shared |= {"TORCHELASTIC_RUN_ID": uuid.uuid4().hex, "TORCHELASTIC_RESTART_COUNT": "0", "GROUP_RANK": "0"}
    shared |= {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, "-m", "ggm_lightning", *args]
    children: list[subprocess.Popen[bytes]] = []

    def stop(signal_number: int, frame: FrameType | None) -> None:
        _terminate(children)
        sys.exit(128 + signal_number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        for rank in range(number):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            children.append(subprocess.Popen(command, env=shared | own))
        return _exit_code(children)
    except KeyboardInterrupt:
        for child in children:  # the terminal has told them, too
            child.wait()
        return 130
    finally:
        _terminate(children)
        signal.signal(signal.SIGTERM, before)


def _exit_code(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Of the first one that has failed by itself: 1 is also that of a rank which ends because another one has. Those
    that do not end by themselves are ended."""
    deadline = None
    while any(child.poll() is None for child in children):
        if deadline is None and any(child.poll() for child in children):
            deadline = time.monotonic() + _UNWINDING
        if deadline is not None and time.monotonic() > deadline:
            _terminate(children)
        time.sleep(0.05)
    failed = [child.returncode for child in children if child.returncode != 0]
    code = next((code for code in failed if code != 1), 1 if failed else 0)
    return code if code >= 0 else 128 - code


def _terminate(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        if child.poll() is None:
            child.terminate()
