"""A run that starts from the weights of another text is ahead of one that starts from nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.finetuning import ahead, compared


@pytest.mark.slow
def test_weights_of_another_text_are_a_better_start(tmp_path: Path) -> None:
    """At equal steps, on paired rows, by more than ten standard errors; by the tokens' numbers it would be worse."""
    found = compared(tmp_path, first_steps=300, steps=60)
    gain, stderr = ahead(found["weights"], found["nothing"])
    assert gain > 10 * stderr
    lost, stderr = ahead(found["weights"], found["weights, rows by number"])
    assert lost > 10 * stderr  # control: a wrong mapping of the rows is seen
