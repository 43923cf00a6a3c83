"""Lightning's own loops around the data: steps as the user writes them, rows as a function of the step.

23 training rows in batches of 6 are an epoch of 4 steps, here of 3 micro-batches each; 7 validation rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from ggm_lightning.data.order import TrainOrder
from ggm_lightning.data.steps import share
from tests.data.test_base import VAL, N, Numbered, Recorder, _trainer


class Steps(Recorder):
    """Notes the step of each validation."""

    def __init__(self) -> None:
        super().__init__()
        self.validated: list[int] = []

    def on_validation_epoch_end(self) -> None:
        self.validated.append(self.trainer.global_step)


def fitted(folder: Path, steps: int, micro: int = 2, **settings: Any) -> Steps:
    model = Steps()
    data = Numbered(global_batch_size=6, max_batch_per_device=micro, eval_batch_size=2, seed=3)
    _trainer(folder, steps, **settings).fit(model, datamodule=data)
    return model


def test_a_share_is_a_number_or_a_fraction() -> None:
    assert [share("x", limit, 7, "step") for limit in (3, 9, 0, 1.0, 0.5, 0.0)] == [3, 7, 0, 7, 3, 0]
    with pytest.raises(ValueError, match=r"trainer.x is 0.1, less than one step of the 7 there are"):
        share("x", 0.1, 7, "step")


@pytest.mark.parametrize("micro", [6, 3, 2, 1])
@pytest.mark.parametrize(
    ("settings", "validated"),
    [
        ({"val_check_interval": 3, "check_val_every_n_epoch": None}, [3, 6, 9]),
        ({"val_check_interval": 3}, [3, 7]),
        ({"val_check_interval": 1}, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({"val_check_interval": 0.5}, [2, 4, 6, 8]),
        ({"val_check_interval": 0.6, "limit_train_batches": 3}, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({"limit_train_batches": 3}, [3, 6, 9]),
        ({"limit_train_batches": 0.8}, [3, 6, 9]),
    ],
)
def test_validations_come_after_the_same_steps(tmp_path: Path, micro: int, settings: dict[str, Any], validated: list):
    assert fitted(tmp_path, 9, micro, **settings).validated == validated


def test_a_limited_epoch_goes_on_in_the_data(tmp_path: Path) -> None:
    order = TrainOrder(N, 6, accumulation=3, seed=3)
    expected = [(k, order.indices(k, a)) for k in range(9) for a in range(3)]
    assert fitted(tmp_path, 9, limit_train_batches=3).seen == expected
    assert fitted(tmp_path, 9).seen == expected


def test_overfitting_repeats_the_first_rows_unshuffled(tmp_path: Path) -> None:
    """Before, an IndexError."""
    model = fitted(tmp_path, 5, overfit_batches=2)
    steps = [sorted(row for step, rows in model.seen if step == k for row in rows) for k in range(5)]
    first, second = list(range(6)), list(range(6, 12))
    assert steps == [first, second, first, second, first]
    assert model.evaluated == [0, 1, 2, 3] * 2  # two batches of two rows, at the end of each epoch of two steps
    wrapped = fitted(tmp_path, 4, overfit_batches=1.0)  # all four steps: the last one wraps around
    assert sorted(row for step, rows in wrapped.seen if step == 3 for row in rows) == [0, *range(18, N)]


@pytest.mark.parametrize(("limit", "rows"), [(2, 4), (0.5, 4), (1.0, VAL), (9, VAL), (0, 0)])
def test_a_limited_validation_sees_the_first_rows(tmp_path: Path, limit: float, rows: int) -> None:
    assert fitted(tmp_path, 4, limit_val_batches=limit).evaluated == list(range(rows))


def test_the_trainer_gets_its_own_numbers_back(tmp_path: Path) -> None:
    """A second fit does not convert them again."""
    settings = {"val_check_interval": 2, "limit_train_batches": 0.8, "limit_val_batches": 0.5}
    trainer = _trainer(tmp_path, 6, **settings)
    data = Numbered(global_batch_size=6, max_batch_per_device=2, eval_batch_size=2)
    for steps in (6, 12):
        trainer.fit_loop.epoch_loop.max_steps = steps
        model = Steps()
        trainer.fit(model, datamodule=data)
        assert model.validated == [steps - 4, steps - 1]
        assert {name: getattr(trainer, name) for name in settings} == settings


def test_validations_after_each_step_are_seen_after_each_step(tmp_path: Path) -> None:
    """Lightning's callbacks take val_check_interval 1 for 1.0, the end of each epoch."""
    stopping, saving = EarlyStopping("val"), ModelCheckpoint(tmp_path, monitor="val")

    class Logs(Steps):
        def validation_step(self, batch: Any, _: int) -> None:
            self.log("val", float(self.trainer.global_step))

    trainer = _trainer(tmp_path, 3, callbacks=[stopping, saving], enable_checkpointing=True, val_check_interval=1)
    trainer.fit(Logs(), datamodule=Numbered(global_batch_size=6))
    assert stopping.wait_count == 2
    assert saving.best_model_path.endswith("step=1.ckpt")


def test_an_interval_longer_than_an_epoch_is_refused_in_steps(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="val_check_interval is 5 steps, but an epoch has 4"):
        fitted(tmp_path, 9, val_check_interval=5)
