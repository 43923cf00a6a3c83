"""CelebA from a folder or a zip: crop, size, split, flat files made once; missing and broken pictures are named."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ggm_lightning.data.celeba import NAME, PARTITION, CelebA, find_pictures, read_partition

NAMES = [f"{i:06d}.jpg" for i in range(1, 8)]
PARTS = [0, 0, 1, 0, 2, 2, 0]


def picture(seed: int) -> bytes:
    """A smooth one, so that JPEG and the choice of a filter change little."""
    rng = np.random.default_rng(seed)
    corners = Image.fromarray(rng.integers(256, size=(3, 3, 3)).astype(np.uint8))
    out = io.BytesIO()
    corners.resize((178, 218), Image.Resampling.BICUBIC).save(out, "JPEG", quality=95)
    return out.getvalue()


def original(folder: Path, kind: str = "folder") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: picture(i) for i, name in enumerate(NAMES)}
    if kind == "zip":
        with zipfile.ZipFile(folder / f"{NAME}.zip", "w") as archive:
            for name in reversed(NAMES):  # the order in the archive does not matter
                archive.writestr(f"{NAME}/{name}", files[name])
    else:
        place = folder / NAME / NAME if kind == "twice" else folder / NAME
        place.mkdir(parents=True, exist_ok=True)
        for name, raw in files.items():
            (place / name).write_bytes(raw)
    (folder / PARTITION).write_text("".join(f"{n} {p}\n" for n, p in zip(NAMES, PARTS, strict=True)))
    return folder


def made(path: Path, **kwargs: object) -> CelebA:
    data = CelebA(str(path), folder=str(path / "flat"), **kwargs)
    data.prepare_data()
    data.setup(None)
    return data


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """Cropped and averaged with triangular weights over 2 x 140/64 pixels, in float64."""
    scale = 140 / 64
    centres = (np.arange(64) + 0.5) * scale - 0.5
    weights = np.clip(1 - abs(np.arange(140) - centres[:, None]) / scale, 0, None)
    weights /= weights.sum(1, keepdims=True)
    pixels = [np.asarray(Image.open(io.BytesIO(picture(i))), dtype=np.float64) for i in range(len(NAMES))]
    crops = [one[39 : 39 + 140, 19 : 19 + 140] for one in pixels]
    return np.stack([np.einsum("ih,hwc,jw->cij", weights, crop, weights, optimize=True) for crop in crops])


@pytest.mark.parametrize("kind", ["folder", "twice", "zip"])
def test_every_form_gives_the_same_pictures(tmp_path: Path, expected: np.ndarray, kind: str) -> None:
    data = made(original(tmp_path / "c", kind))
    assert (data.num_classes, data.shape, data.num_labels) == (256, (3, 64, 64), None)
    for part, split in enumerate(data.splits):
        mine = [i for i, p in enumerate(PARTS) if p == part]
        x = data.rows(split)[np.arange(len(mine))]["x"].numpy()
        assert x.shape == (len(mine), 3, 64, 64)
        assert abs(x - expected[mine]).max() <= 1.0  # rounded after each of the two directions
    elsewhere = np.roll(expected, 2, -1)  # control: a crop two pixels beside (four of the original)
    assert abs(data.rows("train")[[0]]["x"].numpy()[0] - elsewhere[0]).max() > 5


def test_options_change_the_pictures_and_the_folder(tmp_path: Path) -> None:
    path = original(tmp_path / "c")
    base = CelebA(str(path))
    for change in ({"crop": 178}, {"size": 32}, {"resize": "box"}, {"train_on": "all"}):
        other = CelebA(str(path), **change)
        assert other.folder != base.folder
        if "train_on" not in change:
            raw = (path / NAME / NAMES[0]).read_bytes()
            assert not np.array_equal(other.fitted(raw, "x"), base.fitted(raw, "x"))
    whole = CelebA(str(path), crop=178, size=178).fitted(picture(0), "x")
    assert np.array_equal(whole, np.asarray(Image.open(io.BytesIO(picture(0))))[20:198].transpose(2, 0, 1))


def test_all_pictures_to_train_on_and_mirrored(tmp_path: Path) -> None:
    path = original(tmp_path / "c")
    every = made(path, train_on="all", mirror=True)
    assert [len(every.rows(split)) for split in every.splits] == [14, 1, 2]
    x = every.rows("train")[np.arange(14)]["x"].numpy()
    assert np.array_equal(x[7:], x[:7, :, :, ::-1])
    assert np.array_equal(x[2], every.rows("val")[[0]]["x"][0].numpy())


def test_made_once_and_again_when_something_changed(tmp_path: Path) -> None:
    path = original(tmp_path / "c")
    pixels = path / "flat" / "train-pixels.bin"
    made(path)
    first = pixels.stat().st_mtime_ns
    made(path)
    assert pixels.stat().st_mtime_ns == first
    (path / NAME / NAMES[0]).write_bytes(picture(99))
    changed = made(path).rows("train")[[0]]["x"].numpy()[0]
    assert np.array_equal(changed, made(path).fitted(picture(99), "x"))
    second = pixels.stat().st_mtime_ns
    assert second != first
    with pytest.raises(ValueError, match=r"holds data made with other options \(crop\), which are left as they are"):
        made(path, crop=178)
    assert pixels.stat().st_mtime_ns == second


def test_the_originals_may_go(tmp_path: Path) -> None:
    path = original(tmp_path / "c")
    data = CelebA(str(path), folder=str(tmp_path / "flat"))
    data.prepare_data()
    path.rename(tmp_path / "away")
    again = CelebA(str(path), folder=str(tmp_path / "flat"))
    again.prepare_data()
    assert len(again.rows("train")) == 4


def test_missing_and_broken_pictures_are_named(tmp_path: Path) -> None:
    path = original(tmp_path / "c")
    (path / NAME / NAMES[3]).unlink()
    with pytest.raises(ValueError, match=rf"img_align_celeba: {NAMES[3]} of {PARTITION} is not there; get"):
        made(path)
    (path / NAME / NAMES[1]).unlink()
    with pytest.raises(ValueError, match=rf"{NAMES[1]} \(and 1 more\) of {PARTITION}"):
        made(path)
    original(path)
    raw = picture(0)
    small = io.BytesIO()
    Image.new("RGB", (64, 64)).save(small, "JPEG")
    for broken, message in (
        (raw[: len(raw) // 2], "not a readable"),
        (b"", "not a readable"),
        (small.getvalue(), "64x64"),
    ):
        (path / NAME / NAMES[2]).write_bytes(broken)
        with pytest.raises(ValueError, match=rf"{NAMES[2]}: .*{message}") as caught:
            made(path)
        assert "\n" not in str(caught.value)
        assert not (path / "flat" / "header.json").exists()
        assert not list((path / "flat").glob("*.tmp"))
    original(path)
    assert len(made(path).rows("train")) == 4  # control: whole again


def test_a_damaged_zip_is_named(tmp_path: Path) -> None:
    path = original(tmp_path / "c", "zip")
    archive = path / f"{NAME}.zip"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{NAME}.zip: not a whole zip file"):
        made(path)
    altered = bytearray(whole)
    altered[2000] ^= 1
    archive.write_bytes(altered)
    with pytest.raises(ValueError, match=rf"{NAME}.zip: {NAMES[-1]} cannot be read .*get img_align"):
        made(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("000001.jpg 0\n000002.jpg 3\n", "line 2 is '000002.jpg 3', not a name and 0, 1 or 2"),
        ("000001.jpg\n", "line 1 is"),
        ("000001.jpg 0\n\n000002.jpg 1\n", "no pictures of the test split"),
        ("", "no pictures of the train split"),
    ],
)
def test_a_partition_file_that_says_something_else(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / PARTITION).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_partition(tmp_path / PARTITION)
    assert "\n" not in str(caught.value)


def test_missing_files_and_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"has no file {PARTITION}; get"):
        made(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"has neither {NAME}.zip nor a folder {NAME}"):
        find_pictures(tmp_path)
    for change, message in (
        ({"crop": 179}, "data.crop is 179; the pictures are 178 wide"),
        ({"size": 0}, "data.size is 0"),
        ({"resize": "nearest"}, "data.resize is 'nearest'; choose one of bilinear"),
        ({"train_on": "test"}, "data.train_on is 'test'"),
    ):
        with pytest.raises(ValueError, match=message):
            CelebA(**change)
