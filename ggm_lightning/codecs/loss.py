"""What is lost between a text and its ids: counted while a text is encoded, kept in the header of its shards.

Figures per character mean something only where each text decodes to itself; elsewhere there are none.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int64

if TYPE_CHECKING:  # only tokenizers need the library
    from tokenizers import Encoding

REPLACEMENT = "\ufffd"
REFUSED = 0.01  # share of the characters: with more of them lost, a preparation is refused unless it is allowed
_SHOWN = 20  # characters to each side of the first difference


@dataclass(frozen=True)
class Loss:
    """Counts of some texts; those of several batches are added up in their order.

    Attributes:
        texts, characters: how many there were. A long document counts once for each of its pieces.
        lost: characters that an unknown token or U+FFFD stands for, or for which there is no token at all.
        changed: texts that do not decode to themselves (lost characters, case, accents, white space).
        first_changed: what became of the first of them.
        control_words: places where the text spells a special token; they are encoded as ordinary text.
        first_control_word: the first of them.
    """

    texts: int = 0
    characters: int = 0
    lost: int = 0
    changed: int = 0
    first_changed: str = ""
    control_words: int = 0
    first_control_word: str = ""

    def __add__(self, other: Loss) -> Loss:
        return Loss(
            texts=self.texts + other.texts,
            characters=self.characters + other.characters,
            lost=self.lost + other.lost,
            changed=self.changed + other.changed,
            first_changed=self.first_changed or other.first_changed,
            control_words=self.control_words + other.control_words,
            first_control_word=self.first_control_word or other.first_control_word,
        )

    @property
    def exact(self) -> bool:
        """Whether every text decodes to itself."""
        return self.lost == 0 and self.changed == 0

    @property
    def too_much(self) -> bool:
        """Whether more than 1 % of the characters are lost."""
        return self.lost > REFUSED * self.characters

    @property
    def share(self) -> str:
        """The lost characters in words."""
        return f"{self.lost:,} of {self.characters:,} characters ({self.lost / max(1, self.characters):.2%})"

    def note(self) -> str:
        """What there is to say, behind semicolons, in the line that a preparation prints; or nothing."""
        said = ""
        if self.lost:
            said += f"; {self.share} lost: unknown to the tokenizer (an unknown token or U+FFFD in their place)"
        if self.changed:
            said += f"; {self.changed:,} of {self.texts:,} texts do not decode to themselves, the first: "
            said += self.first_changed
        if not self.exact:
            said += "; therefore no bits/character"
        if self.control_words:
            said += f"; {self.control_words:,} control words spelled out in the text are encoded as text, the first: "
            said += repr(self.first_control_word)
        return said

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, from which `Loss(**...)` makes it again."""
        return asdict(self)


def none_lost(texts: Sequence[str]) -> Loss:
    """Of texts that are known to decode to themselves."""
    return Loss(texts=len(texts), characters=sum(map(len, texts)))


def difference(text: str, decoded: str) -> str:
    """Both around the first character in which they differ."""
    same = 0
    while same < min(len(text), len(decoded)) and text[same] == decoded[same]:
        same += 1
    begin, end = max(0, same - _SHOWN), same + _SHOWN
    return f"{text[begin:end]!r} became {decoded[begin:end]!r}"


def tried(texts: Sequence[str], decoded: Sequence[str], no_token: Callable[[int], int] | None = None) -> Loss:
    """What is lost in texts that have become `decoded`; `no_token(i)` counts the characters of text i that no token
    stands for, and is asked only where something has changed."""
    lost = changed = 0
    first = ""
    for i, (text, back) in enumerate(zip(texts, decoded, strict=True)):
        if text == back:
            continue
        changed += 1
        first = first or difference(text, back)
        broken = max(0, back.count(REPLACEMENT) - text.count(REPLACEMENT))
        lost += broken if no_token is None else max(broken, no_token(i))
    return Loss(len(texts), sum(map(len, texts)), lost, changed, first)


def without_token(text: str, encoding: Encoding, unknown: int | None) -> int:
    """Visible characters of a text that `unknown` stands for, or no token at all."""
    spans = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    of_unknown = np.array(encoding.ids, dtype=np.int64) == unknown
    lost = ~_covered(len(text), spans) | _covered(len(text), spans[of_unknown])
    left = [text[i] for i in np.flatnonzero(lost)]
    # an accent that was taken off is a change of its letter, and no lost character
    return sum(not c.isspace() and not unicodedata.combining(c) for c in left)


def _covered(length: int, spans: Int64[np.ndarray, "k 2"]) -> Bool[np.ndarray, " length"]:
    """Which of the places 0..length-1 lie in one of the spans [start, end)."""
    steps = np.zeros(length + 1, dtype=np.int64)
    np.add.at(steps, spans[:, 0], 1)
    np.add.at(steps, spans[:, 1], -1)
    return steps.cumsum()[:-1] > 0
