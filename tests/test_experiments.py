"""Every file in experiments/ takes two training steps on a CPU; its full-size network has the promised parameters."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from ggm_lightning import config
from ggm_lightning.cli import main

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
DEBUG = ROOT / "configs" / "trainer" / "debug.yaml"
TINY = {"feature_dim": 8, "num_heads": 2, "num_layers": 1}
# sizes and paths only, never a class
SMALLER: dict[str, dict[str, object]] = {
    "md4_demo": {"length": 16, "global_batch_size": 4, "stride": 64},
    "md4_markov": {"num_train": 16, "num_val": 8},
    "md4_text8": {
        "path": "{tmp}/text8",
        "length": 16,
        "global_batch_size": 4,
        "train_chars": 900,
        "val_chars": 50,
        "test_chars": 50,
    },
}
PARAMETERS = {"md4_demo": 493_856, "md4_markov": 185_104, "md4_text8": 88_734_272}
VOCABULARY = {"md4_demo": 97, "md4_markov": 11, "md4_text8": 27}


def ids(path: Path) -> str:
    return path.stem


def test_every_experiment_is_listed() -> None:
    names = {path.stem for path in EXPERIMENTS}
    assert names == set(SMALLER) == set(PARAMETERS) == set(VOCABULARY)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=ids)
def test_two_steps_on_a_cpu(path: Path, tmp_path: Path) -> None:
    (tmp_path / "text8").write_text("the quick brown fox jumps over the lazy dog " * 25)
    network = [f"--model.network.init_args.{name}={value}" for name, value in TINY.items()]
    data = [
        f"--data.init_args.{key}={value}".replace("{tmp}", str(tmp_path)) for key, value in SMALLER[path.stem].items()
    ]
    if "folder" in config.load_file(str(path)).get("data", {}).get("init_args", {}) or path.stem == "md4_demo":
        data.append(f"--data.init_args.folder={tmp_path / 'shards'}")
    main(
        ["fit", "--config", str(path), "--config", str(DEBUG), "--runs", str(tmp_path), *network, *data, "--name", "x"]
    )
    checkpoint = torch.load(tmp_path / "x" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    classes = config.load_file(str(path))["model"]["class_path"]
    assert checkpoint["ggm_lightning"]["model"]["class_path"] == classes
    assert (tmp_path / "x" / "report.html").is_file()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=ids)
def test_full_size_network_on_the_meta_device(path: Path) -> None:
    from ggm_lightning.networks.transformer import Transformer

    section = config.load_file(str(path))["model"]["init_args"]["network"]
    assert section["class_path"] == "ggm_lightning.networks.transformer.Transformer"
    with torch.device("meta"):
        network = Transformer(VOCABULARY[path.stem], **section["init_args"])
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[path.stem]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=ids)
def test_a_file_says_what_it_aims_at(path: Path) -> None:
    comment = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert "Expect:" in comment
    settings = config.load_file(str(path))
    assert settings["trainer"]["max_steps"] > 0
    assert settings["data"]["init_args"]["global_batch_size"] > 0
    if settings["trainer"]["accelerator"] == "cuda":
        assert re.search(r"Aims at: .*\d", comment), "the published number"


def test_pieces_are_mappings_of_known_sections() -> None:
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        assert set(config.load_file(str(path))) <= {"model", "data", "trainer"}, path
