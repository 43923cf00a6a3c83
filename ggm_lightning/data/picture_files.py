"""Pictures as they are distributed: npz archives, tars and folders of picture files, as streams in bounded memory.

Each stream yields blocks of at most 256 pictures; every error is one line that names the file and the picture. How one
picture is read is said in data/picture_bytes.py, which files of a folder are pictures in data/picture_folders.py.
"""

from __future__ import annotations

import math
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from ggm_lightning.data.fingerprints import fingerprint, folder_fingerprint
from ggm_lightning.data.picture_bytes import SUFFIXES, decoded
from ggm_lightning.data.picture_folders import find_pictures, hidden
from ggm_lightning.data.rows import BadData

FILTERS = ("bilinear", "bicubic", "box", "lanczos")  # of Pillow, all of them antialiased
_ROWS_PER_READ = 256
_AGAIN = "the file is damaged: get it again"
_TAR_BLOCK = 512
_DAMAGE = (ValueError, EOFError, RuntimeError, OverflowError, OSError, zlib.error, zipfile.BadZipFile, tarfile.TarError)


class Block(NamedTuple):
    """Some pictures; `done` is how far the stream has come since the last block, in the unit of `Stream.total`."""

    images: UInt8[np.ndarray, " k *s"]
    labels: Int64[np.ndarray, " k"] | None
    done: int


class Stream(NamedTuple):
    """A source of pictures: what identifies it, how long it is (pictures or bytes), and its blocks, read when asked."""

    fingerprint: dict[str, Any]
    total: int
    unit: str
    blocks: Callable[[], Iterator[Block]]


@contextmanager
def _whole(path: Path, kind: str) -> Iterator[None]:
    """Whatever zipfile, tarfile and numpy raise for files that are cut short, overwritten or of another kind."""
    try:
        yield
    except BadData:
        raise
    except _DAMAGE as error:
        raise BadData(f"{path}: not a whole {kind} file ({' '.join(str(error).split())}); {_AGAIN}") from None


def npz_stream(path: Path, shape: tuple[int, ...], num_labels: int) -> Stream:
    """An npz with data [N, prod(shape)] of uint8 and labels [N] in 1..num_labels, given as 0..num_labels-1.

    The zip's own checksums identify it: its directory is read and not its gigabytes.
    """
    with _whole(path, "npz"), zipfile.ZipFile(path) as archive:
        members = {info.filename: [info.file_size, f"{info.CRC:08x}"] for info in archive.infolist()}
        if not {"data.npy", "labels.npy"} <= set(members):
            raise BadData(f"{path}: has {', '.join(members)}; the batches hold data and labels: {_AGAIN}")
        rows = _rows(archive, path, shape)
        identity = {"name": path.name, "members": members}
        return Stream(identity, rows, "img", lambda: _npz_blocks(path, shape, num_labels))


def _array_header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(member)
    return (shape[::-1] if fortran else shape), dtype


def _rows(archive: zipfile.ZipFile, path: Path, shape: tuple[int, ...]) -> int:
    """N, from the header of data and the size of the member."""
    size = math.prod(shape)
    with archive.open("data.npy") as member:
        found, dtype = _array_header(member)
        rest = archive.getinfo("data.npy").file_size - member.tell()
    if dtype != np.uint8 or len(found) != 2 or found[1] != size:
        raise BadData(
            f"{path}: data is {dtype} {list(found)}, not uint8 [N, {size}]; name the batches of {shape[1]}x{shape[2]}"
        )
    if rest != found[0] * size:
        raise BadData(f"{path}: data has {rest} bytes, {found[0]} pictures take {found[0] * size}; {_AGAIN}")
    return found[0]


def _npz_blocks(path: Path, shape: tuple[int, ...], num_labels: int) -> Iterator[Block]:
    with _whole(path, "npz"), zipfile.ZipFile(path) as archive:
        rows = _rows(archive, path, shape)
        labels = _labels(archive, path, rows, num_labels)
        with archive.open("data.npy") as member:
            _array_header(member)
            for start in range(0, rows, _ROWS_PER_READ):
                count = min(_ROWS_PER_READ, rows - start)
                # The last read reaches the end, where zipfile compares the checksum.
                images = np.frombuffer(member.read(count * math.prod(shape)), np.uint8).reshape(count, *shape)
                yield Block(images, labels[start : start + count], count)
            member.read()


def _labels(archive: zipfile.ZipFile, path: Path, rows: int, num_labels: int) -> Int64[np.ndarray, " rows"]:
    with archive.open("labels.npy") as member:
        found, dtype = _array_header(member)
        if found != (rows,) or dtype.kind not in "iu":
            raise BadData(f"{path}: labels is {dtype} {list(found)}, not {rows} whole numbers; {_AGAIN}")
        labels = np.frombuffer(member.read(), dtype).astype(np.int64)
    wrong = np.flatnonzero((labels < 1) | (labels > num_labels))
    if len(labels) != rows or wrong.size:
        what = f"label {labels[wrong[0]]} of picture {wrong[0]}" if wrong.size else f"{len(labels)} labels"
        raise BadData(f"{path}: {what}; there must be {rows} in 1..{num_labels}: {_AGAIN}")
    return labels - 1


def folder_stream(folder: Path, shape: tuple[int, ...]) -> Stream:
    """The picture files of a folder and of those below it, in the order of their paths; others are left alone.

    The names and sizes of all and the contents of 256 of them, evenly spaced, identify it.
    """
    names = find_pictures(folder).names
    if not names:
        raise FileNotFoundError(
            f"'{folder}' has no .png or .jpg files (nor .webp, .bmp, .gif); unpack the pictures into it"
        )
    identity = folder_fingerprint(folder, names)
    return Stream(identity, len(names), "img", lambda: folder_blocks(folder, names, shape))


def folder_blocks(folder: Path, names: list[str], shape: tuple[int, ...]) -> Iterator[Block]:
    """These picture files of a folder, in their order."""
    for start in range(0, len(names), _ROWS_PER_READ):
        part = names[start : start + _ROWS_PER_READ]
        images = [decoded((folder / name).read_bytes(), str(folder / name), shape) for name in part]
        yield Block(np.stack(images), None, len(part))


def tar_stream(path: Path, shape: tuple[int, ...]) -> Stream:
    """The picture files of an uncompressed tar, in its order; nothing is unpacked to the disk."""
    size = path.stat().st_size
    with open(path, "rb") as handle:
        handle.seek(max(0, size - _TAR_BLOCK))
        if size < 2 * _TAR_BLOCK or handle.read().strip(b"\0"):
            # tarfile itself takes a file that stops between two pictures for a whole one
            raise BadData(f"{path}: not a whole uncompressed tar, it lacks the blocks that end one; get it again")
    return Stream(fingerprint(path), size, "B", lambda: _tar_blocks(path, shape))


def _tar_blocks(path: Path, shape: tuple[int, ...]) -> Iterator[Block]:
    images: list[np.ndarray] = []
    done = 0
    with _whole(path, "tar"), tarfile.open(path, "r|") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined] # else a kilobyte is kept for each picture
            if not member.isfile() or not member.name.lower().endswith(SUFFIXES) or hidden(member.name):
                continue
            raw = archive.extractfile(member).read()
            images.append(decoded(raw, f"{path}:{member.name}", shape))
            if len(images) == _ROWS_PER_READ:
                yield Block(np.stack(images), None, archive.offset - done)
                images, done = [], archive.offset
    if images:
        yield Block(np.stack(images), None, path.stat().st_size - done)
