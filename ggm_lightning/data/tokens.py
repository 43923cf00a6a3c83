"""Flat shards of tokens on disk, memory-mapped, and the windows cut from them.

A folder holds `train-00000.bin`, `val-00000.bin`, ... (little-endian uint16 where V <= 65536, else uint32; nothing but
ids) and `header.json` (data/header.py), which says everything else: vocabulary, codec, how and from what the shards
were made, counts and checksums. The header is written last, by an atomic rename, and removed first when a folder is
rebuilt: what loads is complete. Sizes and header are checked on start, contents when they are first read
(data/blocks.py).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, Integer
from torch import Tensor

from ggm_lightning.data.blocks import BLOCK_BYTES, FileDigest, SplitBlocks, check_size
from ggm_lightning.data.codecs import Codec, codec_from_dict
from ggm_lightning.data.header import HEADER, read_header, sealed
from ggm_lightning.data.rows import BadData, RowSource

_SHARD = re.compile(r"(train|val|test)-\d{5}\.bin(\.tmp)?")  # narrow: a user's folder may hold other .bin files
SCAN_LIMIT = 2**28  # tokens of a split that are looked at before training; larger ones are checked as they are read


@contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """One process at a time prepares a folder: two runs started together must not write over each other."""
    import fcntl

    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder) / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _publish(handle: BinaryIO, temporary: Path, final: Path) -> None:
    """Onto the disk first, under the final name second."""
    handle.flush()
    os.fsync(handle.fileno())
    handle.close()
    os.replace(temporary, final)


class _SplitWriter:
    """The open shard of one split and what has been counted so far."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype, shard_tokens: int) -> None:
        self.folder, self.split, self.dtype, self.shard_tokens = folder, split, dtype, shard_tokens
        self.counts = {"documents": 0, "tokens": 0, "characters": 0, "largest_id": -1}
        self.files: list[dict[str, Any]] = []
        self.handle: BinaryIO | None = None
        self.room = 0

    def _open(self) -> BinaryIO:
        self.name = f"{self.split}-{len(self.files):05d}.bin"
        self.handle = open(self.folder / f"{self.name}.tmp", "wb")  # noqa: SIM115 - it outlives this call
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
        _publish(self.handle, self.folder / f"{self.name}.tmp", self.folder / self.name)
        self.handle = None
        tokens = self.shard_tokens - self.room
        self.files.append({"name": self.name, "tokens": tokens, **self.digest.to_dict()})


class ShardWriter:
    """Streams ids into a folder in bounded memory; `close()` (or leaving the `with` block) makes it loadable.

    Args:
        folder: created if absent; shards already there stop being loadable at once.
        codec: how ids and text correspond; its num_classes decides the width of an id on disk.
        options, source: plain JSON, kept in the header: how and from what the shards were made.
        shard_tokens: the most tokens per file.
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
        self.folder, self.codec, self.shard_tokens = Path(folder), codec, shard_tokens
        self.options, self.source = options or {}, source or []
        self.dtype = np.dtype("<u2" if codec.num_classes <= 2**16 else "<u4")
        self._splits: dict[str, _SplitWriter] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / HEADER).unlink(missing_ok=True)

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
        if split not in self._splits:
            self._splits[split] = _SplitWriter(self.folder, split, self.dtype, self.shard_tokens)
        writer = self._splits[split]
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
        temporary = self.folder / f"{HEADER}.tmp"
        handle = open(temporary, "wb")  # noqa: SIM115 - _publish closes it
        handle.write(sealed(header))
        _publish(handle, temporary, self.folder / HEADER)
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
        for writer in self._splits.values():  # no header: what was written stays unloadable and is overwritten later
            if writer.handle is not None:
                writer.handle.close()


def write_shards(
    folder: str | Path, codec: Codec, splits: dict[str, Iterable[Integer[np.ndarray, " _"]]], **how: Any
) -> TokenShards:
    """Write each split's documents (arrays of ids) one after the other; `how` as for `ShardWriter`."""
    with ShardWriter(folder, codec, **how) as writer:
        for split, documents in splits.items():
            for ids in documents:
                writer.add(split, ids, documents=1)
    return TokenShards(folder)


@runtime_checkable
class TokenSource(Protocol):
    """What windows are cut from: a long row of ids per split."""

    def tokens(self, split: str) -> int: ...

    def read(self, split: str, starts: Int64[np.ndarray, " b"], length: int) -> Int64[np.ndarray, "b n"]: ...

    def storage(self, split: str) -> Iterator[tuple[str, np.ndarray]]: ...


