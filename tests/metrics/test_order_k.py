"""The counted judge: against a source with a known entropy, and against the same formula on characters."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ggm_lightning.data.toy.synthetic import MarkovChain
from ggm_lightning.metrics.order_k import OrderK
from ggm_lightning.metrics.text import order_k_cross_entropy


def ids_of(text: str, alphabet: str) -> np.ndarray:
    return np.array([[alphabet.index(c) for c in text]])


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_the_formula_of_characters(order: int) -> None:
    """Beyond the first k sites, where contexts are whole, it is metrics/text.py."""
    train, text = "abracadabra, cadabra and abraxas", "a bad crab and a card; barn"
    alphabet = "".join(sorted(set(train) | set(text)))
    bits = OrderK(ids_of(train, alphabet), len(alphabet), order).bits(ids_of(text, alphabet))
    assert bits[0, order:].mean() == pytest.approx(order_k_cross_entropy(train, text, order), rel=1e-12)
    other = OrderK(ids_of(train, alphabet), len(alphabet), order + 1).bits(ids_of(text, alphabet))
    assert abs(other[0, order:].mean() - bits[0, order:].mean()) > 1e-3


def test_by_hand() -> None:
    """Rows 0 0 1 and 0 1: n(0) = 3, n(1) = 2, V = 3; after 0: n = 3 with 0 once and 1 twice, T = 2."""
    judge = OrderK(np.array([[0, 0, 1], [2, 0, 1]]), 3, order=1)
    # tokens: 0 three times, 1 twice, 2 once: p(c) = (n(c) + 3 / 3) / (6 + 3)
    single = np.array([4, 3, 2]) / 9
    # after 0: 0 once, 1 twice, T = 2; after 2: 0 once, T = 1; after 1: never, so p(c)
    after = {(0, 1): (2 + 2 * single[1]) / 5, (2, 0): (1 + 1 * single[0]) / 2, (1, 2): single[2]}
    for (first, second), p in after.items():
        bits = judge.bits(np.array([[first, second]]))[0]
        assert bits == pytest.approx([-math.log2(single[first]), -math.log2(p)], rel=1e-12)


def test_each_context_has_a_law() -> None:
    rng = np.random.default_rng(0)
    judge = OrderK(rng.integers(5, size=(7, 11)), 5, order=2)
    for context in ([], [3], [3, 4], [4, 4]):
        rows = np.array([[*context, c] for c in range(5)])
        assert np.exp2(-judge.bits(rows)[:, -1]).sum() == pytest.approx(1, abs=1e-12)


def test_rows_of_a_known_source_have_its_entropy() -> None:
    """Control: the same tokens in another order are far from it, which single tokens do not show."""
    source = MarkovChain(num_symbols=7, length=13, num_train=4096, num_val=1024)
    train, rows = (source.rows(split)[list(range(n))]["x"] for split, n in (("train", 4096), ("val", 1024)))
    bits = OrderK(train.numpy(), 7, order=1).bits(rows.numpy())
    per_row = bits.mean(1)
    stderr = per_row.std(ddof=1) / math.sqrt(len(rows))
    true = -source.log_likelihood(rows).numpy() / 13 / math.log(2)
    assert abs(per_row.mean() - source.entropy / math.log(2)) < 4 * stderr
    # row by row, where the noise of the draw is gone: only that of counting is left
    assert abs(per_row.mean() - true.mean()) < 0.003
    mixed = np.random.default_rng(1).permuted(rows.numpy(), axis=1)
    shuffled = OrderK(train.numpy(), 7, order=1).bits(mixed).mean()
    assert shuffled > per_row.mean() + 40 * stderr
    single = OrderK(train.numpy(), 7, order=0)
    assert single.bits(mixed).mean() == pytest.approx(single.bits(rows.numpy()).mean(), rel=1e-12)


def test_rows_shorter_than_the_order() -> None:
    bits = OrderK(np.array([[0, 1, 2, 1]]), 3, order=3).bits(np.array([[1, 0]]))
    assert bits.shape == (1, 2)
    assert np.isfinite(bits).all()
    short = OrderK(np.array([[0, 1], [1, 1]]), 3, order=5)
    assert short.bits(np.array([[1, 0, 2, 1, 1, 1, 0]])).shape == (1, 7)


def test_refused() -> None:
    rows = np.array([[0, 1, 2]])
    for make, words in (
        (lambda: OrderK(rows, 3, -1), "order is -1"),
        (lambda: OrderK(rows, 2**16, 4), "more than can be counted"),
        (lambda: OrderK(rows, 2), "ids lie in 0..2"),
        (lambda: OrderK(rows[0], 3), "shape"),
        (lambda: OrderK(rows[:, :0], 3), "nothing to count"),
        (lambda: OrderK(rows, 3).bits(rows + 1), "ids lie in 1..3"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
