"""A small text in every format that is read, and its preparation."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ggm_lightning.data.text import TextData
from ggm_lightning.data.tokens import TokenShards

TEXTS = [f"document {i}, naïve ☃ {'and so on ' * (i % 11)}" for i in range(211)]


def json_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def write(folder: Path, name: str, texts: list[str] = TEXTS) -> Path:
    path = folder / name
    raw = json_lines(texts)
    if name.endswith(".parquet"):
        column = pa.array(texts)
        if name.startswith("categories"):  # as pandas writes a column of categories
            column = column.dictionary_encode()
        pq.write_table(pa.table({"url": ["u"] * len(texts), "text": column}), path, row_group_size=64)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(raw))
    elif name.endswith(".zst"):
        half = raw.index(b"\n", len(raw) // 2) + 1  # two frames, as parallel packers write them
        path.write_bytes(b"".join(pa.compress(part, "zstd", asbytes=True) for part in (raw[:half], raw[half:])))
    else:
        path.write_bytes(raw)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def prepared(path: Path | str, folder: Path, **kwargs: Any) -> TextData:
    data = TextData(str(path), **{"length": 8, "folder": str(folder), **kwargs})
    data.prepare_data()
    return data


def ids(data: TextData, split: str = "train") -> np.ndarray:
    shards = TokenShards(data.folder)
    return shards.read(split, np.array([0]), shards.tokens(split))[0]
