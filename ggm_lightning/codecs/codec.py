"""What turns ids into something to look at (texts, pictures), and text into ids.

A codec is described completely by `to_dict()` (plain JSON), which a checkpoint stores; `codec_from_dict` gives it
back. So samples are decoded without a data module, a file or a pickle. The id `num_classes` is the mask of the
families that have one: it is shown as `blank`.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64, Integer, UInt8

from ggm_lightning.codecs import tokenizer_file
from ggm_lightning.codecs.loss import REPLACEMENT, Loss, none_lost, tried, without_token
from ggm_lightning.codecs.tokenizer_file import END_OF_TEXT, ControlWords

if TYPE_CHECKING:  # processes that encode (data/encoding.py) start sooner without torch
    from torch import Tensor

PRINTABLE = "".join(map(chr, range(32, 127))) + "\n"
BLANK = "·"
MIDDLE_GREY = 128
MASKED_GREY = (91, 63, 214)  # violet: a grey picture has no colour of its own


class Codec(ABC):
    """Base of all codecs: a subclass has `num_classes`, `_text`, `to_dict` and, where that makes sense, an encoder."""

    num_classes: int
    ordered = False  # whether ids are amounts, as levels of brightness are, and not names
    exact = False  # whether every text that can be encoded decodes to itself by construction; False: it must be tried

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain JSON from which `codec_from_dict` makes the codec again."""

    def _text(self, ids: list[int]) -> str:
        """Ids without masks -> text."""
        raise ValueError(f"{type(self).__name__} has no text; decode whole states")

    def encode(self, text: str) -> list[int]:
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> Int64[np.ndarray, " n"]:
        raise ValueError(f"{type(self).__name__} does not encode text; give integers instead")

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode_array(text) for text in texts]

    def encode_measured(self, texts: Sequence[str]) -> tuple[list[np.ndarray], Loss]:
        """`encode_batch`, and what is lost by it."""
        found = self.encode_batch(texts)
        return found, tried(texts, [self._text(ids.tolist()) for ids in found])

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]] | None:
        """(ids, the characters [start, end) of the text that each of them stands for), for tokens that can be told only
        in the whole text. None: parts of a text are encoded as the whole."""
        return None

    @property
    def separator(self) -> tuple[list[int], int]:
        """(ids, characters) between two documents of a stream: the end-of-text where there is one, else a newline.

        Raises:
            ValueError: there is neither; asks for `data.separator`.
        """
        return self.encode("\n"), 1

    def token_id(self, name: str) -> int | None:
        """The id of a token by its text, None if there is no such token."""
        return None

    def decode(self, x: Integer[Tensor, " b *s"] | Integer[np.ndarray, " b *s"], blank: str = BLANK) -> list[str]:
        """One text per row; masked places show `blank`."""
        return [self._decode_row(row, blank) for row in self._checked(x).tolist()]

    def pieces(self, ids: Sequence[int], blank: str = BLANK) -> list[str]:
        """Each id on its own, for displays that show when which token appeared."""
        (row,) = self._checked([list(ids)]).tolist()
        return [blank if i == self.num_classes else self._text([i]) for i in row]

    @property
    def tokenizer_hash(self) -> str:
        """sha256 of the canonical JSON of `to_dict()`: equal exactly when text and ids correspond in the same way."""
        return dict_hash(self.to_dict())

    def _checked(self, x: Any) -> Int64[np.ndarray, "b n"]:
        array = np.asarray(x.cpu() if hasattr(x, "cpu") else x)
        array = array.reshape(len(array), -1) if array.size else np.zeros((len(array), 0), dtype=np.int64)
        if array.size and (array.min() < 0 or array.max() > self.num_classes):
            row, site = np.argwhere((array < 0) | (array > self.num_classes))[0]
            raise ValueError(
                f"{type(self).__name__}: id {array[row, site]} in row {row}, place {site} is outside "
                f"0..{self.num_classes} (the last is the mask); the ids belong to another vocabulary"
            )
        return array.astype(np.int64)

    def _decode_row(self, row: list[int], blank: str) -> str:
        parts, run = [], []
        for i in row:
            if i != self.num_classes:
                run.append(i)
                continue
            parts += [self._text(run) if run else "", blank]
            run = []
        return "".join([*parts, self._text(run) if run else ""])


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
        loss = tried(texts, [self._text(ids.tolist()) for ids in found])
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

    def _text(self, ids: list[int]) -> str:
        return "".join([self._symbols[i] for i in ids])

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "characters", "alphabet": self.alphabet, "unknown": self.unknown}


