"""What the processes that tokenise do (data/tokenising.py); imports neither torch nor Lightning, so that they start in
half a second."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer

from ggm_lightning.data.codecs import Codec, codec_from_dict


class Encoded(NamedTuple):
    """A batch's ids in one array, how many belong to each piece, and how many characters the codec did not know."""

    ids: Integer[np.ndarray, " n"]
    lengths: list[int]
    replaced: int


def encode(codec: Codec, texts: list[str]) -> Encoded:
    """All texts, one after the other."""
    before = getattr(codec, "replaced", 0)
    found = codec.encode_batch(texts)
    ids = np.concatenate(found) if found else np.zeros(0, dtype=np.int64)
    ids = ids.astype(np.uint32, copy=False)  # half of what goes through the pipe
    return Encoded(ids, [len(one) for one in found], getattr(codec, "replaced", 0) - before)


_codec: Codec | None = None  # of a worker process


def begin_worker(described: dict[str, Any]) -> None:
    """What a new process needs to encode: the codec, by its `to_dict()`."""
    global _codec
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process per core already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's matter
    parent = multiprocessing.parent_process()

    def end_with_the_parent() -> None:
        parent.join()  # type: ignore[union-attr]
        os._exit(1)  # a killed parent says nothing, and its workers would wait for ever

    threading.Thread(target=end_with_the_parent, daemon=True).start()
    _codec = codec_from_dict(described)


def encode_in_worker(texts: list[str]) -> Encoded:
    """`encode` by the codec of `begin_worker`."""
    assert _codec is not None
    return encode(_codec, texts)
