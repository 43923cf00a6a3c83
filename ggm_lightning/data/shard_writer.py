"""Writes shards of tokens (data/tokens.py), so that what loads is complete and what was killed goes on.

While a folder is being written it has `progress.json` and no header: how far the shards had come when they were last
marked, and a word of the writer's owner about how far it had come itself. After a kill the shards are cut back to the
mark; going on from there gives the same bytes as never having stopped.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Integer

from ggm_lightning.codecs.codec import Codec, dict_hash
from ggm_lightning.codecs.loss import Loss
from ggm_lightning.data.blocks import BLOCK_BYTES, FileDigest
from ggm_lightning.data.header import FORMAT, HEADER, sealed
from ggm_lightning.rundir.codecs import check_loads_again

PROGRESS = "progress.json"
_PROGRESS_FORMAT = 2  # 1 did not know what is lost between text and tokens
_SHARD = re.compile(r"(train|val|test)-\d{5}\.bin(\.tmp)?")  # narrow: a user's folder may hold other .bin files
_READ = 2**24


def _publish(handle: BinaryIO, temporary: Path, final: Path) -> None:
    """Onto the disk first, under the final name second."""
    handle.flush()
    os.fsync(handle.fileno())
    handle.close()
    os.replace(temporary, final)


def _publish_bytes(raw: bytes, final: Path) -> None:
    temporary = final.with_name(f"{final.name}.tmp")
    handle = open(temporary, "wb")  # noqa: SIM115 - _publish closes it
    handle.write(raw)
    _publish(handle, temporary, final)


class _SplitWriter:
    """The open shard of one split and what has been counted so far."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype, shard_tokens: int) -> None:
        self.folder, self.split, self.dtype, self.shard_tokens = folder, split, dtype, shard_tokens
        self.counts = {"documents": 0, "tokens": 0, "characters": 0, "largest_id": -1}
        self.files: list[dict[str, Any]] = []
        self.handle: BinaryIO | None = None
        self.room = 0

    @property
    def _temporary(self) -> Path:
        return self.folder / f"{self.name}.tmp"

    def _open(self) -> BinaryIO:
        self.name = f"{self.split}-{len(self.files):05d}.bin"
        self.handle = open(self._temporary, "wb")  # noqa: SIM115 - it outlives this call
        self.digest, self.room = FileDigest(BLOCK_BYTES), self.shard_tokens
        return self.handle

    def write(self, ids: np.ndarray) -> None:
        while len(ids):
            handle = self.handle or self._open()
            part, ids = ids[: self.room], ids[self.room :]
            raw = part.astype(self.dtype).tobytes()
            handle.write(raw)
            self.digest.update(raw)
            self.room -= len(part)
            if self.room == 0:
                self.close()

    def close(self) -> None:
        if self.handle is None:
            return
        _publish(self.handle, self._temporary, self.folder / self.name)
        self.handle = None
        tokens = self.shard_tokens - self.room
        self.files.append({"name": self.name, "tokens": tokens, **self.digest.to_dict()})

    def mark(self) -> dict[str, Any]:
        """What `resume` needs, once everything written is on the disk."""
        begun = None
        if self.handle is not None:
            self.handle.flush()
            os.fsync(self.handle.fileno())
            begun = {"tokens": self.shard_tokens - self.room, "sha256": self.digest.sha256.hexdigest()}
        return {"counts": dict(self.counts), "files": list(self.files), "begun": begun}

    def resume(self, mark: dict[str, Any]) -> bool:
        """Cut the shards back to the mark; False if they are not what was marked."""
        self.counts, self.files = dict(mark["counts"]), list(mark["files"])
        sizes = [(self.folder / file["name"], file["tokens"] * self.dtype.itemsize) for file in self.files]
        if any(not path.is_file() or path.stat().st_size != size for path, size in sizes):
            return False
        return mark["begun"] is None or self._reopen(**mark["begun"])

    def _reopen(self, tokens: int, sha256: str) -> bool:
        self.name = f"{self.split}-{len(self.files):05d}.bin"
        final, size = self.folder / self.name, tokens * self.dtype.itemsize
        if not self._temporary.is_file() and final.is_file():  # it was finished after the mark
            os.replace(final, self._temporary)
        if not self._temporary.is_file() or self._temporary.stat().st_size < size:
            return False
        os.truncate(self._temporary, size)
        self.handle = open(self._temporary, "r+b")  # noqa: SIM115 - it outlives this call
        self.digest, self.room = FileDigest(BLOCK_BYTES), self.shard_tokens - tokens
        while raw := self.handle.read(_READ):
            self.digest.update(raw)
        return self.digest.sha256.hexdigest() == sha256


