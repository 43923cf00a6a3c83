"""One picture file: shown upright, in 8-bit RGB without loss, or refused in a line that names it."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ggm_lightning.data.picture_bytes import channels_of, decoded, pixels_of

H, W = 11, 7
RGB = np.random.default_rng(0).integers(256, size=(H, W, 3)).astype(np.uint8)


def saved(picture: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    held = io.BytesIO()
    picture.save(held, kind, **how)
    return held.getvalue()


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


# what a viewer does with the stored pixels, by the table of the EXIF standard: where row 0 and column 0 are seen
TURNED = {
    1: RGB,
    2: RGB[:, ::-1],
    3: RGB[::-1, ::-1],
    4: RGB[::-1],
    5: RGB.transpose(1, 0, 2),
    6: RGB.transpose(1, 0, 2)[:, ::-1],
    7: RGB.transpose(1, 0, 2)[::-1, ::-1],
    8: RGB.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_turned_upright(orientation: int, kind: str) -> None:
    how = {"lossless": True} if kind == "WEBP" else {}
    raw = saved(Image.fromarray(RGB), kind, exif=exif(orientation), **how)
    found, expected = pixels_of(raw, "a"), TURNED[orientation]
    assert found.shape == expected.shape
    if kind == "JPEG":
        with Image.open(io.BytesIO(raw)) as stored:  # as it lies in the file, with the losses of JPEG
            found, expected = found.astype(int), np.asarray(stored).astype(int)
        assert np.array_equal(np.sort(found.reshape(-1)), np.sort(expected.reshape(-1)))
    else:
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_an_orientation_that_means_nothing_changes_nothing(orientation: int) -> None:
    assert np.array_equal(pixels_of(saved(Image.fromarray(RGB), exif=exif(orientation)), "a"), RGB)


@pytest.mark.parametrize(
    "garbage", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\1"]
)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of some of them
def test_damaged_exif_data_are_ignored(garbage: bytes) -> None:
    assert pixels_of(saved(Image.fromarray(RGB), "JPEG", exif=garbage), "a").shape == RGB.shape


def test_every_kind_and_mode_without_loss() -> None:
    colours = Image.fromarray(RGB)
    for kind, how in (("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})):
        assert np.array_equal(pixels_of(saved(colours, kind, **how), "a"), RGB)
    few = Image.fromarray(RGB).quantize(13)
    for kind in ("PNG", "GIF", "BMP"):
        assert np.array_equal(pixels_of(saved(few, kind), "a"), np.asarray(few.convert("RGB")))
    grey = RGB[..., 0]
    black = grey > 127
    for stored, expected in ((Image.fromarray(grey), grey), (Image.fromarray(black), black * 255)):
        found = pixels_of(saved(stored), "a")
        assert (found == expected[..., None]).all()
        assert (channels_of(found, 1)[0] == expected).all()  # and back to one channel
    assert decoded(saved(colours), "a", (3, H, W)).shape == (3, H, W)
    assert decoded(saved(colours), "a", (1, H, W)).shape == (1, H, W)


def opaque_but(lowest: int, mode: str) -> Image.Image:
    picture = Image.fromarray(RGB).convert(mode)
    alpha = np.full((H, W), 255, np.uint8)
    alpha[3, 5] = lowest
    picture.putalpha(Image.fromarray(alpha))
    return picture


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_transparency(mode: str) -> None:
    """One pixel that is not quite opaque is enough to refuse; an alpha channel that says nothing is left away."""
    assert np.array_equal(
        pixels_of(saved(opaque_but(255, mode)), "a"), np.asarray(opaque_but(255, mode).convert("RGB"))
    )
    with pytest.raises(ValueError, match=r"^a: a picture of mode .*, not 8-bit RGB or grey: some of it is transparent"):
        pixels_of(saved(opaque_but(254, mode)), "a")


def test_a_transparent_colour() -> None:
    """tRNS of PNG and of GIF: the colour that shows what stands behind it occurs in the picture, or does not."""
    present = tuple(int(level) for level in RGB[0, 0])
    absent = next((0, 0, blue) for blue in range(256) if not ((0, 0, blue) == RGB).all(-1).any())
    few = Image.fromarray(RGB).quantize(13)
    for raw in (
        saved(Image.fromarray(RGB), transparency=present),
        saved(few, transparency=int(np.asarray(few)[0, 0])),
        saved(few, "GIF", transparency=int(np.asarray(few)[0, 0])),
        saved(Image.fromarray(RGB[..., 0]), transparency=int(RGB[0, 0, 0])),
    ):
        with pytest.raises(ValueError, match="some of it is transparent"):
            pixels_of(raw, "a")
    assert np.array_equal(pixels_of(saved(Image.fromarray(RGB), transparency=absent), "a"), RGB)


def deep_rgb() -> bytes:
    """A PNG of 16 bits a channel, which Pillow cannot write: header, one block of filtered rows, end."""
    rows = b"".join(b"\0" + RGB[i].astype(">u2").tobytes() for i in range(H))

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def animation(kind: str) -> bytes:
    frames = [Image.fromarray(np.full((H, W, 3), level, np.uint8)) for level in (0, 99, 200)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


def test_what_would_need_a_choice_is_refused() -> None:
    grey16 = Image.fromarray(RGB[..., 0].astype(np.uint16))
    cases = [
        (saved(grey16), "a picture of mode I;16, not 8-bit"),
        (deep_rgb(), "a picture of mode RGB of 16 bits a channel, not 8-bit"),
        (saved(Image.fromarray(RGB).convert("CMYK"), "JPEG"), "a picture of mode CMYK, not 8-bit"),
        *((animation(kind), "an animation of 3 pictures") for kind in ("PNG", "GIF", "WEBP")),
    ]
    for raw, message in cases:
        with pytest.raises(ValueError, match=f"^x/y.png: {message}") as caught:
            pixels_of(raw, "x/y.png")
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^a: a 7x11 picture, not 7x12"):
        decoded(saved(Image.fromarray(RGB)), "a", (3, 12, W))


def test_a_phones_jpeg_of_several_pictures_is_its_first() -> None:
    raw = saved(Image.fromarray(RGB), "MPO", save_all=True, append_images=[Image.fromarray(RGB[::-1])])
    alone = saved(Image.fromarray(RGB), "JPEG")
    assert np.array_equal(pixels_of(raw, "a"), pixels_of(alone, "a"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_files_that_are_cut_off(kind: str) -> None:
    """Wherever pixels are lost; the message holds no address of an object."""
    noise = np.random.default_rng(1).integers(256, size=(23, 29, 3)).astype(np.uint8)
    raw = saved(Image.fromarray(noise), kind)
    whole = pixels_of(raw, "a")
    for cut in range(0, len(raw), max(1, len(raw) // 23)):
        try:
            found = pixels_of(raw[:cut], "x/y.png")
        except ValueError as error:
            message = str(error)
            assert message.startswith("x/y.png: not a readable PNG or JPEG")
            assert " at 0x" not in message
            assert "\n" not in message
        else:
            assert np.array_equal(found, whole), cut
