"""networks/fid_inception.py. The released file could not be had: a file of its names and shapes is written here."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ggm_lightning.networks import fid_inception
from ggm_lightning.networks.fid_inception import FIDInception, resized


def shapes() -> dict[str, torch.Size]:
    """What the released file holds: no counters of batches."""
    with torch.device("meta"):
        state = FIDInception().state_dict()
    return {name: value.shape for name, value in state.items() if not name.endswith("num_batches_tracked")}


def test_names_and_shapes_are_those_of_the_released_file() -> None:
    """94 convolutions of a kernel and four numbers a channel, and the last layer: 23,850,960 parameters."""
    with torch.device("meta"):
        assert sum(p.numel() for p in FIDInception().parameters()) == 23_850_960
    found = shapes()
    assert len(found) == 94 * 5 + 2
    wanted = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_5d.branch_pool.bn.running_var": (64,),
        "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
        "Mixed_6b.branch7x7dbl_2.conv.weight": (128, 128, 7, 1),
        "Mixed_6e.branch7x7_2.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_1.conv.weight": (448, 2048, 1, 1),
        "fc.weight": (1008, 2048),
        "fc.bias": (1008,),
    }
    assert {name: tuple(found[name]) for name in wanted} == wanted


@pytest.mark.slow
def test_a_file_of_this_form(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for name, shape in shapes().items():
        drawn = torch.randn(shape, generator=generator) * (2 / max(1, shape[1:].numel())) ** 0.5
        state[name] = drawn.abs() if name.endswith("running_var") else drawn
    torch.save(state, tmp_path / "w.pth")
    network = fid_inception.load(tmp_path / "w.pth", "tf")
    mean = "Mixed_7c.branch_pool.bn.running_mean"
    assert torch.equal(network.state_dict()[mean], state[mean])
    assert not network.training
    with torch.no_grad():
        features, logits = network(torch.randint(256, (1, 3, 8, 8), dtype=torch.uint8))
    assert (features.shape, logits.shape) == ((1, 2048), (1, 1008))
    assert torch.allclose(logits, features @ state["fc.weight"].T, rtol=1e-4)
    assert torch.isfinite(features).all()


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def test_refused_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no such file; weights-inception-2015-12-05-6726825d.pth is among"):
        fid_inception.load("w.pth")
    small = {"fc.weight": torch.ones(1008, 2048), "fc.bias": torch.ones(1008)}
    for content, said in (
        (Payload(), "not the released weights"),
        ([1], "not the released weights"),
        (small, "Conv2d_1a_3x3.conv.weight is missing, misshapen or unknown"),
    ):
        torch.save(content, "w.pth")
        with pytest.raises(ValueError, match=said) as caught:
            fid_inception.load("w.pth")
        assert "\n" not in str(caught.value)
    assert not Path("executed").exists()
    with pytest.raises(ValueError, match="resize is 'nearest'; choose clean or tf"):
        FIDInception("nearest")


class Bright(torch.nn.Module):
    """Without weights: what it answers hangs on attributes alone."""

    def __init__(self, power: float = 1.0, classes: int = 0):
        super().__init__()
        self.power, self.classes = power, classes

    def forward(self, pictures: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        values = (pictures.float().mean((2, 3)) / 255) ** self.power
        return (values, values[:, : self.classes]) if self.classes else values


def test_identity_is_of_what_a_network_answers() -> None:
    """Pictures have 3 x 7 x 11. Control: another object that answers the same, and one that differs by rounding."""
    shape = (3, 7, 11)
    own = fid_inception.identity(Bright(), shape)
    assert own == fid_inception.identity(Bright(), shape) == fid_inception.identity(Bright(1 + 1e-9), shape)
    for other in (Bright(1.01), Bright(classes=2)):
        assert fid_inception.identity(other, shape) != own
    assert fid_inception.identity(Bright(), (3, 7, 13)) != own


# ------------------------------------------------------------------ how pictures get to 299 x 299


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(height, width), dtype=np.uint8)


@pytest.mark.parametrize("size", [(8, 11), (512, 401)])
def test_clean_is_the_bicubic_of_pillow(size: tuple[int, int]) -> None:
    """As clean-fid does it: in floats, smoothed where a picture shrinks, and cut off at black and white."""
    pixels = picture(*size)
    plain = np.asarray(Image.fromarray(pixels.astype(np.float32), "F").resize((299, 299), Image.Resampling.BICUBIC))
    wanted = plain.clip(0, 255)
    found = resized(torch.from_numpy(pixels)[None, None], "clean")[0, 0].numpy()
    assert np.abs(found - wanted).max() < 1e-2
    if size[0] < 299:
        assert np.abs(found - plain).max() > 10, "control: bicubic overshoots"
    assert np.abs(resized(torch.from_numpy(pixels)[None, None], "tf")[0, 0].numpy() - wanted).max() > 10, "control"


def test_tf_is_between_neighbours_at_shifted_places() -> None:
    pixels = picture(13, 7).astype(np.float64)
    found = resized(torch.from_numpy(pixels.astype(np.uint8))[None, None], "tf")[0, 0].numpy()
    for i, j in ((0, 0), (7, 100), (150, 3), (298, 298), (297, 43)):
        y, x = i * 13 / 299, j * 7 / 299
        low_y, low_x = int(y), int(x)
        high_y, high_x = min(low_y + 1, 12), min(low_x + 1, 6)
        share_y, share_x = y - low_y, x - low_x
        upper = pixels[low_y, low_x] * (1 - share_x) + pixels[low_y, high_x] * share_x
        lower = pixels[high_y, low_x] * (1 - share_x) + pixels[high_y, high_x] * share_x
        assert found[i, j] == pytest.approx(upper * (1 - share_y) + lower * share_y, abs=1e-2)
    same = torch.from_numpy(picture(299, 299))[None, None]
    assert torch.equal(resized(same, "tf"), same.float())
