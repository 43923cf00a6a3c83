"""Pictures as ids: each channel of each pixel a level of brightness."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int64, Integer, UInt8

from ggm_lightning.codecs.codec import BLANK, Codec

if TYPE_CHECKING:  # see codecs/codec.py
    from torch import Tensor

MIDDLE_GREY = 128
MASKED_GREY = (91, 63, 214)  # violet: a grey picture has no colour of its own


@runtime_checkable
class EncodesPictures(Protocol):
    """A codec of pictures that reads them, too: `infill --input picture.png` asks for no more."""

    @property
    def picture(self) -> tuple[int, ...]:
        """(channels, height, width) of what it reads."""

    def encode_pictures(self, pictures: UInt8[np.ndarray, "b c height width"]) -> Int64[np.ndarray, " b *s"]:
        """Their ids."""

    def sites_of(self, pixels: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, " *s"]:
        """The ids in which those pixels have a part, in the shape of an example."""


class Images(Codec):
    """Levels 0..V-1 of pixels: pictures, evenly spaced from black (0) to white (V-1).

    A masked channel of a colour picture is shown at the middle level, so that a pixel with some known channels keeps
    their tint. A masked pixel of a grey picture is shown in a colour (MASKED_GREY), which no level has.
    """

    ordered = True

    def __init__(self, num_classes: int, shape: Sequence[int]) -> None:
        """`shape` is (channels, height, width) with 1 channel (grey) or 3 (red, green, blue)."""
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}; pictures have at least 2 levels")
        if len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
            raise ValueError(f"shape is {list(shape)}; it must be [channels, height, width] with 1 or 3 channels")
        self.num_classes, self.shape = num_classes, tuple(int(n) for n in shape)
        levels = np.rint(np.arange(num_classes) * (255 / (num_classes - 1))).astype(np.uint8)
        self._levels = np.append(levels, np.uint8(MIDDLE_GREY))  # the last entry is the mask

    def decode(  # type: ignore[override]
        self, x: Integer[Tensor, " b *s"] | Integer[np.ndarray, " b *s"]
    ) -> UInt8[np.ndarray, "b height width 3"]:
        """Pictures from ids [b, channels, height, width] or [b, n] in that order; grey ones with three equal channels.

        Raises:
            ValueError: another number of sites, or an id outside 0..V.
        """
        ids = self._checked(x)
        channels, height, width = self.shape
        if ids.shape[1] != channels * height * width:
            raise ValueError(
                f"Images: {ids.shape[1]} sites per row, but pictures of shape {list(self.shape)} have "
                f"{channels * height * width}; the ids belong to another data set"
            )
        pictures = self._levels[ids].reshape(-1, *self.shape).transpose(0, 2, 3, 1)
        if channels == 3:
            return np.ascontiguousarray(pictures)
        masked = (ids == self.num_classes).reshape(-1, height, width, 1)
        return np.where(masked, np.array(MASKED_GREY, np.uint8), pictures)

    @property
    def picture(self) -> tuple[int, ...]:
        """See EncodesPictures."""
        return self.shape

    def encode_pictures(self, pictures: UInt8[np.ndarray, "b c height width"]) -> Int64[np.ndarray, "b c height width"]:
        """The nearest levels, which lie evenly between black and white: round(pixel (V - 1) / 255). Undoes `decode`."""
        return np.rint(pictures * ((self.num_classes - 1) / 255)).astype(np.int64)

    def sites_of(self, pixels: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "c height width"]:
        """Every channel of a pixel."""
        return np.broadcast_to(pixels, self.shape).copy()

    def meanings(self) -> Sequence[Hashable]:
        """Shares of the full brightness: of 17 and 33 levels every second one is the same."""
        return [("brightness", Fraction(i, self.num_classes - 1)) for i in range(self.num_classes)]

    def pieces(self, ids: Sequence[int], blank: str = BLANK) -> list[str]:
        raise ValueError("Images: single pixels are not shown as text; decode the whole state, masks included")

    def identity(self) -> dict[str, Any]:
        return {"kind": "images", "num_classes": self.num_classes, "shape": list(self.shape)}
