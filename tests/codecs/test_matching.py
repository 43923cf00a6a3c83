"""Ids of two vocabularies that stand for the same token."""

from __future__ import annotations

import json

import numpy as np

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.matching import same_tokens
from ggm_lightning.codecs.pictures import Images
from ggm_lightning.codecs.text import Bytes, Characters, Integers, Subwords
from ggm_lightning.codecs.tokenizer_file import meanings


def byte_level(*tokens: str, end: str = "</s>") -> Subwords:
    """A tokenizer whose tokens are pieces of text, in byte letters, and an end."""
    vocab = {token: i for i, token in enumerate([*tokens, end])}
    added = {"id": len(tokens), "content": end, "special": True}
    added |= {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    return Subwords(
        json.dumps({"model": model, "added_tokens": [added], "decoder": byte_level, "pre_tokenizer": byte_level})
    )


def test_characters_are_found_wherever_they_stand() -> None:
    ours, theirs = Characters("cabé"), Characters("abcde")
    found = same_tokens(ours, theirs)
    assert found is not None
    assert found.tolist() == [2, 0, 1, -1, 5]  # é is new; what stands for unknown ones is the same
    assert found.tolist() != list(range(5))  # control: by number it would be another one


def test_every_found_token_is_the_same_text() -> None:
    """Characters, bytes and byte-level pieces are compared as text."""
    pieces = byte_level("Ġ", "a", "Ċ", "Ã", "Ã©", "Ġa", "x")
    for ours, theirs in ((Characters("aé x\n", None), pieces), (Bytes(), pieces), (pieces, Bytes())):
        found = same_tokens(ours, theirs)
        assert found is not None
        pairs = [(i, int(j)) for i, j in enumerate(found) if j >= 0]
        assert len(pairs) >= 4
        assert all(ours.text([i]) == theirs.text([j]) for i, j in pairs)
    assert same_tokens(Characters("é", None), pieces).tolist() == [4]
    assert same_tokens(Characters("é", None), Bytes()).tolist() == [-1]  # of two bytes


def test_an_end_of_text_is_one_whatever_it_is_called() -> None:
    found = same_tokens(byte_level("b", "a", end="<|endoftext|>"), byte_level("a", "b", end="</s>"))
    assert found.tolist() == [1, 0, 2]
    assert same_tokens(Characters("</s>"[:1], None), byte_level("a")).tolist() == [-1]


def test_pieces_of_other_kinds_are_compared_within_their_kind() -> None:
    word = {"model": {"type": "WordPiece"}, "decoder": {"type": "WordPiece"}}
    assert meanings(word, ["the"]) != meanings({**word, "decoder": {"type": "Metaspace"}}, ["the"])
    assert meanings(word, ["the"]) == meanings(dict(word), ["the"])


def test_levels_of_brightness_and_numbers() -> None:
    assert same_tokens(Images(5, (1, 2, 3)), Images(3, (3, 2, 2))).tolist() == [0, -1, 1, -1, 2]
    assert same_tokens(Integers(3), Integers(2)).tolist() == [0, 1, -1]
    assert same_tokens(Integers(2), Images(2, (1, 2, 2))).tolist() == [-1, -1]


def test_codecs_that_say_nothing() -> None:
    class Own(Codec):
        def __init__(self, num_classes: int) -> None:
            self.num_classes = num_classes

    assert same_tokens(Own(5), Own(7)) is None
    assert np.array_equal(same_tokens(Own(5), Own(5)), np.arange(5))  # the same codec
