"""scikit-learn's handwritten digits (UCI Optical Recognition of Handwritten Digits, Alpaydin and Kaynak 1998).

1,797 pictures of 8x8 pixels with 17 levels of ink, which come with scikit-learn: a picture data set without a download.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Int64, UInt8

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.pictures import Images
from ggm_lightning.data.base import DiscreteData
from ggm_lightning.data.order import permuted
from ggm_lightning.data.rows import Rows, RowSource
from ggm_lightning.metrics.independent import independent_bits

LEVELS = 17
SHAPE = (1, 8, 8)
HELD_OUT = 297


@lru_cache(maxsize=1)
def digits() -> tuple[UInt8[np.ndarray, "rows 1 8 8"], Int64[np.ndarray, " rows"]]:
    """(levels 0..16, labels 0..9) of all 1,797 pictures, in a fixed shuffled order."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ModuleNotFoundError(
            "data: the digits come with scikit-learn, which is not installed; pip install 'ggm-lightning[images]'"
        ) from None
    found = load_digits()
    order = permuted(np.arange(len(found.target)), len(found.target), seed=0, epoch=0)
    return found.data.astype(np.uint8).reshape(-1, *SHAPE)[order], found.target.astype(np.int64)[order]


class Digits(DiscreteData):
    """Levels 0..16 of 1x8x8 pixels, with labels 0..9: 1,500 pictures to train on, 297 to validate.

    scikit-learn's order groups the pictures by writer, so they are shuffled (by data/order.py, the same everywhere)
    and the last 297 are held out: training and validation pictures follow one law, and share their 13 writers.

    Args:
        batches: global_batch_size, max_batch_per_device, eval_batch_size, num_workers, seed (see DiscreteData).
    """

    @property
    def num_labels(self) -> int:
        return 10

    @property
    def shape(self) -> tuple[int, ...]:
        return SHAPE

    @property
    def codec(self) -> Codec:
        return Images(LEVELS, SHAPE)

    def load(self, split: str) -> RowSource:
        x, label = digits()
        part = slice(0, len(x) - HELD_OUT) if split == "train" else slice(len(x) - HELD_OUT, len(x))
        return Rows(x[part], label[part], name="scikit-learn's digits", first=part.start)

    def references(self) -> dict[str, float]:
        """Bits per pixel of the uniform law, and of the best law under which pixels are independent.

        Independent pixels: each pixel's frequencies in the training part, one added to each level's count, measured on
        the validation part; "in sample": the entropy of those frequencies themselves, without the one, which no such
        law can beat on the training part.
        """
        x, _ = digits()
        train, val = x[:-HELD_OUT].reshape(-1, 64), x[-HELD_OUT:].reshape(-1, 64)
        outside, inside = independent_bits(train, val, LEVELS)
        return {
            "uniform": math.log2(LEVELS),
            "independent pixels": outside,
            "independent pixels, in sample": inside,
        }
