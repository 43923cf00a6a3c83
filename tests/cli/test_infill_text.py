"""Which tokens of a text with blanks are known, of tokenizers that write a text exactly and of those that do not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ggm_lightning.cli import infill_input
from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.text import Bytes, Characters, Integers, Subwords
from tests.codecs.tokenizers_of_all_kinds import byte_level, unigram, word_piece

SITES = 29


def subwords(description: dict[str, Any]) -> Subwords:
    return Subwords(json.dumps(description))


def given(codec: Codec, text: str, blank: str = "_") -> list[int | None]:
    """The sites of the text, None where the model is to fill; those behind it are the model's own."""
    model: Any = SimpleNamespace(codec=codec, shape=(SITES,), num_sites=SITES)
    found = infill_input.read(model, text, None, None, blank)
    assert found.values.shape == found.known.shape == (1, SITES)
    assert not found.known[0, found.length :].any()
    sites = zip(found.values[0].tolist(), found.known[0].tolist(), strict=True)
    return [value if known else None for value, known in sites][: found.length]


def filled(codec: Codec, text: str, *words: str, blank: str = "_") -> str:
    """The text with its blanks replaced by one token each."""
    waiting = list(words)
    ids = [codec.token_id(waiting.pop(0)) if site is None else site for site in given(codec, text, blank)]
    assert waiting == []
    return codec.decode(torch.tensor([ids]))[0]


@pytest.mark.parametrize("kind", [word_piece, unigram])
def test_filling_the_true_tokens_gives_the_tokens_of_the_whole_text(kind: Any) -> None:
    """A blank for one whole token: all others are those of the undisturbed text, wherever it stands."""
    codec = subwords(kind())
    text = "a small grey heron waits at pond"
    whole = codec.encode(text)
    words = text.split(" ")
    tokens = [codec._tokenizer.id_to_token(i) for i in whole]
    assert len(tokens) == len(words), "each word of the training text is a token"
    for number in range(len(words)):
        blanked = " ".join([*words[:number], "_", *words[number + 1 :]])
        assert given(codec, blanked) == [*whole[:number], None, *whole[number + 1 :]]
    several = given(codec, "_ small _ _ waits __ pond")
    assert several == [None, whole[1], None, None, whole[4], None, None, whole[6]]


def test_of_word_pieces() -> None:
    codec = subwords(word_piece())
    assert filled(codec, "a small _ heron", "grey") == "a small grey heron"
    assert filled(codec, "A Small _ Heron.", "grey") == "a small grey heron."  # as the model's text is
    assert filled(codec, "a_heron", "##t") == "at heron"  # inside a word, too
    assert filled(codec, "a small ? heron", "grey", blank="?") == "a small grey heron"
    with pytest.raises(ValueError, match=r"infill: the model's vocabulary lacks '☃' \(in 'a ☃"):
        given(codec, "a ☃ _ heron")
    with pytest.raises(ValueError, match="nothing to fill; mark each missing token by '_'"):
        given(codec, "a small heron")


def test_of_pieces_with_a_space_before_each_word() -> None:
    codec = subwords(unigram())
    assert filled(codec, "a small _ heron", "▁grey") == "a small grey heron"
    assert filled(codec, "_ small heron", "▁a") == "a small heron"
    assert filled(codec, "a small grey _", "▁heron") == "a small grey heron"
    assert given(codec, "a sma_ heron")[-2:] == [None, codec.token_id("▁heron")]
    assert filled(codec, "a sm_ll heron", "a") == "a small heron"
    assert given(codec, "__") == [None, None]
    with pytest.raises(ValueError, match="the model's vocabulary lacks '伓'"):
        given(codec, "a 伓 _ heron")


def test_of_exact_codecs_the_parts_are_encoded_one_by_one() -> None:
    codec = subwords(byte_level("<|endoftext|>"))
    parts = [codec.encode("a small "), codec.encode(" heron")]
    assert given(codec, "a small __ heron") == [*parts[0], None, None, *parts[1]]
    assert given(codec, "a small <|endoftext|>_")[:-1] == codec.encode("a small <|endoftext|>")
    assert given(Bytes(), "a_\u00e9") == [97, None, 195, 169]
    assert given(Characters("ab"), "a_b") == [0, None, 1]
    assert given(Integers(11), "3 _ 10_7") == [3, None, 10, None, 7]
    with pytest.raises(ValueError, match=r"the model's vocabulary lacks 'x' \(in 'b{20}x'\); write another symbol, or"):
        given(Characters("ab"), "b" * 100 + "x_b")


def test_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa_b\n")
    model: Any = SimpleNamespace(codec=Characters("ab"), shape=(3,), num_sites=3)
    found = infill_input.read(model, None, str(tmp_path / "a.txt"), None, "_")
    assert (found.values.tolist(), found.known.tolist()) == ([[0, 0, 1]], [[True, False, True]])
