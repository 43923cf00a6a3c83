"""CIFAR-10 in every form in which it is handed out: the same pixels, labels and splits; damage and traps refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ggm_lightning.data.cifar10 import RECORD, Cifar10, _records, read_cifar10
from ggm_lightning.data.cifar10_pickle import read_pickle
from ggm_lightning.data.pixels import Mirrored
from ggm_lightning.data.rows import Rows

N, N_TEST = 7, 5  # per batch
NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


@pytest.fixture(scope="module")
def batches() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    sizes = {name: N_TEST if name == "test_batch" else N for name in NAMES}
    return {
        name: (rng.integers(256, size=(n, 3, 32, 32)).astype(np.uint8), rng.integers(10, size=n))
        for name, n in sizes.items()
    }


def _expected(batches: dict, split: str) -> tuple[np.ndarray, np.ndarray]:
    mine = [batches[name] for name in NAMES if name.startswith("test") == (split == "test")]
    return np.concatenate([x for x, _ in mine]), np.concatenate([y for _, y in mine])


def _binary(folder: Path, batches: dict) -> Path:
    folder.mkdir(parents=True)
    for name, (x, label) in batches.items():
        records = np.concatenate([label[:, None].astype(np.uint8), x.reshape(len(x), -1)], 1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return folder


def _text(value: str) -> bytes:
    return b"U" + bytes([len(value)]) + value.encode()  # SHORT_BINSTRING, what Python 2 wrote


def _python2(x: np.ndarray, label: np.ndarray) -> bytes:
    """The opcodes of the original files, which no Python 3 writes: protocol 2 with byte strings."""
    raw = x.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + _text("b") + b"\x87R(K\x01K"
        + bytes([len(x)]) + b"M" + struct.pack("<H", 3072) + b"\x86cnumpy\ndtype\n" + _text("u1")
        + b"K\x00K\x01\x87R(K\x03"
        + _text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )  # fmt: skip
    labels = b"](" + b"".join(b"K" + bytes([i]) for i in label.tolist()) + b"e"
    return b"\x80\x02}(" + _text("labels") + labels + _text("data") + array + b"u."


def _pickled(folder: Path, batches: dict) -> Path:
    folder.mkdir(parents=True)
    for name, (x, label) in batches.items():
        (folder / name).write_bytes(_python2(x, label))
    return folder


def _archive(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(folder.iterdir(), reverse=True):  # the order in the archive does not matter
            archive.add(file, f"{folder.name}/{file.name}")
    return path


def _parquet(folder: Path, batches: dict) -> Path:
    import datasets
    from PIL import Image

    folder.mkdir()
    for split in ("train", "test"):
        x, label = _expected(batches, split)
        images = [Image.fromarray(one.transpose(1, 2, 0)) for one in x]
        features = datasets.Features(
            {"img": datasets.Image(), "label": datasets.ClassLabel(names=[str(i) for i in range(10)])}
        )
        made = datasets.Dataset.from_dict({"img": images, "label": label.tolist()}, features=features)
        made.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def places(batches: dict, tmp_path_factory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("cifar")
    binary = _binary(top / "a" / "cifar-10-batches-bin", batches)
    pickled = _pickled(top / "b" / "cifar-10-batches-py", batches)
    return {
        "bin": binary,
        "bin, from above": binary.parent,
        "bin.tar.gz": _archive(binary, top / "cifar-10-binary.tar.gz"),
        "py": pickled,
        "py, from above": pickled.parent,
        "py.tar.gz": _archive(pickled, top / "cifar-10-python.tar.gz"),
        "parquet": _parquet(top / "hub", batches),
        "parquet glob": top / "hub" / "*.parquet",
    }


FORMS = ["bin", "bin, from above", "bin.tar.gz", "py", "py, from above", "py.tar.gz", "parquet", "parquet glob"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pictures(batches: dict, places: dict[str, Path], form: str) -> None:
    for split in ("train", "test"):
        x, label = read_cifar10(str(places[form]), split)
        assert (x == _expected(batches, split)[0]).all()
        assert (label == _expected(batches, split)[1]).all()
        assert (x.dtype, label.dtype) == (np.uint8, np.int64)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_written_by_python_3(batches: dict, tmp_path: Path, protocol: int) -> None:
    x, label = batches["test_batch"]
    for data in (x.reshape(-1, 3072), np.asfortranarray(x.reshape(-1, 3072))):
        batch = {b"data": data, b"labels": label.tolist(), b"filenames": [b"a.png"]}
        (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol))
        found = read_pickle(tmp_path / "test_batch")
        assert (found[0] == x).all()
        assert (found[1] == label).all()


def test_a_pixel_of_a_record() -> None:
    """Byte 1 + 1024 c + 32 row + column of a record is channel c: red of the first row comes right after the label."""
    raw = np.zeros(RECORD, dtype=np.uint8)
    raw[0], raw[1 + 5], raw[1 + 1024 + 32 * 3 + 2], raw[-1] = 9, 11, 22, 33
    x, label = _records(raw.tobytes(), Path("x"))
    assert (x[0, 0, 0, 5], x[0, 1, 3, 2], x[0, 2, 31, 31], label[0]) == (11, 22, 33, 9)
    assert np.count_nonzero(x) == 3


def test_splits(batches: dict, places: dict[str, Path]) -> None:
    train, test = _expected(batches, "train"), _expected(batches, "test")
    data = Cifar10(str(places["bin"]))
    data.prepare_data()
    data.setup(None)
    assert (data.num_classes, data.num_labels, data.shape) == (256, 10, (3, 32, 32))
    assert [len(data.rows(split)) for split in ("train", "val", "test")] == [5 * N, N_TEST, N_TEST]
    batch = data.rows("val")[np.arange(N_TEST)]
    assert (batch["x"].numpy() == test[0]).all()
    assert batch["label"].tolist() == test[1].tolist()
    assert batch["x"].dtype == batch["label"].dtype == torch.int64

    held = Cifar10(str(places["bin"]), held_out=4)
    held.setup(None)
    assert [len(held.rows(split)) for split in ("train", "val", "test")] == [5 * N - 4, 4, N_TEST]
    assert (held.rows("val")[np.arange(4)]["x"].numpy() == train[0][-4:]).all()
    assert (held.rows("train")[[5 * N - 5]]["x"].numpy() == train[0][-5]).all()
    assert (held.rows("test")[[1]]["x"].numpy() == test[0][1]).all()
    with pytest.raises(ValueError, match=r"data.held_out is 35, but .* has 35 training images"):
        Cifar10(str(places["bin"]), held_out=5 * N).setup("fit")
    with pytest.raises(ValueError, match=r"data.held_out is -1"):
        Cifar10(held_out=-1)


def test_mirrored_rows(batches: dict, places: dict[str, Path]) -> None:
    x, label = _expected(batches, "train")
    data = Cifar10(str(places["bin"]), mirror=True)
    data.setup("fit")
    rows = data.rows("train")
    assert (len(rows), len(data.rows("val"))) == (10 * N, N_TEST)  # validation is not mirrored
    index = np.array([3, 5 * N + 3, 10 * N - 1, 0])
    batch = rows[index]
    assert (batch["x"][0].numpy() == x[3]).all()
    assert (batch["x"][1].numpy() == x[3][:, :, ::-1]).all()
    assert (batch["x"][2].numpy() == x[-1][:, :, ::-1]).all()
    assert batch["label"].tolist() == label[[3, 3, 5 * N - 1, 0]].tolist()
    assert (rows[5 * N]["x"].numpy() == x[0][:, :, ::-1]).all()
    assert (data._images("train")[0] == x).all()  # the stored pictures are as they were
    assert (x[3] != x[3][:, :, ::-1]).any()  # control: mirroring changes these pictures


def test_an_epoch_of_mirrored_rows_has_each_picture_in_both_orientations() -> None:
    x = np.arange(6).reshape(3, 1, 1, 2).astype(np.uint8)
    rows = Mirrored(Rows(x, name="x"))
    seen = sorted(tuple(one.flatten().tolist()) for one in rows[np.arange(6)]["x"])
    assert seen == [(0, 1), (1, 0), (2, 3), (3, 2), (4, 5), (5, 4)]


def test_two_workers_and_a_resumed_run_see_the_same_orientations(places: dict[str, Path]) -> None:
    def batches(workers: int, step: int = 0, seed: int = 0) -> list[torch.Tensor]:
        data = Cifar10(str(places["bin"]), mirror=True, global_batch_size=8, num_workers=workers, seed=seed)
        data._global_step = lambda: step  # type: ignore[method-assign]
        return [batch["x"] for batch in data.train_dataloader()]

    alone = batches(0)
    assert len(alone) == 9
    for other, first in ((batches(2), 0), (batches(0, step=4), 4)):
        assert len(other) == 9 - first
        assert all((a == b).all() for a, b in zip(alone[first:], other, strict=True))
    assert not (batches(0, seed=1)[0] == alone[0]).all()  # control


def test_missing_and_damaged_files(batches: dict, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data.path: '.*/nowhere' has neither CIFAR-10 batches nor parquet"):
        Cifar10(str(tmp_path / "nowhere")).prepare_data()
    folder = _binary(tmp_path / "bin", batches)
    archive = _archive(folder, tmp_path / "all.tar.gz")
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(archive.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"cut.tar.gz: not a whole tar archive .*get https://"):
        read_cifar10(str(cut), "train")
    raw = bytearray(archive.read_bytes())
    raw[50_000:50_100] = bytes(100)
    cut.write_bytes(raw)
    with pytest.raises(ValueError, match=r"cut.tar.gz: not a whole tar archive .*get https://"):
        read_cifar10(str(cut), "train")
    with open(folder / "data_batch_3.bin", "ab") as handle:
        handle.truncate(N * RECORD - 1)
    size = N * RECORD - 1
    with pytest.raises(ValueError, match=rf"data_batch_3.bin: {size} bytes are not a whole number of records of 3073"):
        read_cifar10(str(folder), "train")
    read_cifar10(str(folder), "test")  # control: this split is whole
    (folder / "data_batch_4.bin").unlink()
    (folder / "data_batch_3.bin").write_bytes((folder / "data_batch_2.bin").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"has no file data_batch_4.bin; get https://"):
        Cifar10(str(folder)).prepare_data()
    with pytest.raises(FileNotFoundError, match=r"has no file data_batch_4 or data_batch_4.bin"):
        read_cifar10(str(_archive(folder, tmp_path / "less.tar.gz")), "train")


def test_labels_out_of_range(batches: dict, tmp_path: Path) -> None:
    x, label = batches["data_batch_2"]
    wrong = {**batches, "data_batch_2": (x, np.where(np.arange(N) == 4, 10, label))}
    with pytest.raises(ValueError, match=rf"label 10 at image {N + 4} is outside 0..9"):
        read_cifar10(str(_binary(tmp_path / "bin", wrong)), "train")


class _Runs:
    """What a malicious pickle holds: a call."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    witness = tmp_path / "ran"
    bad = {"data": _Runs(os.mkdir, str(witness)), "labels": [1]}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(bad, protocol))
    with pytest.raises(
        ValueError, match=r"data_batch_1: not a batch .*asks for posix.mkdir, which was not run"
    ) as error:
        read_pickle(tmp_path / "data_batch_1")
    assert "\n" not in str(error.value)
    assert not witness.exists()
    pickle.loads((tmp_path / "data_batch_1").read_bytes())  # control: the standard reader runs it
    assert witness.exists()


