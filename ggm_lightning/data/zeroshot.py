"""Text that a model was not trained on, cut into blocks as published zero-shot perplexities are measured on them.

data:
  class_path: ggm_lightning.data.zeroshot.ZeroShotText
  init_args: {dataset: lambada, path: data/lambada}

Every example is detokenised (data/detokenise.py), encoded on its own and followed by the end-of-text; the examples of a
group are strung together and cut into blocks of `length` tokens, and what is left at the end of the group is dropped.
That is the protocol of SEDD (arXiv 2310.16834, data.py). A block's bound is not conditioned on the block before it.
MDLM (arXiv 2406.07524, dataloader.py, `_group_texts`) cuts blocks of `length` - 2 tokens and puts one token in front of
each and one behind it, which are masked and counted like the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ggm_lightning.codecs.codec import Codec, dict_hash
from ggm_lightning.codecs.loss import Loss
from ggm_lightning.data.detokenise import RULES
from ggm_lightning.data.fingerprints import fingerprint
from ggm_lightning.data.hub import HUB
from ggm_lightning.data.prepared import Identity, PreparedData
from ggm_lightning.data.rows import RowSource
from ggm_lightning.data.shard_writer import ShardWriter
from ggm_lightning.data.text import describe, read_codec, refuse_loss, token_named
from ggm_lightning.data.tokens import TokenShards, Windows
from ggm_lightning.data.zeroshot_sets import SETS, find, from_hub, reader

PROTOCOLS = ("sedd", "mdlm")
_TOGETHER = 1000  # examples that are encoded at once where there are no groups

Example = tuple[np.ndarray, int]  # ids with the end-of-text, characters


class ZeroShotText(PreparedData):
    """Blocks of one set; there is nothing to train on. "val" and "test" are the same rows.

    Args:
        dataset: lambada, wikitext2, wikitext103, ptb or lm1b (data/zeroshot_sets.py has their rules and sources).
        path: a folder with the usual raw file or the hub's parquet; or the file, a glob or a list; or hub: (hub:NAME
            for another copy there), which `datasets` downloads. None: data/<dataset>.
        part: train, valid or test. None: the one that figures are published of, which is test except for WikiText-2,
            whose test part is WikiText-103's.
        tokenizer: as for TextData. None: that of the checkpoint, which `lightning evaluate` fills in.
        length: tokens per block. None: the model's.
        group: examples that are strung together before the rest is dropped. 1000 is what published figures were made
            with (the batches of `datasets`' map) and the default for their sake. None: the whole split, which loses
            less than one block.
        text_key: the column or field of the text; None: the set's own.
        separator: the token that ends each example; None: the tokenizer's end-of-text, or else a newline.
        allow_loss: measure though more than 1 % of the characters are unknown to the tokenizer.
        protocol: "sedd", or "mdlm": blocks with an end-of-text in front and behind, of the validation part where there
            is one and no `part` is given. The models of MDLM's tables have learnt from such blocks.
        folder: of the shards; None: runs/data/zeroshot_<dataset>-<hash of the options>.
        batches: eval_batch_size, num_workers (see DiscreteData).
    """

    splits = ("val", "test")

    def __init__(
        self,
        dataset: str,
        path: str | list[str] | None = None,
        part: str | None = None,
        tokenizer: str | None = None,
        length: int | None = None,
        group: int | None = 1000,
        text_key: str | None = None,
        separator: str | None = None,
        allow_loss: bool = False,
        protocol: str = "sedd",
        folder: str | None = None,
        **batches: Any,
    ) -> None:
        super().__init__(**batches)
        if dataset not in SETS:
            raise ValueError(f"data.dataset is {dataset!r}; choose one of {', '.join(SETS)}")
        self.entry = SETS[dataset]
        if protocol not in PROTOCOLS:
            raise ValueError(f"data.protocol is {protocol!r}; choose {' or '.join(PROTOCOLS)}")
        self.protocol = protocol
        self.part = part or self._published_part
        if self.part not in self.entry.examples:
            raise ValueError(f"data.part is {part!r}; {dataset} has {', '.join(self.entry.examples)}")
        least = {"length": 3 if protocol == "mdlm" else 1, "group": 1}
        for key, value in (("length", length), ("group", group)):
            if value is not None and value < least[key]:
                raise ValueError(f"data.{key} is {value}; it must be at least {least[key]}")
        self.dataset, self.path, self.tokenizer = dataset, path or f"data/{dataset}", tokenizer
        self.length, self.group, self.text_key, self._given_folder = length, group, text_key, folder
        self.separator, self.allow_loss = separator, allow_loss
        self._codec: Codec | None = None

    @property
    def _published_part(self) -> str:
        return "valid" if self.protocol == "mdlm" and "valid" in self.entry.examples else self.entry.part

    def departures(self) -> list[str]:
        """In what these blocks are not those of the protocol, one line each."""
        found = []
        if self.part != self._published_part:
            found.append(f"the {self.part} part, published is {self._published_part}")
        if self.group != 1000:
            found.append(f"examples strung together: {self.group or 'all'}, published 1,000")
        if self.separator is not None:
            found.append(f"{self.separator!r} ends an example, published the end-of-text")
        if self.protocol == "mdlm":
            ids, _ = self._between()
            found.append(f"in front and behind {self.codec.text(ids)!r}, published the tokenizer's BOS and EOS")
        return [*found, "published cuts are those of several processes, each with a share of the examples"]

    def complete(self, codec: Codec | None, shape: tuple[int, ...]) -> None:
        """Take from a model what the configuration leaves open: its codec, and its length if it reads sequences."""
        if self.tokenizer is None:
            self._codec = codec
        if self.length is None and len(shape) == 1:
            self.length = shape[0]

    @property
    def codec(self) -> Codec:
        if self._codec is None and self.tokenizer is None:
            raise ValueError(
                "data.tokenizer is open: `lightning evaluate` takes the checkpoint's; elsewhere name a tokenizer.json"
            )
        if self._codec is None:
            self._codec = read_codec(str(self.tokenizer))
        return self._codec

    @property
    def shape(self) -> tuple[int, ...]:
        if self.length is None:
            raise ValueError("data.length is open: `lightning evaluate` takes the model's; elsewhere give it")
        return (self.length,)

    @property
    def options(self) -> dict[str, Any]:
        """What the shards depend on besides the tokenizer and the files' contents."""
        (length,) = self.shape
        given = {"dataset": self.dataset, "part": self.part, "length": length, "group": self.group}
        named = {} if self.separator is None else {"separator": self.separator}
        named |= {} if self.protocol == "sedd" else {"protocol": self.protocol}
        return {**given, **named, "text_key": self.text_key, "rules": RULES}

    @property
    def folder(self) -> Path:
        if self._given_folder is not None:
            return Path(self._given_folder)
        key = dict_hash([self.path, self.codec.tokenizer_hash, self.options])
        return Path("runs/data") / f"zeroshot_{self.dataset}-{key[:8]}"

    @property
    def characters_per_token(self) -> float | None:
        """Of the detokenised text, in the blocks that are left, per token, ends of text among them."""
        return TokenShards(self.folder).characters_per_token("test")

    def losses(self) -> str:
        return TokenShards(self.folder).loss_note().removeprefix("; ")

    def describe(self) -> str:
        return describe(TokenShards(self.folder))

    def open_source(self) -> tuple[Identity, list[Path]]:
        """A name on the hub stands for its content: what was made from it is kept without asking the network."""
        if isinstance(self.path, str) and self.path.startswith(HUB):
            return [{"hub": self.path}], []
        paths = find(self.entry, self.path, self.part)
        return [fingerprint(path) for path in paths], paths

    def build(self, source: Identity, opened: list[Path]) -> str:
        paths = opened
        size = sum(path.stat().st_size for path in paths)
        with (
            ShardWriter(self.folder, self.codec, options=self.options, source=source) as writer,
            tqdm(total=size or None, unit="B", unit_scale=True, desc=self.dataset, disable=None) as bar,
        ):
            dropped = self._cut(writer, self._examples(paths, bar))
            examples, tokens = writer.counted("documents"), writer.counted("tokens")
            if tokens == 0:
                raise ValueError(
                    f"data.path: {self.path}: no {'group' if self.group else 'text'} of its {examples:,} examples "
                    f"fills a block of {self.length} tokens; give the whole file, a smaller data.length, or "
                    f"data.group: null"
                )
            refuse_loss(writer.loss, self.allow_loss, f"data.path: {self.path}", "")
        note = f"; {dropped:,} tokens ({dropped / (tokens + dropped):.2%}) left over at the ends of groups"
        official = self.entry.examples[self.part]
        if examples != official:
            note += f"; {examples:,} examples, but the {self.part} part of {self.entry.title} has {official:,}"
        if self.dataset.startswith("wikitext") and any(path.suffix == ".tokens" for path in paths):
            note += "; .tokens has <unk> for rare words: published figures are of .raw"
        return note

    def _examples(self, paths: list[Path], bar: tqdm) -> Iterator[str]:
        if not paths:
            yield from from_hub(self.entry, str(self.path), self.part, self.text_key)
        rows = reader(self.entry, self.text_key)
        for path in paths:
            yield from (piece.text for piece in rows.read(path, bar.update))

    def _cut(self, writer: ShardWriter, texts: Iterator[str]) -> int:
        """Whole blocks into the shards; the number of tokens that were left over."""
        end, end_characters = self._between()
        frame = self._frame(end)
        length = self.shape[0] - 2 * len(frame)
        rest: list[Example] = []
        dropped, writer.loss = 0, Loss()
        while together := list(islice(texts, self.group or _TOGETHER)):
            found, loss = self.codec.encode_measured(together)
            writer.loss += loss
            rest += [
                (np.concatenate([ids, end]).astype(np.int64), len(text) + end_characters)
                for ids, text in zip(found, together, strict=True)
            ]
            stream = np.concatenate([ids for ids, _ in rest])
            kept = len(stream) // length * length
            characters, rest = divided(rest, kept, lambda ids: self.codec.decode(ids[None])[0])
            blocks = framed(stream[:kept], length, frame)
            writer.add("test", blocks, characters=characters, documents=len(together))
            if self.group is not None:
                dropped += len(stream) - kept
                rest = []
        return dropped + sum(len(ids) for ids, _ in rest)

    def _frame(self, end: list[int]) -> list[int]:
        """What stands in front of each block and behind it."""
        if self.protocol == "sedd":
            return []
        if len(end) != 1:
            raise ValueError("data.protocol is mdlm, and no token ends an example; name one by data.separator")
        return end

    def _between(self) -> tuple[list[int], int]:
        """Ids and characters that end an example."""
        if self.separator is None:
            return self.codec.separator
        return [token_named(self.codec, "separator", self.separator)], 0

    def load(self, split: str) -> RowSource:
        if split == "train":
            raise ValueError(
                f"{self.dataset} is there to be evaluated on and has no training split; use `lightning evaluate`"
            )
        codec = self.codec
        shards = TokenShards(self.folder).require(num_classes=codec.num_classes, tokenizer_hash=codec.tokenizer_hash)
        refuse_loss(shards.loss, self.allow_loss, str(self.folder), "")
        return Windows(shards, "test", self.shape[0])


def framed(stream: np.ndarray, length: int, frame: list[int]) -> np.ndarray:
    """Blocks of `length` tokens, with the `frame` in front of each and behind it, again as one stream."""
    blocks = stream.reshape(-1, length)
    edge = np.broadcast_to(np.array(frame, dtype=stream.dtype), (len(blocks), len(frame)))
    return np.concatenate([edge, blocks, edge], 1).reshape(-1)


def divided(examples: list[Example], kept: int, text_of: Callable[[np.ndarray], str]) -> tuple[int, list[Example]]:
    """(characters in the first `kept` tokens, the examples behind them); one that is cut lies on both sides."""
    characters = 0
    for number, (ids, length) in enumerate(examples):
        if len(ids) > kept:
            inside = len(text_of(ids[:kept])) if kept else 0
            return characters + inside, [(ids[kept:], length - inside), *examples[number + 1 :]]
        characters += length
        kept -= len(ids)
    return characters, []
