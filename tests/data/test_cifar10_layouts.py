"""CIFAR-10 as other tools lay it on disks: folders and archives, pictures by class, labels by name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from ggm_lightning.data.cifar10 import CLASSES, Cifar10, read_cifar10
from tests.data.test_cifar10 import _archive, _expected, _pickled

N, N_TEST = 7, 5


@pytest.fixture(scope="module")
def batches() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    sizes = {**{f"data_batch_{i}": N for i in range(1, 6)}, "test_batch": N_TEST}
    return {
        name: (rng.integers(256, size=(n, 3, 32, 32)).astype(np.uint8), rng.integers(10, size=n))
        for name, n in sizes.items()
    }


def test_layouts_of_other_tools(batches: dict, tmp_path: Path) -> None:
    """keras' folder, an archive named by its folder, and exports of pictures by class."""
    from PIL import Image

    (tmp_path / "archive").mkdir()
    _archive(_pickled(tmp_path / "cifar-10-batches-py", batches), tmp_path / "archive" / "cifar-10-python.tar.gz")
    _pickled(tmp_path / "keras" / "cifar-10-batches-py-target" / "cifar-10-batches-py", batches)
    for split in ("train", "test"):
        x, label = _expected(batches, split)
        for i, (picture, one) in enumerate(zip(x, label.tolist(), strict=True)):
            place = tmp_path / "png" / split / CLASSES[one]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.transpose(1, 2, 0)).save(place / f"{i:04d}.png")
    for place in ("archive", "keras", "png"):
        Cifar10(str(tmp_path / place)).prepare_data()
        for split in ("train", "test"):
            x, label = read_cifar10(str(tmp_path / place), split)
            assert np.array_equal(x, _expected(batches, split)[0]), place
            assert label.tolist() == _expected(batches, split)[1].tolist(), place


@pytest.mark.parametrize("kind", ["dictionary", "words", "other order"])
def test_labels_by_name_in_parquet(batches: dict, tmp_path: Path, kind: str) -> None:
    """Categories of pandas, plain words, and numbers whose names the file lists in another order."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    for split in ("train", "test"):
        x, label = _expected(batches, split)
        raw = [{"bytes": _png_of(one), "path": None} for one in x]
        path = tmp_path / f"{split}.parquet"
        if kind == "other order":
            names = list(reversed(CLASSES))
            features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=names)})
            columns = {"img": raw, "label": [9 - one for one in label.tolist()]}
            datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
            continue
        words = pyarrow.array([CLASSES[one] for one in label.tolist()])
        labels = words.dictionary_encode() if kind == "dictionary" else words
        pyarrow.parquet.write_table(pyarrow.table({"img": raw, "label": labels}), path)
    for split in ("train", "test"):
        x, label = read_cifar10(str(tmp_path), split)
        assert np.array_equal(x, _expected(batches, split)[0])
        assert label.tolist() == _expected(batches, split)[1].tolist()


def _png_of(picture: np.ndarray) -> bytes:
    from PIL import Image

    held = io.BytesIO()
    Image.fromarray(picture.transpose(1, 2, 0)).save(held, "PNG")
    return held.getvalue()
