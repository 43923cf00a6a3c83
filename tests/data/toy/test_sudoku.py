"""Sudoku: valid grids of which none is in both parts, and puzzles with one solution."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from ggm_lightning.data.toy.sudoku import Sudoku


def small(**more: int) -> Sudoku:
    return Sudoku(**{"num_train": 40, "num_val": 13, **more})


@pytest.mark.parametrize(("height", "width"), [(2, 3), (3, 2), (2, 2)])
def test_grids_are_valid_and_different(height: int, width: int) -> None:
    """By their definition, cell by cell. Control: two cells exchanged, where the digits differ."""
    data = small(height=height, width=width)
    side = height * width
    rows = torch.cat(
        [data.load(split)[list(range(count))]["x"] for split, count in (("train", 40), ("val", 13))]
    ).long()
    assert len(rows.unique(dim=0)) == 53
    assert data.valid(rows).all()
    for grid in rows.reshape(-1, side, side)[:7].tolist():
        for i in range(side):
            assert sorted(grid[i]) == list(range(side))
            assert sorted(row[i] for row in grid) == list(range(side))
            top, left = i // height * height, i % height * width
            box = [grid[top + r][left + c] for r, c in itertools.product(range(height), range(width))]
            assert sorted(box) == list(range(side))
    wrong = rows.clone()
    wrong[:, :2] = rows[:, :2].flip(1)
    assert not data.valid(wrong).any()


def test_every_grid_of_4x4_is_found() -> None:
    """There are 288."""
    data = Sudoku(2, 2, num_train=13, num_val=7)
    drawn = data._drawn(20_000, np.random.default_rng(0))
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    assert len(counts) == 288
    assert counts.min() > 20
    with pytest.raises(ValueError, match=r"289 grids in all, but only \d+ different ones were found of side 4"):
        _ = Sudoku(2, 2, num_train=281, num_val=8).grids


def test_puzzles_have_one_solution_and_no_spare_clue() -> None:
    """By brute force over all grids of 4x4. Control: with a clue less there are more."""
    data = Sudoku(2, 2, num_train=7, num_val=43)
    every = torch.from_numpy(np.unique(data._drawn(20_000, np.random.default_rng(0)), axis=0).astype(np.int64))
    solution, given = data.puzzles(17, clues=(4, 6))
    assert solution.shape == given.shape == (17, 16)
    assert set(given.sum(1).tolist()) <= {4, 5, 6}

    def solutions(x: torch.Tensor, shown: torch.Tensor) -> int:
        return int((every[:, shown] == x[shown]).all(1).sum())

    for x, shown in zip(solution, given, strict=True):
        assert solutions(x, shown) == 1
        for clue in torch.nonzero(shown)[:, 0]:
            fewer = shown.clone()
            fewer[clue] = False
            assert solutions(x, fewer) > 1
    held_out = torch.from_numpy(data.grids[:43].astype(np.int64))
    assert all((held_out == x).all(1).any() for x in solution)


def test_puzzles_of_6x6() -> None:
    data = small(num_val=20)
    solution, given = data.puzzles(5)
    cells = torch.where(given, solution, -1)
    assert all(data.is_proper(puzzle) for puzzle in cells.tolist())
    assert given.sum(1).min() >= 8
    assert given.sum(1).max() <= 12
    with pytest.raises(ValueError, match="puzzles: 21 were asked for, the held-out grids have"):
        data.puzzles(21)


def test_tasks_are_puzzles_that_chance_does_not_solve() -> None:
    data = small(num_val=20)
    solution, known = data.tasks(3)
    assert torch.equal(solution, data.puzzles(3)[0])
    assert data.right(solution, solution).all()
    guessed = data.guessed(solution, known)
    assert torch.equal(guessed[known], solution[known])
    assert (guessed.reshape(-1, 6, 6).sort(-1).values == torch.arange(6)).all()  # each row has its digits
    assert not data.right(guessed, solution).any()
    assert 3 < len(data.tasks(21)[0]) <= 20  # as many as the held-out grids yield
    other = solution.clone()
    other[:, 7] = (other[:, 7] + 1) % 6
    assert not data.right(other, solution).any()


def test_as_text_and_by_seed() -> None:
    data = small()
    (text,) = data.decode(data.load("val")[[0]]["x"])
    assert len(text) == 36
    assert set(text) == set("123456")
    assert torch.equal(small().load("train")[[7]]["x"], data.load("train")[[7]]["x"])
    assert not torch.equal(small(source_seed=1).load("train")[[7]]["x"], data.load("train")[[7]]["x"])
    assert data.references()["all grids alike"] == pytest.approx(0.687, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 0}, "height is 0"),
        ({"height": 4}, r"height 4 times data.width 3 is the side; it must lie in 2\.\.9"),
        ({"num_val": 0}, "num_val is 0"),
        ({"source_seed": -1}, "source_seed is -1"),
    ],
)
def test_arguments(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**arguments)
