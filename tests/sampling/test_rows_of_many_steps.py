"""What many steps cost: rows in which nothing is revealed are not sent (tests/benchmarks/rows.py has the seconds)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ggm_lightning.models.md4 import MD4

STEPS, SITES, ROWS, V = 1000, 128, 5, 3


class Equal(nn.Module):
    """Says nothing, at no cost."""

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.zeros(*z.shape, V)


def test_a_row_is_sent_at_most_once_for_each_site() -> None:
    drawn = MD4(Equal(), V, (SITES,)).sample(ROWS, STEPS, seed=1)
    assert 100 < drawn.rows / ROWS <= SITES
    assert drawn.network_calls > 2 * SITES  # so many rows would be sent of each sample in whole batches
