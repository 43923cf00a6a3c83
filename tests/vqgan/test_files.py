"""Released VQGANs: read by their own keys and YAML without executing code, or refused in one line."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
import yaml

from ggm_lightning.cli.main import main
from ggm_lightning.vqgan import files as vqgan_files
from ggm_lightning.vqgan.codes import VQGANCodes
from ggm_lightning.vqgan.network import Autoencoder
from tests.vqgan.released_vqgan import DDCONFIG, OLD, description, network, released


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released(tmp_path_factory.mktemp("vqgan") / "m")


def test_a_released_model_is_read_by_its_own_keys(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", OLD):
        monkeypatch.setitem(sys.modules, name, None)  # importing it would fail
    found, wanted = vqgan_files.load(vqgan_files.find(model)), network()
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in wanted.state_dict().items())
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(found(x)[0], wanted(x)[0])
    assert not found.training
    with pytest.raises(pickle.UnpicklingError, match="ModelCheckpoint"):  # control: what the stand-in is for
        torch.load(model / vqgan_files.WEIGHTS, weights_only=True)


def test_sizes_are_known_from_the_yaml_alone(tmp_path: Path) -> None:
    place = tmp_path / "m"
    (place / "configs").mkdir(parents=True)
    full = {**DDCONFIG, "z_channels": 256, "resolution": 256, "ch": 128, "ch_mult": [1, 1, 2, 2, 4]}
    full |= {"num_res_blocks": 2, "attn_resolutions": [16]}
    for codes, parameters in ((1024, 72_141_699), (16384, 76_073_859)):
        text = yaml.safe_dump(description(n_embed=codes, embed_dim=256, ddconfig=full))
        (place / vqgan_files.CONFIG).write_text(text)
        made = VQGANCodes("nowhere", str(place))
        assert (made.num_classes, made.shape, made.num_labels) == (codes, (1, 16, 16), None)
        with torch.device("meta"):
            assert sum(p.numel() for p in Autoencoder(**made.file.arguments).parameters()) == parameters
    with pytest.raises(FileNotFoundError, match=r"there is no '.*ckpts/last.ckpt'; put a released model's configs"):
        made.prepare_data()


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


def test_a_checkpoint_with_foreign_code_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    place = released(tmp_path / "m", extra=Payload(mark))
    with pytest.raises(ValueError, match=r"refused, it holds an object of \w+.system, and loading that") as caught:
        vqgan_files.load(vqgan_files.find(place))
    assert "\n" not in str(caught.value)
    assert not mark.exists()
    torch.load(place / vqgan_files.WEIGHTS, weights_only=False)  # control: it would have been
    assert mark.exists()


def test_files_of_something_else(tmp_path: Path, model: Path) -> None:
    def told(path: Path) -> str:
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            vqgan_files.load(vqgan_files.find(path))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "there is no" in told(tmp_path / "no.ckpt")
    assert "lightning fit --config experiments/vqgan_digits.yaml" in told(tmp_path / "no.ckpt")
    assert f"has no {vqgan_files.CONFIG}; put a released model's" in told(tmp_path)
    place = released(tmp_path / "m")
    config, weights = place / vqgan_files.CONFIG, place / vqgan_files.WEIGHTS
    for text, message in (
        ("a: [", "not the YAML of a VQGAN"),
        ("model: 3", "not the YAML of a VQGAN"),
        (yaml.safe_dump({"model": {"target": "x", "params": {"n_embed": 3, "embed_dim": 2}}}), "no 'ddconfig'"),
        (yaml.safe_dump(description(ddconfig=DDCONFIG | {"double_z": True})), "describes another model"),
        (yaml.safe_dump(description(ddconfig=DDCONFIG | {"add_noise": True})), "add_noise"),
        (yaml.safe_dump(description()).replace("VQModel", "GumbelVQ"), "only taming.models.vqgan.VQModel"),
        (yaml.safe_dump(description(n_embed=38)), r"quantize.embedding.weight is [37, 5], not [38, 5]"),
        (yaml.safe_dump(description(ddconfig=DDCONFIG | {"num_res_blocks": 2})), "lacks encoder"),
        (yaml.safe_dump(description(ddconfig=DDCONFIG | {"attn_resolutions": []})), "which is not of it"),
    ):
        config.write_text(text)
        assert message in told(place)
    config.write_text(yaml.safe_dump(description()))
    raw = weights.read_bytes()
    for wrong in (b"", raw[: len(raw) // 2], raw[:9000] + bytes([raw[9000] ^ 1]) + raw[9001:]):
        weights.write_bytes(wrong)
        assert weights.name in told(place)
    weights.write_bytes(raw)
    vqgan_files.load(vqgan_files.find(place))  # control
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes(raw)
    assert "not a VQGAN (a released one needs its YAML beside it)" in told(alone)
    alone.with_suffix(".yaml").write_text(yaml.safe_dump(description()))
    vqgan_files.load(vqgan_files.find(alone))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (None, "describes a VQGAN that cannot be"),
        ({"shape": "os.system", "num_codes": 8}, "shape is 'os.system'; it must be tuple"),
        ({"shape": {"class_path": "os.system"}, "num_codes": 8}, "the class os.system, which is not of this package"),
        ({"shape": [3, 16], "num_codes": 8}, "describes a VQGAN that cannot be"),
        ({"shape": [3, 16, 16], "num_codes": 10**12}, "no size of a model is above"),
        ({"shape": [3, 16, 16], "num_codes": 8, "num_blocks": 10**7}, "more than 1,0"),
        ({"shape": [3, 16, 16], "num_codes": 8, "code": "x"}, "takes no argument 'code'"),
    ],
)
def test_a_strangers_own_vqgan(tmp_path: Path, arguments: dict | None, message: str) -> None:
    """A checkpoint of the form that vqgan/training.py writes, with something else in its description."""
    section = {"class_path": vqgan_files._NETWORK, "init_args": arguments}
    about = {"model": {"class_path": "ggm_lightning.vqgan.training.VQGAN", "init_args": {"network": section}}}
    torch.save({"state_dict": {"network.x": torch.zeros(2)}, "ggm_lightning": about}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=message) as caught:
        vqgan_files.find(tmp_path / "x.ckpt")
    assert "\n" not in str(caught.value)


def test_our_own_as_a_folder_to_hand_on(tmp_path: Path) -> None:
    sizes = {"shape": [1, 8, 8], "num_codes": 13, "code_dim": 5, "width": 32, "multipliers": [1, 1]}
    sizes |= {"num_blocks": 0, "attention_at": [], "latent_dim": 3}
    section = {"network": {"class_path": "ggm_lightning.vqgan.network.Autoencoder", "init_args": sizes}}
    section |= {"num_classes": 17, "shape": [1, 8, 8]}
    described = {"model": {"class_path": "ggm_lightning.vqgan.training.VQGAN", "init_args": section}, "format": 2}
    state = {f"network.{name}": value for name, value in Autoencoder(**sizes).state_dict().items()}  # type: ignore[arg-type]
    torch.save({"state_dict": state, "ggm_lightning": described}, tmp_path / "vqgan.ckpt")
    main(["export", "--ckpt_path", str(tmp_path / "vqgan.ckpt"), "--out", str(tmp_path / "handed"), "--licence", "mit"])
    found = vqgan_files.load(vqgan_files.find(tmp_path / "handed")).state_dict()
    assert {f"network.{name}" for name in found} == state.keys()
    assert all(torch.equal(value, state[f"network.{name}"]) for name, value in found.items())
