"""Many pictures of one shape on disk: one flat file of bytes per split, memory-mapped.

A folder holds `train-pixels.bin` (uint8, one picture after the other), `train-labels.bin` (little-endian uint16, where
the pictures have labels), the same for val, and `header.json` (data/header.py), which says how and from what they were
made. The header is written last, by an atomic rename, and removed first when a folder is rebuilt: what loads is
complete. Sizes and header are checked on start, contents when they are first read (data/blocks.py).
"""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Bool, Integer, UInt8
from torch import Tensor

from ggm_lightning.codecs.pictures import Images
from ggm_lightning.data import header as headers
from ggm_lightning.data.blocks import BLOCK_BYTES, FileDigest, SplitBlocks, check_size
from ggm_lightning.data.prepared import Identity, PreparedData
from ggm_lightning.data.rows import Rows, RowSource, ids_of

_LABEL = np.dtype("<u2")


class _Output:
    """A file under a temporary name, with its checksums."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f"{path.name}.tmp")
        self.handle: BinaryIO = open(self.temporary, "wb")  # noqa: SIM115 - it outlives this call
        self.digest, self.size = FileDigest(BLOCK_BYTES), 0

    def write(self, raw: bytes) -> None:
        self.handle.write(raw)
        self.digest.update(raw)
        self.size += len(raw)

    def publish(self) -> None:
        """Onto the disk first, under the final name second."""
        self.handle.flush()
        os.fsync(self.handle.fileno())
        self.handle.close()
        os.replace(self.temporary, self.path)

    def discard(self) -> None:
        self.handle.close()
        self.temporary.unlink(missing_ok=True)

    def to_dict(self, itemsize: int) -> dict[str, Any]:
        return {"name": self.path.name, "tokens": self.size // itemsize, **self.digest.to_dict()}


class PixelWriter:
    """Streams pictures into a folder in bounded memory; leaving the `with` block without error makes it loadable.

    Args:
        folder: created if absent; pictures already there stop being loadable at once.
        codec: shape and levels of the pictures.
        options, source: plain JSON, kept in the header: how and from what the files were made.
    """

    def __init__(
        self, folder: str | Path, codec: Images, *, options: dict[str, Any], source: list[dict[str, Any]]
    ) -> None:
        self.folder, self.codec, self.options, self.source = Path(folder), codec, options, source
        self._pixels: dict[str, _Output] = {}
        self._labels: dict[str, _Output] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / headers.HEADER).unlink(missing_ok=True)

    def add(
        self, split: str, images: UInt8[np.ndarray, " k *s"], labels: Integer[np.ndarray, " k"] | None = None
    ) -> None:
        """Append pictures to a split; either all pictures of a split have labels (0..65535) or none."""
        if images.dtype != np.uint8 or images.shape[1:] != self.codec.shape:
            raise ValueError(
                f"{split}: {images.dtype} {list(images.shape[1:])}, not uint8 {list(self.codec.shape)}; resize them"
            )
        if split not in self._pixels:
            self._pixels[split] = _Output(self.folder / f"{split}-pixels.bin")
        if labels is not None and split not in self._labels:
            self._labels[split] = _Output(self.folder / f"{split}-labels.bin")
        self._pixels[split].write(images.tobytes())
        if split in self._labels:
            self._labels[split].write(b"" if labels is None else labels.astype(_LABEL).tobytes())
            pictures, labelled = self._count(split), self._labels[split].size // _LABEL.itemsize
            if labelled != pictures:
                raise ValueError(f"{split}: {pictures} pictures but {labelled} labels; give one label per picture")

    def _count(self, split: str) -> int:
        return self._pixels[split].size // math.prod(self.codec.shape)

    def __enter__(self) -> PixelWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        outputs = [*self._pixels.values(), *self._labels.values()]
        if kind is not None:
            for output in outputs:  # 15 GB of an unfinished ImageNet are not left lying about
                output.discard()
            return
        for output in outputs:
            output.publish()
        last = _Output(self.folder / headers.HEADER)
        last.write(headers.sealed(self._header()))
        last.publish()
        directory = os.open(self.folder, os.O_RDONLY)
        os.fsync(directory)  # the renames themselves
        os.close(directory)

    def _header(self) -> dict[str, Any]:
        splits = {
            split: {
                "pictures": self._count(split),
                "pixels": pixels.to_dict(1),
                "labels": self._labels[split].to_dict(_LABEL.itemsize) if split in self._labels else None,
            }
            for split, pixels in self._pixels.items()
        }
        return {
            "pictures": list(self.codec.shape),
            "tokenizer_hash": self.codec.tokenizer_hash,
            "block_bytes": BLOCK_BYTES,
            "options": self.options,
            "source": self.source,
            "splits": splits,
        }


class _Mapped:
    """One file, mapped when first asked for (by each loader worker itself)."""

    def __init__(self, folder: Path, entry: dict[str, Any], dtype: np.dtype, block_bytes: int) -> None:
        self.path, self.dtype = folder / entry["name"], dtype
        check_size(self.path, entry["tokens"] * dtype.itemsize)
        self.blocks = SplitBlocks(folder, [entry], dtype.itemsize, block_bytes)
        self._map: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    def array(self) -> np.ndarray:
        if self._map is None:
            # The plain-array view skips memmap's slow slicing; it keeps the mapping alive.
            self._map = np.asarray(np.memmap(self.path, self.dtype, "r"))
        return self._map


class PixelFile(RowSource):
    """The pictures of one split of a finished folder, each as written or an error that says where it is not."""

    def __init__(self, folder: str | Path, split: str) -> None:
        self.folder, self.split = Path(folder), split
        header = read_header(self.folder)
        if split not in header["splits"]:
            raise ValueError(f"{self.folder}: no {split} split, only {', '.join(header['splits'])}; prepare it again")
        entry, block_bytes = header["splits"][split], header["block_bytes"]
        self.shape, self.count = tuple(header["pictures"]), int(entry["pictures"])
        self._pixels = _Mapped(self.folder, entry["pixels"], np.dtype(np.uint8), block_bytes)
        self._labels = entry["labels"] and _Mapped(self.folder, entry["labels"], _LABEL, block_bytes)

    def __len__(self) -> int:
        return self.count

    def fetch(self, index: np.ndarray, turned: Bool[np.ndarray, " b"] | None = None) -> dict[str, Tensor]:
        size = math.prod(self.shape)
        self._pixels.blocks.check_windows(index * size, size)
        pixels = self._pixels.array().reshape(self.count, *self.shape)[index]
        batch = {"x": ids_of(pixels, turned)}
        if self._labels is not None:
            self._labels.blocks.check_windows(index, 1)
            batch["label"] = torch.from_numpy(self._labels.array()[index].astype(np.int64))
        return batch

    def verify(self) -> None:
        """ValueError naming file and bytes unless all that was not read yet is as it was written."""
        for mapped in filter(None, (self._pixels, self._labels)):
            mapped.blocks.check_file(0)

    def labels(self) -> Iterator[tuple[str, np.ndarray]]:
        if self._labels is not None:
            self._labels.blocks.check_file(0)
            yield str(self._labels.path), self._labels.array()

    def storage(self) -> Iterator[tuple[str, np.ndarray]]:
        """Nothing: a byte is always one of the 256 levels, and 15 GB need not be read to find that out."""
        return iter(())


class Mirrored(RowSource):
    """2N rows: the N of `rows`, and the same ones with left and right exchanged (row i + N mirrors row i).

    So an epoch shows each image once in each orientation. Which one comes when is part of the training order, a
    function of (seed, position) alone: a resumed run and any number of workers see the same.
    """

    def __init__(self, rows: Rows | PixelFile) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return 2 * len(self.rows)

    def fetch(self, index: np.ndarray) -> dict[str, Tensor]:
        mirror, row = np.divmod(index, len(self.rows))
        return self.rows.fetch(row, turned=mirror == 1)

    def storage(self) -> Iterator[tuple[str, np.ndarray]]:
        return self.rows.storage()

    def labels(self) -> Iterator[tuple[str, np.ndarray]]:
        return self.rows.labels()


def read_header(folder: str | Path) -> dict[str, Any]:
    """The header of a finished folder.

    Raises:
        FileNotFoundError: there is none. ValueError: it is of something else, or altered.
    """
    if not (Path(folder) / headers.HEADER).is_file():
        raise FileNotFoundError(f"{folder}: no {headers.HEADER}, so no finished pictures; run the preparation again")
    header = headers.read_header(folder)
    if "pictures" not in header:
        raise ValueError(f"{folder}: holds token shards, not pictures; set data.folder to another folder")
    return header


class PixelData(PreparedData):
    """Data sets that are such a folder."""

    mirror: bool  # also train on each picture with left and right exchanged

    @property
    @abstractmethod
    def official(self) -> Mapping[str, int]:
        """How many pictures each split was published with."""

    def staleness(self, source: Identity | None) -> str | None:
        """See PreparedData.staleness. ValueError: the folder holds something else, which is not to be overwritten."""
        if not (self.folder / headers.HEADER).is_file():
            return "no finished pictures there"
        read_header(self.folder)
        return super().staleness(source)

    def describe(self) -> str:
        notes = []
        for split, counts in read_header(self.folder)["splits"].items():
            official = self.official[split]
            other = "" if counts["pictures"] == official else f" (not the published {official:,})"
            notes.append(f"{split} {counts['pictures']:,} pictures{other}")
        return "; ".join(notes)

    def verify(self) -> str:
        """See DiscreteData.verify."""
        splits = read_header(self.folder)["splits"]
        for split in splits:
            PixelFile(self.folder, split).verify()
        return f"{self.folder}: the files of {', '.join(splits)} are as they were written"

    def load(self, split: str) -> RowSource:
        rows = PixelFile(self.folder, split)
        return Mirrored(rows) if self.mirror and split == "train" else rows
