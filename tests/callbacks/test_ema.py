"""The moving average: its formula, where the averaged weights are when, and what checkpoints hold.

Controls: Lightning's own EMAWeightAveraging (2.6.6) fails the same checks.
"""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging

from ggm_lightning.callbacks.ema import EMA
from ggm_lightning.models.trained import require_ema

TOLERANCE = 1e-6


class Recorder(Callback):
    """The raw weights after every step, those of later callbacks' hooks, and checkpoints written at some hook."""

    def __init__(self, save_at: str = "", path=None) -> None:
        self.raw, self.hook, self.save_at, self.path = [], {}, save_at, path

    def on_fit_start(self, trainer, pl_module):
        self.raw.append(pl_module.head.weight.detach().clone())

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.raw.append(pl_module.head.weight.detach().clone())

    def on_validation_epoch_end(self, trainer, pl_module):
        self.hook["on_validation_epoch_end"] = pl_module.head.weight.detach().clone()
        if self.save_at == "validation" and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer, pl_module):
        self.hook["after"] = pl_module.head.weight.detach().clone()
        if self.save_at == f"epoch {trainer.current_epoch}":
            trainer.save_checkpoint(self.path)


def average_of(raw, decay, warmup):
    average = raw[0].double()
    for k, weight in enumerate(raw[1:]):
        d = min(decay, (1 + k) / (10 + k)) if warmup else decay
        average = d * average + (1 - d) * weight.double()
    return average


def gap(a, b):
    return (a.double() - b.double()).abs().max().item()


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_average_is_the_formula(tiny, fit, decay, warmup):
    model, recorder = tiny(), Recorder()
    fit(model, EMA(decay, warmup), recorder, max_epochs=7)
    assert gap(model.head.weight, average_of(recorder.raw, decay, warmup)) < TOLERANCE


def test_stock_average_has_no_warm_up(tiny, fit):
    model, recorder = tiny(), Recorder()
    fit(model, EMAWeightAveraging(decay=0.999), recorder, max_epochs=7)
    assert gap(model.head.weight, average_of(recorder.raw, 0.999, True)) > 10 * TOLERANCE


def test_updates_once_per_optimiser_step(tiny, tiny_data, fit):
    ema = EMA(0.9)
    fit(tiny(), ema, data=tiny_data(batches=6), accumulate_grad_batches=3, max_epochs=1)
    assert ema.updates == 2


def validation_gaps(callback, tiny, fit):
    """How far the weights in each hook of the last validation are from the average; and the later ones from the raw."""
    model, recorder = tiny(), Recorder()
    fit(model, callback, recorder, max_epochs=5)
    final = model.head.weight  # the last validation followed the last step, so its average is the final one
    hooks = {**model.seen, "callback": recorder.hook["on_validation_epoch_end"]}
    return {name: gap(weight, final) for name, weight in hooks.items()}, gap(recorder.hook["after"], recorder.raw[-1])


def test_average_is_in_place_during_the_whole_validation(tiny, fit):
    gaps, after = validation_gaps(EMA(0.9), tiny, fit)
    assert set(gaps) == {"validation_step", "on_validation_epoch_end", "callback"}
    assert all(g == 0 for g in gaps.values())
    assert after == 0


def test_stock_puts_raw_weights_back_too_early(tiny, fit):
    gaps, _ = validation_gaps(EMAWeightAveraging(decay=0.9), tiny, fit)
    assert gaps["validation_step"] == 0
    assert gaps["on_validation_epoch_end"] > 10 * TOLERANCE
    assert gaps["callback"] > 10 * TOLERANCE


def test_raw_weights_return_when_validation_raises(tiny, fit):
    class Fails(Callback):
        def on_validation_batch_end(self, trainer, *args):
            if not trainer.sanity_checking and trainer.current_epoch == 2:
                raise RuntimeError("in validation")

    model, recorder = tiny(), Recorder()
    with pytest.raises(RuntimeError, match="in validation"):
        fit(model, EMA(0.9), recorder, Fails(), max_epochs=5)
    assert gap(model.head.weight, recorder.raw[-1]) == 0
    assert gap(model.seen["validation_step"], recorder.raw[-1]) > 10 * TOLERANCE


def validating_after_a_fit_moves_weights(callback, tiny, tiny_data, fit):
    model = tiny()
    trainer = fit(model, callback, max_epochs=5)
    before = model.head.weight.detach().clone()
    trainer.validate(model, datamodule=tiny_data(), verbose=False)
    return gap(model.seen["validation_step"], before)


def test_validating_after_a_fit(tiny, tiny_data, fit):
    assert validating_after_a_fit_moves_weights(EMA(0.9), tiny, tiny_data, fit) == 0


def test_frozen_parts_are_neither_averaged_nor_saved_twice(tiny, fit, tmp_path):
    ema, sizes = EMA(0.9), {}
    frozen_bytes = 300 * 300 * 4
    for name, callback in (("ours", ema), ("stock", EMAWeightAveraging(decay=0.9))):
        path = tmp_path / f"{name}.ckpt"
        fit(tiny(frozen_size=300), callback, max_epochs=1).save_checkpoint(path)
        sizes[name] = path.stat().st_size
    assert sorted(ema._average) == ["embed.weight", "head.bias", "head.weight"]
    assert frozen_bytes < sizes["ours"] < 1.1 * frozen_bytes
    assert sizes["stock"] > 2 * frozen_bytes


