"""Training of a VQGAN: losses as written, the game of two sides in one pass, codebook use, a run by the command."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ggm_lightning
from ggm_lightning.cli.main import main
from ggm_lightning.codecs.pictures import Images
from ggm_lightning.data.toy.digits import digits
from ggm_lightning.metrics.codebook import Reconstruction, perplexity
from ggm_lightning.vqgan.network import Autoencoder
from ggm_lightning.vqgan.training import VQGAN
from tests.cli.test_main import error_of

ROOT = Path(__file__).parents[2]
SMALL = {"code_dim": 5, "width": 32, "multipliers": (1, 1), "num_blocks": 0, "attention_at": (), "latent_dim": 3}


def made(**kwargs: object) -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(Autoencoder((1, 8, 8), 13, **SMALL), 17, (1, 8, 8), **kwargs)  # type: ignore[arg-type]


def levels(count: int = 3) -> torch.Tensor:
    return torch.from_numpy(digits()[0][:count]).long()


def test_values_are_those_of_the_picture_files() -> None:
    x = levels()
    pictures = torch.from_numpy(Images(17, (1, 8, 8)).decode(x))[..., :1].permute(0, 3, 1, 2)
    assert torch.equal(made().values(x), pictures.float() / 127.5 - 1)


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_the_loss_is_the_formula(distance: str) -> None:
    model, x = made(distance=distance, codebook_weight=0.7), levels()
    values = model.values(x)
    z = model.network.latents(values)
    restored, _, codes = model.network(values)
    e = model.network.quantize.embedding.weight[codes].movedim(-1, 1)
    difference = (values - restored).abs()
    expected = (difference if distance == "l1" else difference**2).mean() + 0.7 * 1.25 * ((z - e) ** 2).mean()
    torch.testing.assert_close(model.loss(x)[0], expected)


def test_each_side_of_the_game_moves_itself_alone() -> None:
    judge = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 3))
    model, x = made(discriminator=judge, game_weight=0.3, game_from=5), levels()
    assert "deceived" not in model.loss(x, step=4)[1]
    plain = torch.autograd.grad(model.loss(x, step=4)[0], model.network.decoder.conv_out.weight)[0]
    total, parts = model.loss(x, step=5)
    assert set(parts) >= {"deceived", "discriminator"}
    values = model.values(x)
    restored = model.network(values)[0]
    told = torch.relu(1 - judge(values)).mean() + torch.relu(1 + judge(restored.detach())).mean()
    deceived = -judge(restored).mean()
    torch.testing.assert_close(total, model.loss(x, step=4)[0] + 0.3 * deceived + told)
    mine = torch.autograd.grad(told, judge[0].weight)[0]
    theirs = torch.autograd.grad(deceived, model.network.decoder.conv_out.weight, retain_graph=True)[0]
    total.backward()
    torch.testing.assert_close(judge[0].weight.grad, mine)
    torch.testing.assert_close(model.network.decoder.conv_out.weight.grad, plain + 0.3 * theirs)
    mixed = mine + 0.3 * torch.autograd.grad(deceived, judge[0].weight)[0]  # control: not frozen, it would be this
    assert (mixed - mine).abs().max() > 1e-4


def test_a_perfect_codebook_and_a_single_code() -> None:
    metric, x = Reconstruction(7), torch.tensor([[1.0, -1.0], [0.5, 0.0]])
    metric.update(x, x - 0.2, torch.tensor([[0, 1], [2, 3]]))
    metric.update(x, x + 0.4, torch.tensor([[0, 1], [2, 3]]))
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found["mse"] == pytest.approx((0.04 + 0.16) / 2)
    assert found["psnr"] == pytest.approx(10 * math.log10(4 / 0.1))
    assert found["code_perplexity"] == pytest.approx(4)
    assert found["codes_used"] == pytest.approx(4 / 7)
    assert float(perplexity(torch.tensor([9, 0, 0]))) == pytest.approx(1)


def test_the_codebook_starts_among_the_latents() -> None:
    model, x = made(), levels(5)
    z = model.network.latents(model.values(x)).movedim(1, -1).reshape(-1, 5)
    model.start_codebook(x)
    table = model.network.quantize.embedding.weight
    nearest = torch.cdist(table, z).min(1).values
    assert nearest.max() < 0.1 * z.std() * math.sqrt(5)
    assert torch.cdist(torch.empty(13, 5).uniform_(-1 / 13, 1 / 13), z).min(1).values.mean() > 5 * nearest.mean()
    model.start_codebook(x[:1])  # 16 latents for 13 entries; fewer are taken twice and differ
    few = VQGAN(Autoencoder((1, 8, 8), 40, **SMALL), 17, (1, 8, 8))
    few.start_codebook(x[:1])
    assert len(torch.unique(few.network.quantize.embedding.weight, dim=0)) == 40


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"distance": "l3"}, "choose l1 or l2"),
        ({"codebook_weight": -1.0}, "codebook_weight is -1.0; it must be at least 0 and finite"),
        ({"game_from": -1}, "game_from is -1; it is a step"),
    ],
)
def test_wrong_arguments(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**wrong)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    steps = ["--trainer.max_steps=3", "--trainer.val_check_interval=3", "--trainer.log_every_n_steps=1"]
    experiment = ["--config", str(ROOT / "experiments" / "vqgan_digits.yaml"), "--data.global_batch_size=4"]
    main(["fit", *experiment, *steps, "--runs", str(folder), "--name", "v"])
    return folder / "v"


def test_a_run_from_the_command(run: Path) -> None:
    for name in ("last.ckpt", "best.ckpt", "curve.png", "reconstructed.png", "report.html"):
        assert (run / name).is_file(), name
    header = (run / "metrics.csv").read_text().splitlines()[0]
    for name in ("val/mse", "val/psnr", "val/code_perplexity", "val/codes_used", "train/quantisation", "train/mse"):
        assert name in header
    page = (run / "report.html").read_text()
    assert "Reconstructions" in page
    assert "upper bound" not in page
    model = ggm_lightning.load(run / "last.ckpt")
    assert isinstance(model, VQGAN)
    assert model.reconstruct(levels()).shape == (3, 1, 8, 8)


def test_what_a_vqgan_is_not(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = error_of(capsys, ["sample", "--ckpt_path", str(run / "last.ckpt")])
    assert "holds a VQGAN, which can" in told
    experiment = ["--config", str(ROOT / "experiments" / "vqgan_digits.yaml")]
    told = error_of(capsys, ["predict", *experiment, "--runs", str(run.parent), "--name", "v"])
    assert "no model of likelihoods" in told


def test_the_whole_chain(run: Path, tmp_path: Path) -> None:
    """Pictures -> codes -> MD4 -> codes -> pictures, from the run above; filling one in keeps what was given."""
    steps = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1"]
    tiny = [f"--model.network.init_args.{key}" for key in ("num_layers=0", "num_dit_layers=1", "dit_width=8")]
    codes = [f"--data.vqgan={run / 'last.ckpt'}", f"--data.folder={tmp_path / 'codes'}", "--data.global_batch_size=4"]
    experiment = ["--config", str(ROOT / "experiments" / "md4_digits_vqgan.yaml"), *steps, *tiny, *codes]
    main(["fit", *experiment, "--runs", str(tmp_path), "--name", "m"])
    folder = tmp_path / "m"
    assert "Real, reconstructed, generated" in (folder / "report.html").read_text()
    real = np.asarray(Image.open(folder / "chain.png"))
    scale = real.shape[0] // 35  # four rows of 8 pixels with gaps
    first = real[::scale, ::scale][:8, :8]
    pictures = Images(17, (1, 8, 8)).decode(digits()[0])
    assert (pictures[1500:] == first).all((1, 2, 3)).any()  # a held-out picture as it was
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    assert all(name.startswith(("network.", "schedule.", "bounds.")) for name in checkpoint["state_dict"])
    assert checkpoint["ggm_lightning"]["codec"]["class_path"] == "ggm_lightning.vqgan.codes.Codes"
    out = tmp_path / "out"
    arguments = ["--input", str(folder / "example.png"), "--mask", "right", "--num_steps", "3", "--out", str(out)]
    main(["infill", "--ckpt_path", str(folder / "last.ckpt"), *arguments])
    model = ggm_lightning.load(folder / "last.ckpt")
    example = np.asarray(Image.open(folder / "example.png"))[..., 0]
    wanted = model.codec.encode_pictures(example[None, None])[0]  # type: ignore[operator, union-attr]
    filled = np.load(out / "samples.npz")["x"][:, 0]
    assert (filled[:, :, :2] == wanted[:, :2]).all()
    (run / "last.ckpt").rename(run / "gone.ckpt")
    try:
        with pytest.raises(FileNotFoundError, match="the VQGAN that makes pictures of these codes is not there"):
            model.codec.decode(filled)  # type: ignore[operator, union-attr]
    finally:
        (run / "gone.ckpt").rename(run / "last.ckpt")
