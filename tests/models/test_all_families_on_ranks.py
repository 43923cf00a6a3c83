"""Two ranks are one rank with twice the batch, in every family; LDDM's frozen encoder and the drawing of samples, too.

In float64: what is left of a difference is then no rounding. In float32 gradients are added up in another order and
differ by 1e-7 of themselves. Adam divides a gradient by its own size, so that what rounding leaves of a gradient near
zero becomes a step as long as the learning rate: weights then differ by 3e-5 after five steps, with nothing wrong. An
eps of 1e-3, above what rounding leaves, takes that away: every family is then within 1e-6 in float32, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.all_families_on_ranks import FROZEN, NAMES, OTHER_SEED, SWITCH

pytestmark = pytest.mark.slow
TOLERANCE = 1e-10


def by_ranks(folder: Path, bits: str) -> dict[str, dict[str, Any]]:
    """What one rank has, and each of two."""
    for ranks in (1, 2):
        command = [sys.executable, "-W", "ignore", "-m", "tests.models.all_families_on_ranks"]
        command += [str(ranks), str(folder), bits]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    return {file.stem: torch.load(file) for file in folder.glob("*.pt")}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return by_ranks(tmp_path_factory.mktemp("ranks"), "64")


def largest_difference(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_are_one_with_twice_the_batch(name: str, found: dict[str, dict[str, Any]]) -> None:
    one, first, second = (found[which][name] for which in ("0-of-1", "0-of-2", "1-of-2"))
    assert largest_difference(one["weights"], first["weights"]) < TOLERANCE
    assert largest_difference(first["weights"], second["weights"]) == 0
    assert torch.equal(one["samples"], first["samples"])  # each rank has drawn three of the five
    assert torch.equal(first["samples"], second["samples"])


def test_in_float32_what_differs_is_adam_of_gradients_near_zero(tmp_path: Path) -> None:
    """The control: with Adam's usual eps some family is off by more than ten times as much."""
    furthest = {}
    for bits in ("32", "32-adam"):
        (tmp_path / bits).mkdir()
        of_ranks = by_ranks(tmp_path / bits, bits)
        one, first = of_ranks["0-of-1"], of_ranks["0-of-2"]
        each = {name: largest_difference(one[name]["weights"], first[name]["weights"]) for name in NAMES}
        furthest[bits] = max(each.values())
        if bits == "32":
            assert {name: value for name, value in each.items() if value >= 1e-6} == {}
    assert furthest["32-adam"] > 1e-5


def test_another_seed_is_seen(found: dict[str, dict[str, Any]]) -> None:
    """Control of both: other noise gives other weights, and other weights other samples somewhere."""
    one = found["0-of-1"]
    assert largest_difference(one["md4"]["weights"], one[OTHER_SEED]["weights"]) > 1e4 * TOLERANCE
    assert not torch.equal(one["md4"]["samples"], one["genmd4"]["samples"])


def test_the_encoder_is_frozen_on_every_rank(found: dict[str, dict[str, Any]]) -> None:
    for which in ("0-of-1", "0-of-2", "1-of-2"):
        seen = found[which][FROZEN]["encoder"]
        assert not torch.equal(seen[0], seen[1])  # it was trained before
        assert torch.equal(seen[SWITCH + 1], seen[-1])
        assert len(seen) > SWITCH + 1
        free = found[which]["seq, stage 1"]["encoder"]
        assert not torch.equal(free[SWITCH], free[-1])  # control: without the switch it goes on
    for one, two in zip(found["0-of-1"][FROZEN]["encoder"], found["1-of-2"][FROZEN]["encoder"], strict=True):
        assert float((one - two).abs().max()) < TOLERANCE
