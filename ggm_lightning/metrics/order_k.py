"""A model of order k as a judge of token sequences: how likely each token is given the k before it.

It needs no training but counting, so that data without an autoregressive model have a judge, too. It sees k tokens and
no further: samples that are wrong at a longer range please it.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64, Integer

_LARGEST = 2**62  # of the number that stands for k + 1 tokens


class OrderK:
    """p(c | h) for tokens c after the last k tokens h, by Witten and Bell's interpolation (doi 10.1109/18.87000, their
    method C). With n(h) the occurrences of a context h and T(h) the number of distinct tokens seen after it,

        p(c | h) = ( n(hc) + T(h) p(c | h') ) / ( n(h) + T(h) ),   h' = h without its oldest token,          eq. (1)

    ending in the uniform law over all classes. The first tokens of a row have shorter contexts. On a text it is what
    `text.order_k_cross_entropy` computes, but for these first tokens.

    Args:
        rows: Int[rows, n] in 0..V-1, what is counted; contexts end where a row ends. A whole text is one row.
        num_classes: V.
        order: k.
    """

    def __init__(self, rows: Integer[np.ndarray, "rows n"], num_classes: int, order: int = 3) -> None:
        if order < 0:
            raise ValueError(f"order is {order}; give 0 (frequencies of single tokens) or more")
        if num_classes ** (order + 1) >= _LARGEST:
            raise ValueError(
                f"{num_classes} classes and contexts of {order} tokens are more than can be counted; take a smaller "
                "order, or an autoregressive model"
            )
        self.num_classes, self.order = num_classes, order
        ids = self._checked(rows)
        if ids.size == 0:
            raise ValueError("there is nothing to count: no tokens")
        self._tables = [_Table(_codes(ids, j, num_classes), num_classes) for j in range(order + 1)]

    def bits(self, rows: Integer[np.ndarray, "b n"]) -> Float64[np.ndarray, "b n"]:
        """-log2 p of each token given those before it in its row."""
        ids = self._checked(rows)
        p = np.full(ids.shape, 1 / self.num_classes)
        for j, table in enumerate(self._tables):
            if ids.shape[1] > j:
                p[:, j:] = table.interpolated(_codes(ids, j, self.num_classes), p[:, j:])
        return -np.log2(p)

    def _checked(self, rows: Integer[np.ndarray, "b n"]) -> Int64[np.ndarray, "b n"]:
        ids = np.asarray(rows).astype(np.int64)
        if ids.ndim != 2:
            raise ValueError(f"rows have shape {ids.shape}; give [rows, tokens]")
        if ids.size and (ids.min() < 0 or ids.max() >= self.num_classes):
            raise ValueError(f"ids lie in {ids.min()}..{ids.max()}, not in 0..{self.num_classes - 1}")
        return ids


def _codes(ids: Int64[np.ndarray, "b n"], order: int, num_classes: int) -> Int64[np.ndarray, "b m"]:
    """One number for each run of order + 1 tokens: its digits in base V. m = n - order, or 0."""
    count = max(0, ids.shape[1] - order)
    codes = np.zeros((len(ids), count), dtype=np.int64)
    for j in range(order + 1):
        codes = codes * num_classes + ids[:, j : j + count]
    return codes


class _Table:
    """n(hc), n(h) and T(h) of one length of context."""

    def __init__(self, codes: Int64[np.ndarray, "b m"], num_classes: int) -> None:
        self._num_classes = num_classes
        self._grams, self._counts = np.unique(codes, return_counts=True)
        # runs with the same context stand side by side, as the last token is the lowest digit
        self._contexts, first = np.unique(self._grams // num_classes, return_index=True)
        self._seen = np.add.reduceat(self._counts, first) if len(first) else first
        self._kinds = np.diff(first, append=len(self._grams))

    def interpolated(
        self, codes: Int64[np.ndarray, "b m"], shorter: Float64[np.ndarray, "b m"]
    ) -> Float64[np.ndarray, "b m"]:
        """Eq. (1), `shorter` being p(c | h'), which stays where the context was never seen."""
        contexts = codes // self._num_classes
        grams = _looked_up(codes, self._grams, self._counts)
        seen = _looked_up(contexts, self._contexts, self._seen)
        kinds = _looked_up(contexts, self._contexts, self._kinds)
        return np.where(seen > 0, (grams + kinds * shorter) / np.maximum(seen + kinds, 1), shorter)


def _looked_up(
    keys: Int64[np.ndarray, "b m"], known: Int64[np.ndarray, " k"], values: Int64[np.ndarray, " k"]
) -> Int64[np.ndarray, "b m"]:
    """values[i] where keys == known[i] (sorted), 0 where none is."""
    if not len(known):
        return np.zeros_like(keys)
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[place] == keys, values[place], 0)
