"""What a run cannot mean, refused in one line before training: numbers, flags and callbacks of Lightning's Trainer.

A step is `data.global_batch_size` rows, its checkpoints can be resumed bit for bit, and its averaged weights are EMA's.
What would break one of these promises ends here; docs/trainer_flags.md lists every flag and callback.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.plugins import CheckpointIO

from ggm_lightning.cli.launcher import refuse_sharded

_LEAST = {
    "gradient_clip_val": 0,  # a negative norm would climb the gradient
    "num_sanity_val_steps": -1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 0,
    "max_steps": -1,
    "max_epochs": -1,
    "min_steps": 0,
    "min_epochs": 0,
    "limit_train_batches": 0,
    "limit_val_batches": 0,
    "overfit_batches": 0,
    "reload_dataloaders_every_n_epochs": 0,
}
_NO_STEP = ("max_steps", "max_epochs", "limit_train_batches")  # 0 of them: nothing is trained
_FROM_WITHIN = ("ddp_spawn", "ddp_fork", "ddp_notebook")
_OURS = "weights are averaged by ggm_lightning.callbacks.ema.EMA"
_CALLBACKS: dict[type[Callback], str] = {
    GradientAccumulationScheduler: (
        "a step has data.global_batch_size rows in every epoch, divided by data.max_batch_per_device; set these instead"
    ),
    BatchSizeFinder: (
        "a step has data.global_batch_size rows; set data.max_batch_per_device to what fits on the device instead"
    ),
    LearningRateFinder: (
        "it writes the rate into an attribute `lr`, which no model here reads; set model.optimizer.lr, and compare "
        "short runs (--trainer.max_steps 200)"
    ),
    SpikeDetection: (
        "a run cannot be resumed with it (an error of Lightning 2.6.6); ggm_lightning.callbacks.guard.Guard watches "
        "loss and gradients"
    ),
    StochasticWeightAveraging: f"it replaces the learning rate's schedule after so many epochs; {_OURS}",
    WeightAveraging: f"it validates other weights than it saves, and a run cannot be resumed with it; {_OURS}",
    ModelPruning: (
        "its masks are other keys in the state dict, so that checkpoints could be neither loaded nor resumed; prune "
        "after the training"
    ),
}


def check_name(name: str | None, runs: str | None) -> None:
    """ValueError for a run's name that is not the name of one folder below `runs`."""
    if not name or not runs:
        return  # refused with all empty keys
    path = Path(name)
    if path.name == name and name not in (".", ".."):
        return
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ValueError(f"name is {name}; it names one folder below --runs: give it as --runs FOLDER --name NAME")
    raise ValueError(
        f"name is {name}; it names one folder below --runs: give --runs {Path(runs) / path.parent} --name {path.name}"
    )


def with_remedy(error: Exception) -> str:
    """Lightning's words, and what helps where an accelerator was asked for that torch does not find."""
    words = str(error)
    if "accelerator is not available" not in words and "No supported gpu backend" not in words:
        return words
    return (
        f"{words} torch {torch.__version__} finds none here: install a torch that fits the device and its driver, or "
        "train on the CPU, with --config configs/trainer/cpu.yaml behind the experiment"
    )


