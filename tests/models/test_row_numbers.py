"""The numbers that a model's rows have are those under which data/order.py deals them out.

The noise of a row is a function of its number: a rank or a micro-batch that counts wrongly shares noise with another,
which no loss curve shows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.text import Characters
from ggm_lightning.data.base import DiscreteData
from ggm_lightning.data.order import EvalOrder, TrainOrder
from ggm_lightning.data.rows import Numbered, Rows
from ggm_lightning.models.base import Family
from tests.models.every_family import LABELS, N, V, small

MICRO, STEPS = 3, 2
SPLITS = [(1, 1), (2, 1), (1, 3), (2, 3)]  # (ranks, micro-batches of a step)
GLOBAL, TRAIN, VAL = 6, 23, 11  # with micro-batches of 2: 4 steps of 3 in an epoch
FIRST, SECOND, LAST = [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]  # batches of a validation

Seen = list[tuple[int, list[int], int]]  # (step, rows, total) of each call of the loss


def on_rank(rank: int, world: int, accumulate: int, **options: object) -> Family:
    model = small("md4", **options)
    model.trainer = SimpleNamespace(
        world_size=world, global_rank=rank, accumulate_grad_batches=accumulate, global_step=0
    )
    return model


def watched(model: Family) -> Seen:
    """Fills as the model's loss is called."""
    seen: Seen = []
    loss = model.loss

    def watching(x: Tensor, *given: Any, step: int, row: Tensor, total: int) -> Tensor:
        seen.append((step, row.tolist(), total))
        return loss(x, *given, step=step, row=row, total=total)

    model.loss = watching  # type: ignore[method-assign]
    return seen


def evaluated(model: Family) -> list[list[int]]:
    """Fills as the model's bound is asked for."""
    seen: list[list[int]] = []
    nelbo = model.nelbo

    def watching(x: Tensor, label: Tensor | None, num_samples: int, *, seed: int, row: Tensor) -> Tensor:
        seen.append(row.tolist())
        return nelbo(x, label, num_samples, seed=seed, row=row)

    model.nelbo = watching  # type: ignore[method-assign]
    return seen


class Digits(DiscreteData):
    """A stranger's data set: it says what it has and knows nothing of numbers."""

    def __init__(self, **batches: Any) -> None:
        super().__init__(**{"global_batch_size": GLOBAL, "max_batch_per_device": 2, "eval_batch_size": 4, **batches})

    @property
    def shape(self) -> tuple[int, ...]:
        return (N,)

    @property
    def codec(self) -> Codec:
        return Characters("abcdefg")

    def load(self, split: str) -> Rows:
        size = TRAIN if split == "train" else VAL
        return Rows(np.random.default_rng(size).integers(V, size=(size, N)), np.arange(size) % LABELS)


class Unnumbered(Digits):
    """The same batches, as a loader that knows nothing of rows would give them."""

    def on_before_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        return {name: value for name, value in batch.items() if name != "row"}


