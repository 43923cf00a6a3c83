"""From documents to ids in shards: in parallel processes, in the order of the documents, gone on with after a kill.

One process reads and writes; the others encode batches of about a million characters and never see a file. What is in
a batch depends on the documents alone, so the shards do not depend on the number of processes.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.loss import Loss
from ggm_lightning.data import encoding
from ggm_lightning.data.documents import Piece
from ggm_lightning.data.encoding import Encoded
from ggm_lightning.data.shard_writer import ShardWriter

_BATCH = 2**20  # characters encoded together
_MARK = 2**26  # characters between two marks: what a kill can cost
_AHEAD = 3  # batches that wait for each process, so that none waits for the reader

Batch = list[tuple[str, Piece]]


def _in_order(codec: Codec, batches: Iterator[Batch], workers: int) -> Iterator[tuple[Batch, Encoded]]:
    if workers <= 1:
        for batch in batches:
            yield batch, encoding.encode(codec, [piece.text for _, piece in batch])
        return
    processes = encoding.Workers(codec, workers)
    waiting: deque[tuple[Batch, Future[Encoded]]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, processes.submit([piece.text for _, piece in batch])))
            if len(waiting) >= _AHEAD * workers:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    finally:
        processes.close()


def _batches(pieces: Iterable[tuple[str, Piece]]) -> Iterator[Batch]:
    batch: Batch = []
    size = 0
    for split, piece in pieces:
        batch.append((split, piece))
        size += len(piece.text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def tokenise(
    writer: ShardWriter,
    pieces: Iterable[tuple[str, Piece]],
    workers: int = 1,
    bar: tqdm | None = None,
    separator: tuple[list[int], int] | None = None,
) -> Loss:
    """Encode (split, piece) in order into the writer's shards, with the separator (ids, characters; the codec's own
    by default, which is asked for where the first two documents meet) between two documents.

    Returns what is lost, which the shards' header keeps. A writer that resumes passes over what it has already:
    `pieces` must be the same as before. With one worker the codec encodes in this process, on all cores if it can.
    """

    @cache
    def between() -> tuple[np.ndarray, int]:
        ids, characters = writer.codec.separator if separator is None else separator
        return np.array(ids, dtype=np.uint32), characters

    state = writer.resumed or {"batches": 0, "loss": {}, "begun": {}, "inside": {}}
    batches = islice(_batches(pieces), state["batches"], None)
    speed = _Speed(writer, bar)
    since_mark = 0
    if workers <= 1:  # explicitly on: else a later fork of loader workers, which never encode, prints a warning
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for batch, encoded in _in_order(writer.codec, batches, workers):
        _write(writer, batch, encoded, between, state)
        state["batches"] += 1
        state["loss"] = (Loss(**state["loss"]) + encoded.loss).to_dict()
        since_mark += sum(len(piece.text) for _, piece in batch)
        if since_mark >= _MARK:
            writer.mark(state)
            since_mark = 0
        speed.show()
    writer.loss = Loss(**state["loss"])
    return writer.loss


def _write(
    writer: ShardWriter,
    batch: Batch,
    encoded: Encoded,
    separator: Callable[[], tuple[np.ndarray, int]],
    state: dict[str, Any],
) -> None:
    """`state` knows of each split how many documents have begun, and whether its last one goes on."""
    start = 0
    parts: list[np.ndarray] = []
    split, documents, characters = batch[0][0], 0, 0

    def add() -> None:
        writer.add(split, np.concatenate(parts), characters=characters, documents=documents)

    for (name, piece), length in zip(batch, encoded.lengths, strict=True):
        if name != split:
            add()
            parts, split, documents, characters = [], name, 0, 0
        opens = not state["inside"].get(split, False)
        begun = state["begun"].get(split, 0)
        if opens and begun:
            between, between_characters = separator()
            parts.append(between)
            characters += between_characters
        parts.append(encoded.ids[start : start + length])
        start += length
        documents += opens
        characters += len(piece.text)
        state["begun"][split], state["inside"][split] = begun + opens, not piece.last
    add()


class _Speed:
    """Documents and tokens per second behind the bar, which itself counts bytes and the time left."""

    def __init__(self, writer: ShardWriter, bar: tqdm | None) -> None:
        self.writer, self.bar = writer, bar
        self.begin, self.first = time.monotonic(), writer.counted("tokens")

    def show(self) -> None:
        if self.bar is None:
            return
        rate = (self.writer.counted("tokens") - self.first) / max(time.monotonic() - self.begin, 1e-9)
        self.bar.set_postfix_str(f"{self.writer.counted('documents'):,} documents, {rate / 1e6:.2f}M tokens/s")
