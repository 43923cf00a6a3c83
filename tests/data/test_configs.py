"""Every fragment in configs/data builds its class through the command line's parser, and unknown keys are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from jsonargparse import ArgumentParser

from ggm_lightning.data.base import DiscreteData

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
    "npy": (256, (4,)),
    "sawtooth": (2, (128,)),
    "text8": (27, (256,)),
    "text_file": (256, (256,)),
}


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DiscreteData, "data")
    parser.add_argument("--config", action="config")
    return parser


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_fragment_builds_with_batch_settings(path: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "ids.npy", np.zeros((9, 4), dtype=np.uint8))
    parser = _parser()
    config = parser.parse_args(["--config", str(path), "--data.global_batch_size=10", "--data.num_workers=1"])
    data = parser.instantiate_classes(config).data
    assert (data.num_classes, data.shape) == EXPECTED[path.stem]
    assert (data.global_batch_size, data.num_workers) == (10, 1)


def test_all_fragments_are_known() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} >= set(EXPECTED)


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(Exception, match="global_batchsize"):
        _parser().parse_args(["--config", str(FOLDER / "markov.yaml"), "--data.init_args.global_batchsize=10"])
