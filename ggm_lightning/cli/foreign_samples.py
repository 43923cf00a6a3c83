"""Samples that were drawn elsewhere: read and checked before anything is measured.

a file or a folder of them:   .jsonl, a line {"text": ...} or "..." for each sample
                              .json, {"generated_seqs": [...]} as MDLM and its followers write it, or a list
                              .txt, below the headings of `lightning sample`, else a line for each sample
                              .npz of `lightning sample`, which holds ids
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.data.arrays import array_names, read_array
from ggm_lightning.models.base import Family
from ggm_lightning.report.drawing import numbered_texts

_HEADING = re.compile(r"^----- sample \d+ -----$", re.MULTILINE)
_KEYS = ("text", "sample", "generated_text")
_ENDINGS = (".jsonl", ".json", ".txt", ".npz")
_TEXTS = "samples.txt"  # what `lightning sample` writes beside samples.npz
_NAMED = 5  # characters in a line of error


@dataclass(frozen=True)
class Foreign:
    """Samples of equal length.

    Attributes:
        x: Int64[b, n].
        told: what was done to them, in words.
    """

    x: Int64[Tensor, "b n"]
    told: list[str]


def read(path: str, model: Family, lossy: bool = False) -> Foreign:
    """The samples as ids of the model; longer ones are cut to the shortest, and none may be longer than the model's.

    Args:
        path: --samples.
        model: whose codec encodes.
        lossy: whether characters of the model's own data were lost. Then those of samples may be, too, as far as a
            preparation of data allows without being asked.

    Raises ValueError in one line: nothing there, no text, characters or ids outside of the vocabulary, or far too short
    samples.
    """
    files = _files(Path(path))
    told: list[str] = []
    ids = [np.asarray(row) for file in files for row in _rows(file, model, lossy, told)]
    if len(ids) < 2:
        raise ValueError(f"--samples {path}: holds {len(ids)} samples; give at least 2")
    lengths = [len(row) for row in ids]
    longest = model.shape[0]
    shortest = min(lengths)
    if 2 * shortest < longest:
        raise ValueError(
            f"--samples {path}: sample {lengths.index(shortest)} has {shortest} tokens, and rows of the data have "
            f"{longest}; only samples of equal length can be compared: leave out those that are far shorter"
        )
    length = min(shortest, longest)
    cut = sum(lengths) - length * len(ids)
    if cut:
        told.append(f"{cut:,} tokens of the samples behind their first {length:,} are cut")
    if length < longest:
        told.append(f"rows of {length:,} tokens, those of the data cut from {longest:,}")
    return Foreign(torch.from_numpy(np.stack([row[:length] for row in ids]).astype(np.int64)), told)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in _ENDINGS and file.name != "settings.json")
        ids = [file for file in found if file.suffix == ".npz"]
        found = ids or found  # samples.npz and samples.txt of one folder are the same samples
    else:
        found = [path] if path.is_file() else []
    if not found:
        raise ValueError(f"--samples {path}: no file of {', '.join(_ENDINGS)} there")
    return found


def _rows(file: Path, model: Family, lossy: bool, told: list[str]) -> Iterator[Any]:
    """Ids of each sample of a file; what is lost by it is added to `told`."""
    if file.suffix == ".npz":
        yield from _ids(file, model)
        return
    if model.codec is None:
        raise ValueError(f"--samples {file}: the checkpoint has no codec that could encode texts; give ids as .npz")
    texts = []
    for number, text in enumerate(_texts(file)):
        if not isinstance(text, str) or not text:
            raise ValueError(f"--samples {file}: sample {number} is {text!r}, not a text; leave it out")
        texts.append(text)
    try:
        ids, loss = model.codec.encode_measured(texts)
    except ValueError as error:
        raise ValueError(f"--samples {file}: cannot be encoded ({error})") from None
    if loss.lost and (loss.too_much or not lossy):
        number, near = _first_lost(model.codec, texts)
        raise ValueError(
            f"--samples {file}: the checkpoint's tokenizer does not have {loss.share}, the first {near} in sample "
            f"{number}; give samples of the same alphabet, or write them with its characters"
        )
    if loss.lost:
        told.append(f"{loss.share} of the samples are lost, as some of the data: unknown to the tokenizer")
    yield from ids


def _first_lost(codec: Codec, texts: list[str]) -> tuple[int, str]:
    """(number of the first sample that loses characters, which these are). Of a tokenizer of words, of which one
    character says nothing, what becomes of them."""
    losses = (codec.encode_measured([text])[1] for text in texts)
    number, loss = next((i, loss) for i, loss in enumerate(losses) if loss.lost)
    text = texts[number]
    alone = [sign for sign in dict.fromkeys(text) if codec.encode_measured([sign])[1].lost]
    if sum(map(text.count, alone)) == loss.lost:
        return number, ", ".join(map(repr, alone[:_NAMED]))
    return number, f"({loss.first_changed})"


def _ids(file: Path, model: Family) -> np.ndarray:
    try:
        x = read_array(file, "x", kinds="iuf")
        told = "tokenizer_hash" in array_names(file)
        drawn_by = str(read_array(file, "tokenizer_hash", kinds="U")) if told else None
    except ValueError as error:
        raise ValueError(f"--samples {error}") from None
    if x.ndim != 2 or (x.dtype.kind == "f" and not np.array_equal(x, np.floor(x))):  # NaN is not equal to itself
        raise ValueError(f"--samples {file}: x is {x.dtype} of shape {x.shape}; give whole numbers [samples, tokens]")
    if x.size and (x.min() < 0 or x.max() >= model.num_classes):
        raise ValueError(f"--samples {file}: ids lie in {x.min()}..{x.max()}, not in 0..{model.num_classes - 1}")
    x = x.astype(np.int64)
    if model.codec is not None and _of_another_tokenizer(file, x, drawn_by, model.codec):
        raise ValueError(
            f"--samples {file}: its ids are of another tokenizer than the checkpoint's; give a checkpoint of the same "
            f"data, or the texts alone (such as {file.with_name(_TEXTS)}), which are then encoded anew"
        )
    return x


def _of_another_tokenizer(file: Path, x: Int64[np.ndarray, "b n"], drawn_by: str | None, codec: Codec) -> bool:
    """By the hash that `lightning sample` writes; of an older folder by the texts that lie beside the ids, where they
    do. Other ids are believed."""
    texts = file.with_name(_TEXTS)
    if drawn_by is not None or file.name != "samples.npz" or not texts.is_file():
        return drawn_by not in (None, codec.tokenizer_hash)
    written = numbered_texts(codec.decode(x)).replace("\r\n", "\n").replace("\r", "\n")  # as files are read
    return texts.read_text(encoding="utf-8", errors="replace") != written


def _texts(file: Path) -> list[Any]:
    try:
        content = file.read_text(encoding="utf-8")
        if file.suffix == ".jsonl":
            return [_of_item(json.loads(line)) for line in content.splitlines() if line.strip()]
        if file.suffix == ".json":
            whole = json.loads(content)
            items = whole.get("generated_seqs") if isinstance(whole, dict) else whole
            if not isinstance(items, list):
                raise ValueError("no list `generated_seqs` in it")
            return [_of_item(item) for item in items]
    except (OSError, ValueError) as error:
        raise ValueError(f"--samples {file}: cannot be read ({' '.join(str(error).split())})") from None
    if _HEADING.search(content):
        return [part.strip("\n") for part in _HEADING.split(content)[1:]]
    return [line for line in content.splitlines() if line.strip()]


def _of_item(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    return next((item[key] for key in _KEYS if key in item), None)
