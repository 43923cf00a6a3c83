"""The two stages of LDDM in one fit: the switch, resuming, two ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from ggm_lightning.callbacks.ema import EMA
from ggm_lightning.cli.main import main
from ggm_lightning.data.toy.synthetic import MarkovChain
from ggm_lightning.models import lddm_stages
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM
from ggm_lightning.models.lddm_stages import Recipe
from ggm_lightning.models.trained import Optimizer
from tests.models.small_lddm import SIZE, B, N, V, small


@pytest.fixture
def x() -> Tensor:
    return torch.randint(V, (B, N), generator=torch.Generator().manual_seed(1))


FIRST_STAGE, LAST = 3, 6


class Saves(Callback):
    """A checkpoint after each of some steps, and all losses."""

    def __init__(self, folder: Path, *steps: int) -> None:
        self.folder, self.steps, self.losses = folder, steps, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self.losses[trainer.global_step] = float(outputs["loss"])
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def fitted(
    model,
    folder: Path,
    *saved: int,
    resume: int | None = None,
    averaged: bool = True,
    accumulate: int = 1,
    length: int = N,
) -> dict[int, float]:
    """Losses by step, of several micro-batches the last one's; checkpoints lie in folder/<step>.ckpt."""
    saves = Saves(folder, *saved)
    trainer = Trainer(
        max_steps=LAST,
        callbacks=[*([EMA(0.5)] if averaged else []), saves],
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        use_distributed_sampler=False,
        limit_val_batches=1,
        val_check_interval=2 * accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
    )
    rows = {"num_train": 40, "num_val": 4, "global_batch_size": 8, "max_batch_per_device": 8 // accumulate}
    data = MarkovChain(num_symbols=V, length=length, **rows)
    path = None if resume is None else folder.parent / "whole" / f"{resume}.ckpt"
    trainer.fit(model, datamodule=data, ckpt_path=path, weights_only=True)
    return saves.losses


def trained(family: type):
    decay = Optimizer(lr=1e-2, weight_decay=0.5)
    return small(family, recipe=Recipe(stage1_steps=FIRST_STAGE, statistics_rows=20), optimizer=decay)


def read(folder: Path, step: int | str) -> dict:
    return torch.load(folder / f"{step}.ckpt", weights_only=True)


def equal(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(i, j) for i, j in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


@pytest.mark.parametrize("family", [FujiLDDM, SeqLDDM])
def test_a_fit_in_two_stages_resumes_bit_for_bit_in_either_and_at_the_switch(family: type, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    losses = fitted(trained(family), whole, 2, FIRST_STAGE, 5, LAST)
    last = read(whole, LAST)
    for step in (2, FIRST_STAGE, 5):
        again = tmp_path / f"from{step}"
        tail = fitted(trained(family), again, LAST, resume=step)
        assert tail == {k: v for k, v in losses.items() if k > step}
        resumed = read(again, LAST)
        for part in ("state_dict", "current_model_state", "optimizer_states", "averaging_state"):
            assert equal(resumed[part], last[part]), (step, part)
    assert not equal(read(whole, 5)["state_dict"], last["state_dict"])


@pytest.mark.parametrize(("averaged", "accumulate"), [(False, 1), (True, 2)], ids=["no EMA", "accumulation"])
def test_the_same_without_averages_and_with_accumulation(averaged: bool, accumulate: int, tmp_path: Path) -> None:
    options = {"averaged": averaged, "accumulate": accumulate}
    whole, seen = tmp_path / "whole", []

    class Watched(SeqLDDM):
        def learning(self, step: int) -> tuple[bool, bool]:
            seen.append((step, self.is_fixed))
            return super().learning(step)

    losses = fitted(trained(Watched), whole, FIRST_STAGE, 5, LAST, **options)
    assert seen == [(step, step >= FIRST_STAGE) for step in range(LAST) for _ in range(accumulate)]
    last = read(whole, LAST)
    for step in (FIRST_STAGE, 5):
        again = tmp_path / f"from{step}"
        tail = fitted(trained(SeqLDDM), again, LAST, resume=step, **options)
        assert tail == {k: v for k, v in losses.items() if k > step}
        resumed = read(again, LAST)
        for part in ("state_dict", "optimizer_states"):
            assert equal(resumed[part], last[part]), (step, part)
    if averaged:
        with pytest.raises(ValueError, match=r"holds averaged weights, but trainer\.callbacks has no EMA"):
            fitted(trained(SeqLDDM), tmp_path / "none", resume=5, averaged=False)


def test_one_model_can_be_fitted_again_from_either_stage(tmp_path: Path) -> None:
    """The object that the first fit has left, in stage 2, is as good as a new one."""
    model, whole = trained(FujiLDDM), tmp_path / "whole"
    fitted(model, whole, 2, 5, LAST)
    for step in (5, 2):
        again = tmp_path / f"from{step}"
        fitted(model, again, LAST, resume=step)
        for part in ("state_dict", "current_model_state", "optimizer_states"):
            assert equal(read(again, LAST)[part], read(whole, LAST)[part]), (step, part)


@pytest.mark.parametrize("family", [FujiLDDM, SeqLDDM])
def test_a_fixed_encoder_has_its_first_stage_behind_it(family: type, x: Tensor) -> None:
    model = small(family, recipe=Recipe(stage1_steps=4)).train()
    model.freeze_encoder([x])
    model.loss(x, step=0).backward()
    assert "train/latent_loss" in model._parts
    assert all(p.grad is None for p in model.encoder.parameters())
    if family is SeqLDDM:
        assert not model.training_times(0, torch.arange(B), B)[1].any()  # tokens see the cleanest latent


@pytest.mark.parametrize("family", [FujiLDDM, SeqLDDM])
def test_the_frozen_encoder_is_the_average_of_stage_one_and_never_moves(family: type, tmp_path: Path) -> None:
    model = trained(family)
    fitted(model, tmp_path, 1, FIRST_STAGE, FIRST_STAGE + 1, LAST)
    before, after, last = (read(tmp_path, step) for step in (FIRST_STAGE, FIRST_STAGE + 1, LAST))
    weights = [name for name, _ in model.named_parameters() if name.startswith("encoder.")]
    assert len(weights) > 5
    for name in weights:
        average = before["state_dict"][name]
        for state in (after, last):
            assert torch.equal(state["state_dict"][name], average)
            assert torch.equal(state["current_model_state"][name], average)
    moved = [not torch.equal(before["current_model_state"][name], before["state_dict"][name]) for name in weights]
    assert all(moved)  # in stage 1 the raw weights and their average differ, so the switch has changed something
    assert bool(last["state_dict"]["encoder_fixed"])
    assert not bool(before["state_dict"]["encoder_fixed"])
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.encoder.parameters())
    rows = MarkovChain(num_symbols=V, length=N, num_train=40, num_val=4).rows("train")[list(range(0, 40, 2))]["x"]
    raw = model.encoder.raw(rows, None).detach()
    torch.testing.assert_close(model.encoder.norm.mean, raw.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.encoder.norm.variance, raw.var(0, correction=0), rtol=1e-4, atol=1e-5)


def test_control_a_gradient_of_zeros_would_move_the_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class ZeroGradients(SeqLDDM):
        def loss(self, *args, **kwargs):
            return super().loss(*args, **kwargs) + 0 * sum(p.sum() for p in self.encoder.parameters())

    monkeypatch.setattr(lddm_stages, "freeze", lambda encoder: encoder.eval())
    fitted(trained(ZeroGradients), tmp_path, FIRST_STAGE + 1, LAST)
    after, last = (read(tmp_path, step)["current_model_state"] for step in (FIRST_STAGE + 1, LAST))
    moved = (last["encoder.project.weight"] - after["encoder.project.weight"]).abs().max()
    assert float(moved) > 1e-3


def test_a_given_encoder_is_never_trained(x: Tensor) -> None:
    model = small(FujiLDDM).train()
    assert not model.encoder.training
    groups = model.parameter_groups()[0]["params"]
    assert {id(p) for p in groups} == {id(p) for p in model.network.parameters()}
    model.loss(x, step=0).backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())


def test_stages_of_the_loss(x: Tensor) -> None:
    model = small(SeqLDDM, recipe=Recipe(stage1_steps=4)).train()
    model.loss(x, step=3).backward()
    assert all(p.grad is not None for p in model.encoder.parameters())
    assert all(p.grad is None for p in model.latent_network.parameters())
    assert set(model._parts) == {"train/token_loss"}
    model.zero_grad()
    model.loss(x, step=4).backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.latent_network.parameters())


