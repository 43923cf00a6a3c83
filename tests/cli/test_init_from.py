"""`fit --init_from`, `--freeze` and what a run goes on with, typed as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ggm_lightning.cli.main import main

ROOT = Path(__file__).parents[2]
REPORT = {"class_path": "ggm_lightning.report.callback.Report", "init_args": {"num_samples": 1, "num_steps": 1}}
EMA = {"class_path": "ggm_lightning.callbacks.ema.EMA", "init_args": {"decay": 0.5, "warmup": False}}
BASE = {
    "model": {
        "class_path": "ggm_lightning.models.md4.MD4",
        "init_args": {
            "network": {
                "class_path": "ggm_lightning.networks.transformer.Transformer",
                "init_args": {"feature_dim": 4, "num_heads": 2, "num_layers": 1},
            },
            "optimizer": {"lr": 0.01, "weight_decay": 0.1},
        },
    },
    "data": {
        "class_path": "ggm_lightning.data.text.TextData",
        "init_args": {"tokenizer": "characters", "alphabet": "data", "length": 11, "global_batch_size": 8},
    },
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": -1,
        "val_check_interval": 100,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "callbacks": [EMA, REPORT],
    },
}


def words(name: str, text: str, *extra: str, steps: int = 3) -> list[str]:
    run = [f"--data.train={text}.txt", f"--name={name}", f"--trainer.max_steps={steps}"]
    return ["fit", "--config", "base.yaml", *run, *extra]


def fit(*given: Any, **options: Any) -> dict[str, Any]:
    main(words(*given, **options))
    return checkpoint(given[0])


def checkpoint(name: str) -> dict[str, Any]:
    return torch.load(f"runs/{name}/last.ckpt", weights_only=True)


def refused(capsys: pytest.CaptureFixture[str], *given: Any, **options: Any) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(words(*given, **options))
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two texts of different letters, and a run on the first."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    (folder / "one.txt").write_text("the cat and the dog sat on the mat. " * 60)
    (folder / "two.txt").write_text("Über den Dächern, wo die Katze sitzt! " * 60)
    before = Path.cwd()
    os.chdir(folder)
    try:
        fit("one", "one")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_a_new_run_from_an_old_ones_weights(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = ["--freeze=network.blocks", "--freeze", "network.condition.*"]
    two = fit("two", "two", "--init_from=runs/one", *frozen, steps=2)
    said = "\n".join(caplog.messages)
    assert "starts from runs/one/last.ckpt: MD4 at step 3, averaged" in said
    assert "rows of network.embedding.weight" in said
    assert "frozen: " in said
    one = checkpoint("one")
    for name, value in two["state_dict"].items():
        if name.startswith(("network.blocks", "network.condition")):
            assert torch.equal(value, one["state_dict"][name]), name  # the averaged weights, untouched
    assert not torch.equal(two["state_dict"]["network.head.weight"][0], one["state_dict"]["network.head.weight"][0])
    assert two["global_step"] == two["averaging_state"]["updates"] == 2
    trained = [n for n in two["state_dict"] if not n.startswith(("network.blocks", "network.condition"))]
    assert len(two["optimizer_states"][0]["state"]) == len(trained)  # nothing is kept for what is frozen
    origin = two["ggm_lightning"]["started_from"]
    assert (origin["given"], origin["step"], len(origin["identity"])) == ("runs/one", 3, 16)

    text = Path("runs/two/config.yaml").read_text()
    assert text.startswith(f"# started from runs/one/last.ckpt, step 3, identity {origin['identity']}\n")
    config = yaml.safe_load(text)
    assert (config["init_from"], config["freeze"]) == ("runs/one", ["network.blocks", "network.condition.*"])
    main(["fit", "--config", "runs/two/config.yaml", "--name", "again"])
    for name, value in checkpoint("again")["state_dict"].items():
        assert torch.equal(value, two["state_dict"][name])
    main(["inspect", "runs/two/last.ckpt"])
    assert "started from" in capsys.readouterr().out


def test_what_cannot_be_meant(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "new", "one", "--init_from=runs/one", "--ckpt_path=runs/one")
    assert "--init_from runs/one starts a new run, --ckpt_path runs/one goes on with one" in said
    assert "there is no runs/nothing" in refused(capsys, "new", "one", "--init_from=runs/nothing")
    with pytest.raises(SystemExit):
        main(["validate", "--config", "md4_markov", "--init_from", "runs/one"])
    assert "--init_from is for `lightning fit` alone" in capsys.readouterr().err
    assert not Path("runs/new/last.ckpt").exists()


def run(name: str, *given: Any, **options: Any) -> None:
    """In a process of its own."""
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ggm_lightning", *words(name, *given, **options)]
    result = subprocess.run(command, capture_output=True, text=True, env=settings, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]


def difference(one: str, two: str) -> float:
    a, b = (checkpoint(name)["current_model_state"] for name in (one, two))
    return max(float((a[name] - b[name]).abs().max()) for name in a)


OWN = ["--init_from=runs/one", "--freeze=network.blocks", "--model.optimizer.decay=constant"]


@pytest.mark.slow
def test_a_requeued_job_goes_on_with_its_own_run(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command again: not from the beginning, and not from the other run's weights; bit for bit, with averages
    and what is frozen."""
    fit("whole", "two", *OWN, steps=6)
    fit("requeued", "two", *OWN, steps=3)
    caplog.clear()
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_RESTART_COUNT", "1")
        fit("requeued", "two", *OWN, steps=6)
    assert "requeued job: goes on from runs/requeued/last.ckpt" in caplog.messages
    assert not [line for line in caplog.messages if line.startswith("starts from")]
    assert difference("whole", "requeued") == 0
    origins = [checkpoint(name)["ggm_lightning"]["started_from"] for name in ("whole", "requeued")]
    assert origins[0] == origins[1]
    assert origins[0]["given"] == "runs/one"


