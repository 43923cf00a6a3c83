"""Grids: text like any other, and pictures in which each cell shows its own character."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ggm_lightning.codecs.grids import CELL, MARGIN, Grids
from ggm_lightning.codecs.text import Characters
from ggm_lightning.rundir.codecs import codec_from_dict

GRIDS = Grids("1234", side=4, height=2, width=2)
X = torch.tensor([[0, 1, 2, 3, 2, 3, 0, 1, 1, 0, 3, 2, 3, 2, 1, 4]])  # the last cell is masked


def cell(picture: np.ndarray, number: int) -> np.ndarray:
    top, left = (MARGIN + i * CELL + 1 for i in divmod(number, 4))
    return picture[top : top + CELL - 2, left : left + CELL - 2]


def test_each_cell_shows_its_character_and_the_masked_one_none() -> None:
    (picture,) = GRIDS.pictures(X)
    first = {id_: cell(picture, X[0].tolist().index(id_)) for id_ in range(4)}
    for number, id_ in enumerate(X[0].tolist()[:-1]):
        assert np.array_equal(cell(picture, number), first[id_])
    assert len({first[id_].tobytes() for id_ in range(4)}) == 4
    assert (cell(picture, 15) == 255).all()


def test_given_cells_are_set_apart() -> None:
    """Control: without `known` no cell has a colour."""
    known = torch.zeros_like(X, dtype=torch.bool)
    known[0, 3] = True
    (picture,) = GRIDS.pictures(X, known)
    (plain,) = GRIDS.pictures(X)
    assert cell(picture, 3).max() < 255  # grey paper
    assert np.ptp(cell(picture, 3).astype(int), axis=-1).max() < 20  # and black ink
    assert np.ptp(cell(picture, 4).astype(int), axis=-1).max() > 100
    assert np.ptp(plain.astype(int), axis=-1).max() < 20


def test_boxes_have_thick_lines() -> None:
    (picture,) = Grids("1234", 4, 2, 2).pictures(np.full((1, 16), 4))
    row = picture[MARGIN + CELL // 2, :, 0].astype(int)
    at = [row[MARGIN + i * CELL] for i in range(5)]
    assert max(at[0], at[2], at[4]) < min(at[1], at[3]) < 255


def test_texts_are_those_of_characters_and_a_checkpoint_has_it_again() -> None:
    """So a run that was trained with Characters goes on."""
    plain = Characters("1234", unknown=None)
    assert GRIDS.decode(X) == plain.decode(X)
    assert GRIDS.tokenizer_hash == plain.tokenizer_hash
    again = codec_from_dict(GRIDS.to_dict())
    assert np.array_equal(again.pictures(X), GRIDS.pictures(X))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grids("12", side=0), "side is 0"),
        (lambda: Grids("12", side=4, height=5), "height is 5; a box has 1 to 4"),
        (lambda: GRIDS.pictures(X[:, :7]), "7 ids per row; a grid of side 4 has 16"),
    ],
)
def test_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
