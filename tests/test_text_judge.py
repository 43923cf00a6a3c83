"""The judge of tests/benchmarks/text_families.py is the character model of metrics/text.py, row by row."""

from __future__ import annotations

import math

import pytest

from ggm_lightning.metrics.text import order_k_cross_entropy
from tests.benchmarks.text_families import Judge, variety

TRAIN = "the cat sat on the mat. the dog sat on the log. " * 5
ROW = "the cog sat on the hat and the dog"


def test_the_judge_is_the_character_model() -> None:
    alphabet = set(TRAIN) | set(ROW)
    judge = Judge(TRAIN, len(alphabet))
    assert math.fsum(judge.probability("the" + c) for c in alphabet) == pytest.approx(1, abs=1e-12)
    bits = [-math.log2(judge.probability(ROW[max(0, i - 3) : i + 1])) for i in range(len(ROW))]
    assert math.fsum(bits[3:]) / (len(ROW) - 3) == pytest.approx(order_k_cross_entropy(TRAIN, ROW, 3), abs=1e-12)
    assert judge.bits([ROW, ROW]) == pytest.approx(math.fsum(bits) / len(ROW), abs=1e-12)
    assert judge.bits([ROW[::-1]]) > 2 * judge.bits([ROW])  # control


def test_variety_counts_within_rows() -> None:
    found = variety(["abab", "abba"])  # ab ba ab, ab bb ba
    assert found["distinct_2"] == pytest.approx(3 / 6)
    assert found["distinct_4"] == 1
    assert found["entropy"] == pytest.approx(1)
