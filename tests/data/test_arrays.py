"""Arrays on disk: read in place, shape known from the header, anything but whole numbers in range refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggm_lightning.data.arrays import ArrayData, array_header

V, SHAPE = 7, (3, 5)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).integers(V, size=(41, *SHAPE)).astype(np.uint8)


def _save(path: Path, array: np.ndarray) -> str:
    np.save(path, array)
    return str(path)


def test_rows_held_out_at_the_end(tmp_path: Path, x: np.ndarray) -> None:
    labels = _save(tmp_path / "y.npy", np.arange(41))
    data = ArrayData(_save(tmp_path / "x.npy", x), V, val_fraction=0.1, labels=labels, global_batch_size=8)
    assert (data.num_classes, data.shape) == (V, SHAPE)
    data.setup("fit")
    assert (len(data.rows("train")), len(data.rows("val"))) == (37, 4)
    batch = next(iter(data.train_dataloader()))
    assert (batch["x"].numpy() == x[batch["label"]]).all()
    val = data.rows("val")[[0, 3]]
    assert val["label"].tolist() == [37, 40]
    assert (val["x"].numpy() == x[[37, 40]]).all()


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, np.uint64, np.dtype(">i4")])
def test_any_integer_type_and_order(tmp_path: Path, x: np.ndarray, dtype: np.dtype) -> None:
    data = ArrayData(_save(tmp_path / "x.npy", np.asfortranarray(x.astype(dtype))), V)
    data.setup("fit")
    assert (data.rows("train")[[5, 2]]["x"].numpy() == x[[5, 2]]).all()


def test_the_shape_comes_from_the_header_alone(tmp_path: Path, x: np.ndarray) -> None:
    path = Path(_save(tmp_path / "x.npy", x))
    np.savez_compressed(tmp_path / "x.npz", x=x)
    assert array_header(path) == array_header(tmp_path / "x.npz") == (x.shape, x.dtype)
    path.write_bytes(path.read_bytes()[:128])
    assert ArrayData(str(path), V).shape == SHAPE


def test_npz_with_labels_and_its_own_validation(tmp_path: Path, x: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", x=x[:30], label=np.arange(30))
    np.savez(tmp_path / "b.npz", x=x[30:])
    data = ArrayData(str(tmp_path / "a.npz"), V, val=str(tmp_path / "b.npz"))
    data.setup("fit")
    assert len(data.rows("train")) == 30
    assert data.rows("train")[[4]]["label"].tolist() == [4]
    assert "label" not in data.rows("val")[[4]]
    assert (data.rows("val")[[4]]["x"].numpy() == x[34]).all()


@pytest.mark.parametrize("wrong", [-1, V])
def test_ids_outside_are_named_with_file_and_place(tmp_path: Path, x: np.ndarray, wrong: int) -> None:
    bad = x.astype(np.int16)
    bad[40, 2, 4] = wrong
    data = ArrayData(_save(tmp_path / "x.npy", bad), V)
    message = rf"x.npy \(val split\): id {wrong} at position \[40, 2, 4\] is outside 0..6"
    with pytest.raises(ValueError, match=message):
        data.setup("fit")
    data.rows("train")  # control: that part is whole


def test_mistakes_are_named(tmp_path: Path, x: np.ndarray) -> None:
    good = _save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match=r"f\.npy: x of dtype float64, not integers"):
        ArrayData(_save(tmp_path / "f.npy", x.astype(float)), V)
    with pytest.raises(ValueError, match=r"shape \(41,\); it must be \[rows, sites"):
        ArrayData(_save(tmp_path / "one.npy", x[:, 0, 0]), V)
    with pytest.raises(FileNotFoundError, match=r"data.train: no file 'none.npy'"):
        ArrayData("none.npy", V)
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "text.npz").write_text("hello")
    for name in ("text.npy", "text.npz"):
        with pytest.raises(ValueError, match=rf"{name}: cannot be read as .npy or .npz \(.*\); write it again"):
            ArrayData(str(tmp_path / name), V)
    np.savez(tmp_path / "y.npz", y=x)
    with pytest.raises(ValueError, match="no array named x"):
        ArrayData(str(tmp_path / "y.npz"), V)
    with pytest.raises(ValueError, match=r"examples of shape \(3, 4\)"):
        ArrayData(good, V, val=_save(tmp_path / "v.npy", x[:, :, :4]))
    with pytest.raises(ValueError, match="num_classes is 1"):
        ArrayData(good, 1)
    with pytest.raises(ValueError, match="val_fraction is 0"):
        ArrayData(good, V, val_fraction=0.0)
    with pytest.raises(ValueError, match=r"val_labels is given without data\.val"):
        ArrayData(good, V, val_labels=good)
    for labels, message in ((np.arange(40), "41 rows but 40 labels"), (np.ones(41), "label of dtype float64")):
        with pytest.raises(ValueError, match=message):
            ArrayData(good, V, labels=_save(tmp_path / "l.npy", labels)).setup("fit")
    for rows in (0, 1):
        with pytest.raises(ValueError, match="split has no rows"):
            ArrayData(_save(tmp_path / "e.npy", x[:rows]), V).setup("fit")


@pytest.mark.parametrize("name", ["label", "labels", "y", "targets", "Target"])
def test_labels_by_any_of_their_usual_names(tmp_path: Path, x: np.ndarray, name: str) -> None:
    np.savez(tmp_path / "a.npz", x=x, **{name: np.arange(41)})
    data = ArrayData(str(tmp_path / "a.npz"), V)
    assert data.num_labels == 41
    data.setup("fit")
    assert data.rows("train")[[4, 2]]["label"].tolist() == [4, 2]
    alone = ArrayData(_save(tmp_path / "x.npy", x), V, labels=str(tmp_path / "a.npz"))
    assert alone.num_labels == 41


def test_arrays_that_are_not_read_are_named(tmp_path: Path, x: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    np.savez(tmp_path / "a.npz", x=x, klass=np.arange(41))
    with caplog.at_level("INFO"):
        data = ArrayData(str(tmp_path / "a.npz"), V)
        data.setup("fit")
    assert "a.npz: of it x and labels (label, labels, y, target, targets) are read, not klass" in caplog.text
    assert data.num_labels is None
    np.savez(tmp_path / "b.npz", x=x, y=np.arange(41), label=np.arange(41))
    with pytest.raises(ValueError, match=r"b.npz: y and label may both be the labels; keep one of them"):
        ArrayData(str(tmp_path / "b.npz"), V).setup("fit")
    with pytest.raises(ValueError, match=r"a.npz: has x, klass, none of label, labels"):
        ArrayData(str(tmp_path / "a.npz"), V, labels=str(tmp_path / "a.npz")).setup("fit")
    np.savez(tmp_path / "c.npz", x=x, labels=np.full(41, 2.7))
    with pytest.raises(ValueError, match=r"c.npz: labels of dtype float64, not integers"):
        ArrayData(str(tmp_path / "c.npz"), V).setup("fit")
