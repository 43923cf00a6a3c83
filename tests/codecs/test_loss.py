"""Counts of what is lost: added up in order, said in words, refused above one in a hundred."""

from __future__ import annotations

import numpy as np
import pytest

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.loss import Loss, difference, none_lost, tried


def test_counts_add_up_and_the_first_example_stays() -> None:
    parts = [none_lost(["ab", "c"]), Loss(2, 11, 3, 1, "a became b", 2, "</s>"), Loss(1, 5, 1, 1, "c became d", 1, "x")]
    whole = parts[0] + parts[1] + parts[2]
    assert whole == Loss(5, 19, 4, 2, "a became b", 3, "</s>")
    assert Loss(**whole.to_dict()) == whole
    assert parts[0].exact
    assert not (parts[0] + Loss(changed=1)).exact


def test_more_than_one_in_a_hundred_is_too_much() -> None:
    assert not Loss(characters=700, lost=7).too_much
    assert Loss(characters=699, lost=7).too_much
    assert not Loss().too_much


def test_the_note_says_what_there_is_and_nothing_else() -> None:
    assert none_lost(["abc"]).note() == ""
    note = Loss(5, 1900, 4, 2, "'é' became 'e'", 3, "</s>").note()
    assert note.startswith("; 4 of 1,900 characters (0.21%) lost")
    assert "; 2 of 5 texts do not decode to themselves, the first: 'é' became 'e'; therefore no bits/character" in note
    assert note.endswith("; 3 control words spelled out in the text are encoded as text, the first: '</s>'")
    assert "bits/character" not in Loss(5, 19, control_words=1, first_control_word="x").note()


def test_the_difference_is_shown_where_it_begins() -> None:
    assert difference("x" * 50 + "É" + "y" * 50, "x" * 50 + "e" + "y" * 50) == (
        f"{'x' * 20 + 'É' + 'y' * 19!r} became {'x' * 20 + 'e' + 'y' * 19!r}"
    )
    assert difference("ab", "ab c") == "'ab' became 'ab c'"


def test_texts_that_were_tried() -> None:
    loss = tried(["ab", "c☃d", "\ufffd", "E"], ["ab", "c\ufffdd", "\ufffd", "e"], lambda i: {1: 0, 3: 0}[i])
    assert (loss.lost, loss.changed, loss.first_changed) == (1, 2, "'c☃d' became 'c\ufffdd'")


class Letters(Codec):
    """Small letters alone: capitals are made small, all else becomes "a", and is counted where `counts` says so."""

    num_classes = 26

    def __init__(self, counts: bool) -> None:
        self.counts = counts

    def text(self, ids: list[int]) -> str:
        return "".join([chr(97 + i) for i in ids])

    def encode_array(self, text: str) -> np.ndarray:
        small = text.lower()
        if self.counts:
            self.replaced += sum(not "a" <= c <= "z" for c in small)
        return np.array([ord(c) - 97 if "a" <= c <= "z" else 0 for c in small], dtype=np.int64)


@pytest.mark.parametrize(("counts", "lost"), [(True, 3), (False, 0)])
def test_texts_are_tried_with_any_codec_and_what_it_counts_is_lost(counts: bool, lost: int) -> None:
    codec = Letters(counts)
    codec.encode("+" * 13)  # not of these texts
    found, loss = codec.encode_measured(["heron", "a Pond", "", "a-b+c"])
    assert [len(ids) for ids in found] == [5, 6, 0, 5]
    assert loss == Loss(4, 16, lost, 2, "'a Pond' became 'aapond'")
    _, none = codec.encode_measured(["heron"])  # control
    assert none.exact
