"""Text as ids: characters, bytes, subwords, and numbers where there is no text behind the ids."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int64

from ggm_lightning.codecs import tokenizer_file
from ggm_lightning.codecs.codec import BLANK, Codec
from ggm_lightning.codecs.loss import REPLACEMENT, Loss, none_lost, tried, without_token
from ggm_lightning.codecs.tokenizer_file import END_OF_TEXT, ControlWords

UNKNOWN = ("unknown",)  # what stands for everything that a vocabulary does not have
PRINTABLE = "".join(map(chr, range(32, 127))) + "\n"


class Characters(Codec):
    """One id per character of `alphabet`, in its order; everything else becomes `unknown`, the last id.

    `replaced` counts the characters that became `unknown` so far. With `unknown=None` they are an error instead, and
    num_classes is exactly len(alphabet).
    """

    def __init__(self, alphabet: str = PRINTABLE, unknown: str | None = REPLACEMENT) -> None:
        if not alphabet or len(set(alphabet)) != len(alphabet):
            raise ValueError(f"alphabet of {len(alphabet)} characters, {len(set(alphabet))} distinct: name each once")
        if unknown is not None and (len(unknown) != 1 or unknown in alphabet):
            raise ValueError(f"unknown is {unknown!r}; it must be one character that the alphabet does not have")
        self.alphabet, self.unknown, self.replaced = alphabet, unknown, 0
        self._symbols = alphabet + (unknown or "")
        self.num_classes = len(self._symbols)
        points = np.array([ord(c) for c in self._symbols])
        self._table = np.full(points.max() + 2, -1, dtype=np.int64)  # the last entry stands for every larger code
        self._table[points] = np.arange(self.num_classes)

    def encode_array(self, text: str) -> Int64[np.ndarray, " n"]:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.int64)
        ids = self._table[np.minimum(points, len(self._table) - 1)]
        missing = np.flatnonzero(ids < 0)
        if missing.size and self.unknown is None:
            at = int(missing[0])
            raise ValueError(
                f"character {text[at]!r} at position {at} is not in the alphabet {self.alphabet!r}; remove it"
            )
        ids[missing] = self.num_classes - 1
        self.replaced += missing.size
        return ids

    def encode_measured(self, texts: Sequence[str]) -> tuple[list[np.ndarray], Loss]:
        before = self.replaced
        found = self.encode_batch(texts)
        if self.replaced == before:  # nothing to look for
            return found, none_lost(texts)
        loss = tried(texts, [self.text(ids.tolist()) for ids in found])
        return found, replace(loss, lost=self.replaced - before)

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return self.unknown is None  # other characters are then errors

    def token_id(self, name: str) -> int | None:
        return self._symbols.index(name) if len(name) == 1 and name in self._symbols else None

    @property
    def separator(self) -> tuple[list[int], int]:
        for between in "\n ":
            if between in self.alphabet:
                return self.encode(between), 1
        raise ValueError(
            "data.separator: the alphabet has neither a newline nor a space to stand between two documents; name one "
            "of its characters there"
        )

    def text(self, ids: list[int]) -> str:
        return "".join([self._symbols[i] for i in ids])

    def meanings(self) -> Sequence[Hashable]:
        known: list[Hashable] = [("text", symbol.encode("utf-8", "surrogatepass")) for symbol in self.alphabet]
        return known if self.unknown is None else [*known, UNKNOWN]

    def identity(self) -> dict[str, Any]:
        return {"kind": "characters", "alphabet": self.alphabet, "unknown": self.unknown}


class Bytes(Codec):
    """UTF-8: 256 ids, any text, nothing to learn. Broken sequences are shown as U+FFFD."""

    num_classes = 256
    exact = True

    def encode_measured(self, texts: Sequence[str]) -> tuple[list[np.ndarray], Loss]:
        return self.encode_batch(texts), none_lost(texts)

    def encode_array(self, text: str) -> Int64[np.ndarray, " n"]:
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64)

    def text(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    def meanings(self) -> Sequence[Hashable]:
        return [("text", bytes([i])) for i in range(self.num_classes)]

    def identity(self) -> dict[str, Any]:
        return {"kind": "bytes"}


class Subwords(Codec):
    """Any tokenizer of the `tokenizers` library, given as the text of its JSON file.

    No special tokens are added, nothing is padded or cut and nothing is left to chance, whatever the file asks for. A
    text that spells a special token is encoded as any other text.
    """

    def __init__(self, tokenizer_json: str) -> None:
        from tokenizers import Tokenizer  # here: only this codec needs the library

        try:
            # Canonical spacing, so that the same tokenizer saved in two ways has one hash.
            self._file = json.loads(tokenizer_json)
            self.tokenizer_json = json.dumps(self._file, ensure_ascii=False, separators=(",", ":"))
            used = tokenizer_file.without_chance(self._file)
            self._tokenizer = Tokenizer.from_str(self.tokenizer_json if used == self._file else json.dumps(used))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(
                f"not a `tokenizers` JSON ({error}); give the tokenizer.json that its save() wrote"
            ) from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # those that a text spells are text
        self.num_classes = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if self.num_classes == 0:
            raise ValueError("the tokenizer's vocabulary is empty; train it first")

    def encode_array(self, text: str) -> Int64[np.ndarray, " n"]:
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """All texts at once, on all cores."""
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int64) for one in found]

    def token_id(self, name: str) -> int | None:
        return self._tokenizer.token_to_id(name)

    @cached_property
    def exact(self) -> bool:  # type: ignore[override]
        from tokenizers.pre_tokenizers import ByteLevel

        return tokenizer_file.writes_every_text(self._file, ByteLevel.alphabet())

    @cached_property
    def _control_words(self) -> ControlWords:
        return ControlWords(tokenizer_file.control_words(tokenizer_file.without_chance(self._file)))

    @cached_property
    def _unknown(self) -> int | None:
        name = tokenizer_file.unknown_token(self._file)
        return self.token_id(name) if isinstance(name, str) else name

    def encode_measured(self, texts: Sequence[str]) -> tuple[list[np.ndarray], Loss]:
        spelled = self._control_words.found(texts)
        loss = Loss(control_words=len(spelled), first_control_word="".join(spelled[:1]))
        if self.exact:
            return self.encode_batch(texts), loss + none_lost(texts)
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        decoded = self._tokenizer.decode_batch([one.ids for one in found], skip_special_tokens=False)
        loss += tried(texts, decoded, lambda i: without_token(texts[i], found[i], self._unknown))
        return [np.array(one.ids, dtype=np.int64) for one in found], loss

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]] | None:
        found = self._tokenizer.encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    @property
    def separator(self) -> tuple[list[int], int]:
        name = tokenizer_file.end_token(self._file)
        end = self.token_id(END_OF_TEXT if name is None else name)
        if end is not None:
            return [end], 0
        newline = self.encode("\n")
        if newline and self.text(newline + newline) == "\n\n" and self._unknown not in newline:
            return newline, 1
        raise ValueError(
            "data.separator: the tokenizer has no end-of-text token that is known by its name, and it does not write a "
            "newline; name one of its tokens there, to stand between two documents"
        )

    def text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def meanings(self) -> Sequence[Hashable]:
        """Ends of a text are the same whatever they are called, and so are unknown tokens; pieces of a byte-level
        tokenizer are the text that they write, those of other kinds are compared within their kind."""
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        known = tokenizer_file.meanings(self._file, ids)
        found: list[Hashable] = [None] * self.num_classes
        for token, i in ids.items():
            found[i] = known[token]
        if self._unknown is not None:
            found[self._unknown] = UNKNOWN
        return found

    def identity(self) -> dict[str, Any]:
        return {"kind": "subwords", "tokenizer": self.tokenizer_json}


class Integers(Codec):
    """No text behind the ids: they are shown as numbers, "3 1 4 1 5"."""

    free_spacing = True

    def __init__(self, num_classes: int) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; it must be at least 1")
        self.num_classes = num_classes

    def encode_array(self, text: str) -> Int64[np.ndarray, " n"]:
        words = text.split()
        wrong = [word for word in words if not word.isdecimal() or int(word) >= self.num_classes]
        if wrong:
            raise ValueError(
                f"{wrong[0]!r} is not a whole number in 0..{self.num_classes - 1}; write numbers and spaces"
            )
        return np.array([int(word) for word in words], dtype=np.int64)

    @property
    def separator(self) -> tuple[list[int], int]:
        return [], 0

    def _decode_row(self, row: list[int], blank: str) -> str:
        return " ".join([blank if i == self.num_classes else str(i) for i in row])

    def text(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def meanings(self) -> Sequence[Hashable]:
        return [("number", i) for i in range(self.num_classes)]

    def pieces(self, ids: Sequence[int], blank: str = BLANK) -> list[str]:
        return [f"{piece} " for piece in super().pieces(ids, blank)]  # numbers need the space between them

    def identity(self) -> dict[str, Any]:
        return {"kind": "integers", "num_classes": self.num_classes}