def test_pickles_that_only_look_harmless(tmp_path: Path) -> None:
    """Allowed names with other arguments: an array of pointers, code through numpy, another codec."""
    array = np.zeros((1, 3072), dtype=np.uint8)
    cases = {
        "objects": {"data": np.array([[{}]], dtype=object), "labels": [1]},
        "floats": {"data": array.astype(np.float64), "labels": [1]},
        "numpy": {"data": _Runs(np.load, "x"), "labels": [1]},
        "too few": {"data": array[:, :-1], "labels": [1]},
        "labels": {"data": array, "labels": [1, 2]},
        "words": {"data": array, "labels": ["1"]},
        "list": [array],
        "nested": {"data": array, "labels": [1], "x": _Runs(eval, "1")},
    }
    for name, batch in cases.items():
        (tmp_path / name).write_bytes(pickle.dumps(batch, 2))
        with pytest.raises(ValueError, match=rf"{name}: not a batch of CIFAR-10's python version"):
            read_pickle(tmp_path / name)
    codec = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R."
    with pytest.raises(ValueError, match="bytes encoded as 'rot13'"):
        read_pickle(tmp_path / "codec", io.BytesIO(codec))
    longer = _python2(array, np.array([1])).replace(b"K\x01M\x00\x0c", b"K\x02M\x00\x0c")  # shape (2, 3072)
    with pytest.raises(ValueError, match=r"3072 bytes for an array of shape \(2, 3072\)"):
        read_pickle(tmp_path / "shape", io.BytesIO(longer))