@pytest.mark.slow
def test_a_command_that_may_be_given_again_and_again(caplog: pytest.LogCaptureFixture) -> None:
    again = [*OWN, "--ckpt_path=last", "--allow_fresh=true"]
    fit("again", "two", *again, steps=3)
    assert [line for line in caplog.messages if line.startswith("starts from runs/one/last.ckpt")]
    caplog.clear()
    assert fit("again", "two", *again, steps=5)["global_step"] == 5
    assert not [line for line in caplog.messages if line.startswith("starts from")]


@pytest.mark.slow
def test_what_is_frozen_is_frozen_on_two_ranks() -> None:
    two = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    run("ranks", "two", *OWN, *two, steps=3)
    fit("rank", "two", *OWN, steps=3)
    assert difference("rank", "ranks") < 1e-6
    one, ranks = checkpoint("one"), checkpoint("ranks")
    name = "network.blocks.0.attention.out.weight"
    assert torch.equal(ranks["state_dict"][name], one["state_dict"][name])


@pytest.mark.slow
def test_settings_of_the_optimiser_may_change(caplog: pytest.LogCaptureFixture) -> None:
    """A learning rate of 0 from step 3 on: nothing moves any more. Named, used, and kept beside the old one."""
    before = fit("rates", "one", "--model.optimizer.decay=constant", steps=3)
    new = ["--ckpt_path=last", "--model.optimizer.decay=constant", "--model.optimizer.lr=0.0"]
    after = fit("rates", "one", *new, "--model.optimizer.betas=[0.5,0.7]", steps=5)
    (group,) = after["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["initial_lr"], tuple(group["betas"])) == (0.0, 0.0, (0.5, 0.7))
    for name, value in after["current_model_state"].items():
        assert torch.equal(value, before["current_model_state"][name])
    said = "\n".join(caplog.messages)
    assert "the optimiser goes on with other settings: model.optimizer.betas is [0.5, 0.7], there [0.9, 0.999]" in said
    assert "lr: 0.0\n" in Path("runs/rates/config-2.yaml").read_text()
    assert "lr: 0.01\n" in Path("runs/rates/config.yaml").read_text()
    fit("rates", "one", "--ckpt_path=last", "--model.optimizer.decay=constant", steps=6)  # control: it moves again
    assert not torch.equal(checkpoint("rates")["current_model_state"][name], before["current_model_state"][name])


@pytest.mark.slow
def test_other_contents_under_the_same_name_are_said(caplog: pytest.LogCaptureFixture) -> None:
    Path("three.txt").write_text(Path("one.txt").read_text())
    fit("three", "three", steps=2)
    fit("three", "three", "--ckpt_path=last", steps=3)
    assert "the contents of the training data" not in "\n".join(caplog.messages)  # control
    Path("three.txt").write_text(Path("one.txt").read_text().replace("cat and the dog", "dog and the cat"))
    fit("three", "three", "--ckpt_path=last", steps=4)
    assert "the contents of the training data are not those of the checkpoint" in "\n".join(caplog.messages)
