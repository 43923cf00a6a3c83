"""The non-finite guard in small fits: what is recorded, when the host looks, what reaches a checkpoint."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback

from ggm_lightning.callbacks.ema import EMA
from ggm_lightning.callbacks.guard import Guard, all_finite
from ggm_lightning.callbacks.keep import KeepLast
from ggm_lightning.rundir.checkpoint import AtomicCheckpointIO, read
from ggm_lightning.rundir.endings import NonFinite


class Poison(Callback):
    """Spoils the gradients of optimiser steps number `steps` (counted from 1), or the loss in them."""

    def __init__(self, steps: set[int], where: str = "gradient", value: float = float("nan")) -> None:
        self.steps, self.where, self.value = steps, where, value

    def on_before_backward(self, trainer, pl_module, loss):
        if self.where == "loss" and trainer.global_step + 1 in self.steps:
            loss.data.fill_(self.value)

    def on_after_backward(self, trainer, pl_module):
        if self.where == "gradient" and trainer.global_step + 1 in self.steps:
            pl_module.head.weight.grad[0, 0] = self.value

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.where == "weight" and trainer.global_step in self.steps:
            pl_module.head.weight.data[0, 0] = self.value


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["gradient", "loss"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_stops_and_names_the_first_bad_step(tiny, tiny_data, fit, tmp_path, where, value, accumulate):
    poison, data = Poison({4, 5, 9}, where, value), tiny_data(30)
    with pytest.raises(NonFinite, match="not finite since step 4, whose batch is in") as raised:
        fit(tiny(), poison, Guard(every_n_steps=7), data=data, max_epochs=1, accumulate_grad_batches=accumulate)
    assert str(tmp_path / "nonfinite-step000004-rank0.pt") in str(raised.value)
    assert "nothing was saved; clip harder (trainer.gradient_clip_val)" in str(raised.value)
    kept = torch.load(tmp_path / "nonfinite-step000004-rank0.pt", weights_only=True)
    assert kept["step"] == 4
    # the loss is bad from the step's first micro-batch on, the summed gradient is known after its last
    guilty = 3 * accumulate if where == "loss" else 4 * accumulate - 1
    batches = [batch["x"] for batch in data.train_dataloader()]
    assert torch.equal(kept["batch"]["x"], batches[guilty])
    assert not torch.equal(batches[guilty], batches[guilty - 1])
    assert bool(torch.isfinite(kept["loss"])) == (where == "gradient")


def test_the_host_looks_at_every_kth_step_only(tiny, tiny_data, fit, monkeypatch):
    seen = []
    look = Guard._look
    monkeypatch.setattr(Guard, "_look", lambda self, trainer: (seen.append(trainer.global_step), look(self, trainer)))
    fit(tiny(), Guard(every_n_steps=4), data=tiny_data(10), max_epochs=1, limit_val_batches=0)
    assert seen == [4, 8]


def test_a_step_costs_no_wait(tiny, tiny_data, fit, monkeypatch):
    """Between two looks no tensor is turned into a Python number."""
    guard, waits = Guard(every_n_steps=1000), []
    inside = {"now": False}
    for name in ("__bool__", "__int__", "__float__", "item", "tolist"):
        original = getattr(torch.Tensor, name)

        def counted(self, original=original, name=name):
            waits.extend([name] if inside["now"] else [])
            return original(self)

        monkeypatch.setattr(torch.Tensor, name, counted)
    for hook in ("on_before_backward", "on_before_optimizer_step", "on_train_batch_start", "on_train_batch_end"):
        original_hook = getattr(guard, hook)

        def watched(*args, original_hook=original_hook):
            inside["now"] = True
            original_hook(*args)
            inside["now"] = False

        monkeypatch.setattr(guard, hook, watched)
    fit(tiny(), guard, data=tiny_data(6), max_epochs=1, limit_val_batches=0)
    assert waits == []
    inside["now"] = True
    bool(torch.ones(()))
    assert waits == ["__bool__"]  # control: a wait is seen


def run_with_checkpoints(tiny, tiny_data, fit, folder, poison, guard):
    keep = KeepLast(str(folder), every_n_steps=3)
    return fit(
        tiny(),
        EMA(0.5),
        poison,
        guard,
        keep,
        data=tiny_data(20),
        max_epochs=1,
        limit_val_batches=0,
        enable_checkpointing=True,
        plugins=[AtomicCheckpointIO()],
    )


@pytest.mark.parametrize("where", ["gradient", "loss", "weight"])
def test_a_nan_never_reaches_a_checkpoint(tiny, tiny_data, fit, tmp_path, where):
    with pytest.raises(NonFinite, match=r"last\.ckpt is from before"):
        run_with_checkpoints(tiny, tiny_data, fit, tmp_path, Poison({8}, where), Guard(every_n_steps=1000))
    checkpoint = read(tmp_path / "last.ckpt")
    assert checkpoint["global_step"] == 6
    assert all_finite([checkpoint[part] for part in ("state_dict", "current_model_state", "optimizer_states")])


@pytest.mark.parametrize("part", ["state_dict", "current_model_state", "optimizer_states"])
def test_every_part_of_a_checkpoint_is_looked_at(part):
    """The averages, the raw weights and the optimiser's moments, each of which may be spoilt alone."""
    finite, spoilt = torch.ones(3), torch.tensor([1.0, float("inf"), 1.0])
    checkpoint = {"state_dict": {"a": finite}, "current_model_state": {"a": finite}}
    checkpoint["optimizer_states"] = [{"state": {0: {"exp_avg": finite, "step": torch.tensor(4.0)}}}]
    trainer = SimpleNamespace(global_step=4, default_root_dir="nowhere")
    Guard().on_save_checkpoint(trainer, None, checkpoint)
    checkpoint[part] = [{"state": {0: {"exp_avg": spoilt}}}] if part == "optimizer_states" else {"a": spoilt}
    with pytest.raises(NonFinite, match="weights or optimiser state are not finite at step 4"):
        Guard().on_save_checkpoint(trainer, None, checkpoint)


