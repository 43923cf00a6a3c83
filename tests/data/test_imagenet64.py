"""ImageNet 64x64 in both published forms: read as distributed, unpacked once, damage named, memory bounded."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ggm_lightning.data.imagenet64 import ImageNet64

TRAIN, VAL = 11, 5


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {s: rng.integers(256, size=(n, 3, 64, 64)).astype(np.uint8) for s, n in (("train", TRAIN), ("val", VAL))}


def _npz(folder: Path, pictures: dict[str, np.ndarray], compressed: bool = False, batches: int = 10) -> Path:
    """As published: data [N, 12288], red, green and blue planes after each other; labels from 1; a mean."""
    folder.mkdir(parents=True, exist_ok=True)
    save = np.savez_compressed if compressed else np.savez
    for i, part in enumerate(np.array_split(np.arange(len(pictures["train"])), batches), 1):
        data = pictures["train"][part].reshape(len(part), -1)
        save(folder / f"train_data_batch_{i}.npz", data=data, labels=(part * 97) % 1000 + 1, mean=np.zeros(12288))
    val = pictures["val"].reshape(VAL, -1)
    save(folder / "val_data.npz", data=val, labels=[1, 1000, 3, 4, 5])
    return folder


def _png(x: np.ndarray, **how) -> bytes:
    held = io.BytesIO()
    Image.fromarray(x.transpose(1, 2, 0)).save(held, **{"format": "PNG", **how})
    return held.getvalue()


def _folders(top: Path, pictures: dict[str, np.ndarray]) -> Path:
    for split, name in (("train", "train_64x64"), ("val", "valid_64x64")):
        (top / name).mkdir(parents=True)
        for i in reversed(range(len(pictures[split]))):
            (top / name / f"{i:05d}.png").write_bytes(_png(pictures[split][i]))
        (top / name / "README").write_text("not a picture")
    return top


def _tars(top: Path, folders: Path) -> Path:
    top.mkdir()
    for name in ("train_64x64", "valid_64x64"):
        with tarfile.open(top / f"{name}.tar", "w") as archive:
            for file in sorted((folders / name).iterdir()):
                archive.add(file, f"{name}/{file.name}")
    return top


def _data(path: Path, variant: str, **options) -> ImageNet64:
    return ImageNet64(variant, str(path), folder=str(path.parent / f"flat-{path.name}"), **options)


def _assert_same(data: ImageNet64, pictures: dict[str, np.ndarray]) -> None:
    data.prepare_data()
    data.setup(None)
    for split, x in pictures.items():
        assert (data.rows(split)[np.arange(len(x))]["x"].numpy() == x).all()


def test_constructor() -> None:
    with pytest.raises(TypeError, match="variant"):
        ImageNet64()  # the choice is the user's
    with pytest.raises(ValueError, match=r"data.variant is 'pixelrnn'; it must be oord2016 or chrabaszcz2017"):
        ImageNet64("pixelrnn")
    for wrong in (0, 11):
        with pytest.raises(ValueError, match=f"data.train_batches is {wrong}"):
            ImageNet64("chrabaszcz2017", train_batches=wrong)
    with pytest.raises(ValueError, match=r"data.train_batches is for data.variant: chrabaszcz2017"):
        ImageNet64("oord2016", train_batches=3)
    data = ImageNet64("chrabaszcz2017")
    assert (data.num_classes, data.shape, data.num_labels) == (256, (3, 64, 64), 1000)
    assert ImageNet64("oord2016").num_labels is None
    assert len({ImageNet64("oord2016", p).folder for p in "ab"} | {data.folder}) == 3


@pytest.mark.parametrize("compressed", [False, True])
def test_npz(tmp_path: Path, pictures: dict, compressed: bool) -> None:
    data = _data(_npz(tmp_path / "npz", pictures, compressed), "chrabaszcz2017", eval_batch_size=2)
    _assert_same(data, pictures)
    assert data.rows("train")[np.arange(TRAIN)]["label"].tolist() == [(i * 97) % 1000 for i in range(TRAIN)]
    assert data.rows("val")[np.arange(VAL)]["label"].tolist() == [0, 999, 2, 3, 4]
    batch = next(iter(data.val_dataloader()))
    assert batch["x"].dtype == batch["label"].dtype == torch.int64
    assert data.decode(batch["x"]).shape == (2, 64, 64, 3)
    fewer = ImageNet64("chrabaszcz2017", str(tmp_path / "npz"), train_batches=4, folder=str(tmp_path / "fewer"))
    fewer.prepare_data()
    assert len(fewer.rows("train")) == 5  # 2, 1, 1, 1


def test_folders_and_tars(tmp_path: Path, pictures: dict) -> None:
    folders = _folders(tmp_path / "folders", pictures)
    _assert_same(_data(folders, "oord2016"), pictures)
    data = _data(_tars(tmp_path / "tars", folders), "oord2016")
    _assert_same(data, pictures)
    assert "label" not in data.rows("val")[[0]]


def test_two_workers_give_the_batches_of_none(tmp_path: Path, pictures: dict) -> None:
    path = _npz(tmp_path / "npz", pictures)
    _data(path, "chrabaszcz2017").prepare_data()
    alone, both = (
        [b["x"] for b in _data(path, "chrabaszcz2017", global_batch_size=3, num_workers=w).train_dataloader()]
        for w in (0, 2)
    )
    assert len(alone) == 4
    assert all((a == b).all() for a, b in zip(alone, both, strict=True))


def test_grey_and_jpeg_pictures(tmp_path: Path, pictures: dict) -> None:
    folders = _folders(tmp_path / "folders", pictures)
    grey = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    Image.fromarray(grey).save(folders / "valid_64x64" / "00000.png")
    smooth = np.broadcast_to(np.arange(0, 256, 4, dtype=np.uint8), (3, 64, 64))
    (folders / "valid_64x64" / "00001.JPEG").write_bytes(_png(smooth, format="JPEG", quality=95))
    data = _data(folders, "oord2016")
    data.prepare_data()
    x = data.rows("val")[[0, 1]]["x"].numpy()
    assert (x[0] == grey).all()
    assert np.abs(x[1] - smooth.astype(int)).max() <= 4


def test_kept_until_the_source_or_the_options_change(tmp_path: Path, pictures: dict, capsys, caplog) -> None:
    path = _npz(tmp_path / "npz", pictures)

    def prepare(**options) -> int:
        data = _data(path, "chrabaszcz2017", **options)
        data.prepare_data()
        return (data.folder / "train-pixels.bin").stat().st_mtime_ns

    first = prepare()
    assert prepare() == first
    with pytest.raises(ValueError, match=r"holds data made with other options \(train_batches\), which are left"):
        prepare(train_batches=9)
    assert prepare() == first
    other = {**pictures, "train": pictures["train"].copy()}
    other["train"][-1, 2, 63, 63] ^= 1
    _npz(path, other)
    fourth = prepare()
    assert fourth != first
    _assert_same(_data(path, "chrabaszcz2017"), other)
    path.rename(tmp_path / "gone")
    assert prepare() == fourth
    with pytest.raises(FileNotFoundError, match=r"data.path: '.*/npz' has no file train_data_batch_1.npz"):
        ImageNet64("chrabaszcz2017", str(path), train_batches=3, folder=str(tmp_path / "other")).prepare_data()


def test_missing_files(tmp_path: Path, pictures: dict) -> None:
    path = _npz(tmp_path / "npz", pictures, batches=9)
    with pytest.raises(FileNotFoundError, match=r"data.path: '.*npz' has no file train_data_batch_10.npz; get it from"):
        _data(path, "chrabaszcz2017").prepare_data()
    with pytest.raises(FileNotFoundError, match=r"has neither train_64x64.tar nor a folder train_64x64; get it from"):
        _data(path, "oord2016").prepare_data()
    (path / "train_64x64").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train_64x64' has no .png or .jpg files"):
        _data(path, "oord2016").prepare_data()


def _refused(data: ImageNet64, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        data.prepare_data()
    assert "\n" not in str(error.value)
    assert not list(data.folder.glob("*.tmp"))
    assert not (data.folder / "header.json").exists()


def test_damaged_npz(tmp_path: Path, pictures: dict) -> None:
    for compressed in (False, True):
        path = _npz(tmp_path / f"npz{compressed}", pictures, compressed)
        data, file = _data(path, "chrabaszcz2017"), path / "val_data.npz"
        raw = file.read_bytes()
        for cut in (0, 1000, len(raw) // 2, len(raw) - 1):
            file.write_bytes(raw[:cut])
            _refused(data, r"val_data.npz: not a whole npz file \(.*\); the file is damaged: get it again")
        for place in (20_000, len(raw) // 2):
            file.write_bytes(raw[:place] + bytes([raw[place] ^ 85]) + raw[place + 1 :])
            _refused(data, r"val_data.npz: not a whole npz file \((Bad CRC-32|Error -3)")
        file.write_bytes(raw)
        data.prepare_data()  # control


def test_npz_of_something_else(tmp_path: Path, pictures: dict) -> None:
    path = _npz(tmp_path / "npz", pictures)
    right = {"data": pictures["val"].reshape(VAL, -1), "labels": np.arange(1, VAL + 1)}
    cases = [
        (r"has data.npy; the batches hold data and labels", {"data": right["data"]}),
        (r"data is float32 \[5, 12288\], not uint8 \[N, 12288\]", {**right, "data": right["data"].astype(np.float32)}),
        (r"data is uint8 \[5, 3072\], not .*; name the batches of 64x64", {**right, "data": right["data"][:, :3072]}),
        (r"labels is int64 \[4\], not 5 whole numbers", {**right, "labels": np.arange(1, VAL)}),
        (r"label 0 of picture 0; there must be 5 in 1..1000", {**right, "labels": np.arange(VAL)}),
        (r"label 1001 of picture 4", {**right, "labels": [1, 2, 3, 4, 1001]}),
        (r"labels is object", {**right, "labels": np.array([1, 2, 3, 4, None])}),
    ]
    for message, arrays in cases:
        np.savez(path / "val_data.npz", **arrays)
        _refused(_data(path, "chrabaszcz2017"), rf"val_data.npz: {message}")


def test_wrong_pictures_are_refused_by_name(tmp_path: Path, pictures: dict) -> None:
    small = np.zeros((3, 32, 32), dtype=np.uint8)
    cases = [
        (r"a 32x32 picture, not 64x64; give the pictures of the published archive", _png(small)),
        (r"a picture of mode RGBA, not 8-bit RGB or grey", _png(np.zeros((4, 64, 64), dtype=np.uint8))),
        (r"not a readable PNG or JPEG", _png(pictures["val"][3])[:-3000]),
        (r"not a readable PNG or JPEG", b"GIF89a"),
        (r"not a readable PNG or JPEG", b""),
    ]
    for number, (message, raw) in enumerate(cases):
        folders = _folders(tmp_path / f"folders{number}", pictures)
        (folders / "valid_64x64" / "00003.png").write_bytes(raw)
        _refused(_data(folders, "oord2016"), rf"valid_64x64/00003.png: {message}")
        tars = _tars(tmp_path / f"tars{number}", folders)
        _refused(_data(tars, "oord2016"), rf"valid_64x64.tar:valid_64x64/00003.png: {message}")


def test_truncated_tar(tmp_path: Path, pictures: dict) -> None:
    tars = _tars(tmp_path / "tars", _folders(tmp_path / "folders", pictures))
    file = tars / "valid_64x64.tar"
    raw = file.read_bytes()
    with tarfile.open(file) as archive:
        borders = [member.offset for member in archive][1:]
    for cut in (0, 100, 5000, borders[0] + 700, *borders):  # at a border tarfile itself sees no damage
        file.write_bytes(raw[:cut])
        _refused(_data(tars, "oord2016"), r"valid_64x64.tar: not a whole uncompressed tar, it lacks the blocks")
    file.write_bytes(b"x" * 20_000 + bytes(1024))
    _refused(_data(tars, "oord2016"), r"valid_64x64.tar: not a whole tar file")
    file.write_bytes(raw)
    _data(tars, "oord2016").prepare_data()  # control


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, pictures: dict, monkeypatch) -> None:
    import shutil

    data = _data(_npz(tmp_path / "npz", pictures), "chrabaszcz2017")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=16 * 12288 - 1))
    _refused(data, r"flat-npz: 0.0 GB are needed there, 0.0 GB are free; make room or set data.folder")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=16 * 12288))
    data.prepare_data()


def _stand_in(folder: Path) -> Path:
    """Ten files of 5,000 labelled pictures in the published layout; almost all zeros, so that they compress."""
    folder.mkdir()
    for name, rows in (*((f"train_data_batch_{i}", 5_000) for i in range(1, 11)), ("val_data", 100)):
        with zipfile.ZipFile(folder / f"{name}.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            block = np.zeros((rows, 12288), dtype=np.uint8)
            block[:, ::512] = np.arange(24)
            with archive.open("data.npy", "w") as member:
                np.lib.format.write_array(member, block)
            with archive.open("labels.npy", "w") as member:
                np.lib.format.write_array(member, np.arange(rows) % 1000 + 1)
    return folder


_MEASURE = """
import sys, threading, time
import numpy as np
from ggm_lightning.data.imagenet64 import ImageNet64

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

