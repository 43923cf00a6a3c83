"""Sudoku: grids in which each row, column and box holds every digit once, and puzzles that have one solution.

    a side of n = height x width cells, boxes of `height` rows by `width` columns; 6 x 6 by default, digits 1..6

A grid is a row of n^2 tokens, digit d being the token d - 1. Grids are drawn from a few that a search fills, by what
leaves them valid: digits renamed, rows exchanged within a band and bands among each other, columns likewise. There are
28,200,960 grids of 6 x 6, so that held-out ones are as good as never seen; none is in both parts.

A puzzle that has one solution shows at once whether a sampler is right, and in which order it should go: a cell that
only one digit fits comes first.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64, Integer
from torch import Tensor

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.grids import Grids
from ggm_lightning.data.base import DiscreteData
from ggm_lightning.data.rows import Rows, RowSource

_DIGITS = "123456789"
_SEEDS = 400  # grids that a search fills
_MOST = 9
_CLUES = (8 / 36, 12 / 36)  # of all cells: what puzzles without a spare clue have


class Sudoku(DiscreteData):
    """Solved grids, Int64[n^2] with V = n.

    Args:
        height, width: of a box; the side is height x width, at most 9.
        num_train, num_val: rows, all of them different.
        source_seed: of the grids (`seed` is of their order).
        batches: global_batch_size, max_batch_per_device, eval_batch_size, num_workers, seed (see DiscreteData).
    """

    def __init__(
        self,
        height: int = 2,
        width: int = 3,
        num_train: int = 60000,
        num_val: int = 1000,
        source_seed: int = 0,
        **batches: Any,
    ) -> None:
        super().__init__(**batches)
        sizes = {"height": height, "width": width, "num_train": num_train, "num_val": num_val}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"data.{name} is {value}; it must be at least 1")
        if not 2 <= height * width <= _MOST:
            raise ValueError(f"data.height {height} times data.width {width} is the side; it must lie in 2..{_MOST}")
        if not 0 <= source_seed < 2**63:
            raise ValueError(f"data.source_seed is {source_seed}; it must be at least 0 and fit into 64 bits")
        self.height, self.width, self.side = height, width, height * width
        self.num_rows, self.source_seed = {"train": num_train, "val": num_val}, source_seed
        self._seen_from = _seen_from(height, width)
        self._grids: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.side**2,)

    @property
    def codec(self) -> Codec:
        return Grids(_DIGITS[: self.side], self.side, self.height, self.width)

    @property
    def grids(self) -> Integer[np.ndarray, "rows n"]:
        """All rows, different ones, the held-out ones first."""
        if self._grids is None:
            wanted = sum(self.num_rows.values())
            drawn = self._drawn(wanted + wanted // 4, np.random.default_rng(self.source_seed))
            first = np.sort(np.unique(drawn, axis=0, return_index=True)[1])
            if len(first) < wanted:
                raise ValueError(
                    f"data.num_train and num_val are {wanted} grids in all, but only {len(first)} different ones were "
                    f"found of side {self.side}; ask for fewer"
                )
            self._grids = drawn[first[:wanted]]
        return self._grids

    def _drawn(self, count: int, rng: np.random.Generator) -> Integer[np.ndarray, "b n"]:
        seeds = random.Random(self.source_seed)
        filled = np.array([self._filled(seeds) for _ in range(min(_SEEDS, count))], dtype=np.uint8)
        x = filled[rng.integers(len(filled), size=count)]
        rows = self._lines(count, self.width, self.height, rng)
        columns = self._lines(count, self.height, self.width, rng)
        x = np.take_along_axis(x, rows[:, :, None], axis=1)
        x = np.take_along_axis(x, columns[:, None, :], axis=2)
        names = _orders(count, self.side, rng).astype(np.uint8)
        return np.take_along_axis(names, x.reshape(count, -1), axis=1)

    def _lines(self, count: int, bands: int, size: int, rng: np.random.Generator) -> np.ndarray:
        """New orders of lines: the bands among each other, and those of each band, Int[count, bands size]."""
        within = np.stack([_orders(count, size, rng) for _ in range(bands)], axis=1)
        return (_orders(count, bands, rng)[:, :, None] * size + within).reshape(count, -1)

    def _filled(self, seeds: random.Random) -> list[list[int]]:
        """One solved grid, by a search that tries the digits in random order."""
        empty = [-1] * self.side**2
        solution = next(self._solutions(empty, seeds))
        return [solution[i : i + self.side] for i in range(0, self.side**2, self.side)]

    # ------------------------------------------------------------------ puzzles

    def _solutions(self, cells: Sequence[int], order: random.Random | None = None) -> Iterator[list[int]]:
        """All solved grids that agree with these cells (-1: empty), the cell that the fewest digits fit first."""
        cells = list(cells)
        best = -1
        fits: list[int] = []
        for i, value in enumerate(cells):
            if value >= 0:
                continue
            taken = {cells[j] for j in self._seen_from[i]}
            possible = [v for v in range(self.side) if v not in taken]
            if best < 0 or len(possible) < len(fits):
                best, fits = i, possible
        if best < 0:
            yield cells
            return
        if order is not None:
            order.shuffle(fits)
        for value in fits:
            cells[best] = value
            yield from self._solutions(cells, order)

    def is_proper(self, cells: Sequence[int]) -> bool:
        """Whether exactly one solved grid agrees with these cells (-1: empty)."""
        found = self._solutions(cells)
        return next(found, None) is not None and next(found, None) is None

    def puzzles(self, count: int, clues: tuple[int, int] = (8, 12), seed: int = 0) -> tuple[Tensor, Tensor]:
        """(solutions Int64[count, n], which of their cells are given Bool[count, n]): proper puzzles of held-out grids,
        no clue of which can be spared, with so many clues at least and at most.

        Raises ValueError where the held-out grids yield fewer.
        """
        solutions, given = self._found(count, clues, seed)
        if len(solutions) < count:
            raise ValueError(
                f"puzzles: {count} were asked for, the held-out grids have {len(solutions)}; raise num_val"
            )
        return solutions, given

    def _found(self, count: int, clues: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
        """`puzzles`, or as many as there are."""
        chance, solutions, given = random.Random(seed), [], []
        for grid in self.grids[: self.num_rows["val"]].tolist():
            cells = self._without_spare_clues(grid, chance)
            if clues[0] <= sum(value >= 0 for value in cells) <= clues[1]:
                solutions.append(grid)
                given.append([value >= 0 for value in cells])
            if len(solutions) == count:
                break
        shape = (len(solutions), self.side**2)
        return torch.tensor(solutions).reshape(shape), torch.tensor(given, dtype=torch.bool).reshape(shape)

    def _without_spare_clues(self, grid: Sequence[int], chance: random.Random) -> list[int]:
        cells, order = list(grid), list(range(self.side**2))
        chance.shuffle(order)
        for i in order:
            cells[i] = -1
            if not self.is_proper(cells):
                cells[i] = grid[i]
        return cells

    def valid(self, x: Int64[Tensor, "b n"]) -> Bool[Tensor, " b"]:
        """Whether every row, column and box holds every digit once."""
        side, h, w = self.side, self.height, self.width
        grid = x.reshape(-1, side, side)
        boxes = grid.reshape(-1, w, h, h, w).permute(0, 1, 3, 2, 4).reshape(-1, side, side)
        digits = torch.arange(side, device=x.device)
        found = [(unit.sort(-1).values == digits).flatten(1).all(1) for unit in (grid, grid.mT, boxes)]
        return found[0] & found[1] & found[2]

    # ------------------------------------------------------------------ tasks of the report (report/protocols.py)

    task = "Puzzles with one solution, of grids that were held out"

    def tasks(self, count: int) -> tuple[Tensor, Tensor]:
        """`puzzles` of the side's usual number of clues, of 36 cells 8 to 12; fewer where few grids are held out."""
        cells = self.side**2
        return self._found(count, clues=(round(cells * _CLUES[0]), round(cells * _CLUES[1])))

    def right(self, x: Int64[Tensor, "b n"], solution: Int64[Tensor, "b n"]) -> Bool[Tensor, " b"]:
        """Bool[b]: a puzzle has one solution, so every cell has to be its."""
        return (x == solution).all(1)

    def guessed(self, solution: Int64[Tensor, "b n"], known: Bool[Tensor, "b n"]) -> Int64[Tensor, "b n"]:
        """Each row of a grid filled with the digits that it lacks, in random order."""
        generator = torch.Generator().manual_seed(self.source_seed + 5)
        filled = solution.clone().reshape(-1, self.side)
        for row, given in zip(filled, known.reshape(-1, self.side), strict=True):
            missing = row[~given]
            row[~given] = missing[torch.randperm(len(missing), generator=generator)]
        return filled.reshape(solution.shape)

    # ------------------------------------------------------------------ data

    def load(self, split: str) -> RowSource:
        held_out = self.num_rows["val"]
        part = self.grids[held_out:] if split == "train" else self.grids[:held_out]
        return Rows(part, name=f"Sudoku({self.source_seed})", first=0 if split == "val" else held_out)

    def references(self) -> dict[str, float]:
        """Bits per cell of the uniform law on digits, and of that on all grids of 6 x 6 (their number is known)."""
        bits = {"uniform": math.log2(self.side)}
        if (self.height, self.width) in ((2, 3), (3, 2)):
            bits["all grids alike"] = math.log2(28_200_960) / self.side**2
        return bits


def _orders(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Int[count, size], random orders of 0..size-1."""
    return rng.random((count, size)).argsort(1)


def _seen_from(height: int, width: int) -> list[list[int]]:
    """Of each cell, the others in its row, column and box."""
    side = height * width
    units = [(i // side, i % side, (i // side // height, i % side // width)) for i in range(side**2)]
    return [
        [j for j, other in enumerate(units) if j != i and any(a == b for a, b in zip(own, other, strict=True))]
        for i, own in enumerate(units)
    ]
