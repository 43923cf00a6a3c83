"""Pictures of samples: a batch of images as one grid, PNG files, animated GIF files."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ggm_lightning.rundir.folder import write_whole

PAGE_WIDTH = 960


def grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """uint8 images [b, h, w] or [b, h, w, 3] side by side, as near to a square as they go: uint8 [H, W, 3].

    Raises:
        ValueError: not a batch of uint8 images.
    """
    images = np.asarray(images)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise ValueError(
            f"grid: got {images.dtype} {list(images.shape)}; it needs uint8 images [b, h, w] or [b, h, w, 3]"
        )
    b, h, w, _ = images.shape
    columns = columns or math.ceil(math.sqrt(b))
    rows = math.ceil(b / columns)
    gap = 1 if min(h, w) > 2 else 0
    canvas = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (h + gap), (i % columns) * (w + gap)
        canvas[top : top + h, left : left + w] = image
    return canvas


def side_by_side(*grids: np.ndarray) -> np.ndarray:
    """Grids of equal height, more apart than their pictures are: uint8 [H, W, 3]."""
    apart = np.full((len(grids[0]), 4, 3), 255, np.uint8)
    parts = [part for one in grids for part in (one, apart)]
    return np.concatenate(parts[:-1], axis=1)


def save_png(image: np.ndarray, path: str | Path, smallest_side: int = 256) -> None:
    """Writes uint8 [H, W, 3]; small pictures are magnified by a whole number, so that their pixels stay squares."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(magnified(image, smallest_side)).save(content, format="PNG")
    write_whole(Path(path), content.getvalue())


def magnified(image: np.ndarray, smallest_side: int) -> np.ndarray:
    """[H, W, ...] with each pixel repeated: the smaller side comes near `smallest_side`, and the larger stays within a
    page."""
    scale = max(1, min(smallest_side // min(image.shape[:2]), PAGE_WIDTH // max(image.shape[:2])))
    return image.repeat(scale, 0).repeat(scale, 1)


def save_gif(
    frames: Sequence[np.ndarray],
    path: str | Path,
    milliseconds: int = 100,
    first_milliseconds: int = 500,
    last_milliseconds: int = 2500,
    smallest_side: int = 256,
) -> None:
    """Writes uint8 [H, W, 3] frames as an animated GIF that loops; small ones are magnified as by `save_png`.

    A GIF has 256 colours: with no more in all frames together each pixel is exact, else it takes the nearest of 256
    common ones. Nothing is dithered, so a pixel that stays the same does not flicker.
    """
    first, *others = _with_one_palette([np.asarray(frame) for frame in frames], smallest_side)
    times = [milliseconds] * (1 + len(others))
    times[0], times[-1] = first_milliseconds, last_milliseconds
    content = io.BytesIO()
    first.save(content, format="GIF", save_all=True, append_images=others, duration=times, loop=0, disposal=1)
    write_whole(Path(path), content.getvalue())


def _with_one_palette(frames: list[np.ndarray], smallest_side: int) -> list[Any]:
    """Pillow images of mode P."""
    from PIL import Image

    packed = [frame.astype(np.int32) @ np.array([65536, 256, 1], np.int32) for frame in frames]
    colours = np.unique(np.stack(packed))
    if len(colours) > 256:
        common = Image.fromarray(np.concatenate(frames)).quantize(256)
        images = [Image.fromarray(magnified(frame, smallest_side)) for frame in frames]
        return [image.quantize(palette=common, dither=Image.Dither.NONE) for image in images]
    palette = (colours[:, None] >> np.array([16, 8, 0]) & 255).astype(np.uint8).tobytes()
    images = [Image.fromarray(magnified(np.searchsorted(colours, p).astype(np.uint8), smallest_side)) for p in packed]
    for image in images:
        image.putpalette(palette)  # makes the mode P
    return images
