"""CelebA at 64x64 (Liu et al. 2015, arXiv 1411.7766): faces, from the original aligned and cropped pictures.

218x178 JPEG pictures are cropped at the centre and made smaller, once, into flat files of bytes (data/pixels.py),
12,288 per picture: 2.5 GB for all 202,599, of which a training run maps what it reads. The choices, kept in the header:

- crop 140, resize bilinear (antialiased, rounded): what the data code of score SDEs does (arXiv 2011.13456), which
  Blackout diffusion (arXiv 2305.11089) carries along. How its own file of 64x64 pictures was made is not published, so
  an FID depends on this choice. Crops of 108, 148 or 178 are used elsewhere.
- train_on all: Blackout trained on all 202,599 pictures, validation and test among them, without mirroring.
"""

from __future__ import annotations

import hashlib
import itertools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from ggm_lightning.codecs.codec import dict_hash
from ggm_lightning.codecs.pictures import Images
from ggm_lightning.data.fingerprints import fingerprint, folder_fingerprint
from ggm_lightning.data.picture_bytes import decoded
from ggm_lightning.data.picture_files import FILTERS
from ggm_lightning.data.pixels import PixelData, PixelWriter
from ggm_lightning.data.prepared import Identity
from ggm_lightning.data.rows import BadData

HEIGHT, WIDTH = 218, 178
OFFICIAL = {"train": 162_770, "val": 19_867, "test": 19_962}
NAME, PARTITION = "img_align_celeba", "list_eval_partition.txt"
_SPLITS = ("train", "val", "test")  # 0, 1 and 2 of the partition file
_FILES_PER_READ = 256
_GET = "get img_align_celeba.zip and list_eval_partition.txt from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


class Pictures(NamedTuple):
    """Where the pictures are: the names found, how one is read, what identifies them, and how errors call them."""

    names: set[str]
    read: Callable[[str], bytes]
    identity: dict[str, Any]
    place: str


Opened = tuple[dict[str, list[str]], Pictures]


class CelebA(PixelData):
    """Levels 0..255 of 3 x size x size pixels, in the official split; no labels.

    Args:
        path: the folder that holds img_align_celeba.zip or the folder img_align_celeba, and list_eval_partition.txt.
        crop: side of the square cut out of the centre, at most 178.
        size: side of the pictures after resizing.
        resize: bilinear, bicubic, box or lanczos; Pillow's, all of them antialiased.
        train_on: train, the official 162,770; or all: the 202,599 of which validation and test are a part. The bound on
            them is then one of pictures that were trained on.
        mirror: also train on each picture with left and right exchanged. An epoch is then twice as long.
        folder: of the flat files; None: runs/data/celeba-<hash of the options>. Once they are there, `path` may go.
        batches: global_batch_size, max_batch_per_device, eval_batch_size, num_workers, seed (see DiscreteData).
    """

    splits = _SPLITS

    def __init__(
        self,
        path: str = "data/celeba",
        crop: int = 140,
        size: int = 64,
        resize: str = "bilinear",
        train_on: str = "train",
        mirror: bool = False,
        folder: str | None = None,
        **batches: Any,
    ) -> None:
        super().__init__(**batches)
        if not 1 <= crop <= WIDTH:
            raise ValueError(f"data.crop is {crop}; the pictures are {WIDTH} wide: give 1 to {WIDTH}, 140 is usual")
        if size < 1:
            raise ValueError(f"data.size is {size}; it must be at least 1, 64 is usual")
        if resize not in FILTERS:
            raise ValueError(f"data.resize is {resize!r}; choose one of {', '.join(FILTERS)}")
        if train_on not in ("train", "all"):
            raise ValueError(f"data.train_on is {train_on!r}; it must be train or all")
        self.path, self.crop, self.size, self.resize = Path(path).expanduser(), crop, size, resize
        self.train_on, self.mirror, self._given_folder = train_on, mirror, folder

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.size, self.size)

    @property
    def codec(self) -> Images:
        return Images(256, self.shape)

    @property
    def options(self) -> dict[str, Any]:
        return {"crop": self.crop, "size": self.size, "resize": self.resize, "train_on": self.train_on}

    @property
    def folder(self) -> Path:
        return Path(self._given_folder or f"runs/data/celeba-{dict_hash([str(self.path), self.options])[:8]}")

    @property
    def official(self) -> Mapping[str, int]:
        return {**OFFICIAL, "train": sum(OFFICIAL.values())} if self.train_on == "all" else OFFICIAL

    def open_source(self) -> tuple[Identity, Opened]:
        parts = read_partition(self.path / PARTITION)
        pictures = find_pictures(self.path)
        return [pictures.identity, fingerprint(self.path / PARTITION)], (parts, pictures)

    def fitted(self, raw: bytes, where: str) -> UInt8[np.ndarray, "3 size size"]:
        """The picture of an original file: cropped at the centre, made smaller, rounded."""
        from PIL import Image

        pixels = decoded(raw, where, (3, HEIGHT, WIDTH)).transpose(1, 2, 0)
        top, left = (HEIGHT - self.crop) // 2, (WIDTH - self.crop) // 2
        square = Image.fromarray(np.ascontiguousarray(pixels[top : top + self.crop, left : left + self.crop]))
        smaller = square.resize((self.size, self.size), Image.Resampling[self.resize.upper()])
        return np.asarray(smaller).transpose(2, 0, 1)

    def build(self, source: Identity, opened: Opened) -> str:
        """Crop and resize into the flat files."""
        parts, pictures = opened
        wanted = {**parts, "train": sorted(itertools.chain(*parts.values()))} if self.train_on == "all" else parts
        missing = [name for names in parts.values() for name in names if name not in pictures.names]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise BadData(f"{pictures.place}: {missing[0]}{more} of {PARTITION} is not there; {_GET} again")
        self.check_room(sum(map(len, wanted.values())) * 3 * self.size**2)
        with (
            PixelWriter(self.folder, self.codec, options=self.options, source=source) as writer,
            ThreadPoolExecutor() as pool,  # Pillow decodes outside the interpreter's lock
        ):
            for split, names in wanted.items():
                bar = tqdm(total=len(names), unit="img", desc=f"resize {split}", disable=None)
                for block in _blocks(names):
                    raw = [pictures.read(name) for name in block]
                    where = [f"{pictures.place}: {name}" for name in block]
                    writer.add(split, np.stack(list(pool.map(self.fitted, raw, where))))
                    bar.update(len(block))
                bar.close()
        return ""


