"""Pictures as the codes of a VQGAN (arXiv 2012.09841): encoded once into shards, and decoded where they are shown.

    data:
      class_path: ggm_lightning.vqgan.codes.VQGANCodes
      init_args: {source: data/ffhq, vqgan: data/vqgan_imagenet_f16_1024}

A row is Int64[1, h, w], the codes of one picture (16x16 for a picture of 256x256 and f = 16), with an axis in front so
that networks for pictures (U-ViT, U-Net) take it as well. The folder holds shards of
uint16 (data/tokens.py) and beside.npz: the classes, and some held-out pictures as they were, to be shown beside their
reconstructions. Checkpoints of a model of codes name the VQGAN by path and sha256; its weights are not in them.
"""

from __future__ import annotations

import math
import os
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64, Integer, UInt8
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from tqdm import tqdm

from ggm_lightning.codecs.codec import Codec, dict_hash
from ggm_lightning.codecs.pictures import MASKED_GREY, MIDDLE_GREY
from ggm_lightning.data import header as headers
from ggm_lightning.data.picture_files import FILTERS
from ggm_lightning.data.picture_sources import DIGITS, Fit, Source, open_source, readable, say_left_out
from ggm_lightning.data.prepared import Identity, PreparedData
from ggm_lightning.data.rows import BadData, RowSource
from ggm_lightning.data.shard_writer import ShardWriter
from ggm_lightning.data.tokens import TokenShards
from ggm_lightning.metrics.codebook import decibels, perplexity
from ggm_lightning.vqgan.files import VQGANFile, find, load, weights_hash

BESIDE = "beside.npz"
_KEPT_BYTES = 2**24  # of held-out pictures
_MARK_SECONDS = 20.0  # what a killed preparation loses at most

Sources = dict[str, tuple[Source, np.ndarray]]  # split -> (pictures, the numbers of those that belong to it)


