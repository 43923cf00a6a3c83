"""The pixels of one picture file, as a viewer shows them, or a line that says why there are none.

- Kinds: PNG, JPEG, WebP, BMP and GIF, told by the content; one picture a file (an animation is refused).
- Turned upright: the orientation in a camera's EXIF data is applied. Damaged EXIF data are ignored, as viewers do.
- 8 bits a channel. Grey, black-and-white and palette pictures become three channels without loss; those of 16 bits
  and of other colours (CMYK, ..) are refused, for making 8-bit RGB of them is a choice.
- Transparency: a picture with a pixel that is not opaque is refused, for what stands behind it is a choice; an alpha
  channel (or a transparent colour) by which every pixel is opaque is left away.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from ggm_lightning.data.rows import BadData

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif")
_UNREADABLE = "not a readable PNG or JPEG (or WebP, BMP, GIF)"
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")  # 8 bits a channel or fewer
_ORIENTATION = 0x0112  # the tag of EXIF
_OF_DAMAGED_EXIF = (ArithmeticError, AttributeError, LookupError, OSError, SyntaxError, TypeError, ValueError)


def pixels_of(raw: bytes, where: str) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a picture file of any size; a grey one has three equal channels.

    Raises:
        ValueError: damage, an animation, transparency, more than 8 bits, CMYK; `where` names the picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(raw), formats=_FORMATS) as picture:
            reason = _unfit(picture)
            if reason is None:
                return np.array(_upright(picture).convert("RGB"))
    except UnidentifiedImageError:  # its words hold the address of an object
        what = "of another kind or damaged" if raw else "an empty file"
        raise BadData(f"{where}: {_UNREADABLE}: {what}; get it again") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())  # Pillow raises each of them for damage
        raise BadData(f"{where}: {_UNREADABLE}: {reason}; get it again") from None
    raise BadData(f"{where}: {reason}")


def _unfit(picture: ImageFile) -> str | None:
    """Why a picture that Pillow can read is none of ours, or None. Loads its pixels."""
    frames = getattr(picture, "n_frames", 1)  # kinds without animation lack it
    if frames > 1 and picture.format != "MPO":  # of phones: the first is the photograph, as in any JPEG
        return f"an animation of {frames} pictures; save one of them"
    # Pillow cuts a PNG's 16-bit colours down to 8 without a word; how they are stored tells them apart
    deep = picture.format == "PNG" and any("16" in str(tile[-1]) for tile in picture.tile)
    if picture.mode not in _MODES or deep:
        bits = " of 16 bits a channel" if deep and "16" not in picture.mode else ""
        return f"a picture of mode {picture.mode}{bits}, not 8-bit RGB or grey; convert it"
    picture.load()
    if picture.has_transparency_data:
        lowest, _ = picture.convert("RGBA").getchannel("A").getextrema()
        if lowest < 255:
            return (
                f"a picture of mode {picture.mode}, not 8-bit RGB or grey: some of it is transparent; convert it to RGB"
            )
    return None


def _upright(picture: Image) -> Image:
    """Turned as its EXIF orientation says (1, none, or a number that means nothing: as it is)."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(picture.getexif().get(_ORIENTATION, 1))
    except (*_OF_DAMAGED_EXIF, struct.error):
        return picture
    return picture if turn is None else picture.transpose(turn)


def decoded(raw: bytes, where: str, shape: tuple[int, ...]) -> UInt8[np.ndarray, "c h w"]:
    """The pixels of a picture file of exactly this shape (c 3; or 1, for which colours are weighted to grey as in
    Pillow, ITU-R 601-2). ValueError: as `pixels_of`, and for another size."""
    pixels = pixels_of(raw, where)
    height, width = pixels.shape[:2]
    if (height, width) != tuple(shape[1:]):
        raise BadData(
            f"{where}: a {width}x{height} picture, not {shape[2]}x{shape[1]}; give the pictures of the published "
            f"archive, resized by its authors"
        )
    return channels_of(pixels, shape[0])


def channels_of(pixels: UInt8[np.ndarray, "h w 3"], channels: int) -> UInt8[np.ndarray, "c h w"]:
    """Channels in front: the three, or 1 of grey (ITU-R 601-2; three equal channels give their level)."""
    from PIL import Image

    if channels == 1:
        return np.array(Image.fromarray(pixels).convert("L"))[None]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