def configuration(folder: Path) -> Path:
    network = {**SIZE, "latent_positions": "slots"}
    package = "ggm_lightning.networks"
    args = {
        "recipe": {"stage1_steps": 2, "statistics_rows": 16},
        "network": {"class_path": f"{package}.latent.JointDenoiser", "init_args": network},
        "latent_network": {"class_path": f"{package}.latent.LatentDenoiser", "init_args": network},
        "encoder": {"class_path": f"{package}.latent_encoder.LatentEncoder", "init_args": SIZE},
    }
    data = {"num_symbols": V, "length": N, "num_train": 40, "num_val": 9, "global_batch_size": 12, "eval_batch_size": 4}
    config = {
        "model": {"class_path": "SeqLDDM", "init_args": args},
        "data": {"class_path": "ggm_lightning.data.toy.synthetic.MarkovChain", "init_args": data},
        "runs": str(folder),
        "trainer": {
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "max_steps": 4,
            "val_check_interval": 2,
            "check_val_every_n_epoch": None,
            "callbacks": [{"class_path": "ggm_lightning.callbacks.ema.EMA", "init_args": {"decay": 0.5}}],
        },
    }
    path = folder / "lddm.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
def test_two_ranks_are_one_rank_with_twice_the_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the switch; the command line tells DDP by itself that some parameters get no gradient. Then sampling from
    the checkpoint says how often each network was called."""
    arguments = ["fit", "--config", str(configuration(tmp_path))]
    main([*arguments, "--name", "one", "--trainer.devices=1"])
    command = [sys.executable, "-m", "ggm_lightning", *arguments, "--name", "two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ddp = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    result = subprocess.run([*command, *ddp], capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    one, two = (read(tmp_path / name, "last")["current_model_state"] for name in ("one", "two"))
    gaps = {name: float((one[name].double() - two[name].double()).abs().max()) for name in one}
    assert max(gaps.values()) < 2e-6, gaps  # gradients are summed in another order; nothing else differs
    start = small(SeqLDDM).state_dict()
    assert float((one["encoder.project.weight"] - start["encoder.project.weight"]).abs().max()) > 1e-3
    capsys.readouterr()
    options = ["--num_samples", "2", "--num_steps", "1", "--latent_steps", "3"]
    main(["sample", "--ckpt_path", str(tmp_path / "one" / "last.ckpt"), *options])
    assert "2 samples in 3 calls of the latent's network, 1 network call" in capsys.readouterr().err


@pytest.mark.slow
def test_two_ranks_resume_at_the_switch_bit_for_bit(tmp_path: Path) -> None:
    """Of steps 0..3 the first two are stage 1; the run is cut after two, where it has validated and saved."""
    command = [sys.executable, "-m", "ggm_lightning", "fit", "--config", str(configuration(tmp_path))]
    command += ["--trainer.devices=2", "--trainer.strategy=ddp"]
    parts = (["--name", "whole"], ["--name", "cut", "--trainer.max_steps=2"], ["--name", "cut", "--ckpt_path", "last"])
    for part in parts:
        constant = ["--model.optimizer.decay=constant"]  # a cosine would end at max_steps
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            [*command, *part, *constant], capture_output=True, text=True, env=environment, timeout=300
        )
        assert result.returncode == 0, result.stderr[-2000:]
    whole, cut = (read(tmp_path / name, "last") for name in ("whole", "cut"))
    assert bool(cut["state_dict"]["encoder_fixed"])
    for key in ("state_dict", "current_model_state", "optimizer_states"):
        assert equal(cut[key], whole[key]), key


def test_without_a_data_module_the_statistics_have_a_remedy() -> None:
    model = trained(SeqLDDM)
    with pytest.raises(ValueError, match=r"call model\.freeze_encoder"):
        list(lddm_stages.training_rows(type("T", (), {"datamodule": None})(), 8, torch.device("cpu")))
    model.freeze_encoder(torch.randint(V, (2, 16, N)).unbind(0))
    assert model.is_fixed
    with pytest.raises(ValueError, match="at least 2 training rows"):
        model.freeze_encoder([torch.zeros(1, N).long()])
