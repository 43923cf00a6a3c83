"""Lines on a terminal: text from elsewhere is shown, never obeyed, and numbers agree with their nouns."""

from __future__ import annotations

import unicodedata

_KEPT = "\n\t"
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")  # control, direction marks, halves of pairs, private, separators


def visible(text: str) -> str:
    """`text` with what a terminal would obey (escape sequences, marks that turn the writing round) spelt out."""
    return "".join(
        character
        if character in _KEPT or unicodedata.category(character) not in _HIDDEN
        else character.encode("unicode_escape").decode()
        for character in text
    )


def counted(number: int, what: str) -> str:
    """1 sample, 2 samples."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
