"""The forms in which MNIST lies on disks: the pictures and labels are the same in all of them.

- the four idx files, as they are or .gz, in the folder itself, in raw or MNIST/raw below it (torchvision's), or each in
  a folder of its own name (Kaggle's);
- mnist.npz of keras, with x_train, y_train, x_test and y_test, or a folder that holds it;
- pictures in a folder for each class: training/0 .. testing/9, or train and test (data/class_folders.py).
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from ggm_lightning.data.arrays import read_array
from ggm_lightning.data.class_folders import read_class_folders, split_folder

_PREFIX = {"train": "train", "test": "t10k"}
_MAGIC = {"images": 0x803, "labels": 0x801}  # unsigned bytes in 3 dimensions, in 1
_ORIGINAL = 28
_CLASSES = {str(digit): digit for digit in range(10)}
_GET = "get the four original files (train-images-idx3-ubyte.gz, ...) into it"


def find_mnist(path: Path, split: str) -> tuple[str, dict[str, Path]]:
    """(the form, where its parts are): idx with images and labels, npz, or folders.

    Raises:
        FileNotFoundError: nothing of these is there, or one idx file without the other.
    """
    if path.is_file():
        return "npz", {"npz": path}
    for folder in (path, path / "raw", path / "MNIST" / "raw"):
        found = {what: _idx(folder, split, what) for what in _MAGIC}
        places = {what: place for what, place in found.items() if place is not None}
        if len(places) == len(_MAGIC):
            return "idx", places
        if places:
            lacking = next(_stems(split, what)[0] for what in _MAGIC if what not in places)
            raise FileNotFoundError(f"data.path: '{folder}' has neither {lacking} nor {lacking}.gz; {_GET}")
    if (path / "mnist.npz").is_file():
        return "npz", {"npz": path / "mnist.npz"}
    pictures = split_folder(path, split)
    if pictures is not None:
        return "folders", {"folders": pictures}
    stem = _stems(split, "images")[0]
    raise FileNotFoundError(
        f"data.path: '{path}' has neither {stem} nor {stem}.gz (nor MNIST/raw with them, mnist.npz, or pictures in "
        f"{split}/0 .. {split}/9); {_GET}"
    )


def _stems(split: str, what: str) -> list[str]:
    dimensions = 3 if what == "images" else 1
    return [f"{_PREFIX[split]}-{what}{mark}idx{dimensions}-ubyte" for mark in "-."]  # some unpackers write the dot


def _idx(folder: Path, split: str, what: str) -> Path | None:
    for stem in _stems(split, what):
        for place in (folder / stem, folder / f"{stem}.gz", folder / stem / stem):
            if place.is_file():
                return place
    return None


def read_mnist(path: Path, split: str) -> tuple[UInt8[np.ndarray, "rows 28 28"], Int64[np.ndarray, " rows"]]:
    """(pictures, labels) of "train" or "test", in the order of the files.

    Raises:
        FileNotFoundError: a file is missing. ValueError: a file is not what it should be.
    """
    form, place = find_mnist(path, split)
    if form == "npz":
        images, labels = _read_npz(place["npz"], split)
    elif form == "folders":
        x, labels = read_class_folders(place["folders"], _CLASSES, (1, _ORIGINAL, _ORIGINAL))
        images = x[:, 0]
    else:
        images = _read_idx(place["images"], "images").reshape(-1, _ORIGINAL, _ORIGINAL)
        labels = _read_idx(place["labels"], "labels").astype(np.int64)
    where = place.get("labels", path)
    if len(images) != len(labels):
        raise ValueError(f"{where}: {len(labels)} labels for {len(images)} pictures; {_GET} again")
    wrong = np.flatnonzero((labels < 0) | (labels > 9))
    if wrong.size:
        raise ValueError(f"{where}: label {labels[wrong[0]]} of picture {wrong[0]} is outside 0..9; {_GET} again")
    return images, labels


def _read_idx(path: Path, what: str) -> UInt8[np.ndarray, " size"]:
    """The bytes behind an idx header that says what it should."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error}); {_GET} again") from None
    sides = [_ORIGINAL, _ORIGINAL] if what == "images" else []
    header = np.frombuffer(raw[: 8 + 4 * len(sides)], dtype=np.uint8)
    numbers = header[: len(header) // 4 * 4].view(">u4").astype(np.int64).tolist()
    if len(numbers) != 2 + len(sides) or numbers[0] != _MAGIC[what]:
        raise ValueError(f"{path}: does not begin like an idx file of MNIST's {what}; {_GET} again")
    if numbers[2:] != sides:
        raise ValueError(f"{path}: pictures of {numbers[2]}x{numbers[3]}, not {_ORIGINAL}x{_ORIGINAL}; {_GET} again")
    body = np.frombuffer(raw, dtype=np.uint8, offset=len(header))
    expected = numbers[1] * math.prod(sides)
    if body.size != expected:
        raise ValueError(f"{path}: {body.size} bytes behind the header, which says {expected}; {_GET} again")
    return body


def _read_npz(path: Path, split: str) -> tuple[UInt8[np.ndarray, "rows 28 28"], Int64[np.ndarray, " rows"]]:
    images, labels = read_array(path, f"x_{split}"), read_array(path, f"y_{split}")
    if images.dtype != np.uint8 or images.shape[1:] != (_ORIGINAL, _ORIGINAL) or labels.ndim != 1:
        raise ValueError(
            f"{path}: x_{split} is {images.dtype} {list(images.shape)}, y_{split} {list(labels.shape)}, not uint8 "
            f"[N, {_ORIGINAL}, {_ORIGINAL}] and [N]; get mnist.npz again"
        )
    return images, labels.astype(np.int64)