def _blocks(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), _FILES_PER_READ):
        yield names[start : start + _FILES_PER_READ]


def read_partition(path: Path) -> dict[str, list[str]]:
    """The names of train, val and test in the order of list_eval_partition.txt, lines like `000001.jpg 0`.

    Raises:
        FileNotFoundError: it is not there. ValueError: a line says something else, or a split is empty.
    """
    if not path.is_file():
        raise FileNotFoundError(f"data.path: '{path.parent}' has no file {path.name}; {_GET}")
    parts: dict[str, list[str]] = {split: [] for split in _SPLITS}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[1] not in ("0", "1", "2"):
            raise BadData(f"{path}: line {number} is {line[:60]!r}, not a name and 0, 1 or 2; {_GET} again")
        parts[_SPLITS[int(words[1])]].append(words[0])
    for split, names in parts.items():
        if not names:
            raise BadData(f"{path}: has no pictures of the {split} split; {_GET} again")
    return parts


def find_pictures(path: Path) -> Pictures:
    """The folder img_align_celeba of `path`, or the zip of that name."""
    if (path / NAME).is_dir():
        return _in_folder(path / NAME)
    if (path / f"{NAME}.zip").is_file():
        return _in_zip(path / f"{NAME}.zip")
    raise FileNotFoundError(f"data.path: '{path}' has neither {NAME}.zip nor a folder {NAME}; {_GET}")


def _in_folder(folder: Path) -> Pictures:
    """Identified by the names and sizes of all files and the contents of 256 of them, evenly spaced."""
    inner = folder / NAME  # where the zip was unpacked into a folder of its own name
    folder = inner if inner.is_dir() else folder
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() == ".jpg")
    identity = folder_fingerprint(folder, names)
    return Pictures(set(names), lambda name: (folder / name).read_bytes(), identity, str(folder))


def _in_zip(path: Path) -> Pictures:
    """Identified by the zip's own checksums: its directory is read and not its 1.4 GB."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise BadData(f"{path}: not a whole zip file ({error}); {_GET} again") from None
    members = {Path(info.filename).name: info for info in archive.infolist() if info.filename.endswith(".jpg")}
    digest = hashlib.sha256()
    for name in sorted(members):
        digest.update(f"{name}\0{members[name].file_size}\0{members[name].CRC:08x}\0".encode())

    def read(name: str) -> bytes:
        try:
            return archive.read(members[name])
        except (zipfile.BadZipFile, zipfile.LargeZipFile, OSError, EOFError, RuntimeError) as error:
            raise BadData(f"{path}: {name} cannot be read ({error}); {_GET} again") from None

    identity = {"name": path.name, "files": len(members), "sha256": digest.hexdigest()}
    return Pictures(set(members), read, identity, str(path))
