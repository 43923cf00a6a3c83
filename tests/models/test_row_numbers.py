"""The numbers that a model gives to its rows are those under which data/order.py deals them out.

The noise of a row is a function of its number: a rank or a micro-batch that counts wrongly shares noise with another,
which no loss curve shows.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ggm_lightning.data.order import EvalOrder, TrainOrder
from ggm_lightning.models.base import Family
from tests.models.every_family import N, V, small

MICRO, STEPS = 3, 2
SPLITS = [(1, 1), (2, 1), (1, 3), (2, 3)]  # (ranks, micro-batches of a step)


def on_rank(rank: int, world: int, accumulate: int, **options: object) -> Family:
    model = small("md4", **options)
    model.trainer = SimpleNamespace(
        world_size=world, global_rank=rank, accumulate_grad_batches=accumulate, global_step=0
    )
    return model


@pytest.mark.parametrize(("world", "accumulate"), SPLITS)
def test_training_rows_are_the_positions_that_the_order_deals(world: int, accumulate: int) -> None:
    """Micro-batch by micro-batch: the row numbers are the places of its data in the step's global batch."""
    total = MICRO * world * accumulate
    size = 2 * total + 1  # no row is dealt twice in these steps
    dealt = [TrainOrder(size, total, seed=5).indices(step, 0) for step in range(STEPS)]
    seen: list[tuple[int, int]] = []
    for rank in range(world):
        model = on_rank(rank, world, accumulate)
        order = TrainOrder(size, total, world=world, rank=rank, accumulation=accumulate, seed=5)
        for step in range(STEPS):
            model.trainer.global_step = step
            for part in range(accumulate):
                its_step, row, its_total = model._training_rows(MICRO)
                assert (its_step, its_total) == (step, total)
                assert [dealt[step][i] for i in row.tolist()] == order.indices(step, part)
                seen += [(step, i) for i in row.tolist()]
    assert sorted(seen) == [(step, i) for step in range(STEPS) for i in range(total)]


@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_rows_are_the_indices_that_the_order_reads(world: int) -> None:
    for rank in range(world):
        model, order = on_rank(rank, world, 1), EvalOrder(17, 4, world=world, rank=rank)
        for _ in range(2):  # a second validation counts anew
            model.on_validation_epoch_start()
            for batch in order:
                assert model._dataset_rows(len(batch)).tolist() == batch


def test_validation_has_a_seed_and_rows_of_its_own() -> None:
    """The same bound at every validation, whatever the training's seed. Controls: the other seed, other rows."""
    x = torch.randint(V, (4, N), generator=torch.Generator().manual_seed(1))
    model = on_rank(1, 2, 1, seed=3, eval_seed=8, eval_samples=2)
    row, nats = model._evaluate({"x": x})
    assert row.tolist() == [1, 3, 5, 7]
    assert torch.equal(nats, model.nelbo(x, num_samples=2, seed=8, row=row))
    assert not torch.equal(nats, model.nelbo(x, num_samples=2, seed=3, row=row))
    assert not torch.equal(nats, model.nelbo(x, num_samples=2, seed=8))


def test_dropout_differs_between_ranks_micro_batches_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    x = torch.zeros(MICRO, N, dtype=torch.long)
    for rank in range(2):
        model = on_rank(rank, 2, 3)
        monkeypatch.setattr(model, "log", lambda *given, **more: None)
        monkeypatch.setattr(model, "loss", lambda x, *given, **more: torch.zeros(()))
        for step in range(STEPS):
            model.trainer.global_step = step
            for part in range(3):
                model.training_step({"x": x}, part)
    drawn: list[int] = [seed for seed in seeds if seed != 0]  # building the models seeds with 0
    assert len(drawn) == len(set(drawn)) == 2 * STEPS * 3


def test_a_second_fit_that_begins_in_the_step_where_one_ended_counts_from_the_first_part() -> None:
    model = on_rank(0, 1, 2)
    first = model._training_rows(MICRO)[1]
    assert not torch.equal(model._training_rows(MICRO)[1], first)
    model.on_train_start()
    again: Tensor = model._training_rows(MICRO)[1]
    assert torch.equal(again, first)
