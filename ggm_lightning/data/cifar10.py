"""CIFAR-10 (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html): 32x32 colour pictures of ten classes.

The official split: 50,000 images to train on (batches 1 to 5) and 10,000 to test. Read are the original archives or
folders, binary or python version, and the hub's parquet files; the pixels are the same in all of them.
"""

from __future__ import annotations

import glob
import io
import itertools
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from lightning.pytorch.utilities import rank_zero_info

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.pictures import Images
from ggm_lightning.data.base import DiscreteData
from ggm_lightning.data.cifar10_pickle import read_pickle
from ggm_lightning.data.class_folders import read_class_folders, split_folder
from ggm_lightning.data.hub import HUB, hub_rows
from ggm_lightning.data.picture_bytes import decoded
from ggm_lightning.data.pixels import Mirrored
from ggm_lightning.data.rows import BadData, Rows, RowSource

SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
OFFICIAL = {"train": 50_000, "test": 10_000}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CLASS_FOLDERS = {name: label for label, name in enumerate(CLASSES)} | {str(label): label for label in range(10)}
_ARCHIVES = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz", "cifar-10-batches-py.tar.gz")
_GET = "get https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"

Labelled = tuple[UInt8[np.ndarray, "rows 3 32 32"], Int64[np.ndarray, " rows"]]


class Cifar10(DiscreteData):
    """Levels 0..255 of 3x32x32 pixels, with labels 0..9 (airplane, automobile, bird, cat, deer, dog, frog, ...).

    Args:
        path: a folder with the original batches (`data_batch_1.bin` ... or `data_batch_1` ...) or with such a folder
            `cifar-10-batches-bin` or `-py` in it; or the .tar.gz of one, or its folder; or a folder or glob of parquet
            files named train*.parquet and test*.parquet; or a folder with pictures in train/airplane .. test/truck (or
            train/0 ..); or hub:NAME (uoft-cs/cifar10), which `datasets` downloads.
        held_out: 0: validate on the test batch, as the papers do (their figures are the best or the last validation
            on it). k > 0: validate on the last k training images, which are then not trained on, and look at the test
            batch in `test` only: 5000 where choices are made by the validation figure.
        mirror: also train on each image with left and right exchanged. An epoch is then twice as long.
        batches: global_batch_size, max_batch_per_device, eval_batch_size, num_workers, seed (see DiscreteData).
    """

    splits = ("train", "val", "test")

    def __init__(
        self, path: str = "data/cifar-10-batches-bin", held_out: int = 0, mirror: bool = False, **batches: Any
    ) -> None:
        super().__init__(**batches)
        if held_out < 0:
            raise ValueError(f"data.held_out is {held_out}; give 0 (validate on the test batch) or a number of images")
        self.path, self.held_out, self.mirror = path, held_out, mirror
        self._read: dict[str, Labelled] = {}

    @property
    def num_labels(self) -> int:
        return 10

    @property
    def shape(self) -> tuple[int, ...]:
        return SHAPE

    @property
    def codec(self) -> Codec:
        return Images(256, SHAPE)

    def unprepared(self) -> str | None:
        """See DiscreteData.unprepared."""
        return f"{self.path} is fetched over the network" if self.path.startswith(HUB) else None

    def prepare_data(self) -> None:
        """Check that the files are there (hub: download them); nothing is written."""
        if self.path.startswith(HUB):
            for split in BATCHES:
                hub_rows(self.path, "path", split, _GET)
            return
        _find(self.path)

    def load(self, split: str) -> RowSource:
        source = "train" if split == "train" or (split == "val" and self.held_out) else "test"
        x, label = self._images(source)
        start, end = 0, len(x)
        if source == "train" and self.held_out:
            if self.held_out >= len(x):
                raise ValueError(f"data.held_out is {self.held_out}, but {self.path} has {len(x)} training images")
            cut = len(x) - self.held_out
            start, end = (0, cut) if split == "train" else (cut, len(x))
        rows = Rows(x[start:end], label[start:end], name=self.path, first=start)
        return Mirrored(rows) if self.mirror and split == "train" else rows

    def _images(self, source: str) -> Labelled:
        if source not in self._read:
            self._read[source] = read_cifar10(self.path, source)
            found = len(self._read[source][0])
            if found != OFFICIAL[source]:
                rank_zero_info(f"{self.path}: {found:,} {source} images; the original has {OFFICIAL[source]:,}")
        return self._read[source]


def read_cifar10(path: str, split: str) -> Labelled:
    """(images [N, 3, 32, 32], labels [N]) of "train" or "test" in the order of the original files.

    Raises:
        FileNotFoundError: no such place, or a batch is missing from it. ValueError: a file is not what it should be.
    """
    if path.startswith(HUB):
        return _from_records(hub_rows(path, "path", split, _GET), path)
    found = _find(path)
    if isinstance(found, list):
        return _from_parquet(found, split, path)
    pictures = split_folder(found, split) if found.is_dir() else None
    if pictures is not None:
        return read_class_folders(pictures, _CLASS_FOLDERS, SHAPE)
    parts = list(_archive(found, split)) if found.is_file() else list(_folder(found, split))
    images, labels = zip(*parts, strict=True)
    x, label = np.concatenate(images), np.concatenate(labels)
    _check_labels(label, path)
    return x, label


def _check_labels(label: np.ndarray, where: str) -> None:
    wrong = np.flatnonzero((label < 0) | (label > 9))
    if wrong.size:
        raise BadData(f"{where}: label {label[wrong[0]]} at image {wrong[0]} is outside 0..9; {_GET} again")


