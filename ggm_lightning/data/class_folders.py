"""Pictures in a folder for each class, as data sets are exported by other tools: train/3/00017.png, test/cat/5.jpg, ..

The split's folder is named train or training, test or testing; a class's by its number or its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int64, UInt8

from ggm_lightning.data.picture_bytes import decoded
from ggm_lightning.data.picture_folders import find_pictures
from ggm_lightning.data.rows import BadData

SPLITS = {"train": ("train", "training"), "test": ("test", "testing")}


def split_folder(place: Path, split: str) -> Path | None:
    """The folder of class folders of a split, if there is one in `place`."""
    for name in SPLITS[split]:
        folder = place / name
        if folder.is_dir() and any(entry.is_dir() for entry in folder.iterdir()):
            return folder
    return None


def read_class_folders(
    folder: Path, classes: Mapping[str, int], shape: tuple[int, ...]
) -> tuple[UInt8[np.ndarray, "rows c h w"], Int64[np.ndarray, " rows"]]:
    """(pictures, labels) of the folders below `folder`, whose names in small letters are keys of `classes`.

    They follow each other by the number in a file's name, then by the name: exports count through the whole set or
    within each class, and in both cases the classes are mixed, so that the last pictures can be held out.

    Raises:
        ValueError: a folder of another name, a picture in none, or one that is of another shape or cannot be read.
    """
    found = find_pictures(folder)
    if not found.names:
        raise FileNotFoundError(f"'{folder}' has no pictures in its folders; export them again")
    labelled = []
    for name in found.names:
        path = PurePosixPath(name)
        label = classes.get(path.parts[0].lower()) if len(path.parts) > 1 else None
        if label is None:
            raise BadData(f"{folder / name}: in no folder of a class ({', '.join(classes)}); name the folders so")
        labelled.append((_number(path.stem), path.name, label, name))
    labelled.sort()
    images = [decoded((folder / name).read_bytes(), str(folder / name), shape) for *_, name in labelled]
    return np.stack(images), np.array([label for _, _, label, _ in labelled], dtype=np.int64)


def _number(stem: str) -> int:
    digits = re.search(r"\d+", stem)
    return int(digits[0]) if digits else -1
