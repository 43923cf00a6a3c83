"""Every fragment in configs/data builds its class through the command line's parser, and unknown keys are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from ggm_lightning.codecs.text import Bytes
from ggm_lightning.data.base import DiscreteData
from ggm_lightning.data.zeroshot_sets import SETS

FOLDER = Path(__file__).parents[2] / "configs" / "data"
EXPECTED = {
    "celeba": (256, (3, 64, 64)),
    "cifar10": (256, (3, 32, 32)),
    "demo_text": (97, (64,)),
    "dictionary": (9, (32,)),
    "digits": (17, (1, 8, 8)),
    "imagenet64": (256, (3, 64, 64)),
    "markov": (11, (64,)),
    "mnist": (2, (1, 32, 32)),
    "lm1b": (256, (128,)),
    "npy": (256, (4,)),
    "openwebtext": (256, (1024,)),
    "sawtooth": (2, (128,)),
    "sudoku": (6, (36,)),
    "text8": (27, (256,)),
    "text_file": (256, (256,)),
    "vqgan": (1024, (1, 16, 16)),
    "vqgan_digits": (64, (1, 4, 4)),
    **{f"zeroshot_{name}": (256, (13,)) for name in SETS},
}


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DiscreteData, "data")
    parser.add_argument("--config", action="config")
    return parser


def _vqgan(stem: str) -> None:
    """Where the fragment looks for it: a YAML as released, which is enough to know the sizes; or a checkpoint."""
    released = {"ch": 128, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [16], "dropout": 0.0}
    released |= {"double_z": False, "z_channels": 256, "resolution": 256, "in_channels": 3, "out_ch": 3}
    params = {"n_embed": 1024, "embed_dim": 256, "ddconfig": released}
    if stem == "vqgan":
        file = Path("data/vqgan_imagenet_f16_1024/configs/model.yaml")
        file.parent.mkdir(parents=True)
        file.write_text(yaml.safe_dump({"model": {"target": "taming.models.vqgan.VQModel", "params": params}}))
        return
    sizes = {"shape": [1, 8, 8], "num_codes": 64, "multipliers": [1, 1]}
    network = {"class_path": "ggm_lightning.vqgan.network.Autoencoder", "init_args": sizes}
    Path("runs/vqgan_digits").mkdir(parents=True)
    about = {"ggm_lightning": {"model": {"init_args": {"network": network}}}, "state_dict": {}}
    torch.save(about, "runs/vqgan_digits/last.ckpt")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_fragment_builds_with_batch_settings(path: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "ids.npy", np.zeros((9, 4), dtype=np.uint8))
    if path.stem.startswith("vqgan"):
        _vqgan(path.stem)
    parser = _parser()
    given = ["--data.tokenizer=bytes"] if path.stem in ("openwebtext", "lm1b") else []  # theirs is on the hub
    config = parser.parse_args(["--config", str(path), "--data.global_batch_size=10", "--data.num_workers=1", *given])
    data = parser.instantiate_classes(config).data
    if path.stem.startswith("zeroshot_"):  # tokenizer and length are the checkpoint's
        data.complete(Bytes(), (13,))
    assert (data.num_classes, data.shape) == EXPECTED[path.stem]
    assert (data.global_batch_size, data.num_workers) == (10, 1)


def test_all_fragments_are_known() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} >= set(EXPECTED)


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(Exception, match="global_batchsize"):
        _parser().parse_args(["--config", str(FOLDER / "markov.yaml"), "--data.init_args.global_batchsize=10"])
