"""Square grids of characters, such as puzzles of digits: a row of the data is text, and can be drawn as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Integer, UInt8

from ggm_lightning.codecs.text import Characters

if TYPE_CHECKING:  # see codecs/codec.py
    from torch import Tensor

CELL, MARGIN = 28, 6  # pixels: of a cell's side, its line included; of paper around the grid
_MOST = 40  # cells along a side: a character of a larger grid could not be read
_PAPER, _GIVEN = (255, 255, 255), (236, 238, 243)
_THIN, _THICK = (205, 209, 217), (80, 86, 98)
_INK, _FILLED = (25, 28, 36), (91, 63, 214)


@runtime_checkable
class DrawsPictures(Protocol):
    """A codec of texts or numbers that also draws a row as a picture. Reports and `sample` show that picture."""

    def pictures(
        self, x: Tensor | Integer[np.ndarray, " b *s"], known: Tensor | Bool[np.ndarray, " b *s"] | None = None
    ) -> UInt8[np.ndarray, "b height width 3"]:
        """One picture per row of x, masks included; sites that were given, where `known` is True, are set apart."""


class Grids(Characters):
    """Square grids, line by line, a character a cell.

    Args:
        alphabet: the characters, in the order of their ids.
        side: cells along a side.
        height, width: of a box, in cells; thick lines are drawn around boxes. None: one box, the whole.
    """

    def __init__(self, alphabet: str, side: int, height: int | None = None, width: int | None = None) -> None:
        super().__init__(alphabet, unknown=None)
        if not 1 <= side <= _MOST:
            raise ValueError(f"Grids: side is {side}; it must lie in 1..{_MOST}")
        for name, value in (("height", height), ("width", width)):
            if value is not None and not 1 <= value <= side:
                raise ValueError(f"Grids: {name} is {value}; a box has 1 to {side} cells along each side")
        self.side, self.height, self.width = side, height, width
        self._glyphs: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        named = {"alphabet": self.alphabet, "side": self.side, "height": self.height, "width": self.width}
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}", "init_args": named}

    def pictures(
        self, x: Tensor | Integer[np.ndarray, " b *s"], known: Tensor | Bool[np.ndarray, " b *s"] | None = None
    ) -> UInt8[np.ndarray, "b height width 3"]:
        """Given characters are black on grey, others violet; a masked cell is empty. Without `known` all are black.

        Raises:
            ValueError: another number of cells, or an id outside 0..V.
        """
        ids = self._checked(x)
        if ids.shape[1] != self.side**2:
            raise ValueError(f"Grids: {ids.shape[1]} ids per row; a grid of side {self.side} has {self.side**2}")
        given = None if known is None else np.asarray(known).reshape(ids.shape)
        canvas = np.tile(self._empty(), (len(ids), 1, 1, 1))
        for b, row in enumerate(ids):
            for cell, id_ in enumerate(row):
                top, left = MARGIN + cell // self.side * CELL + 1, MARGIN + cell % self.side * CELL + 1
                is_given = given is not None and bool(given[b, cell])
                is_filled = given is not None and not is_given
                inner = canvas[b, top : top + CELL - 2, left : left + CELL - 2]
                inner[:] = _mixed(self._drawn[id_], _FILLED if is_filled else _INK, _GIVEN if is_given else _PAPER)
        return canvas

    def _empty(self) -> UInt8[np.ndarray, "height width 3"]:
        """A grid without characters: thin lines between cells, and thick ones over them around boxes."""
        size = self.side * CELL + 2 * MARGIN
        canvas = np.full((size, size, 3), _PAPER, np.uint8)
        boxes = (self.height or self.side, self.width or self.side)
        for colour, steps in ((_THIN, (1, 1)), (_THICK, boxes)):
            for lines, step in zip((canvas, canvas.transpose(1, 0, 2)), steps, strict=True):
                for i in [*range(0, self.side, step), self.side]:
                    at = MARGIN + i * CELL
                    lines[at - 1 : at + 1, MARGIN - 1 : size - MARGIN + 1] = colour
        return canvas

    @property
    def _drawn(self) -> np.ndarray:
        """How much ink each id has, Float[V + 1, CELL - 2, CELL - 2] in 0..1; the last, the mask, has none."""
        if self._glyphs is None:
            shapes = [_glyph(symbol) for symbol in self.alphabet]
            self._glyphs = np.stack([*shapes, np.zeros_like(shapes[0])])
        return self._glyphs


def _mixed(ink: np.ndarray, colour: tuple[int, int, int], paper: tuple[int, int, int]) -> np.ndarray:
    share = ink[..., None]
    return np.rint(share * np.array(colour) + (1 - share) * np.array(paper)).astype(np.uint8)


def _glyph(symbol: str) -> np.ndarray:
    """The character in the middle of a cell, in eight shades, so that an animation has few colours."""
    from PIL import Image, ImageDraw, ImageFont

    size = CELL - 2
    cell = Image.new("L", (size, size), 0)
    font = ImageFont.load_default(size=size * 0.72)
    ImageDraw.Draw(cell).text((size / 2, size / 2), symbol, fill=255, font=font, anchor="mm")
    return np.rint(np.asarray(cell) / 255 * 7) / 7
