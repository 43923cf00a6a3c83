"""`lightning export`, and every command that takes a checkpoint on what it wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ggm_lightning
from ggm_lightning.cli.main import main
from ggm_lightning.rundir import exported
from tests.cli import small_checkpoints
from tests.cli.test_main import error_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a checkpoint in runs/a."""
    monkeypatch.chdir(tmp_path)
    small_checkpoints.write(Path("runs/a/last.ckpt"), "md4")
    return tmp_path


EXPORT = ["export", "--ckpt_path", "runs/a/last.ckpt", "--out", "handed", "--licence", "mit"]


@pytest.mark.usefixtures("folder")
def test_the_card_has_the_figures_of_this_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    small_checkpoints.write(Path("runs/a/other.ckpt"), "md4", seed=1)
    for name, rows in (("other", "3"), ("last", "7")):
        main(["evaluate", "--ckpt_path", f"runs/a/{name}.ckpt", "--limit", rows])
    measured = json.loads(next(Path("runs/a").glob("evaluation-*limit7/*.json")).read_text())
    capsys.readouterr()
    main(EXPORT)
    assert "licence mit, figures of 1 evaluation\n" in capsys.readouterr().out
    card = Path("handed/README.md").read_text()
    (row,) = [line for line in card.splitlines() if line.startswith("| MarkovChain | val |")]
    assert row.split(" | ")[2:4] == ["7", f"{measured['bpd']:.4g} ± {measured['bpd_stderr']:.2g}"]
    for code in card.split("```python\n")[1:]:
        exec(code.partition("```")[0], {})


@pytest.mark.usefixtures("folder")
def test_the_card_has_all_measures_of_this_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    """Of evaluation/<settings>/, too, with protocols. Control: those of another checkpoint."""
    small_checkpoints.write(Path("runs/a/other.ckpt"), "md4", seed=1)
    drawn = ["--num_drawn", "8", "--num_steps", "2", "--limit", "7"]
    for name, seed in (("last", "0"), ("other", "1")):
        command = ["evaluate", "--ckpt_path", f"runs/a/{name}.ckpt", "--seed", seed, *drawn]
        main([*command, "--measures", "likelihood", "text", "--estimator", "counts"])
    folder = next(Path("runs/a/evaluation").glob("*seed0*"))
    rows = json.loads((folder / "evaluation.json").read_text())["rows"]
    capsys.readouterr()
    main(EXPORT)
    assert "figures of 2 evaluations\n" in capsys.readouterr().out
    card = Path("handed/README.md").read_text()
    assert f"`evaluation/{folder.name}`, with standard errors:" in card
    assert "seed1" not in card
    lines = card.splitlines()
    (bound,) = [line for line in lines if line.startswith("| MarkovChain | val | 7 |")]
    assert bound.endswith("| estimator counts |")
    assert "| MarkovChain: text | real text | ancestral, 2 steps |" in lines
    (entropy,) = [line for line in lines if line.startswith("| entropy of a row, nats |")]
    of_text = {row["key"]["sampler"]: row for row in rows if row["about"]["measure"] == "text"}
    for text, name in zip(entropy.strip("| ").split(" | ")[1:], ("real", "ancestral"), strict=True):
        value, error = map(float, text.split(" ± "))
        assert value == pytest.approx(of_text[name]["figures"]["entropy_nats"], rel=1e-3)
        assert error == pytest.approx(of_text[name]["figures"]["entropy_nats_stderr"], abs=1e-3)
    assert f"- text: {of_text['ancestral']['about']['protocol']}" in lines
    assert not any(line.startswith("| MarkovChain: likelihood") for line in lines), "it is in the bounds' table"
    damaged = json.loads((folder / "evaluation.json").read_text()) | {"rows": [1]}
    (folder / "evaluation.json").write_text(json.dumps(damaged))
    main(["export", *EXPORT[1:4], "again", *EXPORT[5:]])
    assert "evaluation/" not in Path("again/README.md").read_text()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("family", ["seq", "fuji"])
