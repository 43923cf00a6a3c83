"""What all data modules share: batches, ranks, accumulation, workers, checks, and Lightning's own loops around them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.text import Integers
from ggm_lightning.data.base import DiscreteData
from ggm_lightning.data.order import TrainOrder
from ggm_lightning.data.rows import Rows, RowSource, check_ids

N, VAL, V, SHAPE = 23, 7, 5, (3, 2)


class Numbered(DiscreteData):
    """Row i of the training split has label i."""

    def __init__(self, rows: int = N, val: int = VAL, largest: int = V - 1, **batches: Any) -> None:
        super().__init__(**batches)
        rng = np.random.default_rng(0)
        self.x = {s: rng.integers(V, size=(n, *SHAPE)).astype(np.uint8) for s, n in (("train", rows), ("val", val))}
        if rows > 1:
            self.x["train"][1, 2, 1] = largest

    num_classes = V
    shape = SHAPE

    @property
    def codec(self) -> Codec:
        return Integers(V)

    def load(self, split: str) -> RowSource:
        return Rows(self.x[split], np.arange(len(self.x[split])), name=f"numbered.{split}")


class Recorder(pl.LightningModule):
    """Records which rows each step saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[int]]] = []
        self.evaluated: list[int] = []

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        self.seen.append((self.trainer.global_step, batch["label"].tolist()))
        return self.weight * 1.0

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        self.evaluated += batch["label"].tolist()

    def predict_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        return batch["label"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def _trainer(folder: Path, steps: int, **kwargs: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    given = {"enable_checkpointing": False, "num_sanity_val_steps": 0, **quiet, **kwargs}
    return pl.Trainer(default_root_dir=folder, max_steps=steps, **given)


def test_batches_are_dicts_of_int64(tmp_path: Path) -> None:
    data = Numbered(global_batch_size=4, eval_batch_size=3)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert sorted(batch) == ["label", "row", "x"]
    assert batch["x"].dtype == batch["label"].dtype == batch["row"].dtype == torch.int64
    assert batch["row"].tolist() == [0, 1, 2, 3]
    assert batch["x"].shape == (4, *SHAPE)
    assert (batch["x"].numpy() == data.x["train"][batch["label"]]).all()
    assert [len(b["x"]) for b in data.val_dataloader()] == [3, 3, 1]
    assert data.decode(batch["x"][:1])[0].split() == [str(i) for i in batch["x"][0].flatten().tolist()]
    assert data.references() == data.judge(["a"]) == {}
    assert data.characters_per_token is None


def test_two_workers_give_the_batches_of_none() -> None:
    loaders = [Numbered(global_batch_size=6, num_workers=w).train_dataloader() for w in (0, 2)]
    for _ in range(2):  # twice: the workers persist
        alone, both = [[b["label"].tolist() for b in loader] for loader in loaders]
        assert alone == both
        assert len(alone) == len(loaders[0]) == 4


def test_lightning_accumulates_what_the_order_gives(tmp_path: Path) -> None:
    data, model = Numbered(global_batch_size=6, max_batch_per_device=2, seed=3), Recorder()
    trainer = _trainer(tmp_path, 9)
    trainer.fit(model, datamodule=data)
    assert trainer.accumulate_grad_batches == 3
    order = TrainOrder(N, 6, accumulation=3, seed=3)
    assert model.seen == [(k, order.indices(k, a)) for k in range(9) for a in range(3)]
    assert model.evaluated == list(range(VAL)) * 2  # two whole epochs of four steps


def test_an_accumulation_that_contradicts_the_data_is_refused(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, 1, accumulate_grad_batches=2)
    with pytest.raises(ValueError, match=r"accumulate_grad_batches is 2, but .*max_batch_per_device=2 make it 3"):
        trainer.fit(Recorder(), datamodule=Numbered(global_batch_size=6, max_batch_per_device=2))


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_a_resumed_fit_sees_the_rows_of_the_undisturbed_one(tmp_path: Path, stop: int) -> None:
    """In mid-epoch, at an epoch's end (4) and after it. Control: without the checkpoint the rows differ."""

    def data() -> Numbered:
        return Numbered(global_batch_size=6, max_batch_per_device=3, seed=1, num_workers=0)

    whole = Recorder()
    _trainer(tmp_path, 10).fit(whole, datamodule=data())
    first = _trainer(tmp_path, stop)
    first.fit(Recorder(), datamodule=data())
    first.save_checkpoint(tmp_path / "stopped.ckpt")
    resumed = Recorder()
    _trainer(tmp_path, 10).fit(resumed, datamodule=data(), ckpt_path=tmp_path / "stopped.ckpt")
    assert resumed.seen == whole.seen[2 * stop :]
    fresh = Recorder()
    _trainer(tmp_path, 10 - stop).fit(fresh, datamodule=data())
    assert [rows for _, rows in fresh.seen] != [rows for _, rows in resumed.seen]


class Scheduled(Recorder):
    """Asks how long the run is, as learning rate schedules do; with max_epochs that loads the training data."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches == 3 * 4
        return super().configure_optimizers()


def test_a_fit_resumed_by_epochs_sees_the_rows_of_the_undisturbed_one(tmp_path: Path) -> None:
    """Before, it began with the rows of the first step."""
    data = {"global_batch_size": 6, "max_batch_per_device": 3, "seed": 1}
    whole, resumed = Scheduled(), Scheduled()
    _trainer(tmp_path, -1, max_epochs=3).fit(whole, datamodule=Numbered(**data))
    first = _trainer(tmp_path, 5)
    first.fit(Recorder(), datamodule=Numbered(**data))
    first.save_checkpoint(tmp_path / "stopped.ckpt")
    trainer = _trainer(tmp_path, -1, max_epochs=3)
    trainer.fit(resumed, datamodule=Numbered(**data), ckpt_path=tmp_path / "stopped.ckpt")
    assert len(whole.seen) == 2 * 12
    assert resumed.seen == whole.seen[2 * 5 : 2 * 5 + len(resumed.seen)]
    assert len(resumed.seen) >= 4


def test_lightning_predicts_and_tests_every_row_in_order(tmp_path: Path) -> None:
    trainer, data = _trainer(tmp_path, 1), Numbered(eval_batch_size=3)
    found = trainer.predict(Recorder(), datamodule=data)
    assert torch.cat(found).tolist() == list(range(VAL))
    data.setup("test")  # no test split: the validation rows
    assert [i for b in data.test_dataloader() for i in b["label"].tolist()] == list(range(VAL))


def test_ranks_share_out_a_batch_and_the_evaluation() -> None:
    def place(rank: int, sharding: bool = False) -> Any:
        connector = SimpleNamespace(use_distributed_sampler=sharding)
        settings = {"limit_val_batches": 1.0, "_accelerator_connector": connector}
        settings["_checkpoint_connector"] = SimpleNamespace(_loaded_checkpoint={})
        return SimpleNamespace(world_size=2, global_rank=rank, global_step=0, **settings)

    whole = [b["label"].tolist() for b in Numbered(global_batch_size=6).train_dataloader()]
    parts, evaluated = [], []
    for rank in range(2):
        data = Numbered(global_batch_size=6, eval_batch_size=2)
        data.trainer = place(rank)
        parts.append([b["label"].tolist() for b in data.train_dataloader()])
        evaluated.append([i for b in data.val_dataloader() for i in b["label"].tolist()])
    dealt = [[i for pair in zip(*batches, strict=True) for i in pair] for batches in zip(*parts, strict=True)]
    assert dealt == whole
    assert evaluated == [[0, 2, 4, 6], [1, 3, 5]]
    data.trainer = place(0, sharding=True)
    with pytest.raises(ValueError, match=r"set trainer\.use_distributed_sampler: false"):
        data.train_dataloader()
    data = Numbered(global_batch_size=1)
    data.trainer = place(0)
    with pytest.raises(ValueError, match=r"G=1 .* 2 device"):
        data.train_dataloader()


def test_a_wrong_id_is_named_with_its_place() -> None:
    with pytest.raises(
        ValueError, match=r"numbered.train \(train split\): id 5 at position \[1, 2, 1\] is outside 0..4"
    ):
        Numbered(largest=V).setup("fit")
    Numbered(largest=V).setup("validate")  # control: the other split is whole
    negative = np.zeros((9, 4), dtype=np.int64)
    negative[8, 3] = -2
    with pytest.raises(ValueError, match=r"id -2 at position \[108, 3\]"):
        check_ids(Rows(negative, name="n", first=100), V, "val")


def test_an_empty_split_and_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="Numbered: the val split has no rows"):
        Numbered(val=0).setup("fit")
    for key in ("global_batch_size", "max_batch_per_device", "eval_batch_size"):
        with pytest.raises(ValueError, match=rf"data.{key} is 0; it must be"):
            Numbered(**{key: 0})
    with pytest.raises(ValueError, match="4 rows but 3 labels"):
        Rows(np.zeros((4, 2), dtype=int), np.zeros(3, dtype=int))
