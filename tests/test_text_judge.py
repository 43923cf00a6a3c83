"""What tests/benchmarks/text_families.py counts in samples."""

from __future__ import annotations

import pytest

from tests.benchmarks.text_families import variety


def test_variety_counts_within_rows() -> None:
    found = variety(["abab", "abba"])  # ab ba ab, ab bb ba
    assert found["distinct_2"] == pytest.approx(3 / 6)
    assert found["distinct_4"] == 1
    assert found["entropy"] == pytest.approx(1)