def test_a_part_frozen_in_the_middle_keeps_its_raw_weights(tiny, fit):
    class Freeze(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                pl_module.embed.requires_grad_(False)
                pl_module.embed.weight.grad = None
                self.weight = pl_module.embed.weight.detach().clone()

    model, ema, freeze = tiny(), EMA(0.9), Freeze()
    fit(model, ema, freeze, max_epochs=4)
    assert "embed.weight" not in ema._average
    assert gap(model.embed.weight, freeze.weight) == 0


@pytest.mark.parametrize("save_at", ["validation", "epoch 2", "end"])
def test_checkpoint_holds_average_and_raw(tiny, fit, tmp_path, save_at):
    path = tmp_path / "x.ckpt"
    model, recorder = tiny(), Recorder(save_at, path)
    trainer = fit(model, EMA(0.9), recorder, max_epochs=3)
    if save_at == "end":
        trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    assert gap(checkpoint["state_dict"]["head.weight"], average_of(recorder.raw, 0.9, True)) < TOLERANCE
    assert gap(checkpoint["current_model_state"]["head.weight"], recorder.raw[-1]) == 0
    assert checkpoint["averaging_state"]["updates"] == 3
    assert list(checkpoint["state_dict"]) == list(model.state_dict())


def test_resuming_is_exact(tiny, fit, tmp_path):
    path = tmp_path / "x.ckpt"
    whole, half = Recorder("epoch 2", path), Recorder()
    undisturbed = tiny()
    first = EMA(0.9)
    fit(undisturbed, first, whole, max_epochs=6)
    resumed, second = tiny(), EMA(0.9)
    fit(resumed, second, half, max_epochs=6, ckpt_path=path)
    assert torch.equal(resumed.head.weight, undisturbed.head.weight)
    assert torch.equal(half.raw[0], whole.raw[3])
    assert torch.equal(half.raw[-1], whole.raw[-1])
    assert first.updates == second.updates == 6
    assert second.decay_at(second.updates) == first.decay_at(6)


def test_resuming_an_averaged_checkpoint_without_the_callback(tiny, fit, tmp_path):
    path = tmp_path / "x.ckpt"
    fit(tiny(), EMA(0.9)).save_checkpoint(path)

    class Strict(tiny):
        def on_load_checkpoint(self, checkpoint):
            require_ema(self.trainer, checkpoint)

    with pytest.raises(ValueError, match=r"add ggm_lightning.callbacks.ema.EMA to trainer.callbacks"):
        fit(Strict(), ckpt_path=path, max_epochs=5)
    fit(Strict(), EMA(0.9), ckpt_path=path, max_epochs=5)


def test_resuming_a_plain_checkpoint_starts_the_average_at_its_weights(tiny, fit, tmp_path):
    path = tmp_path / "x.ckpt"
    fit(tiny(), max_epochs=3).save_checkpoint(path)
    model, recorder = tiny(), Recorder()
    fit(model, EMA(0.9), recorder, max_epochs=6, ckpt_path=path)
    assert len(recorder.raw) == 4
    assert gap(model.head.weight, average_of(recorder.raw, 0.9, True)) < TOLERANCE


def test_tied_weights_are_averaged_under_all_their_names(tiny, fit, tmp_path):
    model, path = tiny(), tmp_path / "x.ckpt"
    model.head.weight = model.embed.weight
    recorder = Recorder()
    fit(model, EMA(0.9), recorder).save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    for key in ("embed.weight", "head.weight"):
        assert gap(checkpoint["state_dict"][key], average_of(recorder.raw, 0.9, True)) < TOLERANCE
        assert gap(checkpoint["current_model_state"][key], recorder.raw[-1]) == 0


def test_half_precision_weights_have_float32_averages(tiny, fit):
    ema = EMA(0.9999, warmup=False)
    start = tiny().to(torch.bfloat16).head.weight.detach().clone()
    fit(tiny().to(torch.bfloat16), ema, max_epochs=3)
    assert ema._average["head.weight"].dtype == torch.float32
    assert 0 < gap(ema._average["head.weight"], start) < 1e-3  # below bfloat16's resolution, and not lost


def test_second_fit_starts_from_the_weights_in_the_module(tiny, tiny_data, fit):
    model, ema, recorder = tiny(), EMA(0.9), Recorder()
    trainer = fit(model, ema, max_epochs=2)
    start = model.head.weight.detach().clone()
    trainer.fit_loop.max_epochs = 4
    trainer.callbacks.append(recorder)
    trainer.fit(model, datamodule=tiny_data())
    assert ema.updates == 2
    assert torch.equal(recorder.raw[0], start)
    assert gap(model.head.weight, average_of(recorder.raw, 0.9, True)) < TOLERANCE


def test_average_lives_where_the_module_is(tiny, fit):
    ema = EMA(0.9)

    class Devices(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            self.seen = {a.device.type for a in ema._average.values()} | {pl_module.device.type}

    devices = Devices()
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    fit(tiny(), ema, devices, accelerator=accelerator, devices=1)
    assert devices.seen == {accelerator}


@pytest.mark.parametrize("decay", [1.0, -0.1, 1.5])
def test_decay_outside_its_range(decay):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        EMA(decay)
