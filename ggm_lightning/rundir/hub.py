"""The ranks that srun or torchrun has started know each other: each holds a line to rank 0, from the start to the end.

Over it they meet within a time limit, rank 0 tells what it has decided, and a rank that dies or stops answering is
known by number and node at once, while torch's groups would wait for it until their own time-out. Plain sockets of the
hosts, and nothing heavy is imported: they meet before torch is loaded. Messages are lines of JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

_BEAT = 5.0  # seconds between two signs of life
_PORTS = range(10_000, 32_000)  # below those that systems hand out by themselves
_TRIES = 16
_CALLS, _SERVED = 5.0, 1.0  # seconds that a rank waits for rank 0's answer, and rank 0 for a caller's words
_LAST_WORDS = 2.0  # for an error that several ranks raise at once, and which one line is to say


class Apart(RuntimeError):
    """The ranks have not found each other, or one of them is gone; the text is the line that says so, and is empty on
    ranks that leave the speaking to another one."""


class Hub:
    """One rank's line to the others.

    Args:
        rank, ranks: of this process.
        node: its name.
        token: the same for all ranks of this start, and for no others.
        address: of rank 0's node.
        silence: seconds without a sign of life after which a rank counts as gone; long while libraries are loaded.
    """

    def __init__(self, rank: int, ranks: int, node: str, token: str, address: str, silence: float = 600.0) -> None:
        self.rank, self.ranks, self.node, self.token, self.address = rank, ranks, node, token, address
        self.silence = silence
        self.lost: str | None = None  # who is gone, once one is
        self.is_over = threading.Event()  # some rank has failed: nobody can go on
        self.is_saving = False
        self.when_over: Callable[[], None] | None = None  # called once, from a thread
        self._nodes = {rank: node}
        self._lines: dict[int, socket.socket] = {}  # rank 0: to each; the others: to rank 0
        self._said_bye: set[int] = set()
        self._heard: dict[int, float] = {}
        self._told: dict[str, Any] = {}
        self._arrived: dict[str, set[int]] = {}
        self._failed: queue.Queue[str] = queue.Queue()
        self._change = threading.Condition()
        self._writing = threading.Lock()
        self._closing = False

    # ------------------------------------------------------------------ meeting

    def meet(self, seconds: float) -> None:
        """Raises Apart where not all ranks are there after so many seconds."""
        deadline = time.monotonic() + seconds
        if self.rank == 0:
            self._gather(deadline, seconds)
        else:
            self._join(deadline, seconds)
        now = time.monotonic()
        self._heard = dict.fromkeys(self._lines, now)
        for rank in self._lines:
            threading.Thread(target=self._listen, args=(rank,), name=f"line to rank {rank}", daemon=True).start()
        threading.Thread(target=self._keep_beating, name="signs of life", daemon=True).start()

    def _gather(self, deadline: float, seconds: float) -> None:
        with _first_free(ports(self.token)) as door:
            while True:
                self._let_all_in(door, deadline, seconds)
                gone = [rank for rank, line in self._lines.items() if not _was_sent(line, {"all": self._nodes})]
                if not gone:
                    return
                for rank in gone:  # it may call again
                    self._lines.pop(rank).close()
                    del self._nodes[rank]

    def _let_all_in(self, door: socket.socket, deadline: float, seconds: float) -> None:
        while len(self._nodes) < self.ranks:
            door.settimeout(max(0.05, min(1.0, deadline - time.monotonic())))
            with contextlib.suppress(TimeoutError):
                self._let_in(door.accept()[0])
            if len(self._nodes) < self.ranks and time.monotonic() > deadline:
                self._give_up(seconds)

    def _give_up(self, seconds: float) -> None:
        for line in self._lines.values():
            line.close()
        missing = [rank for rank in range(self.ranks) if rank not in self._nodes]
        named = ", ".join(str(rank) for rank in missing[:8])
        raise Apart(
            f"of {self.ranks} ranks {len(missing)} have not come to rank 0 on {self.node} within {seconds:.0f} s (rank "
            f"{named}); look at their nodes, and whether a firewall stands between"
        )

    def _write(self, rank: int, message: dict[str, Any]) -> None:
        """Whole lines, from whichever thread. A line that is broken is noticed where it is listened to."""
        with contextlib.suppress(OSError, KeyError), self._writing:
            _send(self._lines[rank], message)

    def _let_in(self, line: socket.socket) -> None:
        """A rank that has answered: one that had given up waiting has closed its line, and calls again."""
        line.settimeout(_SERVED)  # whoever says nothing keeps the others waiting no longer
        try:
            hello = json.loads(_line_of(line) or "{}")
            if hello.get("token") != self.token:
                raise ValueError("somebody else's")
            _send(line, {"token": self.token})
            if not json.loads(_line_of(line) or "{}").get("here"):
                raise ValueError("has gone")
        except (OSError, ValueError, AttributeError):
            line.close()
            return
        line.settimeout(None)
        self._lines[int(hello["rank"])] = line
        self._nodes[int(hello["rank"])] = str(hello["node"])

    def _join(self, deadline: float, seconds: float) -> None:
        while time.monotonic() < deadline:
            for port in ports(self.token):
                line = self._called(port)
                if line is None:
                    continue
                line.settimeout(max(1.0, deadline - time.monotonic() + 5.0))
                with contextlib.suppress(OSError, ValueError, KeyError):
                    told = json.loads(_line_of(line) or "{}")
                    self._nodes = {int(rank): str(node) for rank, node in told["all"].items()}
                    line.settimeout(None)
                    self._lines[0] = line
                    return
                raise Apart("")  # rank 0 says who is missing
            time.sleep(0.2)
        raise Apart(
            f"rank {self.rank} on {self.node} cannot reach rank 0 at {self.address} within {seconds:.0f} s; look at "
            "its node, and whether a firewall stands between (MASTER_ADDR names another address of it)"
        )

    def _called(self, port: int) -> socket.socket | None:
        """A line to rank 0, if it is rank 0 of this start who answers there."""
        line = None
        try:
            line = socket.create_connection((self.address, port), timeout=_CALLS)
            _send(line, {"token": self.token, "rank": self.rank, "node": self.node})
            if json.loads(_line_of(line) or "{}").get("token") == self.token:
                _send(line, {"here": True})
                return line
        except (OSError, ValueError, AttributeError):
            pass
        if line is not None:
            line.close()
        return None

    # ------------------------------------------------------------------ telling

    def tell(self, name: str, value: Any) -> None:
        """Rank 0 to all others."""
        for rank in self._lines:
            self._write(rank, {"tell": name, "value": value})

    def hear(self, name: str) -> Any:
        """What rank 0 tells of that name, however long that takes. Raises Apart when rank 0 is gone."""
        with self._change:
            self._change.wait_for(lambda: name in self._told or self.is_over.is_set() or 0 in self._said_bye)
            if name not in self._told:
                raise Apart("")
            return self._told.pop(name)

    def arrive(self, name: str) -> None:
        """To rank 0: this rank has come to the place of that name."""
        self._write(0, {"arrived": name})

    def gather(self, name: str, seconds: float) -> list[int]:
        """Rank 0: waits until all others have come to the place of that name; those that have not within so many
        seconds. Raises Apart when a rank is gone, or has ended without coming."""
        others = set(range(1, self.ranks))

        def ended() -> set[int]:
            return self._said_bye - self._arrived.get(name, set())

        with self._change:
            self._change.wait_for(
                lambda: self._arrived.get(name) == others or self.is_over.is_set() or ended(), seconds
            )
            left = ended()
            if not left and not self.is_over.is_set():
                return sorted(others - self._arrived.pop(name, set()))
        if left:
            self._miss(min(left), "has ended")
        raise Apart("")

    def has_left(self, rank: int) -> bool:
        """Whether it has ended by itself, whatever it had still to do."""
        return rank in self._said_bye

    def node_of(self, rank: int) -> str:
        return self._nodes.get(rank, "?")

    def fail(self, line: str) -> str:
        """This rank cannot go on, and `line` says why: ends all of them. The line that is to be printed here, or "".

        Where several ranks fail at once, often for one reason, rank 0 chooses one line and prints it.
        """
        if self.rank != 0:
            said = f"rank {self.rank} on {self.node}: {line}"
            self._write(0, {"failed": said})
            return "" if self.is_over.wait(_LAST_WORDS + 3) else said
        self.end_all()
        return line

    def told_by_others(self) -> str:
        """Rank 0: what a rank that failed has said, or that one is gone; "" where nothing is known."""
        with contextlib.suppress(queue.Empty):
            return self._failed.get(timeout=0 if self.lost else _LAST_WORDS)
        return self.lost or ""

    def leave(self) -> None:
        """This rank ends, and is not to be missed."""
        self._closing = True
        for rank in self._lines:
            self._write(rank, {"bye": self.rank})

    # ------------------------------------------------------------------ listening

    def _listen(self, rank: int) -> None:
        with contextlib.suppress(OSError, ValueError), self._lines[rank].makefile("r", encoding="utf-8") as lines:
            for text in lines:
                self._heard[rank] = time.monotonic()
                self._take(rank, json.loads(text))
        if rank not in self._said_bye:
            self._miss(rank, "has died")

    def _take(self, rank: int, message: dict[str, Any]) -> None:
        if "tell" in message:
            with self._change:
                self._told[message["tell"]] = message["value"]
                self._change.notify_all()
        if "arrived" in message:
            with self._change:
                self._arrived.setdefault(message["arrived"], set()).add(rank)
                self._change.notify_all()
        if "bye" in message:
            with self._change:
                self._said_bye.add(rank)
                self._change.notify_all()
        if "failed" in message:
            self._said_bye.add(rank)
            self._failed.put(message["failed"])
            self.end_all()
        if "over" in message:
            self._said_bye.add(rank)
            self._finish()

    def _miss(self, rank: int, what: str) -> None:
        if self._closing or self.is_over.is_set():
            return
        self.lost = f"rank {rank} on {self._nodes.get(rank, '?')} {what}"
        self.end_all()

    def end_all(self) -> None:
        if self.rank == 0:
            for rank in self._lines:
                self._write(rank, {"over": True})
        self._finish()

    def _finish(self) -> None:
        with self._change:
            first = not self.is_over.is_set()
            self.is_over.set()
            self._change.notify_all()
        if first and self.when_over is not None and not self._closing:
            threading.Thread(target=self.when_over, name="end of all ranks", daemon=True).start()

    def _keep_beating(self) -> None:
        before = time.monotonic()
        while not self._closing and not self.is_over.is_set():
            time.sleep(min(_BEAT, self.silence / 4))
            now = time.monotonic()
            if now - before > 2 * _BEAT + 1:  # this process itself has stood still (a suspended job)
                self._heard = dict.fromkeys(self._heard, now)
            before = now
            for rank in self._lines:
                self._write(rank, {"beat": 1})
                if rank not in self._said_bye and now - self._heard[rank] > self.silence:
                    self._miss(rank, f"has not answered for {self.silence:.0f} s")


def ports(token: str) -> list[int]:
    """Where rank 0 may be waiting: not one port made of the job's number, which another job's may equal."""
    found = []
    for number in range(_TRIES):
        digest = hashlib.sha256(f"{token}/{number}".encode()).digest()
        found.append(_PORTS[int.from_bytes(digest[:4], "big") % len(_PORTS)])
    return found


def _first_free(candidates: list[int]) -> socket.socket:
    for port in candidates:
        door = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind(("", port))
            door.listen(1024)
        except OSError:
            door.close()
            continue
        return door
    raise Apart(f"none of the ports {', '.join(map(str, candidates))} is free on rank 0's node; end what holds them")


def free_port() -> int:
    """For torch's own meeting, chosen just before it."""
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


def _send(line: socket.socket, message: dict[str, Any]) -> None:
    line.sendall((json.dumps(message) + "\n").encode())


def _was_sent(line: socket.socket, message: dict[str, Any]) -> bool:
    try:
        _send(line, message)
    except OSError:
        return False
    return True


def _line_of(line: socket.socket) -> str:
    """Up to the end of the line and no further: what follows is read by another."""
    found = bytearray()
    while len(found) < 2**20:
        byte = line.recv(1)
        if not byte or byte == b"\n":
            break
        found += byte
    return found.decode()


_current: Hub | None = None


def current() -> Hub | None:
    """That of this process, None where its ranks were not started by srun or torchrun."""
    return _current


def use(hub: Hub | None) -> None:
    global _current
    _current = hub


def token(job: str | None, step: str | None, restart: int) -> str:
    """The same for all ranks of a start: of SLURM's numbers, or of what torchrun says."""
    told = (os.environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"))
    parts = (job, step, restart, os.getuid()) if step is not None else (*told, os.getuid())
    return " ".join(str(part) for part in parts)
