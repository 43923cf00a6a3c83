"""A user's own text: .txt or .jsonl files, tokenised once into shards (data/tokens.py), read as windows.

data:
  class_path: ggm_lightning.data.text.TextData
  init_args: {train: my_text.txt}
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from tqdm import tqdm

from ggm_lightning.data.base import DiscreteData
from ggm_lightning.data.codecs import Bytes, Characters, Codec, Subwords, dict_hash
from ggm_lightning.data.documents import (
    Piece,
    Survey,
    find_files,
    fingerprint,
    held_out_last,
    read_documents,
    survey,
)
from ggm_lightning.data.header import staleness
from ggm_lightning.data.rows import RowSource
from ggm_lightning.data.tokens import ShardWriter, TokenShards, Windows, folder_lock

_BATCH = 2**22  # characters encoded together: enough to keep all cores busy, small beside the memory


def tokenise(writer: ShardWriter, pieces: Iterable[tuple[str, Piece]]) -> None:
    """Encode (split, piece) in order into the writer's shards, with the codec's separator between two documents."""
    separator, separator_characters = writer.codec.separator
    between = np.array(separator, dtype=np.int64)
    begun: dict[str, int] = {}
    inside: dict[str, bool] = {}

    def flush(batch: list[tuple[str, Piece]]) -> None:
        for (split, piece), ids in zip(batch, writer.codec.encode_batch([p.text for _, p in batch]), strict=True):
            opens = not inside.get(split, False)
            if opens and begun.get(split):
                writer.add(split, between, characters=separator_characters)
            writer.add(split, ids, characters=len(piece.text), documents=int(opens))
            begun[split] = begun.get(split, 0) + opens
            inside[split] = not piece.last

    batch: list[tuple[str, Piece]] = []
    waiting = 0
    for split, piece in pieces:
        batch.append((split, piece))
        waiting += len(piece.text)
        if waiting >= _BATCH:
            flush(batch)
            batch, waiting = [], 0
    flush(batch)


def describe(shards: TokenShards) -> str:
    """Counts of every split, for the one line that a preparation prints."""
    return "; ".join(
        f"{split} {shards.documents(split):,} document(s), {shards.characters(split):,} characters, "
        f"{shards.tokens(split):,} tokens"
        for split in shards.header["splits"]
    )


class TextData(DiscreteData):
    """Windows of a user's text.

    Documents follow each other, separated by the tokenizer's `<|endoftext|>` where it has one and by a newline where
    not (by a space in an alphabet without newline). Large .txt files are encoded in pieces of about a million
    characters that end at a line's end.

    Args:
        train: path or glob of .txt or .jsonl files, or a list of them.
        val: the same for validation; None: the last part of `train` is held out.
        val_fraction: how much: of the documents where there are several, else of the characters.
        tokenizer: "bytes", "characters", or the path of a `tokenizers` JSON or of a folder with a tokenizer.json.
        alphabet: of "characters"; None: printable ASCII and newline. Others become U+FFFD and are counted.
        text_key: the field of a .jsonl line.
        length: tokens per example.
        stride: distance between two training windows; None: `length`. Validation windows never overlap.
        folder: of the shards; None: runs/data/<name>-<hash of the options>.
        batches: global_batch_size, max_batch_per_device, eval_batch_size, num_workers, seed (see DiscreteData).
    """

    def __init__(
        self,
        train: str | list[str],
        val: str | list[str] | None = None,
        val_fraction: float = 0.05,
        tokenizer: str = "bytes",
        alphabet: str | None = None,
        text_key: str = "text",
        length: int = 256,
        stride: int | None = None,
        folder: str | None = None,
        **batches: Any,
    ) -> None:
        super().__init__(**batches)
        if val is None and not 0 < val_fraction < 1:
            raise ValueError(f"data.val_fraction is {val_fraction}; it must lie between 0 and 1, or give data.val")
        if alphabet is not None and tokenizer != "characters":
            raise ValueError(f"data.alphabet is for data.tokenizer: characters, not {tokenizer!r}; leave one out")
        self.train, self.val, self.val_fraction, self.tokenizer = train, val, val_fraction, tokenizer
        self.alphabet, self.text_key, self.length, self.stride = alphabet, text_key, length, stride
        self._given_folder = folder
        self._codec: Codec | None = None

    @property
    def codec(self) -> Codec:
        if self._codec is None:
            self._codec = self._make_codec()
        return self._codec

    def _make_codec(self) -> Codec:
        if self.tokenizer == "bytes":
            return Bytes()
        if self.tokenizer == "characters":
            return Characters() if self.alphabet is None else Characters(self.alphabet)
        path = Path(self.tokenizer).expanduser()
        path = path / "tokenizer.json" if path.is_dir() else path  # a model's folder, as an encoder's source
        if not path.is_file():
            raise FileNotFoundError(f"data.tokenizer: no file '{path}'; give bytes, characters, or a tokenizer.json")
        try:
            return Subwords(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"data.tokenizer: {path}: {error}") from None

    @property
    def num_classes(self) -> int:
        return self.codec.num_classes

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def options(self) -> dict[str, Any]:
        """What the shards depend on besides the tokenizer and the files' contents."""
        held_out = self.val_fraction if self.val is None else None
        return {"text_key": self.text_key, "val_fraction": held_out}

    @property
    def folder(self) -> Path:
        if self._given_folder is not None:
            return Path(self._given_folder)
        first = self.train if isinstance(self.train, str) else self.train[0]
        name = Path(first).stem.replace("*", "").strip("-_.") or "text"
        key = dict_hash([self.train, self.val, self.codec.tokenizer_hash, self.options])
        return Path("runs/data") / f"{name}-{key[:8]}"

    def prepare_data(self) -> None:
        """Tokenise into `folder`, unless what lies there was made from the same files, options and tokenizer."""
        paths = {"train": find_files(self.train, "train")}
        if self.val is not None:
            paths["val"] = find_files(self.val, "val")
        source = [{"split": split, **fingerprint(path)} for split, files in paths.items() for path in files]
        with folder_lock(self.folder):
            reason = staleness(
                self.folder, options=self.options, source=source, tokenizer_hash=self.codec.tokenizer_hash
            )
            if reason is None:
                rank_zero_info(f"{self.folder}: kept ({describe(TokenShards(self.folder))})")
                return
            before = getattr(self.codec, "replaced", 0)
            self._build(paths, source)
        replaced = getattr(self.codec, "replaced", 0) - before
        note = f"; {replaced:,} characters outside the alphabet became U+FFFD" if replaced else ""
        rank_zero_info(f"{self.folder}: built ({reason}): {describe(TokenShards(self.folder))}{note}")

    def _build(self, paths: dict[str, list[Path]], source: list[dict[str, Any]]) -> None:
        # Explicitly on: else a later fork of loader workers, which never tokenise, prints a warning about deadlocks.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        counts = {split: self._survey(split, files) for split, files in paths.items()}
        total = sum(count.bytes for count in counts.values())
        with (
            ShardWriter(self.folder, self.codec, options=self.options, source=source) as writer,
            tqdm(total=total, unit="B", unit_scale=True, desc="tokenise", disable=None) as bar,
        ):
            tokenise(writer, self._routed(paths, counts["train"], bar))

    def _survey(self, split: str, files: list[Path]) -> Survey:
        size = sum(path.stat().st_size for path in files)
        with tqdm(total=size, unit="B", unit_scale=True, desc=f"count {split}", disable=None) as bar:
            counts = survey(files, self.text_key, bar.update)
        needed = 2 if split == "train" and self.val is None else 1
        if counts.characters < needed:
            raise ValueError(f"data.{split}: {files[0]}: {counts.characters} characters of text in all; give more text")
        return counts

    def _routed(self, paths: dict[str, list[Path]], counts: Survey, bar: tqdm) -> Iterator[tuple[str, Piece]]:
        pieces = (piece for path in paths["train"] for piece in read_documents(path, self.text_key, bar.update))
        if self.val is None:
            yield from held_out_last(pieces, counts, self.val_fraction)
            return
        yield from (("train", piece) for piece in pieces)
        for path in paths["val"]:
            yield from (("val", piece) for piece in read_documents(path, self.text_key, bar.update))

    def load(self, split: str) -> RowSource:
        codec = self.codec
        shards = TokenShards(self.folder).require(num_classes=codec.num_classes, tokenizer_hash=codec.tokenizer_hash)
        return Windows(shards, split, self.length, self.stride if split == "train" else None)

    @property
    def characters_per_token(self) -> float | None:
        shards = TokenShards(self.folder)
        return shards.characters("val") / shards.tokens("val")