def check_trainer(trainer: dict[str, Any], folder: Path) -> None:
    """ValueError for flags that Lightning takes although no run can mean them.

    Args:
        trainer: the trainer section as it was parsed.
        folder: of the run.
    """
    for key, low in _LEAST.items():
        value = trainer.get(key)
        if value is not None and not low <= value < math.inf:
            raise ValueError(f"trainer.{key} is {value}; it must be at least {low}")
    _check_times(trainer)
    if trainer.get("barebones"):
        raise ValueError(
            "trainer.barebones is true: nothing would be logged or saved; leave it out (python -m "
            "tests.benchmarks.steps measures the bare speed)"
        )
    if trainer.get("use_distributed_sampler"):
        raise ValueError(
            "trainer.use_distributed_sampler is true: the data order is aware of ranks already and would be sharded "
            "twice; leave it out"
        )
    if trainer.get("enable_checkpointing") is False:
        raise ValueError(
            "trainer.enable_checkpointing is false, but last.ckpt and best.ckpt are what a run is for; leave it out, "
            "or try things with --trainer.fast_dev_run true"
        )
    if trainer.get("model_registry") is not None:
        raise ValueError(
            "trainer.model_registry is given, but checkpoints are files of the run's folder; leave it out, and upload "
            "best.ckpt yourself"
        )
    if str(trainer.get("strategy")).startswith(_FROM_WITHIN):
        raise ValueError(
            f"trainer.strategy is {trainer['strategy']}: its ranks are started from within a process, to which neither "
            "signals nor checkpoints reach; take ddp"
        )
    if trainer.get("profiler") == "xla":
        raise ValueError("trainer.profiler is xla, which is for TPUs; choose simple, advanced or pytorch")
    given = trainer.get("default_root_dir")
    if given is not None and Path(given) != folder:  # a config.yaml that earlier versions saved names the folder, too
        raise ValueError(
            f"trainer.default_root_dir is {given}, but this run's folder is {folder}, from --runs and --name; set "
            "these, and leave the former out"
        )


def _check_times(trainer: dict[str, Any]) -> None:
    interval, longest = trainer.get("val_check_interval"), trainer.get("max_time")
    if isinstance(interval, int | float) and not 0 < interval < math.inf:
        raise ValueError(f"trainer.val_check_interval is {interval}; it must be positive")
    if isinstance(interval, str | dict | timedelta):
        raise ValueError(
            f"trainer.val_check_interval is {interval}, a time: validations would depend on the clock, and a resumed "
            "run would have others; give a number of steps, or a fraction of an epoch"
        )
    units = {"weeks", "days", "hours", "minutes", "seconds"}
    if isinstance(longest, dict) and (longest.keys() - units or any(not part >= 0 for part in longest.values())):
        raise ValueError(f"trainer.max_time is {longest}; give days, hours, minutes or seconds, none of them negative")


def check_steps(trainer: dict[str, Any]) -> None:
    """ValueError for a fit that would take no step."""
    for key in _NO_STEP:
        if trainer.get(key) == 0:
            raise ValueError(
                f"trainer.{key} is 0: no step would be taken; `lightning validate` measures without training"
            )


def check_callbacks(callbacks: Sequence[Any], model: LightningModule) -> None:
    """ValueError for stock callbacks that would break what a run promises, or that need what `model` lacks."""
    for callback in callbacks:
        if type(callback) is BaseFinetuning:
            raise ValueError("trainer.callbacks: BaseFinetuning does nothing itself; give a class of yours below it")
        if isinstance(callback, BackboneFinetuning) and not hasattr(model, "backbone"):
            raise ValueError(
                f"trainer.callbacks: BackboneFinetuning needs a module `backbone`, which {type(model).__name__} has "
                "not; give a class of yours below BaseFinetuning that freezes what you mean"
            )
        for kind, reason in _CALLBACKS.items():
            if isinstance(callback, kind):
                raise ValueError(f"trainer.callbacks: {type(callback).__name__} cannot be used: {reason}")


def check_strategy(trainer: Trainer) -> None:
    """ValueError for a strategy that divides the weights, whatever it is called in the configuration."""
    kinds = [kind.__name__ for kind in type(trainer.strategy).__mro__]
    for kind in kinds:
        refuse_sharded(kind)


def check_plugins(plugins: Sequence[Any]) -> None:
    """ValueError for another way to write checkpoints."""
    for plugin in plugins:
        if isinstance(plugin, CheckpointIO):
            raise ValueError(
                f"trainer.plugins: {type(plugin).__name__} writes checkpoints, but those of a run are written by "
                "AtomicCheckpointIO, so that a kill or a full disk leaves a whole one; leave it out"
            )


def plain_texts(callback: Any) -> None:
    """Enumerations among a callback's arguments that are texts (Timer's interval) as texts, to be written as YAML."""
    init_args = callback.get("init_args") or {}
    for name, value in list(init_args.items()):
        if isinstance(value, str):
            init_args[name] = str.__str__(value)
