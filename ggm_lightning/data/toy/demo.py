"""A real text that every CPython carries: the language reference (`pydoc_data.topics`), about 465,000 characters.

The topics are joined by newlines in their dictionary's order; the last tenth of the characters is held out. The
reference repeats itself (some topics contain others): about a fifth of the held-out stretches of 30 characters occur
in the training part too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ggm_lightning.codecs.codec import Codec, dict_hash
from ggm_lightning.codecs.loss import REPLACEMENT
from ggm_lightning.codecs.text import Characters, Subwords
from ggm_lightning.data.documents import Piece
from ggm_lightning.data.prepared import Identity, PreparedData
from ggm_lightning.data.rows import RowSource
from ggm_lightning.data.shard_writer import ShardWriter
from ggm_lightning.data.text import counts
from ggm_lightning.data.tokenising import tokenise
from ggm_lightning.data.tokens import TokenShards, Windows
from ggm_lightning.metrics.text import copied_share, order_k_cross_entropy, word_share

HELD_OUT = 0.1


def reference_text() -> tuple[str, str]:
    """(training part, held-out part) of the language reference of the running Python."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ValueError(
            "this Python lacks pydoc_data.topics, the demo's text; install the full standard library, or give your own "
            "text with ggm_lightning.data.text.TextData"
        ) from None
    text = "\n".join(topics.values())
    cut = int(len(text) * (1 - HELD_OUT))
    return text[:cut], text[cut:]