def _find(path: str) -> Path | list[Path]:
    """A folder with all batches, an archive, or a list of parquet files."""
    place = Path(path).expanduser()
    if place.is_file() and place.suffix != ".parquet":
        return place
    folders = [place, *sorted(place.glob("cifar-10-batches-*")), *sorted(place.glob("*/cifar-10-batches-*"))]
    for folder, suffix in itertools.product(folders, (".bin", "")):
        names = [name + suffix for names in BATCHES.values() for name in names]
        missing = [name for name in names if not (folder / name).is_file()]
        if not missing:
            return folder
        if len(missing) < len(names):
            raise FileNotFoundError(f"data.path: '{folder}' has no file {missing[0]}; {_GET} again and unpack it")
    for name in _ARCHIVES:
        if (place / name).is_file():
            return place / name
    if all(split_folder(place, split) is not None for split in BATCHES):
        return place
    pattern = str(place / "**" / "*.parquet") if place.is_dir() else str(place)
    files = [Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if name.endswith(".parquet")]
    if not files:
        raise FileNotFoundError(
            f"data.path: '{path}' has neither CIFAR-10 batches nor parquet files; {_GET} and name it or its folder"
        )
    return files


def _folder(folder: Path, split: str) -> Iterator[Labelled]:
    for name in BATCHES[split]:
        binary = folder / f"{name}.bin"
        yield _records(binary.read_bytes(), binary) if binary.is_file() else read_pickle(folder / name)


def _archive(path: Path, split: str) -> Iterator[Labelled]:
    """The batches of a tar archive, read into memory one by one; nothing is unpacked to the disk."""
    found: dict[str, Labelled] = {}
    for inner, raw in _members(path, BATCHES[split]):
        place = Path(f"{path}:{inner}")
        read = _records(raw, place) if inner.suffix == ".bin" else read_pickle(place, io.BytesIO(raw))
        found[inner.name.removesuffix(".bin")] = read
    for name in BATCHES[split]:
        if name not in found:
            raise FileNotFoundError(f"data.path: '{path}' has no file {name} or {name}.bin; {_GET} again")
        yield found[name]


def _members(path: Path, wanted: Sequence[str]) -> Iterator[tuple[Path, bytes]]:
    try:
        with tarfile.open(path, "r:*") as archive:
            for inner in (
                one for one in archive if Path(one.name).name.removesuffix(".bin") in wanted and one.isfile()
            ):
                yield Path(inner.name), archive.extractfile(inner).read()
            while archive.fileobj.read(2**20):  # gzip compares its checksum at the end, which tarfile does not reach
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole tar archive ({error}); {_GET} again") from None


def _records(raw: bytes, path: Path) -> Labelled:
    """A batch of the binary version: records of 3073 bytes."""
    count, rest = divmod(len(raw), RECORD)
    if rest or not count:
        raise ValueError(
            f"{path}: {len(raw)} bytes are not a whole number of records of {RECORD} bytes; the file is cut off or "
            f"not of the binary version: {_GET} again"
        )
    records = np.frombuffer(raw, dtype=np.uint8).reshape(count, RECORD)
    return records[:, 1:].reshape(count, *SHAPE), records[:, 0].astype(np.int64)


def _from_parquet(files: list[Path], split: str, path: str) -> Labelled:
    from datasets import load_dataset

    mine = [str(file) for file in files if file.name.startswith(split)]
    if not mine:
        raise FileNotFoundError(
            f"data.path: '{path}' has no {split}*.parquet among {len(files)} file(s); name the folder that has both "
            f"train*.parquet and test*.parquet"
        )
    try:
        # Streamed: without it `datasets` would keep a copy of everything in its cache folder.
        return _from_records(load_dataset("parquet", data_files={split: mine}, split=split, streaming=True), path)
    except BadData:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, LookupError) as error:  # pyarrow's errors among them
        raise ValueError(f"{mine[0]}: {' '.join(str(error).split())}; get the parquet files again") from None


def _from_records(records: Any, where: str) -> Labelled:
    """Images and labels of a `datasets` split with the columns img (or image) and label."""
    from datasets import Image

    names = records.column_names or []
    column = "img" if "img" in names else "image"
    if not {column, "label"} <= set(names):
        raise BadData(f"{where}: columns {', '.join(names)}; CIFAR-10 has img (or image) and label")
    named = _names_of(records)
    images: list[np.ndarray] = []
    labels: list[int] = []
    for record in records.cast_column(column, Image(decode=False)):
        place = f"{where}: image {len(images)}"
        raw = (record[column] or {}).get("bytes")
        if raw is None:
            raise BadData(
                f"{place}: not a readable PNG or JPEG: it has no bytes; get parquet files with the pictures themselves"
            )
        images.append(decoded(raw, place, SHAPE))
        labels.append(_label(record["label"], named, place))
    x, label = np.stack(images), np.array(labels, dtype=np.int64)
    _check_labels(label, where)
    return x, label


def _names_of(records: Any) -> list[str] | None:
    """What the numbers in the column label are called, where the file says so in the names of the classes."""
    names = getattr((records.features or {}).get("label"), "names", None)  # a ClassLabel has them
    return names if names is not None and sorted(names) == sorted(CLASSES) else None


def _label(found: Any, named: list[str] | None, where: str) -> int:
    """0..9 of a number (by the file's own names of the classes, if those are CIFAR-10's) or of a class's name."""
    if isinstance(found, str):
        if found.lower() not in _CLASS_FOLDERS:
            raise BadData(f"{where}: label {found!r} is none of {', '.join(CLASSES)}; {_GET} again")
        return _CLASS_FOLDERS[found.lower()]
    if not isinstance(found, int):
        raise BadData(f"{where}: label {found!r} is no whole number; {_GET} again")
    return CLASSES.index(named[found]) if named is not None and 0 <= found < len(named) else found
