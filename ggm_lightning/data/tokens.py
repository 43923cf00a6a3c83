"""Flat shards of tokens on disk, memory-mapped, and the windows cut from them.

A folder holds `train-00000.bin`, `val-00000.bin`, ... (little-endian uint16 where V <= 65536, else uint32; nothing but
ids) and `header.json` (data/header.py), which says everything else: vocabulary, codec, how and from what the shards
were made, counts and checksums. The header is written last, by an atomic rename, and removed first when a folder is
rebuilt (data/shard_writer.py): what loads is complete. Sizes and header are checked on start, contents when they are
first read (data/blocks.py).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, Integer
from torch import Tensor

from ggm_lightning.codecs.codec import Codec, dict_hash
from ggm_lightning.codecs.loss import Loss
from ggm_lightning.data.blocks import SplitBlocks, block_counts, check_size
from ggm_lightning.data.header import HEADER, read_header
from ggm_lightning.data.rows import BadData, RowSource
from ggm_lightning.data.shard_writer import ShardWriter
from ggm_lightning.data.verified import remembered
from ggm_lightning.rundir.codecs import codec_from_dict

SCAN_LIMIT = 2**28  # tokens of a split that are looked at before training; larger ones are checked as they are read


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

    Args:
        folder: of the shards.
        trust: packages, modules or classes of your own that `codec` may build; the header alone is not believed.
    """

    def __init__(self, folder: str | Path, trust: str | Sequence[str] = ()) -> None:
        self.folder, self.trust = Path(folder), trust
        self.header = read_header(self.folder)
        self.num_classes: int = self.header["num_classes"]
        self.dtype = np.dtype(self.header["dtype"]).newbyteorder("<")
        self._maps: dict[str, np.ndarray] = {}
        self._blocks: dict[str, SplitBlocks] = {}
        self._seen: dict[str, np.ndarray] = {}  # of each split, which of its blocks were compared
        self._process = os.getpid()
        self._codec: Codec | None = None
        for split in self.header["splits"].values():
            for file in split["files"]:
                check_size(self.folder / file["name"], file["tokens"] * self.dtype.itemsize)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}, "_blocks": {}, "_seen": {}}  # a worker maps and checks the files itself

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
            self._codec = codec_from_dict(self.header["codec"], self.trust)
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

    @property
    def loss(self) -> Loss | None:
        """What was lost between the text and its tokens; None of shards of an older version, which did not measure it,
        and of what was no text."""
        found = self.header.get("loss")
        return None if found is None else Loss(**found)

    @property
    def exact(self) -> bool:
        """Whether all of the text can be had back from the tokens; only then have figures per character a meaning."""
        return self.codec.exact if self.loss is None else self.loss.exact

    def characters_per_token(self, split: str) -> float | None:
        """None where text and tokens do not correspond exactly."""
        return self.characters(split) / self.tokens(split) if self.exact else None

    def loss_note(self) -> str:
        """What there is to say about what is lost, behind semicolons; or nothing."""
        if self.loss is not None:
            return self.loss.note()
        if self.exact:
            return ""
        return "; prepared by an older version, which did not measure what is lost: therefore no bits/character"

    def _file(self, file: dict[str, Any]) -> np.ndarray:
        name = file["name"]
        if name not in self._maps:
            check_size(self.folder / name, file["tokens"] * self.dtype.itemsize)  # as the map takes what it finds
            # The plain-array view skips memmap's slow slicing; the view keeps the mapping alive.
            self._maps[name] = np.asarray(np.memmap(self.folder / name, dtype=self.dtype, mode="r"))
        return self._maps[name]

    def _layout(self, split: str) -> SplitBlocks:
        if self._process != os.getpid():  # a forked worker: it looks itself at what was compared, and when
            self._process, self._blocks, self._seen = os.getpid(), {}, {}
        if split not in self._blocks:
            files, block_bytes = self._split(split)["files"], self.header["block_bytes"]
            self._seen = self._seen or self._compared()
            seen = self._seen[split]
            self._blocks[split] = SplitBlocks(self.folder, files, self.dtype.itemsize, block_bytes, seen)
        return self._blocks[split]

    def _compared(self) -> dict[str, np.ndarray]:
        """Which blocks were compared before, on this node; one array for all splits."""
        splits = self.header["splits"]
        counts = [
            int(block_counts(split["files"], self.dtype.itemsize, self.header["block_bytes"]).sum())
            for split in splits.values()
        ]
        names = [file["name"] for split in splits.values() for file in split["files"]]
        seen = remembered(self.folder, dict_hash(self.header), names, sum(counts))
        return dict(zip(splits, np.split(seen, np.cumsum(counts)[:-1]), strict=True))

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
        """The files of a split of up to SCAN_LIMIT tokens; beyond that, `read` checks what it reads. Files that are as
        written hold no larger id than the header says, and are not looked at again."""
        if self.tokens(split) > SCAN_LIMIT:
            return
        layout = self._layout(split)
        for number, file in enumerate(layout.files):
            layout.check_file(number)
            if self._split(split)["largest_id"] >= self.num_classes:
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

    Args:
        stride: length (the default) cuts the tokens into disjoint windows, 1 gives every window there is.
        wrap: (first, last), two ids put around each window, which then holds length - 2 tokens of the split.
        part: (begin, end), tokens of the split to which the windows are confined.
    """

    def __init__(
        self,
        source: TokenSource,
        split: str,
        length: int,
        stride: int | None = None,
        wrap: tuple[int, int] | None = None,
        part: tuple[int, int] | None = None,
    ) -> None:
        self.source, self.split, self.wrap = source, split, wrap
        self.length = length if wrap is None else length - 2
        self.stride = self.length if stride is None else stride
        if self.length < 1 or self.stride < 1:
            least = 1 if wrap is None else 3
            raise ValueError(f"data.length is {length} and data.stride {stride}; they must be at least {least} and 1")
        self.begin, end = part or (0, source.tokens(split))
        if end - self.begin < self.length:
            raise ValueError(
                f"sequence longer than the data: data.length is {length}, but the {split} split has "
                f"{end - self.begin} tokens; choose a smaller length or give more data"
            )
        self.count = (end - self.begin - self.length) // self.stride + 1

    def __len__(self) -> int:
        return self.count

    def fetch(self, index: np.ndarray) -> dict[str, Tensor]:
        x = self.source.read(self.split, self.begin + index * self.stride, self.length)
        if self.wrap is not None:
            x = np.pad(x, ((0, 0), (1, 1)), constant_values=(self.wrap,))
        return {"x": torch.from_numpy(x)}

    def storage(self) -> Iterator[tuple[str, np.ndarray]]:
        return self.source.storage(self.split)
