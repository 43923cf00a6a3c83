"""Checksums of shard files, block by block: nothing is read unchecked, and no set is read whole before training.

A block (1 MiB; 18,000 checksums for 18 GB) is compared with its CRC-32 when a window first touches it: of tokens once
for each node and preparation (data/verified.py), of pictures once in each process. That costs about a millisecond per
block, and nothing more once all are seen.
"""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from ggm_lightning.data.rows import BadData

BLOCK_BYTES = 2**20


class FileDigest:
    """sha256 of a file and CRC-32 of each of its blocks, while its bytes are written."""

    def __init__(self, block_bytes: int) -> None:
        self.block_bytes, self.room = block_bytes, 0
        self.sha256, self.crcs = hashlib.sha256(), list[int]()

    def update(self, raw: bytes) -> None:
        self.sha256.update(raw)
        rest = memoryview(raw)
        while len(rest):
            if self.room == 0:
                self.crcs.append(0)
                self.room = self.block_bytes
            part, rest = rest[: self.room], rest[self.room :]
            self.crcs[-1] = zlib.crc32(part, self.crcs[-1])
            self.room -= len(part)

    def to_dict(self) -> dict[str, str]:
        """Plain JSON; the blocks' checksums are eight hexadecimal digits each, one after the other."""
        return {"sha256": self.sha256.hexdigest(), "crc32": "".join(f"{crc:08x}" for crc in self.crcs)}


def check_size(path: Path, expected: int) -> None:
    """ValueError naming file and bytes unless it has exactly the expected size."""
    found = path.stat().st_size if path.is_file() else None
    if found != expected:
        has = "the file is missing" if found is None else f"found {found}"
        raise BadData(f"{path}: expected {expected} bytes, {has}; delete {path.parent} and prepare it again")


def block_counts(files: list[dict[str, Any]], itemsize: int, block_bytes: int) -> Int64[np.ndarray, " files"]:
    """Blocks of each file."""
    tokens = np.array([file["tokens"] for file in files], dtype=np.int64)
    return -(-tokens * itemsize // block_bytes)


class SplitBlocks:
    """Where the tokens of a split lie, and which blocks of its files have been compared.

    Args:
        folder, files: the split's entries in the header, in order.
        itemsize: bytes of a token. block_bytes: a multiple of it.
        seen: a byte for each block, 1 where it was compared; other processes may write there, too. None: own ones.
    """

    def __init__(
        self,
        folder: Path,
        files: list[dict[str, Any]],
        itemsize: int,
        block_bytes: int,
        seen: UInt8[np.ndarray, " blocks"] | None = None,
    ) -> None:
        self.folder, self.files, self.itemsize, self.block_bytes = folder, files, itemsize, block_bytes
        tokens = np.array([file["tokens"] for file in files], dtype=np.int64)
        self.ends = np.cumsum(tokens)
        self.starts = self.ends - tokens
        counts = block_counts(files, itemsize, block_bytes)
        self._first = np.cumsum(counts) - counts  # a file's first block, where all blocks of the split are numbered
        self._crc = np.frombuffer(bytes.fromhex("".join(file["crc32"] for file in files)), dtype=">u4")
        self._seen = np.zeros(int(counts.sum()), dtype=np.uint8) if seen is None else seen
        self.waiting = int((self._seen == 0).sum())

    def check_windows(self, starts: Int64[np.ndarray, " b"], length: int) -> None:
        """Compare what [start, start + length) touches for the first time, across borders of blocks and files."""
        if self.waiting == 0 or length == 0 or len(starts) == 0:
            return
        first, last = self._block(starts), self._block(starts + (length - 1))
        for step in range(int((last - first).max()) + 1):
            touched = np.minimum(first + step, last)
            for block in np.unique(touched[self._seen[touched] == 0]).tolist():
                self._compare(block)

    def check_file(self, number: int) -> None:
        """Compare all of a file's blocks that were not touched yet."""
        start, end = self.starts[number : number + 1], self.ends[number]
        self.check_windows(start, int(end - start[0]))

    def _block(self, token: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        number = np.searchsorted(self.ends, token, "right")
        return self._first[number] + (token - self.starts[number]) * self.itemsize // self.block_bytes

    def _compare(self, block: int) -> None:
        number = int(np.searchsorted(self._first, block, "right")) - 1
        file, at = self.files[number], (block - int(self._first[number])) * self.block_bytes
        path = self.folder / file["name"]
        check_size(path, file["tokens"] * self.itemsize)
        # Read, not mapped: of a bad disk or a file cut short read() makes an error, the memory map a SIGBUS.
        with open(path, "rb") as handle:
            handle.seek(at)
            raw = handle.read(self.block_bytes)
        found, written = zlib.crc32(raw), int(self._crc[block])
        if found != written:
            raise BadData(
                f"{path}: bytes {at}..{at + len(raw) - 1} were altered after they were written (CRC-32 {found:08x}, "
                f"not {written:08x}); delete {self.folder} and prepare it again"
            )
        self._seen[block] = 1
        self.waiting = int((self._seen == 0).sum())
