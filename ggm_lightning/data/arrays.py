"""Any array of integers on disk: .npy [N, *s], or .npz with keys x and (optionally) label.

data:
  class_path: ggm_lightning.data.arrays.ArrayData
  init_args: {train: my_ids.npy, num_classes: 32}
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from ggm_lightning.data.base import DiscreteData
from ggm_lightning.data.codecs import Codec, Integers
from ggm_lightning.data.rows import Rows, RowSource


def array_header(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """(shape, dtype) of a .npy file, or of `x` in a .npz, without reading the numbers."""
    try:
        if path.suffix != ".npz":
            with open(path, "rb") as handle:
                return _npy_header(handle)
        with zipfile.ZipFile(path) as archive, archive.open("x.npy") as member:
            return _npy_header(member)
    except KeyError:
        raise ValueError(f"{path}: no array named x; write it with numpy.savez(path, x=..., label=...)") from None
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a .npy or .npz file ({error}); write it with numpy.save or savez") from None


def _npy_header(handle: IO[bytes] | zipfile.ZipExtFile) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(handle)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(handle)
    return shape, dtype


class ArrayData(DiscreteData):
    """Rows of an integer array; .npy files are memory-mapped, .npz files are read into memory.

    Args:
        train: path of a .npy [N, *s] or a .npz with x [N, *s] and optionally label [N].
        num_classes: V; every id must lie in 0..V-1.
        val: the same for validation; None: the last rows of `train` are held out.
        val_fraction: how many of them.
        labels: path of a .npy [N] with the labels of `train`. val_labels: of `val`.
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
        **batches: Any,
    ) -> None:
        super().__init__(**batches)
        if val is None and not 0 < val_fraction < 1:
            raise ValueError(f"data.val_fraction is {val_fraction}; it must lie between 0 and 1, or give data.val")
        if num_classes < 2:
            raise ValueError(f"data.num_classes is {num_classes}; it must be at least 2")
        if val_labels is not None and val is None:
            raise ValueError("data.val_labels is given without data.val; leave it out, or give data.val")
        self._num_classes, self.val_fraction = num_classes, val_fraction
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
            raise ValueError(
                f"{path}: dtype {dtype}, not integers; round the data to ids and save it as uint8 or uint16"
            )
        if len(shape) < 2 or 0 in shape[1:]:
            raise ValueError(f"{path}: shape {shape}; it must be [rows, sites, ...], one example per row")
        return shape[1:]

    @property
    def num_classes(self) -> int:
        return self._num_classes

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def codec(self) -> Codec:
        return Integers(self._num_classes)

    def load(self, split: str) -> RowSource:
        own = split in self.paths
        source = split if own else "train"
        path = self.paths[source]
        x, label = self._read(path, self.label_paths[source])
        if label is not None and len(label) != len(x):
            raise ValueError(f"{path}: {len(x)} rows but {len(label)} labels; give one label per row")
        start, end = 0, len(x)
        if "val" not in self.paths:
            held_out = min(max(1, round(len(x) * self.val_fraction)), len(x) - 1) if len(x) > 1 else 0
            start, end = (0, len(x) - held_out) if split == "train" else (len(x) - held_out, len(x))
        part = slice(start, end)
        return Rows(x[part], None if label is None else label[part], name=str(path), first=start)

    @staticmethod
    def _read(path: Path, label_path: Path | None) -> tuple[np.ndarray, np.ndarray | None]:
        label = None
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                x, label = archive["x"], archive.get("label")
        else:
            x = np.load(path, mmap_mode="r", allow_pickle=False)
        if label_path is not None:
            label = np.load(label_path, mmap_mode="r", allow_pickle=False)
        if label is not None and (label.dtype.kind not in "iu" or label.ndim != 1):
            raise ValueError(
                f"{label_path or path}: labels of dtype {label.dtype}, shape {label.shape}; give whole numbers [rows]"
            )
        return x, label
