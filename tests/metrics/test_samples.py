"""Measures of samples, against counts by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ggm_lightning.metrics.samples import DistinctNGrams, Duplicates, Rows, TokenEntropy


def rows(*ids: list[int]) -> Rows:
    return Rows(torch.tensor(ids), [" ".join(map(str, row)) for row in ids])


REAL = rows([0, 1, 2, 3])


def test_entropy_of_the_tokens_of_each_row() -> None:
    found = TokenEntropy().measure(rows([5, 5, 5, 5], [5, 5, 6, 6]), REAL)
    assert found["token_entropy"] == pytest.approx(math.log(2) / 2, abs=1e-15)
    assert found["token_entropy_real"] == pytest.approx(math.log(4), abs=1e-15)
    # control: the entropy of all rows together is another one
    share = torch.tensor([6, 2]) / 8
    assert abs(found["token_entropy"] + float((share * share.log()).sum())) > 0.2


def test_distinct_n_grams_of_all_rows_together() -> None:
    found = DistinctNGrams(n=(1, 2, 5)).measure(rows([1, 2, 1, 2], [2, 1, 7, 7]), REAL)
    assert found["distinct_1"] == 3 / 8
    assert found["distinct_2"] == 4 / 6  # 12 21 12 | 21 17 77: no gram reaches from one row into the next
    assert math.isnan(found["distinct_5"])
    assert found["distinct_1_real"] == 1


def test_duplicates() -> None:
    assert Duplicates().measure(rows([1, 2], [3, 4], [1, 2], [1, 2]), REAL) == {"duplicates": 0.5}
    assert Duplicates().measure(rows([1, 2], [2, 1]), REAL) == {"duplicates": 0}


def test_lengths_that_are_none() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        DistinctNGrams(n=(0,))
