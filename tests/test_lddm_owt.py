"""`fit --config experiments/lddm_owt.yaml` on real text, as a user types it: through the switch, resumed, sampled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
# 8 latents, each of a chunk of 8 of the 64 tokens
SMALL = {"feature_dim": 8, "num_heads": 2, "num_layers": 1, "num_latents": 8, "latent_dim": 4}


def lightning(folder: Path, *arguments: str, fails: bool = False) -> str:
    """What the command prints, run in an otherwise empty folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ggm_lightning", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=300)
    assert (done.returncode != 0) == fails, done.stderr[-2000:]
    return done.stdout + done.stderr


def fit(folder: Path, real_data: Path, name: str, max_steps: int, *more: str) -> dict:
    """The last checkpoint of a run whose network is small, and whose encoder learns in the first six steps."""
    sizes = [f"--model.network.init_args.{key}={value}" for key, value in SMALL.items()]
    sizes += [f"--model.encoder.init_args.{key}={value}" for key, value in SMALL.items()]
    files = ("--config", "experiments/lddm_owt.yaml", "--config", "configs/trainer/debug.yaml")
    files = [str(ROOT / file) if file.endswith("yaml") else file for file in files]
    text = real_data / "openwebtext" / "openwebtext-000-699.jsonl"
    data = {"train": text, "tokenizer": real_data / "gpt2_bpe" / "tokenizer.json", "length": 64, "global_batch_size": 8}
    options = [f"--data.init_args.{key}={value}" for key, value in data.items()]
    options += ["--model.recipe.stage1_steps=6", "--model.recipe.statistics_rows=64", "--trainer.val_check_interval=6"]
    steps = [f"--trainer.max_steps={max_steps}", "--checkpoint_every_n_steps=6"]
    lightning(folder, "fit", *files, *sizes, *options, *steps, "--name", name, *more)
    return torch.load(folder / "runs" / name / "last.ckpt", weights_only=True)


@pytest.mark.slow
def test_openwebtext_from_an_empty_folder(tmp_path: Path, real_data: Path) -> None:
    whole = fit(tmp_path, real_data, "whole", 20)
    assert whole["global_step"] == 20
    assert bool(whole["state_dict"]["encoder_fixed"])
    for cut in (4, 6):  # in stage 1, and exactly at the switch
        assert not bool(fit(tmp_path, real_data, f"cut{cut}", cut)["state_dict"]["encoder_fixed"])
        if cut == 4:
            said = lightning(tmp_path, "sample", "--ckpt_path", "runs/cut4/last.ckpt", "--num_steps", "2")
            assert "sample it after step 6 (recipe.stage1_steps)" in said
        resumed = fit(tmp_path, real_data, f"cut{cut}", 20, "--ckpt_path", "last")
        for key in ("state_dict", "current_model_state"):
            assert all(torch.equal(resumed[key][name], value) for name, value in whole[key].items()), (cut, key)

    checkpoint = ("--ckpt_path", "runs/whole/last.ckpt", "--num_samples", "2", "--num_steps", "4")
    first = ("--sampler", "seq_ddim", "--latent_steps", "3")
    assert "2 samples in 4 network calls" in lightning(tmp_path, "sample", *checkpoint)
    assert "2 samples in 7 network calls" in lightning(tmp_path, "sample", *checkpoint, *first, "--out", "first")
    assert np.load(tmp_path / "first" / "samples.npz")["x"].shape == (2, 64)
    for i, sampler in enumerate(((), first)):
        said = lightning(
            tmp_path, "infill", *checkpoint, *sampler, "--text", "The capital of _ is", "--out", f"filled{i}"
        )
        assert said.count("The capital of") == 2
        assert said.count(" is\n") == 2
    said = lightning(tmp_path, "sample", *checkpoint, "--latent_steps", "3", fails=True)
    assert said.strip().count("\n") == 0
    assert "take sampler seq_ddim or seq_ddpm" in said
