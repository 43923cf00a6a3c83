"""Which ids of two vocabularies stand for the same token, so that what a model has learnt of it can be carried over."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from ggm_lightning.codecs.codec import Codec

NEW = -1  # in place of an id that the other vocabulary does not have


def same_tokens(ours: Codec, theirs: Codec) -> Int64[np.ndarray, " v"] | None:
    """For each of our ids 0..V-1 the id of the same token in the other vocabulary, NEW where it has none.

    None: one of the codecs does not say what its ids stand for (`Codec.meanings`), and they are not the same codec.
    """
    if ours.tokenizer_hash == theirs.tokenizer_hash:
        return np.arange(ours.num_classes)
    our_meanings, their_meanings = ours.meanings(), theirs.meanings()
    if our_meanings is None or their_meanings is None:
        return None
    places = {meaning: i for i, meaning in enumerate(their_meanings) if meaning is not None}
    return np.array([places.get(meaning, NEW) for meaning in our_meanings], dtype=np.int64)
