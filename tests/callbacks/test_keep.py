"""last.ckpt is of the last step, best.ckpt of the lowest bound, and neither of the middle of a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from ggm_lightning.callbacks.keep import KeepBest, KeepLast
from ggm_lightning.rundir.checkpoint import AtomicCheckpointIO, read


class Saved(Callback):
    """The step of last.ckpt after each micro-batch, None before there is one."""

    def __init__(self, folder: Path) -> None:
        self.file, self.steps = folder / "last.ckpt", []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.steps.append(read(self.file)["global_step"] if self.file.is_file() else None)


class BeforeValidation(Saved):
    """The same at the beginning of each validation."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pass

    def on_validation_start(self, trainer, pl_module):
        super().on_train_batch_start(trainer, pl_module, None, 0)


@pytest.fixture
def kept(tiny, tiny_data, fit, tmp_path):
    """kept(callback, batches=..., **trainer arguments) -> what lies in the run folder."""

    def run(*callbacks, batches=5, **arguments):
        more = {"data": tiny_data(batches), "enable_checkpointing": True, "plugins": [AtomicCheckpointIO()]}
        fit(tiny(), *callbacks, **{"max_epochs": 1, "limit_val_batches": 0, **more, **arguments})
        return {path.name: read(path) for path in tmp_path.glob("*.ckpt")}

    return run


def test_last_is_renewed_every_n_steps_and_after_the_last_one(kept, tmp_path):
    saved = Saved(tmp_path)
    files = kept(KeepLast(str(tmp_path), every_n_steps=2), saved)
    assert saved.steps == [None, None, 2, 2, 4]
    assert files.keys() == {"last.ckpt"}
    assert files["last.ckpt"]["global_step"] == 5


def test_a_run_that_ends_by_its_steps_is_saved_too(kept, tmp_path):
    """Before its last validation, which may be what kills it."""
    seen = BeforeValidation(tmp_path)
    often = {"limit_val_batches": 1, "num_sanity_val_steps": 0, "val_check_interval": 1}
    files = kept(KeepLast(str(tmp_path), every_n_steps=100), seen, max_steps=3, **often)
    assert files.keys() == {"last.ckpt"}
    assert files["last.ckpt"]["global_step"] == 3
    assert seen.steps == [None, None, 3]


def test_nothing_is_saved_within_a_step(kept, tmp_path):
    saved = Saved(tmp_path)
    kept(KeepLast(str(tmp_path), every_n_steps=1), saved, batches=6, accumulate_grad_batches=3)
    assert saved.steps == [None, None, None, 1, 1, 1]


@pytest.mark.parametrize(("bounds", "best"), [([9.0, 7.0, 8.0], 2), ([7.0, 8.0, 9.0], 1), ([9.0, 8.0, 7.0], 3)])
def test_best_is_the_lowest_bound(kept, tmp_path, tiny, monkeypatch, bounds, best):
    coming = iter(bounds)
    monkeypatch.setattr(tiny, "on_validation_epoch_end", lambda self: self.log_dict({"val/nelbo": next(coming)}))
    options = {"batches": 1, "max_epochs": 3, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    files = kept(KeepBest(str(tmp_path)), **options)
    assert files.keys() == {"best.ckpt"}
    assert files["best.ckpt"]["global_step"] == best


def test_a_copied_folder_keeps_its_best_and_a_new_one_begins_anew(tmp_path):
    """The score belongs to the file: where best.ckpt lies it is taken over, elsewhere not."""
    state = {
        "best_k_models": {"elsewhere/best.ckpt": torch.tensor(3.0)},
        "best_model_score": torch.tensor(3.0),
        "best_model_path": "elsewhere/best.ckpt",
        "current_score": torch.tensor(4.0),
        "kth_best_model_path": "elsewhere/best.ckpt",
        "kth_value": torch.tensor(3.0),
        "last_model_path": "",
        "monitor": "val/nelbo",
        "dirpath": "elsewhere",
    }
    fresh = KeepBest(str(tmp_path))
    fresh.load_state_dict(state)
    assert not fresh.best_k_models
    (tmp_path / "best.ckpt").touch()
    copied = KeepBest(str(tmp_path))
    copied.load_state_dict(state)
    assert copied.best_k_models == {str(tmp_path / "best.ckpt"): torch.tensor(3.0)}


@pytest.mark.parametrize("steps", [0, -1])
def test_arguments(tmp_path, steps):
    with pytest.raises(ValueError, match="checkpoint_every_n_steps is"):
        KeepLast(str(tmp_path), steps)