def test_a_latent_model_of_stage_2_keeps_its_frozen_encoder(family: str) -> None:
    """The measured statistics and the switch, too. Control: before the switch the encoder is free."""
    path = small_checkpoints.write(Path("runs/latent/last.ckpt"), family)
    command = ["export", "--ckpt_path", path, "--licence", "mit", "--out"]
    main([*command, "free"])
    model: Any = ggm_lightning.load(path)
    assert not model.encoder_fixed
    model.freeze_encoder([torch.arange(40 * 11).reshape(40, 11) % 7])
    content = torch.load(path, weights_only=True)
    torch.save({**content, "state_dict": model.state_dict()}, path)
    main([*command, "fixed"])
    found: Any = ggm_lightning.load("fixed")
    assert found.encoder_fixed
    assert not ggm_lightning.load("free").encoder_fixed
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    assert torch.equal(found.sample(3, 4, seed=1).x, model.sample(3, 4, seed=1).x)


@pytest.mark.usefixtures("folder")
def test_every_command_takes_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    main(EXPORT)
    draws = ["--num_samples", "2", "--num_steps", "3"]
    found = []
    for path in ("runs/a/last.ckpt", "handed"):
        main(["sample", "--ckpt_path", path, *draws])
        main(["infill", "--ckpt_path", path, "--text", "1 _ 3 _ _ 4 5 _ 1 2 0", *draws])
        main(["evaluate", "--ckpt_path", path, "--limit", "5"])
        place = Path("runs/a") if path.endswith("ckpt") else Path("runs/handed")
        arrays = [np.load(next(place.glob(f"{verb}-*/samples.npz"))) for verb in ("samples", "infilled")]
        bound = json.loads(next(place.glob("evaluation-*/*.json")).read_text())["nelbo"]
        found.append(([array[key] for array in arrays for key in array.files], bound))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert np.array_equal(one, other)
    assert found[0][1] == found[1][1]
    main(["sweep", "--ckpt_path", "handed", "--num_steps", "2", "--temperature", "1", "--num_samples", "2"])
    assert Path("runs/handed/sweep/sweep.html").is_file()
    capsys.readouterr()
    main(["inspect", "handed"])
    assert "step          3\n" in capsys.readouterr().out
    assert sorted(path.name for path in Path("handed").iterdir()) == [
        "README.md",
        "SHA256SUMS",
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.usefixtures("folder")
@pytest.mark.slow
def test_a_run_starts_from_it_and_its_bound_is_validated(capsys: pytest.CaptureFixture[str]) -> None:
    main(EXPORT)
    network = {"feature_dim": 8, "num_heads": 2, "num_layers": 1, "mlp": "glu", "dropout": 0.0}
    arguments = [f"--model.network.init_args.{key}={value}" for key, value in network.items()]
    arguments += [f"--data.init_args.{key}={value}" for key, value in small_checkpoints.SOURCE.items()]
    arguments += ["--data.init_args.global_batch_size=4", "--config", "configs/trainer/debug.yaml", "--name", "b"]
    experiment = ["--config", "md4_markov", *arguments]
    capsys.readouterr()
    main(["fit", *experiment, "--init_from", "handed", "--trainer.max_steps", "1"])
    assert torch.load("runs/b/last.ckpt", weights_only=True)["ggm_lightning"]["started_from"] == {
        "given": "handed",
        "file": "handed",
        "step": 3,
        "identity": exported.identity(Path("handed")),
    }
    main(["export", "--ckpt_path", "runs/b/last.ckpt", "--out", "next", "--licence", "mit"])
    bounds = []
    for path in ("next", "last", "best"):
        main(["validate", *experiment, "--ckpt_path", path])
        bounds.append(re.search(r"upper bound: ([\d.]+)", capsys.readouterr().out)[1])  # type: ignore[index]
    assert bounds[0] == bounds[1]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (EXPORT[:-2], "licence"),
        ([*EXPORT[:-1], "CC BY"], "--licence 'CC BY': write it as the hub does"),
        ([*EXPORT[:4], "runs/a", *EXPORT[5:]], "--out runs/a: something is there; name a new folder"),
        (["export", "--ckpt_path", "runs/a", *EXPORT[3:]], "runs/a: is a run's folder; give runs/a/last.ckpt"),
        pytest.param(
            ["fit", "--config", "md4_markov", "--ckpt_path", "runs/b"],
            "start a new run from its weights by --init_from runs/b",
            marks=pytest.mark.slow,
        ),
        (["export", "--ckpt_path", "nowhere", *EXPORT[3:]], "nowhere: no such checkpoint file"),
    ],
)
def test_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([*EXPORT[:4], "runs/b", *EXPORT[5:]])
    assert said in error_of(capsys, arguments)
    assert not Path("handed").exists()