class ShardWriter:
    """Streams ids into a folder in bounded memory; `close()` (or leaving the `with` block) makes it loadable.

    Args:
        folder: created if absent; shards already there stop being loadable at once.
        codec: how ids and text correspond; its num_classes decides the width of an id on disk.
        options, source: plain JSON, kept in the header: how and from what the shards were made.
        shard_tokens: the most tokens per file.

    Attributes:
        loss: what is lost between the text and its tokens, for the header; None of what was no text.
        resumed: what was last given to `mark` by a writer of the same shards that did not finish; else None.
    """

    def __init__(
        self,
        folder: str | Path,
        codec: Codec,
        *,
        options: dict[str, Any] | None = None,
        source: list[dict[str, Any]] | None = None,
        shard_tokens: int = 2**28,
    ) -> None:
        if shard_tokens < 1:
            raise ValueError(f"shard_tokens is {shard_tokens}; it must be at least 1")
        check_loads_again(codec)  # now rather than after hours of writing
        self.folder, self.codec, self.shard_tokens = Path(folder), codec, shard_tokens
        self.options, self.source = options or {}, source or []
        self.dtype = np.dtype("<u2" if codec.num_classes <= 2**16 else "<u4")
        self.loss: Loss | None = None
        self._splits: dict[str, _SplitWriter] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / HEADER).unlink(missing_ok=True)
        self._what = dict_hash(
            [FORMAT, _PROGRESS_FORMAT, codec.tokenizer_hash, self.options, self.source, shard_tokens]
        )
        self.resumed = self._resume()
        if self.resumed is None:
            (self.folder / PROGRESS).unlink(missing_ok=True)
            self._splits = {}

    def _resume(self) -> Any:
        try:
            progress = json.loads((self.folder / PROGRESS).read_bytes())
        except (OSError, ValueError):
            return None
        seal = progress.pop("seal", None) if isinstance(progress, dict) else None
        if seal is None or seal != dict_hash(progress) or progress["what"] != self._what:
            return None
        for split, mark in progress["splits"].items():
            if not self._writer(split).resume(mark):
                return None
        return progress["state"]

    def mark(self, state: Any) -> None:
        """From here a killed writer goes on: all that was added is on the disk, and `state` (plain JSON, not None) is
        what its owner needs to add the rest."""
        marks = {split: writer.mark() for split, writer in self._splits.items()}
        _publish_bytes(sealed({"what": self._what, "state": state, "splits": marks}), self.folder / PROGRESS)

    def _writer(self, split: str) -> _SplitWriter:
        if split not in self._splits:
            self._splits[split] = _SplitWriter(self.folder, split, self.dtype, self.shard_tokens)
        return self._splits[split]

    def counted(self, key: str, split: str | None = None) -> int:
        """documents, tokens or characters added so far, to one split or to all."""
        return sum(writer.counts[key] for name, writer in self._splits.items() if split in (None, name))

    def add(self, split: str, ids: Integer[np.ndarray, " n"], *, characters: int = 0, documents: int = 0) -> None:
        """Append ids to a split, and what they count as."""
        ids = np.asarray(ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise ValueError(f"{split}: ids of dtype {ids.dtype}, shape {ids.shape}; give integers in one dimension")
        largest = int(ids.max()) if ids.size else -1
        if ids.size and (ids.min() < 0 or largest >= self.codec.num_classes):
            at = int(np.flatnonzero((ids < 0) | (ids >= self.codec.num_classes))[0])
            wrong = ids[at]
            at += self._splits[split].counts["tokens"] if split in self._splits else 0
            raise ValueError(
                f"{self.folder} ({split} split): id {wrong} at position {at} is outside "
                f"0..{self.codec.num_classes - 1}; use the codec's own ids"
            )
        writer = self._writer(split)
        writer.write(ids)
        counts = writer.counts
        counts["largest_id"] = max(counts["largest_id"], largest)
        for key, value in (("documents", documents), ("tokens", len(ids)), ("characters", characters)):
            counts[key] += value

    def close(self) -> None:
        """Finish the shards, then write the header, then remove what an earlier build left behind."""
        for writer in self._splits.values():
            writer.close()
        header = {
            "num_classes": self.codec.num_classes,
            "dtype": self.dtype.name,
            "block_bytes": BLOCK_BYTES,
            "tokenizer_hash": self.codec.tokenizer_hash,
            "options": self.options,
            "source": self.source,
            "splits": {split: {**w.counts, "files": w.files} for split, w in self._splits.items()},
            "codec": self.codec.to_dict(),
        }
        if self.loss is not None:
            header["loss"] = self.loss.to_dict()
        _publish_bytes(sealed(header), self.folder / HEADER)
        (self.folder / PROGRESS).unlink(missing_ok=True)
        known = {file["name"] for writer in self._splits.values() for file in writer.files}
        for path in self.folder.iterdir():
            if _SHARD.fullmatch(path.name) and path.name not in known:
                path.unlink()
        directory = os.open(self.folder, os.O_RDONLY)
        os.fsync(directory)  # the renames themselves
        os.close(directory)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        for writer in (
            self._splits.values()
        ):  # no header: what was written stays unloadable, until it is gone on with or overwritten
            if writer.handle is not None:
                writer.handle.close()
