"""One process at a time in a folder, also where several machines share it.

`flock` holds on one machine alone on many clusters (Lustre with localflock), or is missing (Lustre without -o flock).
That of several processes one alone creates a new file holds on Lustre and on NFS. The holder touches its file every few
seconds. A file whose holder is gone is taken over: at once where the holder was a process of this machine or an earlier
life of this SLURM job, else after `_SILENCE` seconds without a touch, by the clock of the file system.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAME = ".in_use"
_TOUCH = 10.0  # seconds
_SILENCE = 120.0
_POLL = 0.5


class Held(ValueError):
    """Another process has the folder.

    Attributes:
        holder: in words: "process 17 on n1 (SLURM job 4)".
    """

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


class FolderLock:
    """The file `.in_use` of a folder.

    Args:
        folder: is there already.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / NAME
        self._us = {**_this_process(), "token": os.urandom(8).hex()}
        self._process: int | None = None  # that holds it: a forked one does not
        self._done = threading.Event()

    def take(self) -> None:
        """Raises Held where another process has it; OSError where the folder cannot be written."""
        while not self._created():
            holder = _read(self.path)
            if holder is None:
                continue  # released in between
            if not self._is_gone(holder):
                raise Held(_words(holder))
            if self._taken_over(holder):
                break
        self._process = os.getpid()
        self._done.clear()
        threading.Thread(target=self._keep_touching, name="folder lock", daemon=True).start()

    def wait(self, say: Callable[[str], None], seconds: float = float("inf")) -> None:
        """`take`, however long it is held (up to `seconds`); `say` is told once by whom."""
        deadline, told = time.monotonic() + seconds, False
        while True:
            try:
                return self.take()
            except Held as held:
                if time.monotonic() >= deadline:
                    raise
                if not told:
                    say(held.holder)
                told = True
            time.sleep(_POLL)

    def release(self) -> None:
        """Of the process that has taken it; nothing where another one has it by now."""
        if self._process != os.getpid():
            return
        self._process = None
        self._done.set()
        holder = _read(self.path)
        if holder is not None and holder.get("token") == self._us["token"]:
            self.path.unlink(missing_ok=True)

    def _created(self) -> bool:
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(self._us, file)
        return True

    def _is_gone(self, holder: dict[str, Any]) -> bool:
        if holder.get("machine") == self._us["machine"]:
            return _started(holder.get("process")) != holder.get("started")
        if holder.get("job") is not None and holder.get("job") == self._us["job"]:
            # SLURM starts a job's next life when nothing of the one before is left
            return int(holder.get("restart", 0)) < int(self._us["restart"])
        return self._silence(self.path) > _SILENCE

    def _taken_over(self, holder: dict[str, Any]) -> bool:
        """One at a time replaces the file of a holder that is gone, so that nobody replaces that of its successor."""
        claim = self.path.with_name(f"{NAME}.claim")
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            if self._silence(claim) > _SILENCE:  # whose process died here
                claim.unlink(missing_ok=True)
            time.sleep(_POLL)
            return False
        try:
            if _read(self.path) != holder:
                return False
            new = self.path.with_name(f"{NAME}.{self._us['token']}")
            new.write_text(json.dumps(self._us), encoding="utf-8")
            os.replace(new, self.path)
            return True
        finally:
            claim.unlink(missing_ok=True)

    def _silence(self, path: Path) -> float:
        """Seconds since it was touched; both times are the file system's."""
        probe = self.path.with_name(f"{NAME}.{self._us['token']}")
        try:
            probe.write_bytes(b"x")
            now = probe.stat().st_mtime
            with path.open("rb") as file:  # opening asks the server anew
                return now - os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return 0.0
        finally:
            probe.unlink(missing_ok=True)

    def _keep_touching(self) -> None:
        while not self._done.wait(_TOUCH):
            with contextlib.suppress(OSError):
                os.utime(self.path)


def _this_process() -> dict[str, Any]:
    return {
        "process": os.getpid(),
        "started": _started(os.getpid()),
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "machine": _machine(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restart": os.environ.get("SLURM_RESTART_COUNT") or "0",
    }


def _machine() -> str:
    """Where a process number means one process: of two containers each counts for itself."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(process: Any) -> str | None:
    """When a process of this machine started, so that its number is not taken for another's; None: there is none."""
    try:
        stat = Path(f"/proc/{int(process)}/stat").read_text()
    except (OSError, TypeError, ValueError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields[19]


def _read(path: Path) -> dict[str, Any] | None:
    """Who holds it; None where there is no such file. Just created, it is empty for a moment."""
    for _ in range(20):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            time.sleep(0.05)
            continue
        return found if isinstance(found, dict) else {}
    return {}


def _words(holder: dict[str, Any]) -> str:
    job = f" (SLURM job {holder['job']})" if holder.get("job") else ""
    return f"process {holder.get('process', '?')} on {holder.get('host', 'another machine')}{job}"
