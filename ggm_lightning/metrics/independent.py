"""What can be said of data without a model: the best law under which the sites are independent."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Integer


def independent_bits(
    train: Integer[np.ndarray, "rows n"], held_out: Integer[np.ndarray, "more n"], num_classes: int
) -> tuple[float, float]:
    """Bits per site of each site's own frequencies in `train`: (on `held_out`, in sample).

    Held out: with one added to each class's count. In sample: the entropy of the frequencies themselves, without the
    one, which no law with independent sites can beat on `train`.
    """
    counts = np.stack([(train == v).sum(0) for v in range(num_classes)]).astype(np.float64)
    smoothed = (counts + 1) / (len(train) + num_classes)
    bits = -np.log2(smoothed)
    outside = sum(float((bits[v] * (held_out == v).mean(0)).mean()) for v in range(num_classes))
    return outside, _entropy(counts / len(train))


def _entropy(law: Float64[np.ndarray, "v n"]) -> float:
    """Mean entropy of the columns, in bits, with 0 log 0 = 0."""
    return -float((law * np.log2(np.where(law > 0, law, 1.0))).sum(0).mean())
