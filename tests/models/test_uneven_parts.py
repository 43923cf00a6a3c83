"""A global batch that does not divide: parts that differ by a row, each row counted once."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ggm_lightning.data.order import TrainOrder, divide_batch
from ggm_lightning.models.base import Family
from ggm_lightning.models.trained import Optimizer
from tests.models.test_fused_training import N, family
from tests.models.test_step_means import Data, fit, of

UNEVEN = [(100, 8, None), (256, 3, 16), (256, 6, None), (512, 12, 4), (512, 3, 64)]


@pytest.mark.parametrize(("total", "world", "limit"), UNEVEN)
def test_the_parts_are_the_batch_of_one_device(total: int, world: int, limit: int | None) -> None:
    accumulation, largest = divide_batch(total, world, limit)
    assert limit is None or largest <= limit
    whole = next(iter(TrainOrder(1000, total, seed=5)))
    orders = [TrainOrder(1000, total, world=world, rank=r, accumulation=accumulation, seed=5) for r in range(world)]
    dealt = [part for order in orders for part in islice(iter(order), accumulation)]
    sizes = {len(part) for part in dealt}
    assert sizes == {largest - 1, largest}
    row = np.concatenate([part.row for part in dealt])
    index = np.concatenate([list(part) for part in dealt])
    assert sorted(row) == list(range(total))
    assert index[np.argsort(row)].tolist() == list(whole)


def gradient(model: Family, x: Tensor, row: Tensor, total: int) -> Tensor:
    model.zero_grad()
    model.loss(x, step=3, row=row, total=total).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


OTHERS = [(name, *UNEVEN[0]) for name in ("genmd4", "ggm", "blackout", "hollow_bce of 7", "ar")]


@pytest.mark.parametrize(("name", "total", "world", "limit"), [*(("md4", *case) for case in UNEVEN), *OTHERS])
def test_weighted_gradients_are_those_of_one_device(name: str, total: int, world: int, limit: int | None) -> None:
    model = family(name).double()
    accumulation, _ = divide_batch(total, world, limit)
    parts = world * accumulation
    x = torch.randint(model.num_classes, (total, N), generator=torch.Generator().manual_seed(0))
    whole = gradient(model, x, torch.arange(total), total)
    weighted, plain = torch.zeros_like(whole), torch.zeros_like(whole)
    for rank in range(world):
        for row in TrainOrder(total, total, world=world, rank=rank, accumulation=accumulation).numbers:
            row = torch.from_numpy(row)
            part = gradient(model, x[row], row, total) / parts  # what DDP and accumulation make of it
            plain += part
            weighted += part * len(row) * parts / total
    assert (weighted - whole).norm() < 1e-6 * whole.norm()
    assert (plain - whole).norm() > 1e-5 * whole.norm()  # control


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["md4", "fuji"])
def test_a_trainer_weighs_its_parts(name: str) -> None:
    """Micro-batches of 4, 4 and 3 rows beside one of 11: the same weights, the same numbers logged."""
    weights, logged = [], []
    for micro in (None, 4):
        model: Any = of(name)
        model.optimizer = Optimizer(lr=1e-3)
        data = Data(model.num_classes, model.shape, micro)
        data.global_batch_size = 11
        logged.append(fit(model, data, max_steps=2))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert (weights[0] - weights[1]).norm() < 1e-5 * weights[0].norm()
    entries = {entry for entry in logged[0][-1] if entry.startswith("train/")}
    assert entries
    for one, three in zip(*logged, strict=True):
        assert all(three[entry] == pytest.approx(one[entry], rel=1e-5) for entry in entries & set(one))
