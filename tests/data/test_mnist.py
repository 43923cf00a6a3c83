"""MNIST's idx files, and both ways to make them binary; damage and missing files are named."""

from __future__ import annotations

import gzip
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ggm_lightning.data.mnist import Mnist, binary, read_mnist

N, N_TEST = 11, 5


def idx(images: np.ndarray) -> bytes:
    sizes = images.shape
    return struct.pack(f">{1 + len(sizes)}I", 0x800 + len(sizes), *sizes) + images.tobytes()


def write(folder: Path, dot: str = "-", packed: bool = True) -> dict[str, np.ndarray]:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    made = {}
    for prefix, n in (("train", N), ("t10k", N_TEST)):
        made[prefix] = rng.integers(256, size=(n, 28, 28)).astype(np.uint8)
        made[f"{prefix} labels"] = rng.integers(10, size=n).astype(np.uint8)
        files = {f"images{dot}idx3": made[prefix], f"labels{dot}idx1": made[f"{prefix} labels"]}
        for name, array in files.items():
            raw = gzip.compress(idx(array)) if packed else idx(array)
            (folder / f"{prefix}-{name}-ubyte{'.gz' * packed}").write_bytes(raw)
    return made


@pytest.mark.parametrize(("dot", "packed"), [("-", True), ("-", False), (".", False)])
def test_every_form_gives_the_same_pictures(tmp_path: Path, dot: str, packed: bool) -> None:
    made = write(tmp_path, dot, packed)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = read_mnist(tmp_path, split)
        assert np.array_equal(images, made[prefix])
        assert np.array_equal(labels, made[f"{prefix} labels"])
        assert labels.dtype == np.int64


def enlarged(picture: np.ndarray, i: int, j: int) -> Fraction:
    """Pixel (i, j) of the 32x32 picture in exact fractions, from the definition of bilinear interpolation."""

    def places(k: int) -> list[tuple[int, Fraction]]:
        at = (k + Fraction(1, 2)) * Fraction(28, 32) - Fraction(1, 2)
        low = at.numerator // at.denominator
        return [(low, 1 - (at - low)), (low + 1, at - low)]

    inside = [[(min(max(p, 0), 27), weight) for p, weight in places(k)] for k in (i, j)]
    return sum(a * b * int(picture[p, q]) for p, a in inside[0] for q, b in inside[1]) / Fraction(255)


def test_enlarged_to_32_by_exact_bilinear_interpolation_then_cut_at_one_half() -> None:
    rng = np.random.default_rng(1)
    smooth = np.clip(np.cumsum(rng.integers(-60, 61, size=(3, 28, 28)), -1) + 128, 0, 255).astype(np.uint8)
    found = binary(smooth, "resized32")
    assert found.shape == (3, 1, 32, 32)
    assert found.dtype == np.uint8
    half = Fraction(1, 2)
    for i in range(32):
        for j in range(0, 32, 3):
            assert found[0, 0, i, j] == (enlarged(smooth[0], i, j) > half)
    nearest = smooth[:, None].repeat(2, 2).repeat(2, 3)[:, :, :32, :32] > 127  # control
    assert (nearest != found).mean() > 0.1


def test_exactly_one_half_is_black() -> None:
    """Where floating point may fall on either side. Output 5 lies at 4 + 5/16: 125 + 8 (5/16) = 127.5."""
    picture = np.zeros((1, 28, 28), np.uint8)
    picture[0, :, 4], picture[0, :, 5] = 125, 133
    assert enlarged(picture[0], 9, 5) == Fraction(1, 2)
    assert binary(picture, "resized32")[0, 0, 9, 5] == 0
    picture[0, 7:9, 5] = 134
    assert binary(picture, "resized32")[0, 0, 9, 5] == 1  # control: a little more is white


def test_fixed_threshold() -> None:
    picture = np.zeros((1, 28, 28), np.uint8)
    picture[0, 0, :3] = 127, 128, 255
    found = binary(picture, "threshold28")
    assert found.shape == (1, 1, 28, 28)
    assert found[0, 0, 0].tolist() == [0, 1, 1, *[0] * 25]