def test_every_cut_and_many_altered_pickles_end_in_one_line(batches: dict, tmp_path: Path) -> None:
    raw = _python2(*(part[:2] for part in batches["test_batch"]))
    rng = np.random.default_rng(0)
    for cut in [*range(0, 120), *range(len(raw) - 30, len(raw))]:
        with pytest.raises(ValueError, match="not a batch"):
            read_pickle(tmp_path / "p", io.BytesIO(raw[:cut]))
    errors = []
    for _ in range(2000):  # in the opcodes, not the pixels; some are still batches
        altered = bytearray(raw)
        altered[rng.integers(160)] = rng.integers(256)
        try:
            read_pickle(tmp_path / "p", io.BytesIO(bytes(altered)))
        except ValueError as error:
            errors.append(str(error))
    assert len(errors) > 200
    assert not any("\n" in error for error in errors)


def test_a_stated_length_is_not_allocated() -> None:
    """A terabyte, said by a file of 40 bytes."""
    raw = b"\x80\x05}(\x8c\x04data\x96" + struct.pack("<Q", 2**40) + b"\0" * 20 + b"u."
    with pytest.raises(ValueError, match="not a batch"):
        read_pickle(Path("p"), io.BytesIO(raw))


def test_parquet_of_something_else(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "train-0.parquet")
    with pytest.raises(ValueError, match=r"columns text; CIFAR-10 has img \(or image\) and label"):
        read_cifar10(str(tmp_path), "train")
    with pytest.raises(FileNotFoundError, match=r"has no test\*.parquet among 1 file"):
        read_cifar10(str(tmp_path), "test")
    for image in (b"", b"\x89PNG", None):
        records = {"img": [{"bytes": image, "path": "a"}], "label": [1]}
        datasets.Dataset.from_dict(records).to_parquet(tmp_path / "train-0.parquet")
        with pytest.raises(ValueError, match=r"image 0: not a readable PNG or JPEG"):
            read_cifar10(str(tmp_path), "train")
    (tmp_path / "test-0.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match=r"test-0.parquet: ") as error:
        read_cifar10(str(tmp_path), "test")
    assert "\n" not in str(error.value)


def test_the_hub_is_asked_by_name(batches: dict, places: dict[str, Path], monkeypatch) -> None:
    import datasets

    def fake(name: str, split: str):
        if name != "uoft-cs/cifar10":
            raise ConnectionError("no\nnetwork")
        return datasets.load_dataset.original("parquet", data_files=str(places["parquet"] / f"{split}*"), split="train")

    fake.original = datasets.load_dataset
    monkeypatch.setenv("HF_DATASETS_CACHE", str(places["parquet"] / "cache"))
    monkeypatch.setattr(datasets, "load_dataset", fake)
    Cifar10("hub:uoft-cs/cifar10").prepare_data()
    x, label = read_cifar10("hub:uoft-cs/cifar10", "test")
    assert (x == _expected(batches, "test")[0]).all()
    assert (label == _expected(batches, "test")[1]).all()
    with pytest.raises(ValueError, match=r"data.path: hub:other: no network; check the name and the network"):
        Cifar10("hub:other").prepare_data()


def test_the_real_excerpt(real_data: Path) -> None:
    folder = real_data / "cifar10"
    data = Cifar10(str(folder))
    data.prepare_data()
    data.setup(None)
    assert (len(data.rows("train")), len(data.rows("test"))) == (3000, 500)
    original = json.loads((folder / "original_indices.json").read_text())
    assert original["test_batch.bin"][:3] == [0, 1, 2]
    cat, ship = data.rows("test")[[0, 1]]["x"].unbind()
    # The first test image is the cat before brown boards, the second a ship under a white sky.
    assert data.rows("test")[[0, 1, 2, 3]]["label"].tolist() == [3, 8, 8, 0]
    assert cat[:, 0, 0].tolist() == [158, 112, 49]
    assert ship[:, 0, 0].tolist() == [235, 235, 235]
    pictures = data.decode(torch.stack([cat, ship]))
    assert (pictures.dtype, pictures.shape) == (np.uint8, (2, 32, 32, 3))
    assert pictures[0, 0, 0].tolist() == [158, 112, 49]
    counts = torch.bincount(data.rows("train")[np.arange(3000)]["label"], minlength=10)
    assert counts.min() > 200
