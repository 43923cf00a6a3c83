"""What tells source files from any others: names, sizes and contents, never dates."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor

from ggm_lightning.data.rows import RowSource

_BLOCK = 2**20
_WHOLE = 2**28  # files up to this many bytes are hashed whole
_ROWS = 64
_TOGETHER = 1024  # rows that are read at once
_PROBED = 256  # files of a folder whose contents are part of its fingerprint


def fingerprint(path: Path) -> dict[str, Any]:
    """Name, size and content hash of a file, whatever its date.

    Above 256 MiB the hash covers 257 evenly spaced blocks of 1 MiB, the first and last included, so that starting a
    run on a large corpus does not read all of it.
    """
    size = path.stat().st_size
    with open(path, "rb") as handle:
        if size <= _WHOLE:
            return {"name": path.name, "bytes": size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}
        digest = hashlib.sha256()
        for block in range(257):
            handle.seek((size - _BLOCK) * block // 256)
            digest.update(handle.read(_BLOCK))
    return {"name": path.name, "bytes": size, "sha256_of_257_blocks": digest.hexdigest()}


def rows_fingerprint(rows: RowSource) -> str | None:
    """Of their number and of 64 of them, evenly spaced: enough to tell one data set from another, whatever it reads.
    None where the same row comes out differently when it is asked for again."""
    index = [i * len(rows) // _ROWS for i in range(_ROWS)]
    first, again = (rows[index]["x"] for _ in range(2))
    if not torch.equal(first, again):
        return None
    of_what = f"{len(rows)} {list(first.shape)}\0".encode()
    return hashlib.sha256(of_what + first.to(torch.int64).numpy().tobytes()).hexdigest()


def hash_of_rows(rows: RowSource, limit: int | None = None) -> str:
    """sha256 of the ids of all rows, or of the first `limit`; it differs where any id of them does."""
    count = min(len(rows), limit or len(rows))
    digest = hashlib.sha256()
    for start in range(0, count, _TOGETHER):
        ids = rows[np.arange(start, min(start + _TOGETHER, count))]["x"]
        if start == 0:
            digest.update(f"{count} {list(ids.shape[1:])}\0".encode())
        digest.update(ids.to(torch.int32).cpu().numpy().tobytes())
    return digest.hexdigest()


def hash_of_ids(x: Integer[Tensor, " b *s"]) -> str:
    """`hash_of_rows` of rows that are at hand."""
    digest = hashlib.sha256(f"{len(x)} {list(x.shape[1:])}\0".encode())
    digest.update(x.to(torch.int32).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def folder_fingerprint(folder: Path, names: list[str]) -> dict[str, Any]:
    """Of the named files of a folder: names and sizes of all, and the contents of 256, evenly spaced."""
    digest = hashlib.sha256()
    probed = {(len(names) - 1) * i // (_PROBED - 1) for i in range(_PROBED)}
    for i, name in enumerate(names):
        digest.update(f"{name}\0{(folder / name).stat().st_size}\0".encode())
        if i in probed:
            digest.update((folder / name).read_bytes())
    return {"name": folder.name, "files": len(names), "sha256": digest.hexdigest()}
