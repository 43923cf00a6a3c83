"""Latents computed once: what a frozen encoder says about each row, in a memory-mapped file beside the data.

    encoder = PretrainedEncoder("models/qwen3", num_latents=64, latent_dim=32)
    for split in ("train", "val"):
        cache_latents(encoder, data.rows(split), f"runs/latents/{split}.npy")

and then `data.init_args.latents: runs/latents`: batches hold them as `latent`, and training never runs the encoder. Nor
can it hide tokens from it then (the corruption p_r of arXiv 2510.18114).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from tqdm import tqdm

from ggm_lightning.core.arguments import shown, whole_number
from ggm_lightning.data.rows import RowSource


@runtime_checkable
class Identified(Protocol):
    """An encoder that says itself what tells it from others."""

    def identity(self) -> str:
        """Of its weights and settings."""


FORMAT = 2  # of the note beside the latents; 1, without a number, did not say which encoder made them
_LOOKED_AT = 64  # rows whose ids tell one data set from another


def rows_hash(rows: RowSource) -> str:
    """sha256 of the number of rows and of the ids of up to 64 of them, evenly spaced: other tokenizers, lengths,
    strides and files give another one."""
    index = np.unique(np.linspace(0, len(rows) - 1, _LOOKED_AT).astype(np.int64))
    ids = rows[index]["x"].numpy()
    return hashlib.sha256(json.dumps([len(rows), *ids.shape]).encode() + ids.tobytes()).hexdigest()


def encoder_identity(encoder: object) -> str | None:
    """16 digits that tell an encoder from others of the same shape: what its method `identity()` says, or of a module
    its class and its parameters (not the buffers: statistics of the data are set after training began). None: a plain
    function, of which nothing can be told."""
    if isinstance(encoder, Identified):
        return str(encoder.identity())
    if not isinstance(encoder, nn.Module):
        return None
    digest = hashlib.sha256(f"{type(encoder).__module__}.{type(encoder).__qualname__}".encode())
    for name, parameter in sorted(encoder.named_parameters()):
        digest.update(f"{name}{list(parameter.shape)}".encode())
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _note(path: Path) -> Path:
    return path.with_suffix(".json")


def cache_latents(
    encoder: Callable[[Tensor], Tensor],
    rows: RowSource,
    path: str | Path,
    batch_size: int = 64,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
) -> Path:
    """Write encoder(x), Float[b, S, d], of every row to `path` (.npy), and beside it (.json) of which rows they are and
    by which encoder.

    The file appears under its name when it is complete. float16 halves it.

    Raises:
        ValueError: `path` does not end in .npy, there are no rows, or an argument or the encoder's answer is of another
            kind than stated here.
    """
    if not callable(encoder):
        raise ValueError(f"encoder is {shown(encoder)}; give what can be called with ids Int64[b, n]")
    if not isinstance(rows, RowSource):
        raise ValueError(f"rows is {shown(rows)}; give the rows of a split, as data.rows('train') returns them")
    if not isinstance(path, str | Path):
        raise ValueError(f"path is {shown(path)}; give the path of a .npy")
    whole_number("batch_size", batch_size, 1)
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype is {shown(dtype)}; choose 'float32' or 'float16'")
    path = Path(path)
    if path.suffix != ".npy" or len(rows) == 0:
        raise ValueError(f"{path}: latents of {len(rows)} rows; give a name that ends in .npy, and a split with rows")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".npy.tmp")
    out: np.memmap | None = None
    for start in tqdm(range(0, len(rows), batch_size), desc=f"encode {path.name}", unit="batch", disable=None):
        index = np.arange(start, min(start + batch_size, len(rows)))
        with torch.no_grad():
            encoded = encoder(rows[index]["x"].to(device))
        _check_latent(encoded, len(index))
        latent = encoded.float().cpu().numpy()
        if out is None:
            shape = (len(rows), *latent.shape[1:])
            out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.dtype(dtype), shape=shape)
        out[index] = latent
    out.flush()  # type: ignore[union-attr]
    note = {"format": FORMAT, "rows": rows_hash(rows), "encoder": encoder_identity(encoder)}
    _note(path).write_text(json.dumps(note))
    os.replace(temporary, path)
    return path


def _check_latent(latent: object, count: int) -> None:
    if not isinstance(latent, Tensor) or latent.dim() != 3 or len(latent) != count:
        raise ValueError(f"the encoder returned {shown(latent)}; it must be a tensor of shape ({count}, S, d)")


class CachedLatents(RowSource):
    """The rows of another source, each with its latent: {"x", "latent": Float32[b, S, d], ...}.

    Raises FileNotFoundError without the file, ValueError if it was made of other rows.
    """

    def __init__(self, rows: RowSource, path: str | Path) -> None:
        self.rows, self.path = rows, Path(path)
        if not (self.path.is_file() and _note(self.path).is_file()):
            raise FileNotFoundError(f"{path}: no latents; make them with ggm_lightning.data.latents.cache_latents")
        self._open()
        try:
            made_of = json.loads(_note(self.path).read_text())["rows"]
        except (ValueError, LookupError, TypeError):
            raise ValueError(f"{_note(self.path)}: does not say which rows; make the latents again") from None
        self.encoder: str | None = json.loads(_note(self.path).read_text()).get("encoder")
        if made_of != rows_hash(rows) or len(self.latent) != len(rows):
            raise ValueError(f"{path}: latents of other rows; make them again with the tokens that are now configured")

    def check_model(self, model: nn.Module) -> None:
        """ValueError if another encoder than the model's made these latents."""
        encoder = dict(model.named_children()).get("encoder")
        if encoder is not None:
            self.check_encoder(encoder)

    def check_encoder(self, encoder: object) -> None:
        """ValueError unless these latents are of that encoder, as far as both can be told."""
        own = encoder_identity(encoder)
        if own is None or self.encoder is None:
            rank_zero_info(f"{self.path}: which encoder made these latents is not known; they are taken as they are")
        elif own != self.encoder:
            raise ValueError(
                f"{self.path}: latents of another encoder ({self.encoder}, the model's is {own}); make them again with "
                "ggm_lightning.data.latents.cache_latents, or leave data.latents out"
            )

    def _open(self) -> None:
        try:
            self.latent = np.load(self.path, mmap_mode="r")
        except (ValueError, OSError, EOFError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{self.path}: cannot be read as .npy ({reason}); make the latents again") from None

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "latent"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open()  # a worker maps the file itself: a pickled map would be a copy of it

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, index: np.ndarray) -> dict[str, Tensor]:
        latent = torch.from_numpy(np.asarray(self.latent[index], dtype=np.float32))
        return {**self.rows.fetch(index), "latent": latent}

    def storage(self) -> Iterator[tuple[str, np.ndarray]]:
        return self.rows.storage()

    def labels(self) -> Iterator[tuple[str, np.ndarray]]:
        return self.rows.labels()