def trainer(folder: Path, steps: int, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    given = {"enable_checkpointing": False, "max_steps": steps, "num_sanity_val_steps": 0, **quiet, **options}
    return Trainer(default_root_dir=folder, **given)


@pytest.mark.parametrize(("world", "accumulate"), SPLITS)
def test_numbers_are_the_places_of_the_rows_in_the_global_batch(world: int, accumulate: int) -> None:
    """Micro-batch by micro-batch; and a batch that brings none is given the same ones."""
    total = MICRO * world * accumulate
    size = 2 * total + 1  # no row is dealt twice in these steps
    dealt = [TrainOrder(size, total, seed=5).indices(step, 0) for step in range(STEPS)]
    x = torch.zeros(MICRO, N, dtype=torch.long)
    numbered: list[tuple[int, int]] = []
    for rank in range(world):
        order = TrainOrder(size, total, world=world, rank=rank, accumulation=accumulate, seed=5)
        batches = list(order)[: STEPS * accumulate]
        model = on_rank(rank, world, accumulate)
        seen = watched(model)
        for i, batch in enumerate(batches):
            step = i // accumulate
            model.trainer.global_step = step
            assert [dealt[step][place] for place in batch.row] == batch == order.indices(step, i % accumulate)
            numbered += [(step, place) for place in batch.row]
            model.training_step({"x": x}, i)
            assert seen[-1] == (step, batch.row, total)
    assert sorted(numbered) == [(step, i) for step in range(STEPS) for i in range(total)]


@pytest.mark.parametrize("world", [1, 3])
def test_numbers_are_the_indices_in_the_data_set_when_evaluating(world: int) -> None:
    for rank in range(world):
        model, order = on_rank(rank, world, 1), EvalOrder(17, 4, world=world, rank=rank)
        for _ in range(2):  # a second validation counts anew
            for batch in order:
                assert batch.row == batch
                own = model.evaluated_rows({"x": torch.zeros(len(batch), N)}, "val")
                assert own.tolist() == batch  # of a loader that gives none
                model.likelihoods["val"].update(torch.zeros(len(batch)))
            model.likelihoods["val"].reset()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_hands_them_on(workers: int) -> None:
    rows = Rows(np.arange(TRAIN)[:, None])
    order = TrainOrder(TRAIN, GLOBAL, accumulation=3, seed=1)
    loader = DataLoader(Numbered(rows), sampler=order, batch_size=None, num_workers=workers)
    found = [(batch["x"][:, 0].tolist(), batch["row"].tolist()) for batch in loader]
    assert found == [(list(batch), batch.row) for batch in order]
    assert found[1][1] == [1, 4]


def resumed(folder: Path, data: Digits) -> tuple[Family, Trainer]:
    """A trainer that goes on after the 6th of 9 steps, in the middle of an epoch."""
    first = trainer(folder, 6, val_check_interval=2)
    first.fit(small("md4"), datamodule=type(data)())
    first.save_checkpoint(folder / "six.ckpt")
    return small("md4"), trainer(folder, 9, val_check_interval=2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", [Digits, Unnumbered])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_fit_with_accumulation_and_validations_between(source: Callable[..., Digits], workers: int, tmp_path: Path):
    data, model = source(num_workers=workers, seed=3), small("md4")
    seen, bounds = watched(model), evaluated(model)
    trainer(tmp_path, 9, val_check_interval=2, num_sanity_val_steps=2).fit(model, datamodule=data)
    assert seen == [(step, [a, a + 3], GLOBAL) for step in range(9) for a in range(3)]
    assert bounds == [FIRST, SECOND] + 4 * [
        FIRST,
        SECOND,
        LAST,
    ]  # the check before training, then after steps 2, 4, 6 and 8


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", [Digits, Unnumbered])
def test_a_resumed_fit_goes_on_counting_where_it_was(source: Callable[..., Digits], tmp_path: Path) -> None:
    model, second = resumed(tmp_path, source(seed=3))
    seen = watched(model)
    second.fit(model, datamodule=source(seed=3), ckpt_path=tmp_path / "six.ckpt", weights_only=False)
    assert seen == [(step, [a, a + 3], GLOBAL) for step in (6, 7, 8) for a in range(3)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", [Digits, Unnumbered])
@pytest.mark.parametrize(
    ("options", "steps", "validated"),
    [
        ({"fast_dev_run": True}, 1, [FIRST]),
        ({"limit_train_batches": 2, "limit_val_batches": 2, "max_epochs": 1}, 2, [FIRST, SECOND]),
        ({"overfit_batches": 1, "max_epochs": 2}, 2, 2 * [FIRST]),
    ],
)
def test_shortened_runs(
    source: Callable[..., Digits], options: dict[str, Any], steps: int, validated: list[list[int]], tmp_path: Path
) -> None:
    model = small("md4")
    seen, bounds = watched(model), evaluated(model)
    trainer(tmp_path, -1, **options).fit(model, datamodule=source())
    assert seen == [(step, [a, a + 3], GLOBAL) for step in range(steps) for a in range(3)]
    assert bounds == validated


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", [Digits, Unnumbered])
def test_predictions_are_named_by_the_rows_of_the_data(source: Callable[..., Digits], tmp_path: Path) -> None:
    model, alone = small("md4"), trainer(tmp_path, 1)
    for _ in range(2):  # the second one counts anew
        found = alone.predict(model, datamodule=source())
        assert [row for part in found or [] for row in part["row"].tolist()] == list(range(VAL))
    whole = source().rows("val")[range(VAL)]
    own = model.nelbo(whole["x"], whole["label"], num_samples=1, seed=0, row=torch.arange(VAL))
    torch.testing.assert_close(torch.cat([part["nelbo"] for part in found or []]), own, rtol=1e-6, atol=0)


def test_a_loader_without_numbers_counts_its_uneven_last_batch_in_its_own_step(tmp_path: Path) -> None:
    """5 rows, 2 at a time, steps of 2 batches: the last one, of one row, is a step alone."""
    model = small("md4")
    seen, bounds = watched(model), evaluated(model)
    loader = DataLoader([{"x": torch.full((N,), i)} for i in range(5)], batch_size=2)
    trainer(tmp_path, 3, accumulate_grad_batches=2, max_epochs=2).fit(model, loader, loader)
    assert seen[:4] == [(0, [0, 2], 4), (0, [1, 3], 4), (1, [0], 2), (2, [0, 2], 4)]
    assert bounds == [[0, 1], [2, 3], [4]]


def test_validation_has_a_seed_and_rows_of_its_own() -> None:
    """The same bound at every validation, whatever the training's seed. Controls: the other seed, other rows."""
    x = torch.randint(V, (4, N), generator=torch.Generator().manual_seed(1))
    model = on_rank(1, 2, 1, seed=3, eval_seed=8, eval_samples=2)
    given = torch.tensor([1, 3, 5, 7])
    for batch in ({"x": x}, {"x": x, "row": given}):
        found = model.predict_step(batch, 0)
        model.on_predict_epoch_end()
        assert torch.equal(found["row"], given)
        assert torch.equal(found["nelbo"], model.nelbo(x, num_samples=2, seed=8, row=given))
    nats = found["nelbo"]
    assert not torch.equal(nats, model.nelbo(x, num_samples=2, seed=3, row=given))
    assert not torch.equal(nats, model.nelbo(x, num_samples=2, seed=8))


def test_the_batch_says_which_noise_its_rows_have() -> None:
    """Numbers of another batch give its noise. Control: these rows' own do not."""
    x = torch.randint(V, (MICRO, N), generator=torch.Generator().manual_seed(1))
    model, row = on_rank(0, 1, 2), torch.tensor([1, 3, 5])
    second = model.training_step({"x": x}, 1)
    assert torch.equal(second, model.training_step({"x": x, "row": row}, 0))
    assert not torch.equal(second, model.training_step({"x": x}, 0))


def test_numbers_for_other_rows_are_refused() -> None:
    x = torch.zeros(MICRO, N, dtype=torch.long)
    with pytest.raises(ValueError, match=r"row has shape \(2,\)"):
        on_rank(0, 1, 1).training_step({"x": x, "row": torch.arange(2)}, 0)


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