def test_splits(tmp_path: Path) -> None:
    made = write(tmp_path)
    data = Mnist(str(tmp_path))
    data.prepare_data()
    data.setup(None)
    assert (data.num_classes, data.num_labels, data.shape) == (2, 10, (1, 32, 32))
    assert [len(data.rows(split)) for split in data.splits] == [N, N_TEST, N_TEST]
    batch = data.rows("val")[[3, 1]]
    assert batch["label"].tolist() == made["t10k labels"][[3, 1]].tolist()
    assert batch["x"].dtype == torch.int64
    assert np.array_equal(batch["x"].numpy(), binary(made["t10k"][[3, 1]], "resized32"))
    held = Mnist(str(tmp_path), variant="threshold28", held_out=4)
    held.setup(None)
    assert held.shape == (1, 28, 28)
    assert [len(held.rows(split)) for split in held.splits] == [N - 4, 4, N_TEST]
    assert np.array_equal(held.rows("val")[[0]]["x"].numpy(), (made["train"][[N - 4], None] > 127))
    assert held.decode(held.rows("val")[[0]]["x"]).max() == 255
    with pytest.raises(ValueError, match=rf"data.held_out is {N}, but .* has {N} training pictures"):
        Mnist(str(tmp_path), held_out=N).setup("fit")


def test_independent_pixels(tmp_path: Path) -> None:
    """By the formula, pixel by pixel."""
    made = write(tmp_path)
    data = Mnist(str(tmp_path), variant="threshold28")
    train, val = (made[name].reshape(-1, 784) > 127 for name in ("train", "t10k"))
    p = (train.sum(0) + 1) / (N + 2)
    expected = -np.where(val, np.log2(p), np.log2(1 - p)).mean()
    found = data.references()
    assert found["independent pixels"] == pytest.approx(expected, rel=1e-12)
    q = np.clip(train.mean(0), 1e-300, 1 - 1e-16)
    inside = -(q * np.log2(q) + (1 - q) * np.log2(1 - q)).mean()
    assert found["independent pixels, in sample"] == pytest.approx(inside, rel=1e-9)


def damaged(folder: Path, name: str, change: object) -> None:
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (IMAGES, lambda raw: raw[:-1], "8623 bytes behind the header, which says 8624"),
        (IMAGES, lambda raw: raw + b"x", "8625 bytes behind the header"),
        (IMAGES, lambda raw: raw[:7], "does not begin like an idx file of MNIST's images"),
        (IMAGES, lambda raw: b"", "does not begin like"),
        (IMAGES, lambda raw: b"\0\0\x08\1" + raw[4:], "does not begin like"),
        (IMAGES, lambda raw: raw[:8] + struct.pack(">II", 32, 32) + raw[16:], "pictures of 32x32, not 28x28"),
        (LABELS, lambda raw: raw[:-1] + b"\x0a", "label 10 of picture 10 is outside 0..9"),
        (LABELS, lambda raw: raw[:7] + b"\x0a" + raw[8:-1], "10 labels for 11 pictures"),
        (LABELS, lambda raw: raw[:-2], "9 bytes behind the header, which says 11"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, change: object, message: str) -> None:
    write(tmp_path, packed=False)
    read_mnist(tmp_path, "train")  # control: whole before
    damaged(tmp_path, name, change)
    with pytest.raises(ValueError, match=rf"{name}: {message}.*get the four original files") as caught:
        read_mnist(tmp_path, "train")
    assert "\n" not in str(caught.value)


def test_a_damaged_gzip_file_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    for change in (lambda raw: raw[:-9], lambda raw: raw[:50] + bytes(20) + raw[70:], lambda raw: b"no"):
        write(tmp_path)
        damaged(tmp_path, f"{IMAGES}.gz", change)
        with pytest.raises(ValueError, match=rf"{IMAGES}\.gz: not a whole gzip file"):
            read_mnist(tmp_path, "train")


