"""A run that stopped and went on is the undisturbed one, bit for bit: GGM with a hollow network, whose noise law is
measured on the data and whose classes are drawn for each step, the same told levels, whose number of sweeps is drawn,
too, and the autoregressive model. With micro-batches.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ggm_lightning.cli.main import main

ROOT = Path(__file__).parents[2]
OPTIONS = [
    "--model.network.init_args.feature_dim=8",
    "--model.network.init_args.num_layers=1",
    "--model.init_args.optimizer.decay=constant",  # a cosine knows the last step
    "--data.init_args.num_train=32",
    "--data.init_args.num_val=8",
    "--data.init_args.length=7",
    "--data.init_args.global_batch_size=8",
    "--data.init_args.max_batch_per_device=4",
    "--trainer.val_check_interval=2",
    "--checkpoint_every_n_steps=2",
]
HOLLOW = ["--model.init_args.noise_law=unigram", "--model.init_args.noise_draws=4"]
LEVELS = ["--model.init_args.levels=true", "--model.network.init_args.levels=true"]
# (experiment, options)
RUNS = {
    "ggm_markov": ("ggm_markov", HOLLOW),
    "levels": ("ggm_markov", [*HOLLOW, *LEVELS, "--model.init_args.train_sweeps=[1,2,3]"]),
    "ar_markov": ("ar_markov", []),
}


def fitted(folder: Path, name: str, run: str, *more: str) -> dict[str, torch.Tensor]:
    experiment, options = RUNS[run]
    config = ["--config", str(ROOT / "experiments" / f"{experiment}.yaml")]
    few = '[{"class_path": "ggm_lightning.callbacks.ema.EMA", "init_args": {"decay": 0.9}}, '
    few += '{"class_path": "ggm_lightning.report.callback.Report", "init_args": {"num_samples": 1, "num_steps": 4}}]'
    own = [*options, *OPTIONS, f"--trainer.callbacks={few}", *more]
    main(["fit", *config, *own, "--runs", str(folder), "--name", name])
    return torch.load(folder / name / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_a_resumed_run_is_the_undisturbed_one(run: str, tmp_path: Path) -> None:
    one = fitted(tmp_path, "one", run, "--trainer.max_steps=4")
    half = fitted(tmp_path, "two", run, "--trainer.max_steps=2")
    two = fitted(tmp_path, "two", run, "--trainer.max_steps=4", "--ckpt_path", "last")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], half[name]) for name in one)  # control
