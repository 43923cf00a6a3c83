"""Pictures of any size, one by one and by number, made to fit a network's square: folders, tars, arrays, the digits.

Fitting: the shorter side becomes `side` (Pillow, antialiased), then the centre is cut out. taming-transformers resized
with albumentations' default for its training and with Pillow's lanczos where it shows its models; which filter is taken
stays with the files that are made (header.json).
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from ggm_lightning.data.arrays import read_array
from ggm_lightning.data.fingerprints import fingerprint, folder_fingerprint
from ggm_lightning.data.picture_files import SUFFIXES, pixels_of, tar_stream
from ggm_lightning.data.rows import BadData
from ggm_lightning.data.toy.digits import HELD_OUT, LEVELS, SHAPE, digits

DIGITS = "digits"
_KINDS = "a folder of .png, .jpg or .npy pictures, an uncompressed .tar of them, an .npz with x, or `digits`"


class Source(NamedTuple):
    """Pictures by number.

    Attributes:
        identity: plain JSON that tells them from any others.
        size: how many. read: number -> UInt8[c, side, side].
        labels: of all of them, where they have classes.
        held_out: how many at the end the source itself keeps for validation; 0: it does not say.
    """

    identity: dict[str, Any]
    size: int
    read: Callable[[int], UInt8[np.ndarray, "c side side"]]
    labels: Int64[np.ndarray, " size"] | None = None
    held_out: int = 0


class Fit(NamedTuple):
    """What pictures are made into: channels (1 or 3), side, and the filter."""

    channels: int
    side: int
    resize: str

    def fitted(self, raw: bytes, where: str) -> UInt8[np.ndarray, "c side side"]:
        """The picture in the bytes of a PNG or JPEG, or of the .npy [(1,) 3, h, w] in which CelebA-HQ comes."""
        return self.resized(_from_npy(raw, where) if where.endswith(".npy") else pixels_of(raw, where), where)

    def resized(self, pixels: UInt8[np.ndarray, "h w 3"], where: str) -> UInt8[np.ndarray, "c side side"]:
        from PIL import Image

        height, width = pixels.shape[:2]
        if min(height, width) < self.side:
            raise BadData(
                f"{where}: {width}x{height} pixels, fewer than the VQGAN's {self.side}x{self.side}; give the pictures "
                "in their original size"
            )
        picture = Image.fromarray(pixels)
        if min(height, width) > self.side:
            scale = self.side / min(height, width)
            size = (max(self.side, round(width * scale)), max(self.side, round(height * scale)))
            picture = picture.resize(size, Image.Resampling[self.resize.upper()])
        left, top = (picture.width - self.side) // 2, (picture.height - self.side) // 2
        square = picture.crop((left, top, left + self.side, top + self.side))
        if self.channels == 1:
            return np.asarray(square.convert("L"))[None]
        return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _from_npy(raw: bytes, where: str) -> UInt8[np.ndarray, "h w 3"]:
    try:
        array = np.load(io.BytesIO(raw), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BadData(f"{where}: not a readable .npy ({' '.join(str(error).split())}); get it again") from None
    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[0] != 3:
        raise BadData(f"{where}: {array.dtype} {list(array.shape)}, not uint8 [3, h, w]; get it again")
    return np.ascontiguousarray(array.transpose(1, 2, 0))


def open_source(source: str, fit: Fit, key: str = "data.source") -> Source:
    """The pictures of what `key` of the configuration names.

    Raises:
        FileNotFoundError: nothing there. ValueError: no pictures in it, or a file that is damaged.
    """
    if source == DIGITS:
        return _digits(fit)
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path, fit, key)
    if not path.is_file():
        raise FileNotFoundError(f"{key}: there is no '{source}'; give {_KINDS}")
    if path.suffix == ".tar":
        return _tar(path, fit)
    if path.suffix == ".npz":
        return _array(path, fit)
    raise ValueError(f"{key}: '{source}' is none of the known kinds; give {_KINDS}")


def _digits(fit: Fit) -> Source:
    if (fit.channels, fit.side) != (1, SHAPE[1]):
        raise ValueError(
            f"data.source: the digits are of 1x{SHAPE[1]}x{SHAPE[2]} pixels, the VQGAN of {fit.channels}x{fit.side}x"
            f"{fit.side}; give one that was trained on them (experiments/vqgan_digits.yaml)"
        )
    levels, labels = digits()
    pixels = np.rint(levels * (255 / (LEVELS - 1))).astype(np.uint8)
    identity = {"name": DIGITS, "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()}
    return Source(identity, len(pixels), lambda i: pixels[i], labels, HELD_OUT)


def _folder(folder: Path, fit: Fit, key: str) -> Source:
    """All pictures below the folder in the order of their paths; names, sizes and 256 contents identify it."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in (*SUFFIXES, ".npy") and p.is_file())
    names = sorted(p.relative_to(folder).as_posix() for p in found)
    if not names:
        raise FileNotFoundError(f"{key}: '{folder}' has no .png, .jpg or .npy pictures; unpack them into it")
    identity = folder_fingerprint(folder, names)

    def read(i: int) -> np.ndarray:
        try:
            raw = (folder / names[i]).read_bytes()
        except OSError as error:
            raise BadData(f"{folder / names[i]}: cannot be read ({error.strerror}); get it again") from None
        return fit.fitted(raw, str(folder / names[i]))

    return Source(identity, len(names), read)


def _tar(path: Path, fit: Fit) -> Source:
    """The pictures of an uncompressed tar, in its order; nothing is unpacked to the disk."""
    identity = tar_stream(path, (fit.channels, fit.side, fit.side)).fingerprint  # which sees that its end is there
    try:
        with tarfile.open(path, "r:") as archive:
            members = [m for m in archive if m.isfile() and m.name.lower().endswith((*SUFFIXES, ".npy"))]
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise BadData(f"{path}: not a whole tar file ({' '.join(str(error).split())}); get it again") from None
    if not members:
        raise BadData(f"{path}: has no .png, .jpg or .npy pictures; give another tar")

    def read(i: int) -> np.ndarray:
        with open(path, "rb") as handle:
            handle.seek(members[i].offset_data)
            return fit.fitted(handle.read(members[i].size), f"{path}:{members[i].name}")

    return Source(identity, len(members), read)


def _array(path: Path, fit: Fit) -> Source:
    """x of an .npz: uint8 [N, h, w, 3], or grey [N, h, w]."""
    x = read_array(path, "x")
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] != 3) or len(x) == 0:
        raise BadData(f"{path}: x is {x.dtype} {list(x.shape)}, not uint8 [N, h, w, 3] or [N, h, w]; write it again")

    def read(i: int) -> np.ndarray:
        pixels = np.repeat(x[i][..., None], 3, -1) if x.ndim == 3 else x[i]
        return fit.resized(np.ascontiguousarray(pixels), f"{path}: picture {i}")

    return Source(fingerprint(path), len(x), read)
