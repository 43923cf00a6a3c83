"""How a published table measures, and in what ours departs from it.

sedd    the blocks of SEDD (arXiv 2310.16834, data.py), which MD4 takes over: what the zero-shot sets are by default
mdlm    those of MDLM (arXiv 2406.07524, dataloader.py at c112c52): blocks with a token in front and one behind, and
        the validation part where the set has one
words   the same bound per word, as language models on PTB and GPT-2's report have it: exp(nats / words)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ggm_lightning.cli import config as config_files
from ggm_lightning.cli.evaluation_sets import EvaluationSet, Source
from ggm_lightning.codecs.codec import Codec
from ggm_lightning.data.rows import RowSource
from ggm_lightning.data.zeroshot import PROTOCOLS as OF_BLOCKS
from ggm_lightning.data.zeroshot import ZeroShotText

PROTOCOLS = (*OF_BLOCKS, "words")
_TOGETHER = 256  # rows that are decoded at once


def check(protocol: str | None) -> None:
    if protocol is not None and protocol not in PROTOCOLS:
        raise ValueError(f"--protocol is {protocol!r}; choose {', '.join(PROTOCOLS[:-1])} or {PROTOCOLS[-1]}")


def applied(sources: Mapping[str, Source], protocol: str | None) -> dict[str, Source]:
    """The sections with the protocol's blocks in them. Raises ValueError for data that cut their rows themselves."""
    if protocol not in OF_BLOCKS:
        return dict(sources)
    found = {}
    for name, one in sources.items():
        if str(one.section.get("class_path")).rpartition(".")[2] != ZeroShotText.__name__:
            raise ValueError(
                f"--protocol {protocol}: {name} is {one.section.get('class_path')}, whose rows are not cut by any "
                "protocol; it is for the zero-shot sets (configs/data/zeroshot_*.yaml), leave it out here"
            )
        section = config_files.merge(one.section, {"init_args": {"protocol": protocol}})
        found[name] = replace(one, section=section)
    return found


def of_set(one: EvaluationSet, protocol: str | None) -> str | None:
    """The protocol of a set's figures; None where no table's protocol is meant."""
    if protocol == "words":
        return protocol
    return one.data.protocol if isinstance(one.data, ZeroShotText) else None


def check_set(one: EvaluationSet, protocol: str | None) -> None:
    """Raises ValueError where the data cannot say what a word is."""
    if protocol != "words":
        return
    codec = getattr(one.data, "codec", None)
    has_text = isinstance(codec, Codec) and type(codec).text is not Codec.text and not codec.free_spacing
    if len(one.data.shape) != 1 or not has_text:
        what = f"rows of shape {tuple(one.data.shape)} by {type(codec).__name__}"
        raise ValueError(f"--protocol words: {one.name} has no words ({what}); it is for text")


def words(one: EvaluationSet, rows: RowSource, count: int) -> int:
    """Words in the first `count` rows: runs of characters that are not white space, in the rows strung together, so
    that a word which two blocks share counts once. An end of text is no part of a word."""
    codec: Any = one.data.codec  # type: ignore[attr-defined]
    ids, characters = codec.separator
    end = codec.text(ids) if ids and characters == 0 else ""
    found, inside = 0, False
    for start in range(0, count, _TOGETHER):
        for text in codec.decode(rows[np.arange(start, min(start + _TOGETHER, count))]["x"]):
            text = text.replace(end, "\n") if end else text
            goes_on = inside and not text[:1].isspace()
            found += len(text.split()) - goes_on
            inside = not text[-1:].isspace()
    return found


def departures(one: EvaluationSet, protocol: str | None, num_samples: int, estimator: str) -> list[str]:
    """In what the figures of this set are not the published protocol's, behind its name; none where none is meant."""
    named = of_set(one, protocol)
    if named is None:
        return []
    found = [] if estimator == "times" or named == "words" else [f"estimated by {estimator}, published by times"]
    if isinstance(one.data, ZeroShotText):
        found += one.data.departures()
    if named == "sedd" and num_samples != 1000:
        found.append(f"{num_samples} samples per row, published 1,000")
    if named == "words":
        found.append("words of the text as it was encoded, published those of the raw file; ends of text cost nats too")
    return [f"{named}: {departure}" for departure in found]
