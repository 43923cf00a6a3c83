"""Measures of a text by itself and against another: n-gram entropies and shares of known words."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"[A-Za-z]{5,}")


def _grams(text: str, n: int) -> Counter[str]:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))


def order_k_entropy(text: str, k: int) -> float:
    """H(c | previous k characters) of the text's own (k+1)-gram frequencies, bits per character.

        H = -sum_{h, c} n(hc)/N log2( n(hc) / n(h.) ),   n(h.) = sum_c n(hc),  N = len(text) - k.

    In-sample: it falls towards 0 once contexts become unique, so it is a lower line on short texts.
    """
    if k < 0 or len(text) <= k:
        raise ValueError(f"order_k_entropy: order {k} needs more than {k} characters, the text has {len(text)}")
    grams = _grams(text, k + 1)
    contexts: Counter[str] = Counter()
    for gram, n in grams.items():
        contexts[gram[:-1]] += n
    bits = math.fsum(n * math.log2(contexts[gram[:-1]] / n) for gram, n in grams.items())
    return bits / (len(text) - k)


def order_k_cross_entropy(train: str, text: str, k: int) -> float:
    """-log2 p per character of `text` under the order-k character model fitted on `train`, bits per character.

    Witten and Bell's interpolation (doi 10.1109/18.87000, their method C): with n(h) the occurrences of a context h in
    `train` and T(h) the number of distinct characters seen after it,

        p(c | h) = ( n(hc) + T(h) p(c | h') ) / ( n(h) + T(h) ),   h' = h without its oldest character,

    ending in the uniform law over all characters of both texts. The first k characters of `text` are only context.
    """
    if k < 0 or len(text) <= k:
        raise ValueError(f"order_k_cross_entropy: order {k} needs more than {k} characters, the text has {len(text)}")
    grams = [_grams(train, j + 1) for j in range(k + 1)]
    seen: list[Counter[str]] = [Counter() for _ in grams]
    kinds: list[Counter[str]] = [Counter() for _ in grams]
    for j, counts in enumerate(grams):
        for gram, n in counts.items():
            seen[j][gram[:-1]] += n
            kinds[j][gram[:-1]] += 1
    uniform = 1 / len(set(train) | set(text))

    def probability(gram: str) -> float:
        p = uniform
        for j in range(k + 1):
            tail = gram[k - j :]
            context = tail[:-1]
            if not seen[j][context]:
                break  # longer contexts are unseen too
            p = (grams[j][tail] + kinds[j][context] * p) / (seen[j][context] + kinds[j][context])
        return p

    bits = math.fsum(-n * math.log2(probability(gram)) for gram, n in _grams(text, k + 1).items())
    return bits / (len(text) - k)


def words(text: str) -> set[str]:
    """Distinct words: runs of five or more letters A-Z, a-z, in lower case."""
    return {word.lower() for word in _WORD.findall(text)}


def word_share(text: str, source: str) -> float:
    """Share of the distinct words of `text` that `source` has too; nan where `text` has no word of five letters."""
    found = words(text)
    return len(found & words(source)) / len(found) if found else math.nan


def copied_share(texts: Sequence[str], source: str) -> float:
    """Share of the texts that are copied: a stretch of at least half of their characters stands in `source`."""
    if not texts:
        raise ValueError("copied_share: no texts; give at least one")
    return sum(_is_copied(text, source) for text in texts) / len(texts)


def _is_copied(text: str, source: str) -> bool:
    length = (len(text) + 1) // 2
    stretches = {text[i : i + length] for i in range(len(text) - length + 1)}
    return bool(text) and any(stretch in source for stretch in stretches)
