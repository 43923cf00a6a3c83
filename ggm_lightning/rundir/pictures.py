"""Pictures of samples: a batch of images as one grid, PNG files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np


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


def save_png(image: np.ndarray, path: str | Path, smallest_side: int = 256) -> None:
    """Writes uint8 [H, W, 3]; small pictures are magnified by a whole number, so that their pixels stay squares."""
    from PIL import Image

    scale = max(1, smallest_side // min(image.shape[:2]))
    Image.fromarray(np.kron(image, np.ones((scale, scale, 1), np.uint8))).save(path)