class Bytes(Codec):
    """UTF-8: 256 ids, any text, nothing to learn. Broken sequences are shown as U+FFFD."""

    num_classes = 256
    exact = True

    def encode_measured(self, texts: Sequence[str]) -> tuple[list[np.ndarray], Loss]:
        return self.encode_batch(texts), none_lost(texts)

    def encode_array(self, text: str) -> Int64[np.ndarray, " n"]:
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64)

    def _text(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    def to_dict(self) -> dict[str, Any]:
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
            self._json = json.dumps(self._file, ensure_ascii=False, separators=(",", ":"))
            used = tokenizer_file.without_chance(self._file)
            self._tokenizer = Tokenizer.from_str(self._json if used == self._file else json.dumps(used))
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
        if newline and self._text(newline + newline) == "\n\n" and self._unknown not in newline:
            return newline, 1
        raise ValueError(
            "data.separator: the tokenizer has no end-of-text token that is known by its name, and it does not write a "
            "newline; name one of its tokens there, to stand between two documents"
        )

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "subwords", "tokenizer": self._json}


class Integers(Codec):
    """No text behind the ids: they are shown as numbers, "3 1 4 1 5"."""

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

    def _text(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def pieces(self, ids: Sequence[int], blank: str = BLANK) -> list[str]:
        return [f"{piece} " for piece in super().pieces(ids, blank)]  # numbers need the space between them

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "integers", "num_classes": self.num_classes}


class Images(Codec):
    """Levels 0..V-1 of pixels: pictures, evenly spaced from black (0) to white (V-1).

    A masked channel of a colour picture is shown at the middle level, so that a pixel with some known channels keeps
    their tint. A masked pixel of a grey picture is shown in a colour (MASKED_GREY), which no level has.
    """

    ordered = True

    def __init__(self, num_classes: int, shape: Sequence[int]) -> None:
        """`shape` is (channels, height, width) with 1 channel (grey) or 3 (red, green, blue)."""
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}; pictures have at least 2 levels")
        if len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
            raise ValueError(f"shape is {list(shape)}; it must be [channels, height, width] with 1 or 3 channels")
        self.num_classes, self.shape = num_classes, tuple(int(n) for n in shape)
        levels = np.rint(np.arange(num_classes) * (255 / (num_classes - 1))).astype(np.uint8)
        self._levels = np.append(levels, np.uint8(MIDDLE_GREY))  # the last entry is the mask

    def decode(  # type: ignore[override]
        self, x: Integer[Tensor, " b *s"] | Integer[np.ndarray, " b *s"]
    ) -> UInt8[np.ndarray, "b height width 3"]:
        """Pictures from ids [b, channels, height, width] or [b, n] in that order; grey ones with three equal channels.

        Raises:
            ValueError: another number of sites, or an id outside 0..V.
        """
        ids = self._checked(x)
        channels, height, width = self.shape
        if ids.shape[1] != channels * height * width:
            raise ValueError(
                f"Images: {ids.shape[1]} sites per row, but pictures of shape {list(self.shape)} have "
                f"{channels * height * width}; the ids belong to another data set"
            )
        pictures = self._levels[ids].reshape(-1, *self.shape).transpose(0, 2, 3, 1)
        if channels == 3:
            return np.ascontiguousarray(pictures)
        masked = (ids == self.num_classes).reshape(-1, height, width, 1)
        return np.where(masked, np.array(MASKED_GREY, np.uint8), pictures)

    def pieces(self, ids: Sequence[int], blank: str = BLANK) -> list[str]:
        raise ValueError("Images: single pixels are not shown as text; decode the whole state, masks included")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "images", "num_classes": self.num_classes, "shape": list(self.shape)}


def codec_from_dict(d: dict[str, Any]) -> Codec:
    """The codec that `to_dict()` described."""
    kind = d.get("kind")
    if kind == "characters":
        return Characters(d["alphabet"], d["unknown"])
    if kind == "bytes":
        return Bytes()
    if kind == "subwords":
        return Subwords(d["tokenizer"])
    if kind == "integers":
        return Integers(d["num_classes"])
    if kind == "images":
        return Images(d["num_classes"], d["shape"])
    if kind == "vqgan":
        from ggm_lightning.vqgan.codes import Codes  # this one alone needs a network, and only where it decodes

        return Codes(**{name: value for name, value in d.items() if name != "kind"})
    raise ValueError(
        f"codec of kind {kind!r} is unknown; known are characters, bytes, subwords, integers, images, vqgan"
    )


def dict_hash(d: Any) -> str:
    """sha256 of the canonical JSON (sorted keys, no spaces) of plain data."""
    return hashlib.sha256(json.dumps(d, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
