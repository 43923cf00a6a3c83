"""How varied rows are: by hand, and the printed errors against redrawn rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ggm_lightning.metrics import diversity
from ggm_lightning.metrics.jensen_shannon import jensen_shannon, of_laws

X = torch.tensor([[1, 2, 1, 2, 1], [0, 0, 0, 0, 0], [1, 2, 1, 2, 3]])


def test_runs_have_equal_numbers_exactly_where_they_are_equal() -> None:
    """Also where a product of all classes would overflow."""
    x = torch.randint(50_000, (2, 11), generator=torch.Generator().manual_seed(0))
    x[1, 3:9] = x[0, 1:7]
    numbers = diversity.gram_numbers(x, 5)
    runs = {(i, j): tuple(x[i, j : j + 5].tolist()) for i in range(2) for j in range(7)}
    for one in runs:
        for other in runs:
            assert (numbers[one] == numbers[other]) == (runs[one] == runs[other])
    assert numbers[1, 3] == numbers[0, 1]
    with pytest.raises(ValueError, match="runs of 12 tokens in rows of 11"):
        diversity.gram_numbers(x, 12)


def test_by_hand() -> None:
    found = diversity.entropies(X)
    assert found[1] == 0
    assert found[0].item() == pytest.approx(-0.6 * math.log(0.6) - 0.4 * math.log(0.4))
    share, _ = diversity.distinct_share(diversity.gram_numbers(X, 2))
    assert share == pytest.approx(4 / 12)  # 12, 21, 00, 23
    assert diversity.repeated_grams(X, 2).tolist() == pytest.approx([2 / 4, 3 / 4, 1 / 4])
    copies = diversity.Copies(torch.cat([X, X[:1]]))
    copies.add(X[1:2])
    copies.add(X[:1])
    assert copies.found.tolist() == [True, True, False, True]
    rows, _ = diversity.distinct_share(diversity.row_numbers(torch.cat([X, X[:1]])))
    assert rows == 3 / 4


def test_the_error_of_a_share_is_not_less_than_its_spread() -> None:
    """Over 200 sets of 53 rows; the spread is known to 5 %. By Efron and Stein the jackknife's is too large, if any."""
    x = torch.distributions.Geometric(0.1).expand((200, 53, 11))
    torch.manual_seed(0)
    found = [diversity.distinct_share(diversity.gram_numbers(one, 2)) for one in x.sample().long()]
    shares, errors = np.array(found).T
    assert 1 < errors.mean() / shares.std(ddof=1) < 1.5
    assert diversity.distinct_share(diversity.gram_numbers(torch.ones(5, 11, dtype=torch.int64), 2))[1] == 0


def test_jensen_shannon_of_known_laws() -> None:
    """Enumerated: rows whose runs have exactly these shares."""
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5])
    one, other = torch.tensor([[0], [1]] * 2), torch.tensor([[0], [1], [2], [2]])
    value, _ = jensen_shannon(one, other, 1)
    middle = (p + q) / 2
    by_hand = (np.log2(0.5 / 0.375) + 0.5 * np.log2(0.25 / 0.375) + 0.5 * np.log2(0.5 / middle[2])) / 2
    assert value == pytest.approx(of_laws(p, q), abs=1e-12)
    assert value == pytest.approx(by_hand, abs=1e-12)
    assert jensen_shannon(one, one, 1) == pytest.approx((0, 0), abs=1e-12)
    assert jensen_shannon(one, one + 2, 1)[0] == pytest.approx(1)
    for wrong in (other[:3], torch.zeros(4, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="of equal count and length"):
            jensen_shannon(one, wrong, 1)


def test_the_error_of_a_distance_is_its_spread() -> None:
    """Over 200 pairs of sets of 53 rows of 11 tokens of two laws."""
    laws = np.random.default_rng(3).dirichlet(np.ones(7), 2)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):
        one, other = (torch.from_numpy(rng.choice(7, (53, 11), p=law)) for law in laws)
        found.append(jensen_shannon(one, other, 1))
    values, errors = np.array(found).T
    assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.2)
    assert abs(values.mean() - of_laws(*laws)) < 2 * errors.mean()
