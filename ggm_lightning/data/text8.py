"""text8: the first 10^8 characters of a cleaned Wikipedia (Mahoney, http://mattmahoney.net/dc/textdata.html).

27 symbols: a-z are 0..25, the space is 26. The usual split: 90M characters to train on, the next 5M to validate and the
last 5M to test. The file is read in place, through a table of 256 entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.text import Characters
from ggm_lightning.data.base import DiscreteData
from ggm_lightning.data.rows import RowSource
from ggm_lightning.data.tokens import Windows

ALPHABET = "abcdefghijklmnopqrstuvwxyz "
_OUTSIDE = 255
_CHUNK = 2**24


class CharacterFile:
    """A file of single-byte characters as a source of windows (see tokens.TokenSource); splits are stretches of it."""

    def __init__(self, path: Path, alphabet: str, stretches: dict[str, tuple[int, int]]) -> None:
        self.path, self.stretches = path, stretches
        self.table = np.full(256, _OUTSIDE, dtype=np.uint8)
        self.table[np.frombuffer(alphabet.encode("ascii"), dtype=np.uint8)] = np.arange(len(alphabet))
        self._map: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}  # a worker maps the file itself

    def _bytes(self, split: str) -> np.ndarray:
        if self._map is None:
            self._map = np.asarray(np.memmap(self.path, dtype=np.uint8, mode="r"))
        start, end = self.stretches[split]
        return self._map[start:end]

    def tokens(self, split: str) -> int:
        start, end = self.stretches[split]
        return end - start

    def read(self, split: str, starts: Int64[np.ndarray, " b"], length: int) -> Int64[np.ndarray, "b n"]:
        return self.table[self._bytes(split)[starts[:, None] + np.arange(length)]].astype(np.int64)

    def storage(self, split: str) -> Iterator[tuple[str, np.ndarray]]:
        """Nothing: `check` has looked at the characters themselves, and says which one is wrong."""
        return iter(())

    def check(self, split: str) -> None:
        """ValueError with the position of the first character outside the alphabet."""
        stretch = self._bytes(split)
        for start in range(0, len(stretch), _CHUNK):
            wrong = np.flatnonzero(self.table[stretch[start : start + _CHUNK]] == _OUTSIDE)
            if wrong.size:
                at = start + int(wrong[0])
                place = self.stretches[split][0] + at
                raise ValueError(
                    f"{self.path} ({split} split): byte {bytes([stretch[at]])!r} at position {place} "
                    f"is outside a-z and space; unpack the original text8.zip again"
                )


class Text8(DiscreteData):
    """Windows of text8: every training window (stride 1), disjoint ones to validate and test.

    Args:
        path: of the unpacked file.
        length: characters per example.
        train_chars, val_chars, test_chars: consecutive stretches from the start of the file.
        batches: global_batch_size, max_batch_per_device, eval_batch_size, num_workers, seed (see DiscreteData).
    """

    splits = ("train", "val", "test")

    def __init__(
        self,
        path: str = "data/text8",
        length: int = 256,
        train_chars: int = 90_000_000,
        val_chars: int = 5_000_000,
        test_chars: int = 5_000_000,
        **batches: Any,
    ) -> None:
        super().__init__(**batches)
        self.path, self.length = Path(path).expanduser(), length
        ends = np.cumsum([0, train_chars, val_chars, test_chars]).tolist()
        self.stretches = {split: (ends[i], ends[i + 1]) for i, split in enumerate(self.splits)}

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def codec(self) -> Codec:
        return Characters(ALPHABET, unknown=None)

    @property
    def characters_per_token(self) -> float | None:
        return 1.0

    def prepare_data(self) -> None:
        """Check that the file is there and long enough; nothing is written."""
        if not self.path.is_file():
            raise FileNotFoundError(
                f"data.path: no file '{self.path}'; get http://mattmahoney.net/dc/text8.zip and unpack it to that place"
            )
        size, needed = self.path.stat().st_size, self.stretches["test"][1]
        if size < needed:
            raise ValueError(
                f"{self.path}: {size} characters, but train, val and test take {needed}; unpack the original text8.zip "
                f"again, or set data.train_chars, data.val_chars and data.test_chars"
            )

    def load(self, split: str) -> RowSource:
        self.prepare_data()
        source = CharacterFile(self.path, ALPHABET, self.stretches)
        source.check(split)
        return Windows(source, split, self.length, stride=1 if split == "train" else None)