path, folder, files, everything = sys.argv[1:]
data = ImageNet64("chrabaszcz2017", path, train_batches=int(files), folder=folder, global_batch_size=64)
before, peak, running = anonymous(), 0, True

def watch():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
data.prepare_data()
data.setup("fit")
pictures = sum(len(batch["x"]) for batch in data.train_dataloader())
if everything == "yes":
    kept = data.rows("train")._pixels.array().copy()
running = False
watcher.join()
print(pictures, max(peak, anonymous()) - before, file=sys.stderr)
"""


def _anonymous_mib(path: Path, files: int, everything: str = "no") -> tuple[int, float]:
    """(pictures read, growth of the anonymous memory in MiB while preparing and reading every picture once)."""
    command = [sys.executable, "-c", _MEASURE, str(path), f"{path}-flat{files}", str(files), everything]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    pictures, kib = done.stderr.strip().splitlines()[-1].split()
    return int(pictures), int(kib) / 1024


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path) -> None:
    """50,000 pictures (614 MB unpacked) take what 5,000 take, within 16 MiB. Control: holding them all does not."""
    path = _stand_in(tmp_path / "npz")
    small, large = _anonymous_mib(path, 1), _anonymous_mib(path, 10)
    print(f"anonymous MiB: {small[1]:.1f} for {small[0]:,} pictures, {large[1]:.1f} for {large[0]:,}")
    assert (small[0], large[0]) == (5_056, 50_048)  # whole batches of 64
    assert large[1] < small[1] + 16
    assert large[1] < 256
    held = _anonymous_mib(path, 10, "yes")
    assert held[1] > large[1] + 160
