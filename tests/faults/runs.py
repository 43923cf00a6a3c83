"""Whole runs in processes of their own that can be killed at any moment, cheap enough to do it dozens of times.

A fork server has imported everything once; a run starts in milliseconds. The run tells where it is through a pipe: one
byte per micro-batch, validation batch and save begun, so that a test can strike at a random one of them, from outside.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import socket
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MARKOV = ROOT / "experiments" / "md4_markov.yaml"
PRELOAD = ["ggm_lightning.cli.fit", "ggm_lightning.models.md4", "ggm_lightning.networks.transformer"]
TINY = [
    "--model.network.init_args.feature_dim=4",
    "--model.network.init_args.num_layers=1",
    "--model.network.init_args.dropout=0.1",
    "--data.init_args.num_train=50",
    "--data.init_args.num_val=12",
    "--data.init_args.length=11",
    "--data.init_args.global_batch_size=8",
    "--data.init_args.eval_batch_size=4",
    "--trainer.log_every_n_steps=1",
]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([*PRELOAD, "tests.faults.runs"])


def _told(owner: type, name: str, mark: bytes, pipe: int) -> None:
    """Wraps a method so that each call first writes `mark` to the pipe."""
    original = getattr(owner, name)

    def method(self: object, *args: object, **kwargs: object) -> object:
        os.write(pipe, mark)
        return original(self, *args, **kwargs)

    setattr(owner, name, method)


def _weighed(owner: type, file: Path) -> None:
    """Every 20th training step notes the process's own memory: a line "step kB"."""
    original = owner.training_step  # type: ignore[attr-defined]
    log = file.open("w", buffering=1)

    def method(self: Any, *args: Any) -> Any:
        if self.global_step % 20 == 0:
            gc.collect()
            status = Path("/proc/self/status").read_text()
            anonymous = next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))
            log.write(f"{self.global_step} {anonymous}\n")
        return original(self, *args)

    owner.training_step = method  # type: ignore[attr-defined]


def _child(arguments: list[str], environment: dict[str, str], pipe: Connection, log: str) -> None:
    os.setsid()  # a group of its own, so that the loader's workers are killed with the run
    multiprocessing.set_start_method("fork", force=True)  # the loader's workers, as in a run from the shell
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import torch

    from ggm_lightning.cli.main import main
    from ggm_lightning.models.base import Family
    from ggm_lightning.rundir.checkpoint import AtomicCheckpointIO

    torch.set_num_threads(1)
    if "MEMORY_LOG" in environment:
        _weighed(Family, Path(environment["MEMORY_LOG"]))
    _told(Family, "training_step", b"t", pipe.fileno())
    _told(Family, "validation_step", b"v", pipe.fileno())
    _told(AtomicCheckpointIO, "save_checkpoint", b"s", pipe.fileno())
    own_data = "--config" in arguments
    tiny = [option for option in TINY if not (own_data and option.startswith("--data"))]
    main(["fit", "--config", str(MARKOV), *tiny, *arguments])


@dataclass
class Run:
    """One start of `lightning fit` (on one or two ranks). `marks` collects what rank zero has told."""

    arguments: list[str]
    log: Path
    ranks: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[BaseProcess] = field(default_factory=list)
    marks: str = ""

    def start(self) -> Run:
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(self.ranks)}
        for rank in range(self.ranks):
            ours, theirs = CONTEXT.Pipe(duplex=False)
            environment = {**rendezvous, "LOCAL_RANK": str(rank), "NODE_RANK": "0"} if self.ranks > 1 else {}
            environment = {**environment, **self.environment}
            process = CONTEXT.Process(target=_child, args=(self.arguments, environment, theirs, str(self.log)))
            process.start()
            theirs.close()
            self.processes.append(process)
            if rank == 0:
                self.pipe = ours
            else:
                self.others = ours  # kept open, read never: the pipe holds 64 kB of marks
        return self

    def follow(self, marks: int | None = None, timeout: float = 120.0) -> bool:
        """Reads until so many marks have been told (True) or the run has ended (False)."""
        deadline = time.monotonic() + timeout
        while marks is None or len(self.marks) < marks:
            if not wait([self.pipe], max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"the run hangs after {self.marks[-20:]!r}: {self.log.read_text()[-2000:]}")
            told = os.read(self.pipe.fileno(), 1)
            if not told:
                return False
            self.marks += told.decode()
        return True

    def signal(self, signum: int, ranks: list[int] | None = None) -> None:
        for rank in ranks if ranks is not None else range(self.ranks):
            if self.processes[rank].is_alive():
                send = os.killpg if signum == signal.SIGKILL else os.kill
                send(self.processes[rank].pid or 0, signum)

    def signal_group(self, signum: int) -> None:
        """To the run and its loader's workers, as terminals and schedulers do."""
        os.killpg(self.processes[0].pid or 0, signum)

    def end(self, timeout: float = 120.0) -> list[int | None]:
        """Exit codes of the ranks; negative ones are signals."""
        self.follow(None, timeout)
        for process in self.processes:
            process.join(timeout)
        return [process.exitcode for process in self.processes]

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
