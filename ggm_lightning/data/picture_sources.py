"""Pictures of any size, one by one and by number, made to fit a network's square: folders, tars, arrays, the digits.

Fitting: the shorter side becomes `side` (Pillow, antialiased), then the centre is cut out. taming-transformers resized
with albumentations' default for its training and with Pillow's lanczos where it shows its models; which filter is taken
stays with the files that are made (header.json).
"""

from __future__ import annotations

import functools
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8
from lightning.pytorch.utilities import rank_zero_info
from tqdm import tqdm

from ggm_lightning.data.arrays import DAMAGE, array_names, read_array
from ggm_lightning.data.fingerprints import fingerprint, folder_fingerprint
from ggm_lightning.data.picture_bytes import SUFFIXES, channels_of, pixels_of
from ggm_lightning.data.picture_files import tar_stream
from ggm_lightning.data.picture_folders import find_pictures, hidden, note_of
from ggm_lightning.data.rows import BadData
from ggm_lightning.data.toy.digits import HELD_OUT, LEVELS, SHAPE, digits

DIGITS = "digits"
_TOGETHER = 1024  # pictures looked at in one go
_ENDINGS = (*SUFFIXES, ".npy")
_KINDS = (
    "a folder of pictures (.png, .jpg, .webp, .bmp, .gif, .npy), an uncompressed .tar of them, an .npz with x, or "
    "`digits`"
)


class Source(NamedTuple):
    """Pictures by number.

    Attributes:
        identity: plain JSON that tells them from any others.
        size: how many. read: number -> UInt8[c, side, side].
        labels: of all of them, where they have classes.
        held_out: how many at the end the source itself keeps for validation; 0: it does not say.
        left_out: what lies there and is none of the pictures, in words; empty where there is nothing.
    """

    identity: dict[str, Any]
    size: int
    read: Callable[[int], UInt8[np.ndarray, "c side side"]]
    labels: Int64[np.ndarray, " size"] | None = None
    held_out: int = 0
    left_out: str = ""


class Fit(NamedTuple):
    """What pictures are made into: channels (1 or 3), side, and the filter."""

    channels: int
    side: int
    resize: str

    def fitted(self, raw: bytes, where: str) -> UInt8[np.ndarray, "c side side"]:
        """The picture in the bytes of a picture file, or of the .npy [(1,) 3, h, w] in which CelebA-HQ comes."""
        return self.resized(_from_npy(raw, where) if where.lower().endswith(".npy") else pixels_of(raw, where), where)

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
        return channels_of(np.asarray(square), self.channels)


def _from_npy(raw: bytes, where: str) -> UInt8[np.ndarray, "h w 3"]:
    try:
        array = np.load(io.BytesIO(raw), allow_pickle=False)
    except DAMAGE as error:
        raise BadData(f"{where}: not a readable .npy ({' '.join(str(error).split())}); get it again") from None
    if not isinstance(array, np.ndarray):
        raise BadData(f"{where}: several arrays, an .npz and not an .npy; get it again")
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
    if path.suffix.lower() == ".tar":
        return _tar(path, fit)
    if path.suffix.lower() == ".npz":
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
    names, left_out = find_pictures(folder, _ENDINGS)
    if not names:
        there = f", only {left_out}" if left_out else ""
        raise FileNotFoundError(
            f"{key}: '{folder}' has no .png, .jpg or .npy pictures (nor .webp, .bmp, .gif){there}; unpack them into it"
        )
    identity = folder_fingerprint(folder, names)

    def read(i: int) -> np.ndarray:
        try:
            raw = (folder / names[i]).read_bytes()
        except OSError as error:
            raise BadData(f"{folder / names[i]}: cannot be read ({error.strerror}); get it again") from None
        return fit.fitted(raw, str(folder / names[i]))

    return Source(identity, len(names), read, left_out=left_out)


def _tar(path: Path, fit: Fit) -> Source:
    """The pictures of an uncompressed tar, in its order; nothing is unpacked to the disk."""
    identity = tar_stream(path, (fit.channels, fit.side, fit.side)).fingerprint  # which sees that its end is there
    try:
        with tarfile.open(path, "r:") as archive:
            everything = [m for m in archive if not m.isdir()]
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise BadData(f"{path}: not a whole tar file ({' '.join(str(error).split())}); get it again") from None
    pictures = [m for m in everything if m.name.lower().endswith(_ENDINGS)]
    members = [m for m in pictures if m.isfile() and not hidden(m.name)]
    if not members:
        raise BadData(f"{path}: has no .png, .jpg or .npy pictures (nor .webp, .bmp, .gif); give another tar")
    links = sum(not m.isfile() for m in pictures)  # in a tar they lead to another of its members
    others = [m.name for m in everything if not (m.name.lower().endswith(_ENDINGS) or hidden(m.name))]
    left_out = note_of(len(pictures) - len(members) - links, links, others)

    def read(i: int) -> np.ndarray:
        with open(path, "rb") as handle:
            handle.seek(members[i].offset_data)
            return fit.fitted(handle.read(members[i].size), f"{path}:{members[i].name}")

    return Source(identity, len(members), read, left_out=left_out)


def _array(path: Path, fit: Fit) -> Source:
    """x of an .npz: uint8 [N, h, w, 3], or grey [N, h, w]."""
    x = read_array(path, "x")
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] != 3) or len(x) == 0:
        raise BadData(f"{path}: x is {x.dtype} {list(x.shape)}, not uint8 [N, h, w, 3] or [N, h, w]; write it again")

    def read(i: int) -> np.ndarray:
        pixels = np.repeat(x[i][..., None], 3, -1) if x.ndim == 3 else x[i]
        return fit.resized(np.ascontiguousarray(pixels), f"{path}: picture {i}")

    return Source(fingerprint(path), len(x), read, left_out=_other_arrays(path))


def _other_arrays(path: Path) -> str:
    names = [name for name in array_names(path) if name != "x"]
    return f"the array(s) {', '.join(names)} (of an .npz of pictures only x is read)" if names else ""


def say_left_out(place: str, note: str) -> None:
    """One line about what a source leaves out, if anything."""
    if note:
        rank_zero_info(f"{place}: left out: {note}")


def readable(
    pictures: Source, index: Int64[np.ndarray, " rows"], split: str, each: Callable[..., Any]
) -> tuple[Int64[np.ndarray, " kept"], str]:
    """(the numbers of `index` whose pictures can be read, how many cannot and what is wrong with the first of them).

    `each` is a `map`, of threads for instance. ValueError: none can be read.
    """
    faults: list[str | None] = []
    bar = tqdm(total=len(index), unit="img", desc=f"look at {split}", disable=None)
    for start in range(0, len(index), _TOGETHER):
        block = index[start : start + _TOGETHER].tolist()
        faults += each(functools.partial(_fault, pictures), block)
        bar.update(len(block))
    bar.close()
    found = [fault for fault in faults if fault is not None]
    if not found:
        return index, ""
    if len(found) == len(index):
        raise BadData(f"none of the {len(index)} {split} pictures can be read, the first: {found[0]}")
    kept = index[np.array([fault is None for fault in faults])]
    return kept, f"{split}: {len(found):,} unreadable skipped, the first: {found[0]}"


def _fault(pictures: Source, number: int) -> str | None:
    try:
        pictures.read(number)
    except BadData as error:
        return str(error)
    return None
