"""Any array of integers on disk: .npy [N, *s], or .npz with keys x and (optionally) label.

data:
  class_path: ggm_lightning.data.arrays.ArrayData
  init_args: {train: my_ids.npy, num_classes: 32}
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Shaped
from lightning.pytorch.utilities import rank_zero_info

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.text import Integers
from ggm_lightning.data.base import DiscreteData
from ggm_lightning.data.rows import Rows, RowSource

_LABELS = ("label", "labels", "y", "target", "targets")  # names of the array of labels in a .npz, in either case
# What numpy and zipfile raise for files that are cut short, overwritten or of another kind.
DAMAGE = (
    ValueError,
    OSError,
    EOFError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    zlib.error,
    zipfile.BadZipFile,
)


@contextmanager
def _opened(path: Path, name: str) -> Iterator[tuple[IO[bytes], int]]:
    """(a .npy file or the array `name` of a .npz, its bytes); whatever is wrong in between becomes one line."""
    try:
        if path.suffix.lower() != ".npz":
            with open(path, "rb") as handle:
                yield handle, path.stat().st_size
            return
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
            yield member, archive.getinfo(f"{name}.npy").file_size
    except KeyError:
        raise ValueError(
            f"{path}: no array named {name}, it has {', '.join(array_names(path)) or 'none'}; write it with "
            "numpy.savez(path, x=..., label=...)"
        ) from None
    except DAMAGE as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: cannot be read as .npy or .npz ({reason}); write it again with numpy.save or savez"
        ) from None


def _other_kind(path: Path, name: str, dtype: np.dtype, kinds: str) -> str:
    if kinds == "b":
        return f"{path}: {name} is {dtype}; it must be bool, True or False for each site"
    return f"{path}: {name} of dtype {dtype}, not integers; store whole numbers, as uint8 or uint16"


def array_header(path: Path, name: str = "x") -> tuple[tuple[int, ...], np.dtype]:
    """(shape, dtype) of a .npy file, or of an array in a .npz, without reading the numbers."""
    with _opened(path, name) as (handle, _):
        return _npy_header(handle)


def _npy_header(handle: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(handle)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(handle)
    return shape, dtype


def read_array(path: Path, name: str = "x", kinds: str = "iu") -> Shaped[np.ndarray, " *s"]:
    """Whole numbers (of numpy's `kinds`; "b" is bool), memory-mapped from a .npy or read from a .npz.

    ValueError in one line for anything else.
    """
    with _opened(path, name) as (handle, size):
        shape, dtype = _npy_header(handle)
        # Before numpy maps or allocates what the header promises.
        expected = handle.tell() + math.prod(shape) * dtype.itemsize
        if dtype.kind in kinds and size != expected:
            raise ValueError(f"expected {expected} bytes, found {size}")
        if path.suffix.lower() == ".npz" and dtype.kind in kinds:
            handle.seek(0)
            return np.lib.format.read_array(handle, allow_pickle=False)
    if dtype.kind not in kinds:
        raise ValueError(_other_kind(path, name, dtype, kinds))
    return np.load(path, mmap_mode="r", allow_pickle=False)


def array_names(path: Path) -> list[str]:
    """The names of the arrays in a .npz. ValueError in one line: it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except DAMAGE as error:
        raise ValueError(f"{path}: cannot be read as .npz ({error}); write it again with numpy.savez") from None


class ArrayData(DiscreteData):
    """Rows of an integer array; .npy files are memory-mapped, .npz files are read into memory.

    Args:
        train: path of a .npy [N, *s] or a .npz with x [N, *s] and optionally label [N] (or labels, y, target, targets;
            not two of them). What else a .npz holds is not read, and said.
        num_classes: V; every id must lie in 0..V-1.
        val: the same for validation; None: the last rows of `train` are held out.
        val_fraction: how many of them.
        labels: path of a .npy [N] with the labels of `train`. val_labels: of `val`.
        num_labels: labels lie in 0..num_labels-1; None: up to the largest label of `train`.
        ordered: the numbers are amounts (levels, counts) and not names, which Blackout needs to know.
        batches: global_batch_size, max_batch_per_device, eval_batch_size, num_workers, seed (see DiscreteData).
    """

    def __init__(
        self,
        train: str,
        num_classes: int,
        val: str | None = None,
        val_fraction: float = 0.05,
        labels: str | None = None,
        val_labels: str | None = None,
        num_labels: int | None = None,
        ordered: bool = False,
        **batches: Any,
    ) -> None:
        super().__init__(**batches)
        if val is None and not 0 < val_fraction < 1:
            raise ValueError(f"data.val_fraction is {val_fraction}; it must lie between 0 and 1, or give data.val")
        if num_classes < 2:
            raise ValueError(f"data.num_classes is {num_classes}; it must be at least 2")
        if val_labels is not None and val is None:
            raise ValueError("data.val_labels is given without data.val; leave it out, or give data.val")
        if num_labels is not None and num_labels < 1:
            raise ValueError(f"data.num_labels is {num_labels}; it must be at least 1, or leave it out")
        self._num_classes, self._num_labels, self.val_fraction = num_classes, num_labels, val_fraction
        self._ordered = ordered
        self.paths = {"train": self._path("train", train)}
        if val is not None:
            self.paths["val"] = self._path("val", val)
        self.label_paths = {"train": None if labels is None else self._path("labels", labels)}
        if val is not None:
            self.label_paths["val"] = None if val_labels is None else self._path("val_labels", val_labels)
        self._shape = self._example_shape("train")
        if val is not None and self._example_shape("val") != self._shape:
            raise ValueError(
                f"{self.paths['val']}: examples of shape {self._example_shape('val')}, but {self.paths['train']} has "
                f"{self._shape}; give both the same shape"
            )

    @staticmethod
    def _path(key: str, value: str) -> Path:
        path = Path(value).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"data.{key}: no file '{value}'; give the path of a .npy or .npz of integers")
        return path

    def _example_shape(self, split: str) -> tuple[int, ...]:
        path = self.paths[split]
        shape, dtype = array_header(path)
        if dtype.kind not in "iu":
            raise ValueError(_other_kind(path, "x", dtype, "iu"))
        if len(shape) < 2 or 0 in shape[1:]:
            raise ValueError(f"{path}: shape {shape}; it must be [rows, sites, ...], one example per row")
        return shape[1:]

    @property
    def ordered(self) -> bool:
        return self._ordered

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @cached_property
    def num_labels(self) -> int | None:  # type: ignore[override]
        labels = self._labels("train")
        if labels is None:
            if self._num_labels is not None:
                raise ValueError(
                    f"data.num_labels is {self._num_labels}, but {self.paths['train']} has no labels; give data.labels"
                )
            return None
        return self._num_labels or 1 + int(labels[1].max(initial=0))

    @property
    def codec(self) -> Codec:
        return Integers(self._num_classes)

    def load(self, split: str) -> RowSource:
        source = split if split in self.paths else "train"
        path = self.paths[source]
        _say_what_is_not_read(path)
        x, labels = read_array(path), self._labels(source)
        if labels is not None and len(labels[1]) != len(x):
            raise ValueError(f"{path}: {len(x)} rows but {len(labels[1])} labels; give one label per row")
        start, end = 0, len(x)
        if "val" not in self.paths:
            held_out = min(max(1, round(len(x) * self.val_fraction)), len(x) - 1) if len(x) > 1 else 0
            start, end = (0, len(x) - held_out) if split == "train" else (len(x) - held_out, len(x))
        if labels is None:
            return Rows(x[start:end], name=str(path), first=start)
        label_path, label = labels
        return Rows(x[start:end], label[start:end], name=str(path), first=start, label_name=str(label_path))

    def _labels(self, source: str) -> tuple[Path, np.ndarray] | None:
        """(file, labels [N]) of a file of examples."""
        path = self.label_paths[source]
        if path is None:
            path = self.paths[source]
        name = _label_name(path, given=self.label_paths[source] is not None)
        if name is None:
            return None
        label = read_array(path, name)
        if label.ndim != 1:
            raise ValueError(f"{path}: labels of shape {label.shape}; give one whole number per row, [rows]")
        return path, label


def _label_name(path: Path, given: bool) -> str | None:
    """The array of a file that holds labels: of a .npy the only one; of a .npz by its name, None if there is none.

    Raises:
        ValueError: two of them, or none in a file that was `given` for them.
    """
    if path.suffix.lower() != ".npz":
        return "label" if given else None
    names = array_names(path)
    found = [name for name in names if name.lower() in _LABELS]
    if len(found) > 1:
        raise ValueError(f"{path}: {' and '.join(found)} may both be the labels; keep one of them")
    if found:
        return found[0]
    if given:
        raise ValueError(f"{path}: has {', '.join(names)}, none of {', '.join(_LABELS)}; name the labels so")
    return None


def _say_what_is_not_read(path: Path) -> None:
    if path.suffix.lower() == ".npz":
        others = [name for name in array_names(path) if name != "x" and name.lower() not in _LABELS]
        if others:
            rank_zero_info(f"{path}: of it x and labels ({', '.join(_LABELS)}) are read, not {', '.join(others)}")