@pytest.mark.parametrize("fused", [False, True])
def test_skipping_leaves_out_exactly_the_bad_updates(tiny, tiny_data, fit, fused, monkeypatch):
    """As if those batches had never come: weights and moments equal those of a fit without them."""

    def adam(self):
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=0.05, fused=fused)

    model = tiny()
    monkeypatch.setattr(type(model), "configure_optimizers", adam)
    with pytest.warns(UserWarning, match=r"2 updates left out so far, not finite \(first: .*step000002-rank0.pt"):
        trainer = fit(model, Poison({2, 5}), Guard("skip", every_n_steps=6), data=tiny_data(6), max_epochs=1)
    without = tiny_data(6)
    rows = [batch for i, batch in enumerate(without.train_dataloader()) if i not in (1, 4)]
    monkeypatch.setattr(without, "train_dataloader", lambda: torch.utils.data.DataLoader(rows, batch_size=None))
    other = tiny()
    expected = fit(other, data=without, max_epochs=1)
    for name, value in weights(other).items():
        assert torch.equal(value, weights(model)[name]), name
    moments, others = (t.optimizers[0].state_dict()["state"] for t in (trainer, expected))
    for i, state in moments.items():
        assert all(torch.equal(value, others[i][name]) for name, value in state.items()), i
    poisoned = tiny()
    fit(poisoned, Poison({2, 5}), data=tiny_data(6), max_epochs=1)
    assert not all_finite(weights(poisoned))  # control: without the guard the weights are spoilt


def test_a_bound_that_is_not_finite_is_said(tiny, tiny_data, fit, monkeypatch):
    model = tiny()
    monkeypatch.setattr(type(model), "on_validation_epoch_end", lambda self: self.log_dict({"val/nelbo": float("inf")}))
    with pytest.warns(UserWarning, match="step 3: val/nelbo is inf although all weights are finite"):
        fit(model, Guard(), data=tiny_data(3), max_epochs=1)


def test_skipping_gives_up_where_nothing_is_finite(tiny, tiny_data, fit):
    with pytest.raises(NonFinite, match="no update of the last 5 steps was finite"):
        fit(tiny(), Poison(set(range(3, 99))), Guard("skip", every_n_steps=5), data=tiny_data(20), max_epochs=1)


def test_float16_scaling_is_left_alone(tiny, tiny_data, fit, monkeypatch):
    arguments = {"data": tiny_data(3), "max_epochs": 1, "limit_val_batches": 0}
    with pytest.raises(NonFinite):  # control: in any other precision
        fit(tiny(), Poison({3}), Guard(every_n_steps=3), **arguments)
    monkeypatch.setattr("lightning.pytorch.plugins.precision.Precision.scaler", object(), raising=False)
    fit(tiny(), Poison({3}), Guard(every_n_steps=3), **arguments)


@pytest.mark.parametrize(("arguments", "message"), [(("ignore",), "choose stop or skip"), (("stop", 0), "at least 1")])
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Guard(*arguments)
