"""Binary MNIST (LeCun et al. 1998, http://yann.lecun.com/exdb/mnist): handwritten digits in black and white.

The four original idx files (or other forms of them, data/mnist_files.py), 60,000 pictures to train on and 10,000 to
test, are made binary in one of two ways:

- resized32, of Blackout diffusion (arXiv 2305.11089): enlarged to 32x32 by bilinear interpolation, then white where
  brighter than one half. Worked out in whole numbers, so no rounding decides; exactly one half is black.
- threshold28: 28x28 as they are, white where brighter than one half (128 and more of 255).

Neither is the randomly or once-for-all sampled binarisation of the likelihood literature (arXiv 1509.00519 and others),
whose figures are for noisier pictures: bits/dim cannot be compared with it, nor between these two.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from lightning.pytorch.utilities import rank_zero_info

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.pictures import Images
from ggm_lightning.data.base import DiscreteData
from ggm_lightning.data.mnist_files import find_mnist, read_mnist
from ggm_lightning.data.rows import Rows, RowSource
from ggm_lightning.metrics.independent import independent_bits

SIDES = {"resized32": 32, "threshold28": 28}
OFFICIAL = {"train": 60_000, "test": 10_000}
_ORIGINAL = 28
_TOGETHER = 4096


class Mnist(DiscreteData):
    """0 and 1 (black and white) of 1x32x32 or 1x28x28 pixels, with labels 0..9.

    Args:
        path: a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and the two of t10k, each as it is or .gz;
            or in the form of another tool (data/mnist_files.py): torchvision's MNIST/raw, keras' mnist.npz, or pictures
            in training/0 .. testing/9.
        variant: resized32 or threshold28, see above.
        held_out: 0: validate on the test files. k > 0: validate on the last k training pictures, which are then not
            trained on, and look at the test files in `test` only.
        batches: global_batch_size, max_batch_per_device, eval_batch_size, num_workers, seed (see DiscreteData).
    """

    splits = ("train", "val", "test")

    def __init__(self, path: str = "data/mnist", variant: str = "resized32", held_out: int = 0, **batches: Any) -> None:
        super().__init__(**batches)
        if variant not in SIDES:
            raise ValueError(f"data.variant is {variant!r}; it must be {' or '.join(SIDES)}")
        if held_out < 0:
            raise ValueError(f"data.held_out is {held_out}; give 0 (validate on the test files) or a number")
        self.path, self.variant, self.held_out = Path(path).expanduser(), variant, held_out
        self._read: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def num_labels(self) -> int:
        return 10

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, SIDES[self.variant], SIDES[self.variant])

    @property
    def codec(self) -> Codec:
        return Images(2, self.shape)

    def prepare_data(self) -> None:
        """Check that the files are there; nothing is written."""
        for split in OFFICIAL:
            find_mnist(self.path, split)

    def load(self, split: str) -> RowSource:
        source = "train" if split == "train" or (split == "val" and self.held_out) else "test"
        x, label = self._pictures(source)
        start, end = 0, len(x)
        if source == "train" and self.held_out:
            if self.held_out >= len(x):
                raise ValueError(f"data.held_out is {self.held_out}, but {self.path} has {len(x)} training pictures")
            cut = len(x) - self.held_out
            start, end = (0, cut) if split == "train" else (cut, len(x))
        return Rows(x[start:end], label[start:end], name=str(self.path), first=start)

    def references(self) -> dict[str, float]:
        """Bits per pixel of the best law under which pixels are independent: its frequencies in the training split,
        measured on the validation split; and in sample, on the training split itself."""
        train, val = (self.rows(split).x.reshape(len(self.rows(split)), -1) for split in ("train", "val"))  # type: ignore[attr-defined]
        outside, inside = independent_bits(train, val, 2)
        return {"independent pixels": outside, "independent pixels, in sample": inside}

    def _pictures(self, source: str) -> tuple[np.ndarray, np.ndarray]:
        if source not in self._read:
            images, labels = read_mnist(self.path, source)
            if len(images) != OFFICIAL[source]:
                rank_zero_info(f"{self.path}: {len(images):,} {source} pictures; the original has {OFFICIAL[source]:,}")
            self._read[source] = binary(images, self.variant), labels
        return self._read[source]


def binary(images: UInt8[np.ndarray, "rows 28 28"], variant: str) -> UInt8[np.ndarray, "rows 1 h w"]:
    """0 and 1 from 256 levels of grey."""
    if variant == "threshold28":
        return (images > 127).astype(np.uint8)[:, None]
    weights = _bilinear(_ORIGINAL, SIDES[variant]).astype(np.float32)  # sixteenths
    half = 255 * 16 * 16 / 2
    parts = [images[start : start + _TOGETHER].astype(np.float32) for start in range(0, len(images), _TOGETHER)]
    # sums of whole numbers below 2^24 are exact in float32
    white = [weights @ part @ weights.T > half for part in parts]
    return np.concatenate(white).astype(np.uint8)[:, None] if white else np.zeros((0, 1, 32, 32), np.uint8)


def _bilinear(old: int, new: int) -> Int64[np.ndarray, "new old"]:
    """Interpolation between pixel centres, in units of 1/(2 new / gcd) each; beyond the outer centres the border.

    Output i lies at (i + 1/2) old / new - 1/2 of the input, a multiple of 1/16 for 28 -> 32.
    """
    unit = 2 * new // math.gcd(2 * new, old)
    weights = np.zeros((new, old), dtype=np.int64)
    for i in range(new):
        at = (2 * i + 1) * old * unit // (2 * new) - unit // 2  # exact: unit old / (2 new) is whole
        low, part = divmod(min(max(at, 0), (old - 1) * unit), unit)
        weights[i, low] += unit - part
        weights[i, min(low + 1, old - 1)] += part
    return weights
