"""Two processes (gloo) against one: the same global batches, noise, weights and metrics, uneven ends included."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ggm_lightning.cli.main import main

ROOT = Path(__file__).parents[1]
OPTIONS = [
    "--model.network.init_args.feature_dim=8",
    "--model.network.init_args.num_layers=1",
    "--data.init_args.num_train=64",
    "--data.init_args.num_val=17",  # no multiple of 2 ranks x 4
    "--data.init_args.length=13",
    "--data.init_args.global_batch_size=12",
    "--data.init_args.eval_batch_size=4",
    "--trainer.log_every_n_steps=1",
    "--trainer.val_check_interval=2",
]


def fit(folder: Path, name: str, *extra: str, experiment: str = "md4_markov") -> Path:
    config = ROOT / "experiments" / f"{experiment}.yaml"
    command = [sys.executable, "-m", "ggm_lightning", "fit", "--config", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [*OPTIONS, "--runs", str(folder), "--name", name, *extra]
    result = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    return folder / name


def bounds(run: Path) -> list[tuple[float, float]]:
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/nelbo")]
    return [(float(row["val/nelbo"]), float(row["val/nelbo_stderr"])) for row in rows]


def losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row["train/bpd"]) for row in csv.DictReader(file) if row.get("train/bpd")]


def largest_difference(one: Path, two: Path) -> float:
    a, b = (torch.load(run / "last.ckpt", weights_only=True)["current_model_state"] for run in (one, two))
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.slow
def test_two_ranks_are_one_rank_with_twice_the_batch(tmp_path: Path) -> None:
    ddp = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    one = fit(tmp_path, "one", "--trainer.max_steps=4")
    accumulated = ["--data.init_args.max_batch_per_device=3"]  # two micro-batches per rank and step
    two = fit(tmp_path, "two", *ddp, *accumulated, "--trainer.max_steps=4")
    assert largest_difference(one, two) < 1e-6  # gradients are summed in another order; nothing else differs
    for (ours, stderr), (theirs, stderr_theirs) in zip(bounds(one), bounds(two), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
        assert stderr == pytest.approx(stderr_theirs, rel=1e-5)
    logged, logged_by_two = losses(one), losses(two)
    assert logged_by_two == pytest.approx(logged, rel=1e-5)  # the mean over ranks and micro-batches
    assert len(logged) == 4
    other = fit(tmp_path, "other", "--trainer.max_steps=4", "--seed_everything=1")
    assert all(abs(a / b - 1) > 1e-3 for a, b in zip(losses(other), logged, strict=True))
    assert largest_difference(one, other) > 1e-3  # control: another seed is seen


@pytest.mark.slow
def test_the_number_of_ranks_may_change_between_runs(tmp_path: Path) -> None:
    """Rows and noise of a step are functions of its number: two ranks, then one with micro-batches, are one undisturbed
    rank but for the order in which gradients are added up."""
    own = ["--checkpoint_every_n_steps=2", "--model.init_args.optimizer.decay=constant"]  # a cosine knows the last step
    ddp = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    resumed = fit(tmp_path, "resumed", *own, *ddp, "--trainer.max_steps=2")
    here = ["fit", "--config", str(ROOT / "experiments" / "md4_markov.yaml"), *OPTIONS, "--runs", str(tmp_path), *own]
    split = ["--data.init_args.max_batch_per_device=4"]
    main([*here, "--name", "resumed", *split, "--ckpt_path", "last", "--trainer.max_steps=4"])
    main([*here, "--name", "one", "--trainer.max_steps=4"])
    assert largest_difference(tmp_path / "one", resumed) < 1e-6
    assert bounds(tmp_path / "one")[-1] == pytest.approx(bounds(resumed)[-1], rel=1e-5)


@pytest.mark.slow
def test_a_limited_validation_sees_the_same_rows_on_any_number_of_ranks(tmp_path: Path) -> None:
    """Batches of 4 of all ranks together: half of the 5, or 2 of them, are the first 8 of 17 rows. Before, two ranks
    saw 16 of them."""
    one = fit(tmp_path, "one", "--trainer.limit_val_batches=0.5", "--trainer.max_steps=2")
    ddp = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    two = fit(tmp_path, "two", "--trainer.limit_val_batches=2", "--trainer.max_steps=2", *ddp)
    assert bounds(two)[0] == pytest.approx(bounds(one)[0], rel=1e-5)
    all_rows = fit(tmp_path, "all", "--trainer.max_steps=2")
    assert abs(bounds(all_rows)[0][0] / bounds(one)[0][0] - 1) > 1e-3  # control: other rows have another bound


BLOCKS = [
    "--model.init_args.block_size=5",
    "--model.init_args.hide=block",
    "--model.init_args.loss=ce_x0",
    "--model.init_args.order=raster",
    "--model.init_args.network=ggm_lightning.networks.transformer.Transformer",
    "--model.init_args.network.init_args.num_layers=1",
    "--model.init_args.network.init_args.feature_dim=8",
    "--model.init_args.network.init_args.visited_bits=true",
]
ALL_SITES = [
    "--model.init_args.noise_draws=4",
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [BLOCKS, ALL_SITES], ids=["blocks", "all sites"])
def test_ggm_with_measured_frequencies_on_two_ranks_and_resumed(kind: list[str], tmp_path: Path) -> None:
    """Blocks of a common size, the law measured on the data and classes drawn from it are the same on every rank and
    after a restart."""
    own = ["--model.init_args.noise_law=unigram", "--checkpoint_every_n_steps=2", *kind]
    one = fit(tmp_path, "one", *own, "--trainer.max_steps=4", experiment="ggm_markov")
    split = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.max_batch_per_device=3"]
    fit(tmp_path, "two", *own, *split, "--trainer.max_steps=2", "--trainer.max_epochs=-1", experiment="ggm_markov")
    two = fit(tmp_path, "two", *own, *split, "--trainer.max_steps=4", "--ckpt_path", "last", experiment="ggm_markov")
    counts = [torch.load(run / "last.ckpt", weights_only=True)["state_dict"]["unigram_counts"] for run in (one, two)]
    assert int(counts[0].sum()) == 64 * 13
    assert torch.equal(*counts)
    assert largest_difference(one, two) < 1e-6
    assert bounds(one)[-1] == pytest.approx(bounds(two)[-1], rel=1e-5)


@pytest.mark.slow
def test_the_autoregressive_model_on_two_ranks_and_resumed(tmp_path: Path) -> None:
    own = ["--model.init_args.optimizer.decay=constant", "--checkpoint_every_n_steps=2"]
    split = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.max_batch_per_device=3"]
    one = fit(tmp_path, "one", *own, "--trainer.max_steps=4", experiment="ar_markov")
    fit(tmp_path, "two", *own, *split, "--trainer.max_steps=2", experiment="ar_markov")
    two = fit(tmp_path, "two", *own, *split, "--trainer.max_steps=4", "--ckpt_path", "last", experiment="ar_markov")
    assert largest_difference(one, two) < 1e-6
    assert bounds(one)[-1] == pytest.approx(bounds(two)[-1], rel=1e-5)
    other = fit(tmp_path, "other", *own, "--trainer.max_steps=4", "--seed_everything=1", experiment="ar_markov")
    assert largest_difference(one, other) > 1e-3  # control: another seed is seen
