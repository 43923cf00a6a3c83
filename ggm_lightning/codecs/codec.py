"""What turns ids into something to look at (texts, pictures), and text into ids.

A codec is described completely by `to_dict()`, plain JSON that names its class and the constructor's arguments. A
checkpoint and the header of shards store it, and rundir/codecs.py makes the codec again from it: samples are decoded
without a data module, a file or a pickle. The id `num_classes` is the mask of the families that have one: it is shown
as `blank`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from abc import ABC
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, Integer

from ggm_lightning.codecs.loss import Loss, tried

if TYPE_CHECKING:  # processes that encode (data/encoding.py) start sooner without torch
    from torch import Tensor

BLANK = "·"


@runtime_checkable
class OnDevice(Protocol):
    """A tensor, without importing torch to ask."""

    def cpu(self) -> Any:
        """The same on the CPU."""


class Codec(ABC):
    """Base of all codecs. A subclass has `num_classes`, `text` (or `decode`) and, where that makes sense, an encoder.

    It keeps each argument of its constructor as an attribute of the same name; `to_dict` reads them there.
    """

    num_classes: int
    ordered = False  # whether ids are amounts, as levels of brightness are, and not names
    free_spacing = False  # whether white space only stands between tokens, as between numbers, and its amount is free
    exact = False  # whether every text that can be encoded decodes to itself by construction; False: it must be tried
    replaced = 0  # characters that were encoded as something else so far, by codecs that do that

    def to_dict(self) -> dict[str, Any]:
        """{"class_path": "package.module.Class", "init_args": {...}} in plain JSON, from which the codec is made again.

        A codec that cannot keep its arguments as they were given writes this method itself.

        Raises:
            ValueError: the object has no attribute of the name of a constructor's argument.
        """
        cls, kept = type(self), vars(self)
        class_path = f"{cls.__module__}.{cls.__qualname__}"
        names = inspect.signature(cls).parameters
        for name in names:
            if name not in kept:
                raise ValueError(
                    f"{class_path}: its argument {name!r} is not kept, so no checkpoint could describe it; write "
                    f"self.{name} = {name} in the constructor, or a to_dict of its own"
                )
        return {"class_path": class_path, "init_args": {name: _plain(kept[name]) for name in names}}

    def identity(self) -> dict[str, Any]:
        """Plain JSON that is equal exactly when text and ids correspond in the same way; `to_dict()` where a codec says
        nothing else. Shards and checkpoints hold its hash: what is said here once has to stay."""
        return self.to_dict()

    def meanings(self) -> Sequence[Hashable] | None:
        """What each id stands for, equal to that of an id of another vocabulary exactly when both stand for the same
        (codecs/matching.py); of a piece of text ("text", its UTF-8). An entry is None where an id stands for nothing,
        the whole where this kind of codec shares its ids with no other."""
        return None

    def text(self, ids: list[int]) -> str:
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
        before = self.replaced
        found = self.encode_batch(texts)
        loss = tried(texts, [self.decode(ids[None])[0] for ids in found])
        return found, replace(loss, lost=max(loss.lost, self.replaced - before))

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
        """One text per row; masked places show `blank`. Codecs of pictures return UInt8[b, height, width, 3]."""
        return [self._decode_row(row, blank) for row in self._checked(x).tolist()]

    def pieces(self, ids: Sequence[int], blank: str = BLANK) -> list[str]:
        """Each id on its own, for displays that show when which token appeared."""
        (row,) = self._checked([list(ids)]).tolist()
        return [blank if i == self.num_classes else self.text([i]) for i in row]

    @property
    def tokenizer_hash(self) -> str:
        """sha256 of the canonical JSON of `identity()`."""
        return dict_hash(self.identity())

    def _checked(self, x: Any) -> Int64[np.ndarray, "b n"]:
        array = np.asarray(x.cpu() if isinstance(x, OnDevice) else x)
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
            parts += [self.text(run) if run else "", blank]
            run = []
        return "".join([*parts, self.text(run) if run else ""])


def _plain(value: Any) -> Any:
    """An argument as JSON has it."""
    if isinstance(value, Codec):  # one codec round another
        return value.to_dict()
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def dict_hash(d: Any) -> str:
    """sha256 of the canonical JSON (sorted keys, no spaces) of plain data."""
    return hashlib.sha256(json.dumps(d, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
