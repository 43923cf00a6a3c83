"""What version 0.1.0 wrote is read by this one with its old meaning: checkpoints, shards, results, configurations."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ggm_lightning import load
from ggm_lightning.cli.main import main
from ggm_lightning.data.text import TextData
from ggm_lightning.rundir import checkpoint as checkpoint_files
from tests.fixtures.v1 import unpacked

RUNS = ("md4", "genmd4", "ggm", "seq", "blackout", "markov", "text")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(tmp_path_factory.mktemp("old"))


@pytest.mark.parametrize("run", RUNS)
def test_a_checkpoint_gives_the_model_that_it_was(old: Path, run: str) -> None:
    """Weights to the bit; bounds to the rounding of another processor; samples as they were, but for single ties."""
    expected = json.loads((old / "expected.json").read_text())[run]
    model = load(old / "runs" / run / "last.ckpt")
    weights = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        weights.update(name.encode() + value.contiguous().numpy().tobytes())
    assert weights.hexdigest() == expected["weights"]
    x = torch.arange(2 * model.num_sites).reshape(2, *model.shape) * 7 % model.num_classes
    assert model.nelbo(x, num_samples=2, seed=3).tolist() == pytest.approx(expected["nelbo"], rel=1e-4)
    drawn = model.sample(2, 4, seed=5).x.flatten(1)
    same = (drawn == torch.tensor(expected["sample"])).float().mean()
    assert same > 0.99
    other = model.sample(2, 4, seed=6).x.flatten(1)  # control: another seed has other samples
    assert (other == torch.tensor(expected["sample"])).float().mean() < 0.99


def test_formats_of_today_and_of_then(old: Path) -> None:
    checkpoint = checkpoint_files.read(old / "runs" / "md4" / "last.ckpt")
    assert checkpoint_files.format_of(checkpoint) == 1
    assert checkpoint_files.describe(load(old / "runs" / "md4" / "last.ckpt"))["format"] == checkpoint_files.FORMAT == 2


def test_a_run_is_resumed_from_its_own_configuration(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its config.yaml is enough, and its shards are kept."""
    shutil.copytree(old, tmp_path / "v1")
    monkeypatch.chdir(tmp_path / "v1")
    before = {file.name: file.read_bytes() for file in Path("shards").iterdir()}
    config = "runs/text/config.yaml"
    options = ["--ckpt_path", "last", "--trainer.max_steps", "3", "--trainer.enable_progress_bar", "false"]
    with pytest.raises(SystemExit):  # control: what the checkpoint has no word of has its default there
        main(["fit", "--config", config, *options, "--model.network.init_args.causal", "true"])
    assert "model.network.causal is True, there False" in capsys.readouterr().err
    main(["fit", "--config", config, *options, "--logger", "[csv]"])
    resumed = checkpoint_files.read("runs/text/last.ckpt")
    assert resumed["global_step"] == 3
    assert checkpoint_files.format_of(resumed) == 2
    after = {file.name: file.read_bytes() for file in Path("shards").iterdir() if file.name[0] != "."}
    assert after == before


def test_shards_are_kept(old: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(old)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(name).propagate = True
    given = yaml.safe_load(Path("text.yaml").read_text())["data"]["init_args"]
    with caplog.at_level(logging.INFO):
        TextData(**given).prepare_data()
    assert "shards: kept (" in caplog.text
    first = TextData(**given).rows("train")[[0]]["x"]
    assert TextData(**given).decode(first) == ["The heron of pon"]


def test_results_of_then_are_left_where_they_are(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(old, tmp_path / "v1")
    monkeypatch.chdir(tmp_path / "v1")
    run = Path("runs/text")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    main(["sample", "--ckpt_path", str(run / "last.ckpt"), "--num_samples", "2", "--num_steps", "4"])
    main(["evaluate", "--ckpt_path", str(run / "last.ckpt"), "--limit", "2"])
    printed = capsys.readouterr().out
    assert {file: file.read_bytes() for file in before} == before
    stored = json.loads((run / "evaluation.json").read_text())["sets"][0]
    assert f"{stored['nats_per_token']:.3f}" in printed
    folder = run / "samples-step2-ancestral-4steps-temp1-seed0-n2"
    assert np.array_equal(np.load(folder / "samples.npz")["x"], np.load(run / "samples-seed0" / "samples.npz")["x"])
