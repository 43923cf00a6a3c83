"""Words from a dictionary, one space behind each: a source whose separators are easy and whose letters are hard.

A text of independent words of `word_length` letters starts at a random place within a word. Whoever knows one space
knows all of them; a letter follows from the rest of its word or not at all. So it matters in which order the two kinds
are revealed, as soon as the predictor is not perfect: that is what the exponents of GenMD4 can learn.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Integer
from torch import Tensor

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.text import Characters
from ggm_lightning.core.known_law import HiddenChain
from ggm_lightning.data.base import DiscreteData
from ggm_lightning.data.rows import Rows, RowSource
from ggm_lightning.data.toy.synthetic import SPLIT_NUMBER

_ALPHABET = "abcdefghijklmnopqrstuvwxyz"


class Dictionary(DiscreteData):
    """Windows of n characters: letters 0..num_letters-1, the space is num_letters.

    Args:
        num_words: size of the dictionary, drawn from source_seed (with repetitions, which then are likelier).
        word_length: letters of each word.
        num_letters: of the alphabet, at most 26.
        length: n.
        num_train, num_val: rows.
        source_seed: of the dictionary and its draws (`seed` is of their order).
        batches: global_batch_size, max_batch_per_device, eval_batch_size, num_workers, seed (see DiscreteData).
    """

    def __init__(
        self,
        num_words: int = 64,
        word_length: int = 3,
        num_letters: int = 8,
        length: int = 32,
        num_train: int = 65536,
        num_val: int = 1024,
        source_seed: int = 0,
        **batches: Any,
    ) -> None:
        super().__init__(**batches)
        sizes = {"num_words": num_words, "word_length": word_length, "length": length}
        sizes |= {"num_train": num_train, "num_val": num_val}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"data.{name} is {value}; it must be at least 1")
        if not 1 <= num_letters <= len(_ALPHABET):
            raise ValueError(f"data.num_letters is {num_letters}; it must lie in 1..{len(_ALPHABET)}")
        if source_seed < 0:
            raise ValueError(f"data.source_seed is {source_seed}; it must be at least 0")
        self.num_letters, self.length, self.source_seed = num_letters, length, source_seed
        self.num_rows = {"train": num_train, "val": num_val}
        letters = np.random.default_rng(source_seed).integers(num_letters, size=(num_words, word_length))
        self.words = np.concatenate([letters, np.full((num_words, 1), num_letters)], axis=1)  # with their space

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def codec(self) -> Codec:
        return Characters(_ALPHABET[: self.num_letters] + " ", unknown=None)

    @property
    def characters_per_token(self) -> float | None:
        return 1.0

    def draw(self, num_rows: int, rng: np.random.Generator) -> Integer[np.ndarray, "b n"]:
        """Fresh rows."""
        period = self.words.shape[1]
        count = -(-self.length // period) + 1
        text = self.words[rng.integers(len(self.words), size=(num_rows, count))].reshape(num_rows, -1)
        start = rng.integers(period, size=num_rows)
        return np.take_along_axis(text, start[:, None] + np.arange(self.length), axis=1).astype(np.uint8)

    def log_likelihood(self, x: Integer[Tensor, "b n"]) -> Float64[Tensor, " b"]:
        """log of the mean over the starts of the product of the words' probabilities, nats; exact.

        Given the start, a piece of a word (whole, or cut at a window's end) has the share of words that agree with it.
        """
        rows, period = x.cpu().long(), self.words.shape[1]
        words = torch.from_numpy(self.words)
        total = torch.full((len(rows), period), -math.log(period), dtype=torch.float64)
        for start in range(period):
            at = 0
            while at < self.length:
                first = start if at == 0 else 0
                piece = rows[:, at : at + period - first]
                part = words[:, first : first + piece.shape[1]]
                agree = (piece[:, None] == part).all(-1).double().mean(1)
                total[:, start] += agree.log()
                at += piece.shape[1]
        return total.logsumexp(1)

    def law(self) -> HiddenChain:
        """State period w + k: word w, its character k."""
        count, period = self.words.shape
        states, classes = count * period, self.num_letters + 1
        transition = torch.zeros(states, states, dtype=torch.float64)
        for state in range(states):
            if state % period < period - 1:
                transition[state, state + 1] = 1.0
            else:
                transition[state, ::period] = 1 / count
        says = torch.nn.functional.one_hot(torch.from_numpy(self.words).flatten(), classes).double()
        initial = torch.full((states,), 1 / states, dtype=torch.float64)
        return HiddenChain(initial, transition, says, self.length, lambda: (self.entropy, 0.0))

    @property
    def entropy(self) -> float:
        """H(x) in nats per example, exact. A window as long as a word and its space has one space at least, from which
        the start is known; so H(x) is the entropy of the start and that of the pieces given it. Shorter windows may
        look alike from different starts: theirs is summed over all of them."""
        period = self.words.shape[1]
        if self.length < period:
            return self._entropy_of_windows()
        nats = math.log(period)
        for start in range(period):
            whole, rest = divmod(self.length - (period - start), period)
            pieces = _entropy(self.words[:, start:]) + whole * _entropy(self.words)
            if rest:
                pieces += _entropy(self.words[:, :rest])
            nats += pieces / period
        return nats

    def _entropy_of_windows(self) -> float:
        count, period = self.words.shape
        pairs = np.concatenate([np.repeat(self.words, count, 0), np.tile(self.words, (count, 1))], 1)
        return _entropy(np.concatenate([pairs[:, start : start + self.length] for start in range(period)]))

    def entropy_estimate(self, num_samples: int = 8192, seed: int = 0) -> tuple[float, float]:
        """(mean, standard error) of -log p(x) over fresh draws: H(x) in nats per example."""
        x = torch.from_numpy(self.draw(num_samples, np.random.default_rng(seed)).astype(np.int64))
        nats = -torch.cat([self.log_likelihood(part) for part in x.split(1024)])
        return float(nats.mean()), float(nats.std() / math.sqrt(num_samples))

    def load(self, split: str) -> RowSource:
        rng = np.random.default_rng([self.source_seed, 1 + SPLIT_NUMBER[split]])
        return Rows(self.draw(self.num_rows[split], rng), name=f"Dictionary({self.source_seed})")

    def references(self) -> dict[str, float]:
        """Bits per character: the entropy, estimated from 8,192 draws."""
        return {"entropy": self.entropy_estimate()[0] / (self.length * math.log(2))}


def _entropy(rows: Integer[np.ndarray, "b m"]) -> float:
    """Nats, of a row that is drawn from these."""
    share = np.unique(rows, axis=0, return_counts=True)[1] / len(rows)
    return float(-(share * np.log(share)).sum()) + 0.0
