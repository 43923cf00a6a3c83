"""Rows that are equal are computed once."""

from __future__ import annotations

import pytest
import torch

from ggm_lightning.exact.states import distinct


@pytest.mark.parametrize("count", [0, 5, 256, 257, 3000])
def test_one_row_of_each_kind_stands_for_all(count: int) -> None:
    """Of two times and 2 x 3 states; the places of one column and the times of others tell rows apart, too."""
    draw = torch.Generator().manual_seed(count)
    t = torch.tensor([0.25, 0.75])[torch.randint(2, (count,), generator=draw)]
    x, visited = (torch.randint(high, (count, 1), generator=draw) for high in (2, 3))
    first, back = distinct(t, x, visited)
    for column in (t[:, None], x, visited):
        assert torch.equal(column[first][back], column)
    assert len(first) == (count if count <= 256 else 12)


def test_a_large_id_is_no_other_time() -> None:
    t = torch.tensor([0.1, 0.2]).repeat(200)
    x = torch.tensor([[7], [0]]).repeat(200, 1)
    first, back = distinct(t, x)
    assert len(first) == 2
    assert torch.equal(t[first][back], t)