def test_missing_files_and_wrong_options(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="has neither t10k-labels-idx1-ubyte nor t10k-labels-idx1-ubyte"):
        Mnist(str(tmp_path)).prepare_data()
    with pytest.raises(ValueError, match=r"data.variant is 'grey'; it must be resized32 or threshold28"):
        Mnist(variant="grey")
    with pytest.raises(ValueError, match=r"data.held_out is -1"):
        Mnist(held_out=-1)


def test_the_real_excerpt(real_data: Path) -> None:
    images, labels = read_mnist(real_data / "mnist", "test")
    assert (len(images), labels[:5].tolist()) == (10_000, [7, 2, 1, 0, 4])
    for variant, share in (("resized32", 0.133), ("threshold28", 0.133)):
        x = binary(images, variant)
        assert x.mean() == pytest.approx(share, abs=0.01)
    seven = binary(images[:1], "threshold28")[0, 0]
    assert seven[8, 8:20].all()  # the bar of the first picture's seven
    assert not seven[15, :12].any()  # below it


def as_pictures(folder: Path, made: dict[str, np.ndarray], names: tuple[str, str], through_all: bool) -> None:
    """A folder for each class; files are counted through the whole set, or within each class."""
    for name, split in zip(names, ("train", "t10k"), strict=True):
        seen = dict.fromkeys(range(10), 0)
        for i, (picture, label) in enumerate(zip(made[split], made[f"{split} labels"].tolist(), strict=True)):
            place = folder / name / str(label)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(place / f"{i if through_all else seen[label]}.png")
            seen[label] += 1


def test_layouts_of_other_tools(tmp_path: Path) -> None:
    """torchvision, Kaggle, keras and exports of pictures: the same pictures with the same labels."""
    (tmp_path / "torchvision" / "MNIST").mkdir(parents=True)
    made = write(tmp_path / "torchvision" / "MNIST" / "raw")
    write(tmp_path / "kaggle", packed=False)
    for file in list((tmp_path / "kaggle").iterdir()):
        file.rename(tmp_path / "held")
        file.mkdir()
        (tmp_path / "held").rename(file / file.name)
    (tmp_path / "keras").mkdir()
    arrays = {"x_train": made["train"], "y_train": made["train labels"]}
    arrays |= {"x_test": made["t10k"], "y_test": made["t10k labels"]}
    np.savez(tmp_path / "keras" / "mnist.npz", **arrays)
    as_pictures(tmp_path / "png", made, ("training", "testing"), through_all=True)
    places = ["torchvision", "torchvision/MNIST", "torchvision/MNIST/raw", "kaggle", "keras", "keras/mnist.npz", "png"]
    for place in places:
        Mnist(str(tmp_path / place)).prepare_data()
        for split, name in (("train", "train"), ("test", "t10k")):
            images, labels = read_mnist(tmp_path / place, split)
            assert np.array_equal(images, made[name]), place
            assert np.array_equal(labels, made[f"{name} labels"]), place


def test_pictures_counted_within_their_classes(tmp_path: Path) -> None:
    """In another order, in which the last pictures are of several classes all the same; what is wrong is named."""
    made = write(tmp_path / "idx")
    as_pictures(tmp_path / "png", made, ("train", "test"), through_all=False)
    images, labels = read_mnist(tmp_path / "png", "train")
    pairs = {(image.tobytes(), label) for image, label in zip(images, labels.tolist(), strict=True)}
    expected = zip(made["train"], made["train labels"].tolist(), strict=True)
    assert pairs == {(image.tobytes(), label) for image, label in expected}
    assert len(set(labels[-3:].tolist())) > 1
    (tmp_path / "png" / "train" / "ten").mkdir()
    Image.fromarray(made["train"][0]).save(tmp_path / "png" / "train" / "ten" / "0.png")
    with pytest.raises(ValueError, match=r"train/ten/0.png: in no folder of a class \(0, 1, "):
        read_mnist(tmp_path / "png", "train")