class TokenShards:
    """A finished folder of shards. Reads the header and the file sizes; tokens are mapped when first asked for.

    Files must not be cut short while a process reads them: of what it has checked and mapped, the system then makes a
    SIGBUS.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.header = read_header(self.folder)
        self.num_classes: int = self.header["num_classes"]
        self.dtype = np.dtype(self.header["dtype"]).newbyteorder("<")
        self._maps: dict[str, np.ndarray] = {}
        self._blocks: dict[str, SplitBlocks] = {}
        self._process = os.getpid()
        self._codec: Codec | None = None
        for split in self.header["splits"].values():
            for file in split["files"]:
                check_size(self.folder / file["name"], file["tokens"] * self.dtype.itemsize)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}, "_blocks": {}}  # a worker maps and checks the files itself

    def require(self, *, num_classes: int, tokenizer_hash: str | None = None) -> TokenShards:
        """Self, if the shards have this vocabulary and, where its hash is known, this tokenizer; else ValueError."""
        expected = (num_classes, tokenizer_hash or self.header["tokenizer_hash"])
        found = (self.num_classes, self.header["tokenizer_hash"])
        if expected != found:
            names = [f"{hash_[:12]}.. of {classes} ids" for classes, hash_ in (found, expected)]
            wanted = names[1] if tokenizer_hash else f"{num_classes} ids"
            raise ValueError(
                f"{self.folder}: made with tokenizer {names[0]}, but the data is configured for {wanted}; set the "
                f"tokenizer the shards were made with, or prepare another data.folder"
            )
        return self

    @property
    def codec(self) -> Codec:
        if self._codec is None:
            self._codec = codec_from_dict(self.header["codec"])
            if self._codec.tokenizer_hash != self.header["tokenizer_hash"]:
                raise ValueError(
                    f"{self.folder / HEADER}: the codec does not have the stated tokenizer_hash; delete "
                    f"{self.folder} and prepare it again"
                )
        return self._codec

    def _split(self, split: str) -> dict[str, Any]:
        if split not in self.header["splits"]:
            raise ValueError(f"{self.folder}: no {split} split, only {', '.join(self.header['splits'])}")
        return self.header["splits"][split]

    def tokens(self, split: str) -> int:
        return self._split(split)["tokens"]

    def documents(self, split: str) -> int:
        return self._split(split)["documents"]

    def characters(self, split: str) -> int:
        return self._split(split)["characters"]

    def _file(self, file: dict[str, Any]) -> np.ndarray:
        name = file["name"]
        if name not in self._maps:
            check_size(self.folder / name, file["tokens"] * self.dtype.itemsize)  # as the map takes what it finds
            # The plain-array view skips memmap's slow slicing; the view keeps the mapping alive.
            self._maps[name] = np.asarray(np.memmap(self.folder / name, dtype=self.dtype, mode="r"))
        return self._maps[name]

    def _layout(self, split: str) -> SplitBlocks:
        if self._process != os.getpid():  # a forked worker: what it touches first, it checks itself
            self._process, self._blocks = os.getpid(), {}
        if split not in self._blocks:
            files, block_bytes = self._split(split)["files"], self.header["block_bytes"]
            self._blocks[split] = SplitBlocks(self.folder, files, self.dtype.itemsize, block_bytes)
        return self._blocks[split]

    def read(self, split: str, starts: Int64[np.ndarray, " b"], length: int) -> Int64[np.ndarray, "b n"]:
        """`length` tokens from each start, across the borders of files; ValueError if they are not as written."""
        layout = self._layout(split)
        files, ends = layout.files, layout.ends
        if len(starts) and (starts.min() < 0 or starts.max() + length > ends[-1]):
            raise IndexError(
                f"{self.folder}: windows of {length} up to {starts.max()} exceed {ends[-1]} {split} tokens"
            )
        layout.check_windows(starts, length)
        out = np.empty((len(starts), length), dtype=np.int64)
        for row, start, number in zip(
            out, starts.tolist(), np.searchsorted(ends, starts, "right").tolist(), strict=True
        ):
            filled = 0
            while filled < length:
                tokens = self._file(files[number])
                offset = start + filled - (int(ends[number]) - len(tokens))
                part = tokens[offset : offset + length - filled]
                row[filled : filled + len(part)] = part
                filled, number = filled + len(part), number + 1
        if out.size and out.max() >= self.num_classes:
            row_number, site = np.argwhere(out >= self.num_classes)[0]
            at = int(starts[row_number] + site)
            number = int(np.searchsorted(ends, at, "right"))
            raise BadData(
                f"{self.folder / files[number]['name']} ({split} split): id {out[row_number, site]} at position "
                f"{at - layout.starts[number]} is outside 0..{self.num_classes - 1}; delete {self.folder} and prepare "
                f"it again"
            )
        return out

    def storage(self, split: str) -> Iterator[tuple[str, np.ndarray]]:
        """The files of a split of up to SCAN_LIMIT tokens; beyond that, `read` checks what it reads."""
        if self.tokens(split) <= SCAN_LIMIT:
            layout = self._layout(split)
            for number, file in enumerate(layout.files):
                layout.check_file(number)
                yield str(self.folder / file["name"]), self._file(file)

    def verify(self) -> None:
        """Compare every file with its sha256 in the header; ValueError names the first that differs."""
        for split in self.header["splits"].values():
            for file in split["files"]:
                with open(self.folder / file["name"], "rb") as handle:
                    found = hashlib.file_digest(handle, "sha256").hexdigest()
                if found != file["sha256"]:
                    raise ValueError(
                        f"{self.folder / file['name']}: sha256 {found[:12]}.., not {file['sha256'][:12]}..; "
                        f"delete {self.folder} and prepare it again"
                    )


class Windows(RowSource):
    """Window i is tokens [i*stride, i*stride + length) of a split; what is left at the end is dropped.

    stride=length (the default) cuts the tokens into disjoint windows, stride=1 gives every window there is.
    """

    def __init__(self, source: TokenSource, split: str, length: int, stride: int | None = None) -> None:
        self.source, self.split, self.length = source, split, length
        self.stride = length if stride is None else stride
        if length < 1 or self.stride < 1:
            raise ValueError(f"data.length is {length} and data.stride {self.stride}; both must be at least 1")
        tokens = source.tokens(split)
        if tokens < length:
            raise ValueError(
                f"sequence longer than the data: data.length is {length}, but the {split} split has {tokens} tokens; "
                f"choose a smaller length or give more data"
            )
        self.count = (tokens - length) // self.stride + 1

    def __len__(self) -> int:
        return self.count

    def fetch(self, index: np.ndarray) -> dict[str, Tensor]:
        return {"x": torch.from_numpy(self.source.read(self.split, index * self.stride, self.length))}

    def storage(self) -> Iterator[tuple[str, np.ndarray]]:
        return self.source.storage(self.split)
