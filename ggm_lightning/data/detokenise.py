"""Corpora that are distributed as separated words, back into running text, as zero-shot tables take them.

A tokenizer learnt on running text reads "two @-@ part , he said" as something rare, so published perplexities depend on
these rules. Implemented are those of SEDD (arXiv 2310.16834, its data.py), which MDLM (arXiv 2406.07524) has letter for
letter and MD4 (arXiv 2406.04329, section 7.1) refers to; WikiText's go back to Megatron-LM's evaluation. They are not
always right (two apostrophes count as quotation marks, whatever stands between them), and are kept as they are because
the figures were made with them. Left out is one line of theirs that cannot do what it says: of an apostrophe before a
digit, written as a pattern that wants slashes around it.

Variants that are not implemented: GPT-2's own invertible ones, which its report does not publish, with perplexities per
word; Mikolov's lower-cased text of WikiText. Every function takes one example and returns it, pure text to text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

RULES = 1  # goes up with every change of a rule: what was tokenised by older ones is then made again


def wikitext(text: str) -> str:
    """A line of WikiText, `raw` or `tokens`: joined numbers and hyphens, punctuation, brackets, quotes, headings.

    Line ends lose the spaces around them; " = Title = " keeps its own, subheadings become "==" and "===".
    """
    text = text.replace("s '", "s'")
    for sign in "-,.":
        text = text.replace(f" @{sign}@ ", sign)
    text = _attached(text, ":;.!?,")
    for opening, closing in ("()", "[]", "{}", '""', "''"):
        inside = rf"{re.escape(opening)}\s*([^{re.escape(closing)}]*?)\s*{re.escape(closing)}"
        text = re.sub(inside, rf"{opening}\1{closing}", text)
    for level in (4, 3, 2):
        text = text.replace(" ".join("=" * level), "=" * level)
    text = text.replace(" ° ", "°").replace(" \n", "\n").replace("\n ", "\n")
    return text.replace(" N ", " 1 ").replace(" 's", "'s")


def ptb(text: str) -> str:
    r"""A sentence of the Penn Treebank as Mikolov prepared it: contractions, `\/`, N for numbers, <unk>.

    N becomes 1 only between spaces, <unk> a question mark; both are guesses that everybody makes alike.
    """
    text = text.replace(" 's", "'s").replace("s ' ", "s' ").replace(" n't", "n't")
    text = text.replace(" \n ", "\n").replace("\\/", "/")
    text = re.sub("(?<= )N(?= )", "1", text)
    return text.replace("$ 1", "$1").replace("# 1", "#1").replace("<unk>", "?")


def lm1b(text: str) -> str:
    """A sentence of the One Billion Word benchmark: addresses, contractions, punctuation, quotes, brackets, money."""
    text = text.replace("http : / / ", "http://").replace("https : / / ", "https://")
    text = re.sub(r" '(\w+)", r"'\1", text)
    for end in (" ", "$"):  # a full stop only behind a word: "( ... ) ." keeps its space
        text = re.sub(rf" (\w+) \.{end}", rf" \1.{end.strip('$')}", text)
    for mark in "?!":
        text = re.sub(rf" \{mark}$", mark, _attached(text, mark))
    text = _attached(text, ",:;").replace(" / ", "/")
    for opening, closing in ('""', "''", "()", "[]"):
        pair = "".join(sorted({re.escape(opening), re.escape(closing)}))
        inside = rf"{re.escape(opening)} ([^{pair}]+) {re.escape(closing)}"
        text = re.sub(inside, rf"{opening}\1{closing}", text)
    return text.replace("$ ", "$").replace("£ ", "£")


def lambada(text: str) -> str:
    """A passage of LAMBADA, OpenAI's copy: straight double quotes, and a new line in front instead of spaces."""
    return "\n" + text.replace("\u201c", '"').replace("\u201d", '"').strip()


def _attached(text: str, marks: str) -> str:
    """Each mark that stands alone goes to the word before it, one kind of mark after the other."""
    for mark in marks:
        text = text.replace(f" {mark} ", f"{mark} ")
    return text


DETOKENISERS: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {"wikitext": wikitext, "ptb": ptb, "lm1b": lm1b, "lambada": lambada}
)