def train_bpe(text: str, vocab_size: int) -> str:
    """A byte-level BPE of exactly `vocab_size` tokens as `tokenizers` JSON: the 256 bytes and the most frequent merges.

    The library breaks ties by the pairs' numbers, so the same text gives the same merges.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < 256:
        raise ValueError(f"data.vocab_size is {vocab_size}; a byte-level BPE has at least the 256 bytes")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"data.vocab_size is {vocab_size}, but the text has merges for {tokenizer.get_vocab_size()} tokens only; "
            f"set it to at most that"
        )
    return tokenizer.to_str()


def printable(text: str) -> tuple[str, int]:
    """(the text with U+FFFD for each character that is neither printable ASCII nor a newline, how many these are)."""
    return re.subn(r"[^ -~\n]", REPLACEMENT, text)


class DemoText(PreparedData):
    """Windows of the language reference. With either encoding its text decodes to itself.

    Args:
        encoding: "bpe" (a byte-level BPE trained on the training part alone) or "characters" (printable ASCII, newline
            and U+FFFD, 97 in all). The text of "characters" is the reference with U+FFFD for all others, about one in
            800.
        vocab_size: of the BPE.
        length: tokens per example.
        stride: distance between two training windows; None: `length`.
        folder: of the shards, tokenizer included; None: runs/data/demo-<hash of the options>.
        batches: global_batch_size, max_batch_per_device, eval_batch_size, num_workers, seed (see DiscreteData).
    """

    embedded = True

    def __init__(
        self,
        encoding: str = "bpe",
        vocab_size: int = 1024,
        length: int = 256,
        stride: int | None = None,
        folder: str | None = None,
        **batches: Any,
    ) -> None:
        super().__init__(**batches)
        if encoding not in ("bpe", "characters"):
            raise ValueError(f"data.encoding is {encoding!r}; it must be bpe or characters")
        self.encoding, self.vocab_size, self.length, self.stride = encoding, vocab_size, length, stride
        self._given_folder = folder
        self._shards: TokenShards | None = None
        self._codec: Codec | None = None

    @property
    def num_classes(self) -> int:
        return self.vocab_size if self.encoding == "bpe" else Characters().num_classes

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def options(self) -> dict[str, Any]:
        """What the shards depend on besides the text."""
        size = {"vocab_size": self.vocab_size} if self.encoding == "bpe" else {}
        return {"encoding": self.encoding, "held_out": HELD_OUT, **size}

    @property
    def folder(self) -> Path:
        return Path(self._given_folder or f"runs/data/demo-{dict_hash(self.options)[:8]}")

    @property
    def shards(self) -> TokenShards:
        if self._shards is None:
            self._shards = TokenShards(self.folder).require(num_classes=self.num_classes)
        return self._shards

    @property
    def codec(self) -> Codec:
        """That of the shards; where there are none yet, the one they will be made with."""
        if self._codec is None:
            self._codec = self.shards.codec if self.unprepared() is None else self._codec_of(reference_text()[0])
        return self._codec

    def _codec_of(self, train: str) -> Codec:
        return Subwords(train_bpe(train, self.vocab_size)) if self.encoding == "bpe" else Characters()

    @property
    def expected_tokenizer(self) -> None:
        """The tokenizer is made with the shards and follows from the rest."""
        return None

    def describe(self) -> str:
        return counts(TokenShards(self.folder))

    def open_source(self) -> tuple[Identity, tuple[str, str]]:
        train, held_out = reference_text()
        content = hashlib.sha256((train + held_out).encode()).hexdigest()
        size = len(train) + len(held_out)
        return [{"name": "pydoc_data.topics", "characters": size, "sha256": content}], (train, held_out)

    def build(self, source: Identity, opened: tuple[str, str]) -> str:
        """Train the tokenizer and write the shards."""
        train, held_out = opened
        note = ""
        codec = self._codec or self._codec_of(train)
        if self.encoding == "characters":
            train, of_train = printable(train)
            held_out, of_held_out = printable(held_out)
            note = f"; the text has U+FFFD for {of_train + of_held_out:,} characters outside the alphabet"
        with ShardWriter(self.folder, codec, options=self.options, source=source) as writer:
            tokenise(writer, [("train", Piece(train, last=True)), ("val", Piece(held_out, last=True))])
        self._shards = None
        return note

    def load(self, split: str) -> RowSource:
        return Windows(self.shards, split, self.length, self.stride if split == "train" else None)

    @property
    def characters_per_token(self) -> float | None:
        return self.shards.characters("val") / self.shards.tokens("val")

    def references(self) -> dict[str, float]:
        """Character models of order 1, 2, 3 fitted on the training part, measured on the held-out part; bits/token."""
        train, held_out = reference_text()
        scale = self.shards.characters("val") / self.shards.tokens("val")
        return {f"order-{k} characters": order_k_cross_entropy(train, held_out, k) * scale for k in (1, 2, 3)}

    judgement = "Share of distinct words of five letters or more that occur in the training text"
    copies = "Share of texts copied from the training text: at least half of the text stands there as one stretch"

    def judge(self, texts: list[str]) -> dict[str, float]:
        """Share of distinct words of five letters or more that occur in the training part.

        "samples": of the given texts. "independent tokens" and "held-out text": of as many texts with as many tokens,
        drawn token by token from the training part's frequencies, and cut evenly spaced from the held-out part.
        """
        if not texts:
            raise ValueError("judge: no texts; sample at least one")
        return _known(self._with_references({"samples": texts}))

    def compare(self, drawn: Mapping[str, list[str]]) -> dict[str, dict[str, float]]:
        """Two tables, of known words (`judge`) and of copies (metrics.text.copied_share). Each has a row for every set
        of samples, and the two rows of `judge` to compare with, of as many texts and tokens as the first set."""
        train, _ = reference_text()
        rows = self._with_references(drawn)
        copied = {name: copied_share(texts, train) for name, texts in rows.items()}
        return {self.judgement: _known(rows), self.copies: copied}

    def _with_references(self, drawn: Mapping[str, list[str]]) -> dict[str, list[str]]:
        sizes = [max(1, len(ids)) for ids in self.codec.encode_batch(next(iter(drawn.values())))]
        return {**drawn, "independent tokens": self._independent(sizes), "held-out text": self._excerpts(sizes)}

    def _independent(self, sizes: list[int]) -> list[str]:
        tokens = self.shards.read("train", np.zeros(1, dtype=np.int64), self.shards.tokens("train"))[0]
        law = np.bincount(tokens, minlength=self.num_classes) / len(tokens)
        rng = np.random.default_rng(0)
        return [self.codec.decode(rng.choice(self.num_classes, size=(1, n), p=law))[0] for n in sizes]

    def _excerpts(self, sizes: list[int]) -> list[str]:
        total = self.shards.tokens("val")
        length = min(total, round(sum(sizes) / len(sizes)))
        starts = np.linspace(0, total - length, len(sizes)).astype(np.int64)
        return self.codec.decode(self.shards.read("val", starts, length))


def _known(rows: Mapping[str, list[str]]) -> dict[str, float]:
    train, _ = reference_text()
    return {name: word_share("\n".join(texts), train) for name, texts in rows.items()}
