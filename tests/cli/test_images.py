"""Images as users see them: a run on the digits, its report, samples and infillings; and one line for each mistake."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image

import ggm_lightning
from ggm_lightning.cli import drawing, infill_input
from ggm_lightning.cli.main import main
from ggm_lightning.codecs.pictures import MASKED_GREY, Images
from ggm_lightning.models.md4 import MD4
from ggm_lightning.report.drawing import columns_of
from ggm_lightning.report.images import command_for_more
from tests.cli.test_main import error_of

DIGITS = Path(__file__).parents[2] / "experiments" / "md4_digits.yaml"
SMALL = [
    "--model.network.init_args.num_layers=0",
    "--model.network.init_args.num_dit_layers=1",
    "--model.network.init_args.dit_width=8",
    "--data.init_args.global_batch_size=4",
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    with (folder / "printed.txt").open("w") as file, contextlib.redirect_stderr(file):
        main(["fit", "--config", str(DIGITS), *SMALL, "--runs", str(folder), "--name", "toy"])
    return folder / "toy"


def frames_of(path: Path) -> list[np.ndarray]:
    with Image.open(path) as image:
        frames = []
        for i in range(image.n_frames):
            image.seek(i)
            frames.append(np.asarray(image.convert("RGB")))
        return frames


def grey(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


# the run and its report


def test_the_report_shows_pictures(run: Path) -> None:
    for name in ("samples.png", "held_out.png", "infilled.png", "example.png", "trace.gif"):
        assert (run / name).stat().st_size > 0, name
    page = (run / "report.html").read_text()
    assert not re.search(r"https?://|url\(", page)
    assert page.count("data:image/png;base64,") == 3  # samples, held-out examples, infilling
    page = page[: page.index("<summary>Configuration")]
    assert page.count("data:image/gif;base64,") == 1
    assert "Bits per dimension given the class, upper bound" in page
    assert "examples per second" in page
    for wrong in ("token", "Perplexity", "<pre>"):
        assert wrong not in page
    assert "<code>lightning infill --ckpt_path last.ckpt --input example.png --mask right</code>" in page
    sizes = [Image.open(run / name).size for name in ("samples.png", "held_out.png")]
    assert sizes[0] == sizes[1]


def test_the_page_names_a_command_that_may_build_code_of_ones_own() -> None:
    model = LightningModule()
    for network, trust in (("ggm_lightning.networks.unet.UNet", ""), ("mynet.Net", " --trust mynet")):
        arguments = {"network": {"class_path": network}}
        model.resolved_config = {"model": {"class_path": "ggm_lightning.models.md4.MD4", "init_args": arguments}}
        assert command_for_more(model) == (
            f"lightning infill --ckpt_path last.ckpt{trust} --input example.png --mask right"
        )


def test_the_held_out_grid_shows_real_pictures_of_the_same_class(run: Path) -> None:
    from ggm_lightning.data.toy.digits import Digits, digits

    x, label = digits()
    pictures = Digits().decode(x)
    canvas = np.asarray(Image.open(run / "held_out.png"))
    scale = canvas.shape[1] // (10 * 9 - 1)
    tile = canvas[::scale, ::scale]
    for column in range(10):
        shown = tile[:8, column * 9 : column * 9 + 8]
        (found,) = np.flatnonzero((pictures == shown).all((1, 2, 3)))
        assert found >= 1500  # held out
        assert label[found] == column


def test_the_infilled_picture_keeps_what_was_given(run: Path) -> None:
    canvas = np.asarray(Image.open(run / "infilled.png"))
    scale = canvas.shape[1] // (8 + 4 + 71 + 4 + 8)
    tile = canvas[::scale, ::scale]
    example = np.asarray(Image.open(run / "example.png"))
    assert example.shape == (8, 8, 3)
    starts = [0, *(8 + 4 + 9 * i for i in range(8)), 8 + 4 + 71 + 4]  # the fillings stand apart
    first = [tile[:8, start : start + 8] for start in starts]
    assert all((picture[:, :4] == example[:, :4]).all() for picture in first)
    assert (first[0][:, 4:] == MASKED_GREY).all()
    assert (first[9] == example).all()


def test_the_gif_ends_with_the_samples(run: Path) -> None:
    frames = frames_of(run / "trace.gif")
    assert 30 <= len(frames) <= 40
    assert (frames[-1] == np.asarray(Image.open(run / "samples.png"))).all()
    assert (frames[0] == frames[-1]).all()  # what is printed
    masked = (frames[1] == MASKED_GREY).all(-1).mean()
    assert masked > 0.75  # all but the gaps


def test_units_of_the_progress_lines(run: Path) -> None:
    printed = (run.parent / "printed.txt").read_text()
    assert "bits per dimension" in printed
    assert "bits/dim" in printed
    assert "examples/s" in printed
    assert "token" not in printed


def test_a_checkpoint_gives_the_network_its_shape_back(run: Path) -> None:
    model = ggm_lightning.load(run / "last.ckpt")
    assert model.shape == model.network.trunk.shape == (1, 8, 8)
    assert isinstance(model.codec, Images)


@pytest.mark.parametrize("key", ["shape=[1,4,4]", "num_classes=3"])
def test_what_the_data_gives_is_not_written_twice(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fit", "--config", str(DIGITS), *SMALL, "--runs", str(tmp_path)]
    assert "is taken from the data; leave it out" in error_of(capsys, [*arguments, f"--model.network.init_args.{key}"])


# sample


def test_sample_writes_a_grid_and_the_denoising(run: Path, tmp_path: Path) -> None:
    common = ["sample", "--ckpt_path", str(run / "last.ckpt"), "--num_steps", "6"]
    main([*common, "--num_samples", "20", "--label", "each", "--out", str(tmp_path / "a")])
    x = np.load(tmp_path / "a" / "samples.npz")["x"]
    assert x.shape == (20, 1, 8, 8)
    frames = frames_of(tmp_path / "a" / "trace.gif")
    assert len(frames) <= 8
    picture = np.asarray(Image.open(tmp_path / "a" / "samples.png"))
    assert picture.shape[1] // picture.shape[0] == 5  # a column for each class: 89 x 17
    assert (frames[-1] == picture).all()
    page = (tmp_path / "a" / "trace.html").read_text()
    assert page.count("data:image/png;base64,") == page.count("data:image/gif;base64,") == 1
    assert "http" not in page
    main([*common, "--num_samples", "3", "--label", "7", "--out", str(tmp_path / "b")])
    assert np.load(tmp_path / "b" / "samples.npz")["x"].shape == (3, 1, 8, 8)


@pytest.mark.parametrize("label", ["10", "-1", "seven"])
def test_unknown_classes(run: Path, label: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["sample", "--ckpt_path", str(run / "last.ckpt"), f"--label={label}"]
    assert "the model's classes are 0..9; give one of them, or each" in error_of(capsys, arguments)


class Labelled(torch.nn.Module):
    """Only what the choice of labels looks at."""

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.num_labels = num_labels


def test_labels_of_samples() -> None:
    def drawn(label: int | str | None, num_labels: int = 3, label_dropout: float = 0.1, count: int = 7) -> list | None:
        model = MD4(Labelled(num_labels), 5, (2, 2), label_dropout=label_dropout if num_labels else 0)
        found = drawing.labels_of(model, label, count)
        return None if found is None else found.tolist()

    assert drawn(2) == [2] * 7
    assert drawn("each") == [0, 1, 2, 0, 1, 2, 0]
    assert drawn("each", num_labels=700) == [0, 100, 200, 300, 400, 500, 600]
    assert drawn(None) is drawn(None, num_labels=0) is None
    assert drawn(None, label_dropout=0.0) == drawn("each")  # the null class was never trained
    with pytest.raises(ValueError, match="--label 1: this model knows no classes; leave it out"):
        drawn(1, num_labels=0)


@pytest.mark.parametrize(
    ("label", "columns"), [(None, None), ([0, 1, 2, 0], 3), ([3, 3, 3, 3], None), ([0] * 4, None), ([0, 2, 4, 6], None)]
)
def test_columns_of_a_grid(label: list[int] | None, columns: int | None) -> None:
    assert columns_of(None if label is None else torch.tensor(label)) == columns


# infill


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    levels = np.arange(64).reshape(8, 8) % 17
    return grey(tmp_path / "picture.png", np.rint(levels * 255 / 16))


@pytest.mark.parametrize("how", ["right", "top", "picture"])
def test_infill_of_a_picture(run: Path, picture: Path, tmp_path: Path, how: str) -> None:
    fill = np.zeros((8, 8), bool)
    fill[{"right": np.s_[:, 4:], "top": np.s_[:4], "picture": np.s_[2:5, 3:7]}[how]] = True
    mask = str(grey(tmp_path / "mask.png", fill * 3)) if how == "picture" else how  # 3 is not quite black
    out = tmp_path / "out"
    arguments = ["--input", str(picture), "--mask", mask, "--num_samples", "3", "--num_steps", "4", "--out", str(out)]
    main(["infill", "--ckpt_path", str(run / "last.ckpt"), *arguments])
    x = np.load(out / "samples.npz")["x"][:, 0]
    levels = np.arange(64).reshape(8, 8) % 17
    assert x.shape == (3, 8, 8)
    assert (x[:, ~fill] == levels[~fill]).all()
    canvas = np.asarray(Image.open(out / "samples.png"))
    scale = canvas.shape[0] // 8
    first = canvas[::scale, ::scale][:, :8]
    assert ((first == MASKED_GREY).all(-1) == fill).all()  # the given picture, blanks as the codec shows them
    assert (first[~fill, 0] == np.rint(levels * 255 / 16)[~fill]).all()
    assert canvas.shape[1] == scale * (8 + 4 + 3 * 9 - 1)
    assert (out / "trace.gif").is_file()


def test_colour_pictures_and_levels_of_every_number() -> None:
    for num_classes in (2, 17, 256):
        codec = Images(num_classes, (3, 4, 5))
        x = np.random.default_rng(0).integers(num_classes, size=(1, 3, 4, 5))
        assert (codec.encode_pictures(codec.decode(x).transpose(0, 3, 1, 2)) == x).all()  # undoes decode
    assert Images(3, (1, 1, 1)).encode_pictures(np.full((1, 1, 1, 1), 200, np.uint8)).tolist() == [[[[2]]]]
    for one, other in (("left", "right"), ("top", "bottom")):
        halves = [infill_input._half(word, (5, 7)) for word in (one, other)]
        assert (halves[0] != halves[1]).all()


def test_a_mask_takes_all_channels(tmp_path: Path) -> None:
    model = MD4(Labelled(0), 256, (3, 4, 6))
    model.codec = Images(256, (3, 4, 6))
    path = grey(tmp_path / "rgb.png", np.random.default_rng(0).integers(256, size=(4, 6, 3)))
    given = infill_input.read(model, None, str(path), "left", "_")
    assert given.values.shape == given.known.shape == (1, 3, 4, 6)
    assert (given.known.sum((0, 2, 3)) == 12).all()


def test_mistakes_in_pictures_and_masks(
    run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*arguments: object) -> str:
        return error_of(capsys, ["infill", "--ckpt_path", str(run / "last.ckpt"), *map(str, arguments)])

    black, large = grey(tmp_path / "black.png", np.zeros((8, 8))), grey(tmp_path / "large.png", np.ones((9, 12)))
    deep, text, npz = tmp_path / "deep.png", tmp_path / "text.png", tmp_path / "known.npz"
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(deep)
    text.write_text("not a picture")
    np.savez(npz, x=np.zeros((1, 8, 8), int), mask=np.zeros((1, 8, 8), bool))
    assert "give --input PICTURE.png with --mask MASK.png or left, right, top, bottom" in told()
    assert "no such file; give --input PICTURE.png" in told("--input", tmp_path / "no.png", "--mask", "left")
    assert "which part is to be filled? give --mask" in told("--input", picture)
    assert "large.png: 12 x 9 pixels, the model's are 8 x 8; resize it" in told("--input", large, "--mask", "left")
    assert "--mask" in (wrong := told("--input", picture, "--mask", large))
    assert "12 x 9 pixels" in wrong
    assert "nothing to fill, all of it is black" in told("--input", picture, "--mask", black)
    assert "nothing to fill; mask must be True" in told("--input", npz)
    assert "no such file; give a picture file or one of left, right" in told("--input", picture, "--mask", "middle")
    assert "deep.png: a picture of mode I;16, not 8-bit RGB or grey" in told("--input", deep, "--mask", "left")
    assert "text.png: not a readable PNG or JPEG" in told("--input", text, "--mask", "left")
    assert "only a picture takes one" in told("--input", npz, "--mask", "left")
    assert "this model is not of text; give --input PICTURE.png" in told("--text", "a _")
