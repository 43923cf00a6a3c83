"""Text measures against cases that can be computed by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from ggm_lightning.metrics.text import copied_share, order_k_cross_entropy, order_k_entropy, word_share, words


def test_entropies_by_hand() -> None:
    assert order_k_entropy("aaaa", 0) == 0
    assert order_k_entropy("abcd", 0) == pytest.approx(2)
    assert order_k_entropy("abababa", 1) == 0  # each character follows from the one before
    # "aabab": a -> a once, a -> b twice, b -> a once: 3/4 of the places have entropy H(1/3), 1/4 none.
    h_third = -(1 / 3) * math.log2(1 / 3) - (2 / 3) * math.log2(2 / 3)
    assert order_k_entropy("aabab", 1) == pytest.approx(0.75 * h_third)


def test_more_context_never_raises_the_entropy_of_a_ring() -> None:
    """On a text read as a ring the conditional entropies fall; the ring's own seam changes little here."""
    text = "to be or not to be that is the question " * 3
    values = [order_k_entropy(text, k) for k in range(5)]
    assert all(a > b for a, b in pairwise(values))


def test_the_interpolated_model_by_hand() -> None:
    # train "aab": unigrams a 2, b 1 of N=3 with T=2 kinds; uniform over {a, b} = 1/2.
    p_a, p_b = (2 + 2 * 0.5) / 5, (1 + 2 * 0.5) / 5
    assert order_k_cross_entropy("aab", "ab", 0) == pytest.approx(-(math.log2(p_a) + math.log2(p_b)) / 2)
    # order 1: context a is followed by a and b once each (n=2, T=2); context b was never continued.
    p_ab = (1 + 2 * p_b) / 4
    assert order_k_cross_entropy("aab", "aba", 1) == pytest.approx(-(math.log2(p_ab) + math.log2(p_a)) / 2)


def test_the_interpolated_model_is_normalised() -> None:
    """sum_c p(c | h) = 1 for seen and unseen contexts: recovered from texts that end in each character."""
    train, alphabet = "abracadabra cab", "abcdr "
    for context in ("ab", "ra", "dd", " c"):
        total = sum(2 ** -order_k_cross_entropy(train, context + c, 2) for c in alphabet)
        assert total == pytest.approx(1, abs=1e-12)


def test_a_model_fits_its_own_text_best() -> None:
    text = "the cat sat on the mat and the rat sat on the cat " * 20
    other = "lorem ipsum dolor sit amet consectetur adipiscing " * 20
    own = order_k_cross_entropy(text, text, 2)
    assert order_k_entropy(text, 2) <= own < order_k_cross_entropy(other, text, 2) / 3


@pytest.mark.parametrize("measure", [order_k_entropy, lambda t, k: order_k_cross_entropy("ab", t, k)])
def test_a_text_without_a_single_gram_is_refused(measure) -> None:
    with pytest.raises(ValueError, match="order 3 needs more than 3 characters, the text has 3"):
        measure("abc", 3)


def test_words_and_their_share() -> None:
    assert words("House houses, a_house 12345 tiny HOUSE über") == {"house", "houses"}
    assert word_share("house garden xylon", "the Garden behind the house") == pytest.approx(2 / 3)
    assert word_share("house house house xylon", "house") == 0.5  # distinct words, however often
    assert math.isnan(word_share("a few tiny one", "house"))


def test_copied_texts_share_half_of_their_characters_with_the_source_in_one_stretch() -> None:
    """Of 7 characters 4 are half. Control: as many known characters in two stretches are no copy."""
    source = "the house in the garden"
    assert copied_share(["e house in th"], source) == 1
    assert copied_share(["xhousxx", "hoxusex", "xxxxxxx", "the hou", ""], source) == pytest.approx(2 / 5)
    with pytest.raises(ValueError, match="no texts"):
        copied_share([], source)