class Codes(Codec):
    """Codes of a VQGAN: ids [b, h, w] <-> pictures.

    The patch of a masked code is shown in violet (grey pictures) or middle grey (colours); for its neighbours' sake the
    decoder sees the mean of the codebook there.

    Args:
        vqgan: the path as it was given; it is also looked for at `absolute`.
        num_classes: codes. shape: (h, w). picture: (channels, side, side). sha256: of the weights' file.
    """

    def __init__(
        self,
        vqgan: str,
        absolute: str,
        num_classes: int,
        shape: tuple[int, ...],
        picture: tuple[int, ...],
        sha256: str,
    ) -> None:
        self.vqgan, self.absolute, self.sha256 = vqgan, absolute, sha256
        self.num_classes, self.shape, self.picture = num_classes, tuple(shape), tuple(picture)
        self.batch_size = max(1, 2**21 // (self.picture[1] * self.picture[2]))  # 32 pictures of 256x256

    def identity(self) -> dict[str, Any]:
        """The weights and the sizes; where the file lies does not matter."""
        return {
            "kind": "vqgan",
            "num_classes": self.num_classes,
            "shape": list(self.shape),
            "picture": list(self.picture),
            "sha256": self.sha256,
        }

    @property
    def network(self) -> Any:
        """The VQGAN on the GPU where there is one. FileNotFoundError, ValueError: gone, or another one by now."""
        for place in (self.vqgan, self.absolute):
            file = find(place) if Path(place).expanduser().exists() else None
            if file is None or not file.weights.is_file():
                continue
            found = weights_hash(file)
            if found != self.sha256:
                raise ValueError(
                    f"{file.weights}: sha256 {found[:12]}.., but the codes are of the VQGAN {self.sha256[:12]}..; put "
                    "that one back, or prepare the codes and train anew"
                )
            return load(file, "cuda" if torch.cuda.is_available() else "cpu")
        raise FileNotFoundError(
            f"'{self.vqgan}': the VQGAN that makes pictures of these codes is not there (sha256 {self.sha256[:12]}..); "
            "put it back"
        )

    @torch.no_grad()
    def encode_pictures(self, pictures: UInt8[np.ndarray, "b c side side"]) -> Int64[np.ndarray, "b h w"]:
        from ggm_lightning.vqgan.network import scaled

        network = self.network
        device = next(network.parameters()).device
        parts = [
            network.codes(scaled(torch.from_numpy(pictures[i : i + self.batch_size].copy()).to(device))).cpu().numpy()
            for i in range(0, len(pictures), self.batch_size)
        ]
        return np.concatenate(parts)

    def sites_of(self, pixels: Bool[np.ndarray, "side side"]) -> Bool[np.ndarray, "h w"]:
        """The codes whose patch holds one of the pixels."""
        height, width = self.shape
        patches = pixels.reshape(height, self.picture[1] // height, width, self.picture[2] // width)
        return np.asarray(patches.any(axis=(1, 3)))

    @torch.no_grad()
    def decode(  # type: ignore[override]
        self, x: Integer[Tensor, " b *s"] | Integer[np.ndarray, " b *s"]
    ) -> UInt8[np.ndarray, "b side side 3"]:
        """Pictures, grey ones with three equal channels. ValueError: another number of sites, an id outside 0..V."""
        from ggm_lightning.vqgan.network import pixels

        flat = self._checked(x)
        if flat.shape[1] != self.shape[0] * self.shape[1]:
            raise ValueError(f"Codes: {flat.shape[1]} codes per row, but pictures have {list(self.shape)}")
        network = self.network
        device = next(network.parameters()).device
        ids = torch.from_numpy(flat.reshape(-1, *self.shape)).to(device)
        masked = ids == self.num_classes
        starts = range(0, len(ids), self.batch_size)
        out = []
        for i in tqdm(starts, desc="decode", unit="batch", delay=10, leave=False, disable=None):
            part = slice(i, i + self.batch_size)
            out.append(pixels(network.decode(ids[part].masked_fill(masked[part], 0), masked[part])).cpu())
        pictures = torch.cat(out).permute(0, 2, 3, 1).numpy()
        return self._blanked(np.repeat(pictures, 3, -1) if self.picture[0] == 1 else pictures, masked.cpu().numpy())

    def _blanked(self, pictures: np.ndarray, masked: np.ndarray) -> np.ndarray:
        patch = self.picture[1] // self.shape[0]
        hidden = masked.repeat(patch, 1).repeat(patch, 2)[..., None]
        colour = MASKED_GREY if self.picture[0] == 1 else (MIDDLE_GREY,) * 3
        return np.where(hidden, np.array(colour, np.uint8), pictures)

    def pieces(self, ids: Any, blank: str = "") -> list[str]:
        raise ValueError("Codes: a single code is no picture; decode the whole state, masks included")


class CodeRows(RowSource):
    """Rows of codes, and their classes where they have some."""

    def __init__(
        self, shards: TokenShards, split: str, grid: tuple[int, ...], label: Int64[np.ndarray, " rows"] | None
    ) -> None:
        self.shards, self.split, self.grid, self.label = shards, split, grid, label
        self.sites = grid[0] * grid[1]

    def __len__(self) -> int:
        return self.shards.tokens(self.split) // self.sites

    def fetch(self, index: np.ndarray) -> dict[str, Tensor]:
        codes = self.shards.read(self.split, index * self.sites, self.sites)
        batch = {"x": torch.from_numpy(codes.reshape(-1, 1, *self.grid))}
        if self.label is not None:
            batch["label"] = torch.from_numpy(self.label[index])
        return batch

    def storage(self) -> Any:
        return self.shards.storage(self.split)

    def labels(self) -> Any:
        if self.label is not None:
            yield str(self.shards.folder / BESIDE), self.label


class VQGANCodes(PreparedData):
    """Codes 0..V-1 on the VQGAN's grid, (1, h, w); only the digits have labels.

    Args:
        source: a folder of pictures (with what is below it, linked folders too; hidden files and other kinds are left
            out), an uncompressed .tar, an .npz with x, or `digits`.
        vqgan: the folder of a released VQGAN (configs/model.yaml, ckpts/last.ckpt), a released .ckpt with its .yaml
            beside it, or the checkpoint of a run of vqgan/training.py.
        val: pictures to validate on, as `source`; None: every `val_every`-th of `source` is held out (of the digits
            the 297 that data/toy/digits.py holds out).
        resize: of pictures larger than the VQGAN's: bilinear, bicubic, box or lanczos; Pillow's, antialiased.
        on_error: at a picture that cannot be read or is refused (data/picture_bytes.py) "stop", or "skip" it; the
            skipped ones are counted and said. All pictures are then read twice.
        folder: of the shards; None: runs/data/codes-<hash of the options>, and of another VQGAN that lies at the same
            path by now, a folder of its own. Once they are there, `source` may go.
        batches: global_batch_size, max_batch_per_device, eval_batch_size, num_workers, seed (see DiscreteData).
    """

    def __init__(
        self,
        source: str,
        vqgan: str,
        val: str | None = None,
        val_every: int = 20,
        resize: str = "lanczos",
        on_error: str = "stop",
        folder: str | None = None,
        **batches: Any,
    ) -> None:
        super().__init__(**batches)
        if resize not in FILTERS:
            raise ValueError(f"data.resize is {resize!r}; choose one of {', '.join(FILTERS)}")
        if on_error not in ("stop", "skip"):
            raise ValueError(f"data.on_error is {on_error!r}; it must be stop or skip")
        if val_every < 2:
            raise ValueError(f"data.val_every is {val_every}; at least 2, or nothing would be left to train on")
        self.source, self.vqgan, self.val, self.val_every, self.resize = source, vqgan, val, val_every, resize
        self.on_error, self._given_folder = on_error, folder
        self.file: VQGANFile = find(vqgan)

    @property
    def num_classes(self) -> int:
        return self.file.num_codes

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, *self.file.grid)

    @property
    def num_labels(self) -> int | None:
        return 10 if self.source == DIGITS and self.val is None else None

    @property
    def codec(self) -> Codes:
        absolute = str(Path(self.vqgan).expanduser().resolve())
        sha256 = weights_hash(self.file)
        return Codes(self.vqgan, absolute, self.num_classes, self.file.grid, self.file.picture, sha256)

    @property
    def options(self) -> dict[str, Any]:
        """What the shards depend on besides the pictures and the weights."""
        options = {"resize": self.resize, "val_every": None if self.val else self.val_every}
        # where nothing may be skipped, the folders of earlier versions are the same
        return options | ({"on_error": "skip"} if self.on_error == "skip" else {})

    @property
    def folder(self) -> Path:
        if self._given_folder is not None:
            return Path(self._given_folder)
        folder = Path("runs/data") / f"codes-{dict_hash([self.source, self.val, self.vqgan, self.options])[:8]}"
        other = headers.other_owner(folder, options=self.options, tokenizer_hash=self.codec.tokenizer_hash)
        # the codes of a VQGAN that lay at the same path before stay as they are
        return folder if other is None else folder.with_name(f"{folder.name}-{weights_hash(self.file)[:8]}")

    def open_source(self) -> tuple[Identity, Sources]:
        sources = self._open()
        return [source.identity for source, _ in sources.values()], sources

    def _open(self) -> Sources:
        fit = Fit(self.file.picture[0], self.file.picture[1], self.resize)
        train = open_source(self.source, fit)
        every = np.arange(train.size)
        if self.val is not None:
            other = open_source(self.val, fit, "data.val")
            return {"train": (train, every), "val": (other, np.arange(other.size))}
        last = every >= train.size - train.held_out
        held_out = last if train.held_out else every % self.val_every == self.val_every - 1
        if not held_out.any():
            raise ValueError(
                f"data.val_every is {self.val_every}, but {self.source} has {train.size} pictures: none would be held "
                "out; make it smaller, or give data.val"
            )
        return {"train": (train, every[~held_out]), "val": (train, every[held_out])}

    def build(self, source: Identity, opened: Sources) -> str:
        """Encode; goes on where a killed preparation stopped."""
        codec, notes = self.codec, []
        with (
            ThreadPoolExecutor() as pool,  # Pillow decodes outside the interpreter's lock
            ShardWriter(self.folder, codec, options=self.options, source=source) as writer,
        ):
            if self.on_error == "skip":
                kept = {split: readable(*chosen, split, pool.map) for split, chosen in opened.items()}
                opened = {split: (opened[split][0], index) for split, (index, _) in kept.items()}
                notes = [note for _, note in kept.values() if note]
            places = {"train": self.source} if self.val is None else {"train": self.source, "val": self.val}
            for split, place in places.items():
                say_left_out(place, opened[split][0].left_out)
            done = writer.resumed or {}
            if done:
                rank_zero_info(f"{self.folder}: goes on after {sum(done.values()):,} pictures")
            for split, (pictures, index) in opened.items():
                encode = _Encoder(codec, writer, pictures, pool.map)
                encode.all(split, index, done)
            self._write_beside(opened, source, codec)
        return "".join(f"; {note}" for note in [*notes, self._quality()])

    def _write_beside(self, sources: Sources, identities: Identity, codec: Codes) -> None:
        """Before the header, so that it is there whenever the shards load."""
        source, index = sources["val"]
        count = max(1, min(len(index), _KEPT_BYTES // int(np.prod(codec.picture))))
        arrays: dict[str, Any] = {"pictures": np.stack([source.read(i) for i in index[:count].tolist()])}
        for split, (pictures, chosen) in sources.items():
            if pictures.labels is not None:
                arrays[f"{split}_label"] = pictures.labels[chosen]
        arrays["made_of"] = np.array(self._made_of(codec, identities))
        temporary = self.folder / f"{BESIDE}.tmp"
        with open(temporary, "wb") as handle:
            np.savez(handle, **arrays)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, self.folder / BESIDE)

    def _made_of(self, codec: Codes, identities: Identity) -> str:
        return dict_hash([codec.tokenizer_hash, self.options, identities])

    @cached_property
    def _beside(self) -> dict[str, np.ndarray]:
        path, header = self.folder / BESIDE, headers.read_header(self.folder)
        try:
            with np.load(path, allow_pickle=False) as found:
                arrays = dict(found)
            if str(arrays["made_of"]) != self._made_of(self.codec, header["source"]):
                raise ValueError("of other shards")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise BadData(f"{path}: {error}; delete {self.folder} and prepare it again") from None
        return arrays

    @property
    def originals(self) -> UInt8[np.ndarray, "k side side 3"]:
        """The pictures behind the first k held-out rows, as they were before they became codes."""
        pictures = self._beside["pictures"].transpose(0, 2, 3, 1)
        return np.repeat(pictures, 3, -1) if pictures.shape[-1] == 1 else pictures

    def describe(self) -> str:
        shards, sites = TokenShards(self.folder), math.prod(self.shape)
        counts = ", ".join(f"{split} {shards.tokens(split) // sites:,}" for split in shards.header["splits"])
        return f"codes of pictures: {counts}"

    def _quality(self) -> str:
        """Codebook use in the held-out pictures, and how well some of them come back."""
        self.__dict__.pop("_beside", None)
        rows, few = self.load("val"), len(self.originals[:32])
        codes = rows[np.arange(len(rows))]["x"]
        counts = torch.bincount(codes.reshape(-1), minlength=self.num_classes)
        difference = (self.codec.decode(codes[:few]) / 127.5) - (self.originals[:few] / 127.5)
        used = f"{int((counts > 0).sum()):,} of {self.num_classes:,} codes used (perplexity {perplexity(counts):.1f})"
        return f"{used}, reconstruction {decibels(float(np.square(difference).mean()) or 1e-12):.1f} dB, held out"

    def verify(self) -> str:
        """See DiscreteData.verify."""
        TokenShards(self.folder).verify()
        return f"{self.folder}: {len(self._beside)} arrays and all shards are as they were written"

    def load(self, split: str) -> RowSource:
        shards = TokenShards(self.folder).require(
            num_classes=self.num_classes, tokenizer_hash=self.codec.tokenizer_hash
        )
        return CodeRows(shards, split, self.file.grid, self._beside.get(f"{split}_label"))


class _Encoder:
    """Encodes a split in blocks that are always the same, so that a resumed preparation gives equal bytes."""

    def __init__(self, codec: Codes, writer: ShardWriter, source: Source, each: Callable[..., Any]) -> None:
        self.codec, self.writer, self.source, self.each = codec, writer, source, each

    def all(self, split: str, index: np.ndarray, done: dict[str, int]) -> None:
        """Adds what is not yet in `done` (split -> pictures), which is kept up to date."""
        first, marked = done.get(split, 0), time.monotonic()
        bar = tqdm(total=len(index), initial=first, unit="img", desc=f"encode {split}", disable=None)
        for start in range(first, len(index), self.codec.batch_size):
            block = index[start : start + self.codec.batch_size]
            pictures = np.stack(list(self.each(self.source.read, block.tolist())))
            codes = self.codec.encode_pictures(pictures)
            self.writer.add(split, codes.reshape(-1), documents=len(block))
            done[split] = start + len(block)
            bar.update(len(block))
            if time.monotonic() - marked > _MARK_SECONDS:
                self.writer.mark(done)
                marked = time.monotonic()
        bar.close()
