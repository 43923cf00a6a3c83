"""`lightning infill --input x.npz`: whole numbers of the model's classes, or a line that names the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggm_lightning.cli import infill_input
from ggm_lightning.models.md4 import MD4
from tests.cli.test_images import Labelled

V, SHAPE = 7, (5,)
X = np.array([[0, 1, 2, 3, 6]])
MASK = np.array([[True, False, False, False, False]])


def read(path: Path, x: np.ndarray, mask: np.ndarray = MASK) -> infill_input.Given:
    np.savez(path, x=x, mask=mask)
    return infill_input.read(MD4(Labelled(0), V, SHAPE), None, str(path), None, "_")


def test_whole_numbers_in_range(tmp_path: Path) -> None:
    given = read(tmp_path / "a.npz", X)
    assert given.values.tolist() == X.tolist()
    assert given.known.tolist() == (~MASK).tolist()
    assert read(tmp_path / "a.npz", np.where(MASK, -1, X)).known.sum() == 4  # at an unknown site anything may stand


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X + 0.7, "x of dtype float64, not integers"),
        (X * 1.0, "x of dtype float64, not integers"),
        (np.where(X == 2, np.nan, X), "x of dtype float64, not integers"),
        (X > 1, "x of dtype bool, not integers"),
        (np.where(X == 2, -1, X), r"known values of x lie in -1..6, not 0..6; fix x"),
        (np.where(X == 2, V, X).astype(np.uint64), r"known values of x lie in 1..7, not 0..6; fix x"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, x: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^--input .*a.npz: {message}") as caught:
        read(tmp_path / "a.npz", x)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="mask is float64; it must be bool"):
        read(tmp_path / "a.npz", X, MASK * 0.5)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\xff")
    with pytest.raises(ValueError, match=r"^--input .*a.npy: is no text in UTF-8; give either --text"):
        infill_input.read(MD4(Labelled(0), V, SHAPE), None, str(tmp_path / "a.npy"), None, "_")
