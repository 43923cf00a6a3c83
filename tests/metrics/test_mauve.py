"""MAUVE by its definition: what it must be, and the figures of the reference."""

from __future__ import annotations

import numpy as np
import pytest

from ggm_lightning.metrics.mauve import area, mauve

N, D = 1000, 64


def mixture(seed: int) -> np.ndarray:
    """Eight heaps, as in shared/reference/evaluation/mauve_by_definition.py."""
    heap = np.random.default_rng(seed + 1).integers(0, 8, N)
    return np.random.default_rng(seed).normal(size=(N, D)) + 4 * np.eye(D)[heap]


def contaminated(share: float) -> np.ndarray:
    q = mixture(5)
    count = int(share * N)
    q[:count] = np.random.default_rng(9).normal(size=(count, D)) * 1.5 + 6 * np.eye(D)[20]
    return q


def test_the_area_of_known_laws() -> None:
    """1 for equal laws, near 0 for laws on other buckets, the same both ways round, and by a fine sum."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    assert area(p, p) == pytest.approx(1, abs=1e-9)
    assert area(np.array([1.0, 0.0]), np.array([0.0, 1.0])) < 0.05
    assert area(p, q) == pytest.approx(area(q, p), abs=1e-12)
    share = np.linspace(1e-9, 1 - 1e-9, 20_001)[:, None]
    r = share * p + (1 - share) * q
    x, y = (np.exp(-5 * (law * np.log(law / r)).sum(1)) for law in (q, p))
    exact = x[-1] - np.trapezoid(y, x)  # left of the curve it is 1
    assert area(p, q) == pytest.approx(exact, abs=0.01)


def test_equal_sets_and_refusals() -> None:
    p = mixture(1)[:100]
    assert mauve(p, p.copy(), seeds=[0, 1]) == pytest.approx([1, 1])
    assert mauve(np.ones((5, 3)), np.ones((5, 3))) == [1.0] * 5
    assert mauve(p, contaminated(1)[:100], seeds=[0])[0] < 0.1  # the control
    for wrong in (p[:99], p[:, :63]):
        with pytest.raises(ValueError, match="of equal count"):
            mauve(p, wrong)
    with pytest.raises(ValueError, match="not finite"):
        mauve(np.full((5, 3), np.nan), np.ones((5, 3)))


@pytest.mark.slow
def test_it_falls_with_the_contamination_as_in_the_reference() -> None:
    expected = {0: 0.969, 0.25: 0.652, 0.5: 0.295, 0.75: 0.082, 1: 0.008}
    p = mixture(1)
    found = [float(np.mean(mauve(p, contaminated(share)))) for share in expected]
    assert found == pytest.approx(list(expected.values()), abs=0.04)
    assert found == sorted(found, reverse=True)
    assert mauve(p, p.copy(), seeds=[0]) == pytest.approx([1])
