"""ImageNet at 64x64 (Russakovsky et al. 2015, arXiv 1409.0575), of which there are two, not comparable in bits/dim.

- oord2016: the pictures of van den Oord et al. 2016 (arXiv 1601.06759), train_64x64.tar and valid_64x64.tar, 1,281,149
  and 49,999 PNG files without labels. The likelihoods in the literature are measured on them (MD4's too).
- chrabaszcz2017: Chrabaszcz et al. 2017 (arXiv 1707.08819, box filter), train_data_batch_1..10.npz and val_data.npz,
  1,281,167 and 50,000 pictures with labels. Its smoother pictures take fewer bits; it is for class-conditional samples.

Either is unpacked once into flat files of bytes (data/pixels.py), 12,288 per picture: 16 GB in all, of which a training
run maps what it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ggm_lightning.codecs.codec import dict_hash
from ggm_lightning.codecs.pictures import Images
from ggm_lightning.data.picture_files import Stream, folder_stream, npz_stream, tar_stream
from ggm_lightning.data.pixels import PixelData, PixelWriter
from ggm_lightning.data.prepared import Identity

SHAPE = (3, 64, 64)
NUM_LABELS = 1000
OFFICIAL = {
    "oord2016": {"train": 1_281_149, "val": 49_999},
    "chrabaszcz2017": {"train": 1_281_167, "val": 50_000},
}
_FOLDERS = {"train": "train_64x64", "val": "valid_64x64"}
_GET = "get it from https://image-net.org/download-images (downsampled)"


class ImageNet64(PixelData):
    """Levels 0..255 of 3x64x64 pixels; the validation pictures are the test pictures too.

    Args:
        variant: oord2016 (bits/dim as in the literature, no labels) or chrabaszcz2017 (labels 0..999). There is no
            default: a figure measured on one says nothing about the other.
        path: the folder that holds oord2016's train_64x64 and valid_64x64, each as a .tar or as a folder of PNG (or
            JPEG) files; or chrabaszcz2017's .npz files.
        train_batches: how many of chrabaszcz2017's ten training files are read; fewer is a smaller data set.
        mirror: also train on each picture with left and right exchanged. An epoch is then twice as long.
        folder: of the flat files; None: runs/data/imagenet64-<hash of the options>. Once they are there, `path` may go.
        batches: global_batch_size, max_batch_per_device, eval_batch_size, num_workers, seed (see DiscreteData).
    """

    def __init__(
        self,
        variant: str,
        path: str = "data/imagenet64",
        train_batches: int = 10,
        mirror: bool = False,
        folder: str | None = None,
        **batches: Any,
    ) -> None:
        super().__init__(**batches)
        if variant not in OFFICIAL:
            raise ValueError(f"data.variant is {variant!r}; it must be {' or '.join(OFFICIAL)}")
        if not 1 <= train_batches <= 10:
            raise ValueError(f"data.train_batches is {train_batches}; there are 1 to 10")
        if train_batches != 10 and variant == "oord2016":
            raise ValueError(
                "data.train_batches is for data.variant: chrabaszcz2017; oord2016 is one file: leave it out"
            )
        self.variant, self.path, self.train_batches = variant, Path(path).expanduser(), train_batches
        self.mirror, self._given_folder = mirror, folder

    @property
    def num_labels(self) -> int | None:
        return NUM_LABELS if self.variant == "chrabaszcz2017" else None

    @property
    def shape(self) -> tuple[int, ...]:
        return SHAPE

    @property
    def codec(self) -> Images:
        return Images(256, SHAPE)

    @property
    def options(self) -> dict[str, Any]:
        return {"variant": self.variant, "train_batches": self.train_batches}

    @property
    def folder(self) -> Path:
        return Path(self._given_folder or f"runs/data/imagenet64-{dict_hash([str(self.path), self.options])[:8]}")

    @property
    def official(self) -> Mapping[str, int]:
        return OFFICIAL[self.variant]

    def open_source(self) -> tuple[Identity, dict[str, list[Stream]]]:
        streams = self._streams()
        return [{"split": split, **s.fingerprint} for split, parts in streams.items() for s in parts], streams

    def _streams(self) -> dict[str, list[Stream]]:
        if self.variant == "oord2016":
            return {split: [self._pictures(name)] for split, name in _FOLDERS.items()}
        names = {
            "train": [f"train_data_batch_{i}.npz" for i in range(1, self.train_batches + 1)],
            "val": ["val_data.npz"],
        }
        for name in (name for part in names.values() for name in part):
            if not (self.path / name).is_file():
                raise FileNotFoundError(f"data.path: '{self.path}' has no file {name}; {_GET} and unpack the zip there")
        return {split: [npz_stream(self.path / n, SHAPE, NUM_LABELS) for n in part] for split, part in names.items()}

    def _pictures(self, name: str) -> Stream:
        if (self.path / f"{name}.tar").is_file():
            return tar_stream(self.path / f"{name}.tar", SHAPE)
        if (self.path / name).is_dir():
            return folder_stream(self.path / name, SHAPE)
        raise FileNotFoundError(f"data.path: '{self.path}' has neither {name}.tar nor a folder {name}; {_GET}")

    def build(self, source: Identity, opened: dict[str, list[Stream]]) -> str:
        """Unpack into the flat files."""
        # a tar's pictures are not counted before it is read
        pictures = sum(part.total for parts in opened.values() for part in parts if part.unit == "img")
        self.check_room(pictures * 3 * 64 * 64)
        with PixelWriter(self.folder, self.codec, options=self.options, source=source) as writer:
            for split, parts in opened.items():
                total, unit = sum(part.total for part in parts), parts[0].unit
                bar = tqdm(total=total, unit=unit, unit_scale=True, desc=f"unpack {split}", disable=None)
                for block in (block for part in parts for block in part.blocks()):
                    writer.add(split, block.images, block.labels)
                    bar.update(block.done)
                bar.close()
        return ""
