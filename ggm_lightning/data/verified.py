"""Which blocks of a folder's shards have been compared with their checksums, remembered beside the header.

All processes of a node share what is remembered, and those that start later go on with it: a set is verified once for
each node and preparation, and not by each rank, each loader process and each resumed run for itself. When the date, the
size or the place on the disk of a shard has changed since then, all of them are compared again.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

_DIGEST = 32  # bytes of a sha256, before one byte for each block
_SETTLED = 2.0  # seconds: what was written later than this may change once more without getting another date


def remembered(folder: Path, seal: str, names: list[str], blocks: int) -> UInt8[np.ndarray, " blocks"]:
    """One byte per block of all files in their order, 1 where it was compared; to be written to. Where the folder
    is another user's or cannot be written, or its shards are too new to be told by their dates, the bytes are this
    process's own, and nothing is left on the disk.

    Args:
        seal: of the header, whose checksums they were compared with.
    """
    own = np.zeros(blocks, dtype=np.uint8)
    if folder.stat().st_uid != os.geteuid():
        return own
    files = [(name, (folder / name).stat()) for name in names]
    if not files or time.time() - max(found.st_mtime for _, found in files) < _SETTLED:
        return own
    dates = [(name, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino) for name, found in files]
    digest = hashlib.sha256(repr((seal, dates)).encode()).digest()
    path = folder / f".verified-{re.sub('[^A-Za-z0-9.-]', '_', socket.gethostname())}"
    try:
        if not _fits(path, digest, blocks):
            _begin(path, digest, blocks)
        return np.memmap(path, dtype=np.uint8, mode="r+", offset=_DIGEST, shape=(blocks,))
    except (OSError, ValueError):  # a read-only or full disk: each process then compares for itself
        return own


def _fits(path: Path, digest: bytes, blocks: int) -> bool:
    try:
        with open(path, "rb") as handle:
            return handle.read(_DIGEST) == digest and path.stat().st_size == _DIGEST + blocks
    except FileNotFoundError:
        return False


def _begin(path: Path, digest: bytes, blocks: int) -> None:
    """A new file in which nothing is compared yet; another process's, if it was faster."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as handle:
            handle.write(digest + bytes(blocks))  # written, not left as a hole: a full disk is then found here
            handle.flush()
            os.fsync(handle.fileno())
        if path.exists():  # of another preparation, or of shards that have changed
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
    except FileExistsError:
        if not _fits(path, digest, blocks):
            raise
    finally:
        temporary.unlink(missing_ok=True)
