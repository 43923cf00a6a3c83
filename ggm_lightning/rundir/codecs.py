"""A codec from its description: that of a checkpoint or of shards, which may be a stranger's.

The description names the codec's class and its arguments, and rundir/building.py makes it under its three rules. It is
tried before a training begins, too: what could not be made again would be known only when the run is over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.rundir import building

# Descriptions of version 0.1.0 name a kind where today's name a class, with the arguments beside it.
_KINDS = {
    "characters": "ggm_lightning.codecs.text.Characters",
    "bytes": "ggm_lightning.codecs.text.Bytes",
    "subwords": "ggm_lightning.codecs.text.Subwords",
    "integers": "ggm_lightning.codecs.text.Integers",
    "images": "ggm_lightning.codecs.pictures.Images",
    "vqgan": "ggm_lightning.vqgan.codes.Codes",
}
_RENAMED = {"tokenizer": "tokenizer_json"}
_MOST_IDS = 2**12  # of an example that are decoded to compare


def current(described: dict[str, Any]) -> dict[str, Any]:
    """A description in today's form. Raises ValueError for a kind that never was."""
    if "kind" not in described:
        return described
    kind = described["kind"]
    if kind not in _KINDS:
        raise ValueError(f"codec of kind {kind!r} is unknown; known are {', '.join(_KINDS)}")
    arguments = {_RENAMED.get(name, name): value for name, value in described.items() if name != "kind"}
    return {"class_path": _KINDS[kind], "init_args": arguments}


def codec_from_dict(described: dict[str, Any], trust: str | Sequence[str] = ()) -> Codec:
    """The codec that `to_dict()` described.

    Args:
        described: {"class_path": ..., "init_args": {...}}, or what version 0.1.0 wrote.
        trust: packages, modules or classes of your own that may be built.

    Raises:
        ValueError: a class that is not trusted, no codec, or arguments that do not fit it.
    """
    names = (trust,) if isinstance(trust, str) else tuple(trust)
    return building.build(current(described), Codec, names)


def check_loads_again(codec: Codec, shape: tuple[int, ...] | None = None) -> None:
    """The way of a codec through a checkpoint, before there is one: described, written as JSON, made again, compared.

    Args:
        codec: of the data.
        shape: of an example; one is decoded by both and compared (this package's own codecs are compared in the tests).

    Raises:
        ValueError: it cannot be made again, or is another one then; with the reason, and what helps.
    """
    try:
        again, foreign = _made_again(codec)
    except Exception as error:  # whatever a stranger's constructor raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(_fault(codec, reason)) from error
    if foreign and shape is not None:
        x = _example(codec, shape)
        shown = codec.decode(x)  # one that cannot decode at all says so itself
        if not np.array_equal(np.asarray(shown), np.asarray(again.decode(x))):
            raise ValueError(_fault(codec, "the one that is made again decodes the same ids to something else"))


def _fault(codec: Codec, reason: str) -> str:
    name = f"{type(codec).__module__}.{type(codec).__qualname__}"
    return (
        f"the codec {name} could not be loaded from a checkpoint again ({reason}); put the class at the top level of a "
        "module of its own, and let its constructor take plain data and keep it, see docs/extend/codec.md"
    )


def _made_again(codec: Codec) -> tuple[Codec, bool]:
    """(the codec out of its own description, whether it names classes of other packages)."""
    described = _as_stored(codec)
    foreign = building.foreign(described)
    if any(path.startswith("__main__.") for path in foreign):
        raise ValueError("it stands in the program that runs, which another process cannot import")
    again = codec_from_dict(described, foreign)
    if _as_stored(again) != described:
        raise ValueError(f"the one that is made from {_cut(described)} describes itself as {_cut(again.to_dict())}")
    return again, bool(foreign)


def _as_stored(codec: Codec) -> Any:
    return json.loads(json.dumps(codec.to_dict()))


def _cut(described: Any) -> str:
    text = json.dumps(described)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _example(codec: Codec, shape: tuple[int, ...]) -> np.ndarray:
    """Ids [1, *shape] of all classes in turn; of a long text a part will do, pictures are decoded whole."""
    if len(shape) == 1:
        shape = (min(shape[0], _MOST_IDS),)
    return (np.arange(math.prod(shape)) % codec.num_classes).reshape(1, *shape)
