"""MAUVE (arXiv 2102.01454): how far apart two sets of texts are, in the features of a language model.

Written from its definition. What its published program leaves to choose is chosen as there, see SETTINGS; k-means is
scikit-learn's, so that single values differ from that program's by the spread between its own seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Int64

EXPLAINED = 0.9  # share of the variance that the principal components keep
ROWS_PER_BUCKET = 10
STARTS = 5
ITERATIONS = 500
SCALE = 5.0  # c
POINTS = 25
_EDGE = 1e-6  # the mixtures are not the laws themselves, whose KL may be infinite
LEAST = 1000  # rows, of which its authors say that fewer are too few
SEEDS = (0, 1, 2, 3, 4)
SETTINGS = (
    f"last hidden state of the last token, l2-normalised; principal components to {EXPLAINED:g} of the variance; "
    f"k-means with a bucket for {ROWS_PER_BUCKET} rows of a set, {STARTS} starts, {ITERATIONS} iterations; c = "
    f"{SCALE:g}; {POINTS} mixtures; mean and range over {len(SEEDS)} seeds of k-means"
)


def mauve(
    samples: Float[np.ndarray, "b d"], reference: Float[np.ndarray, "b d"], seeds: Sequence[int] = SEEDS
) -> list[float]:
    """In (0, 1], 1 for equal sets; a value for each seed of k-means.

    Args:
        samples, reference: features of a text each.

    Raises ValueError for unequal counts or widths, fewer than two rows, or features that are not finite.
    """
    if samples.shape != reference.shape or len(samples) < 2:
        raise ValueError(
            f"MAUVE of {samples.shape} features and a reference of {reference.shape}: give at least two texts each, of "
            "equal count"
        )
    both = np.concatenate([samples, reference]).astype(np.float64)
    if not np.isfinite(both).all():
        raise ValueError("MAUVE of features that are not finite; look at the judge's answers")
    from sklearn.decomposition import PCA

    norms = np.linalg.norm(both, axis=1, keepdims=True)
    both = both / np.maximum(norms, np.finfo(np.float64).tiny)
    if np.ptp(both, axis=0).max() == 0:
        return [1.0 for _ in seeds]  # all texts are one, and there is no variance to explain
    components = PCA().fit(both)
    explained = np.cumsum(components.explained_variance_ratio_)
    kept = int(np.searchsorted(explained, EXPLAINED)) + 1
    reduced = components.transform(both)[:, :kept]
    buckets = max(2, round(len(samples) / ROWS_PER_BUCKET))
    return [_of_buckets(_buckets(reduced, buckets, seed), len(samples), buckets) for seed in seeds]


def _buckets(x: Float64[np.ndarray, "m d"], count: int, seed: int) -> Int64[np.ndarray, " m"]:
    from sklearn.cluster import KMeans

    found = KMeans(count, init="random", n_init=STARTS, max_iter=ITERATIONS, random_state=seed)
    return found.fit_predict(x)


def _of_buckets(bucket: Int64[np.ndarray, " m"], samples: int, count: int) -> float:
    p = np.bincount(bucket[:samples], minlength=count) / samples
    q = np.bincount(bucket[samples:], minlength=count) / (len(bucket) - samples)
    return area(p, q)


def area(p: Float64[np.ndarray, " k"], q: Float64[np.ndarray, " k"]) -> float:
    """The area under the divergence curve of two laws on k buckets:

        C = { (exp(-c KL(q || r)), exp(-c KL(p || r))) : r = l p + (1 - l) q, 0 < l < 1 } and (1, 0), (0, 1)   eq. (1)

    by the trapezoid's rule along the one axis and along the other, and the mean of both.
    """
    shares = np.linspace(_EDGE, 1 - _EDGE, POINTS)
    curve = []
    for share in shares:
        r = share * p + (1 - share) * q
        curve.append((np.exp(-SCALE * _kl(q, r)), np.exp(-SCALE * _kl(p, r))))
    # share near 0: r is q, so that the first coordinate is near 1
    points = np.array([(1.0, 0.0), *curve, (0.0, 1.0)])
    x, y = points[:, 0], points[:, 1]
    by_x, by_y = np.argsort(x, kind="stable"), np.argsort(y, kind="stable")
    found = float(np.trapezoid(y[by_x], x[by_x]) + np.trapezoid(x[by_y], y[by_y])) / 2
    return min(found, 1.0)  # of equal laws it is 1 but for rounding


def _kl(p: Float64[np.ndarray, " k"], r: Float64[np.ndarray, " k"]) -> float:
    """KL(p || r) in nats, r > 0 wherever p > 0."""
    known = p > 0
    return float(np.sum(p[known] * np.log(p[known] / r[known])))
