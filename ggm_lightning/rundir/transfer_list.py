"""What became of every tensor when a model starts from another one's weights, as lines that a person reads."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.rundir.transfer import Transfer, Vocabulary

_SHOWN_TOKENS = 8
_SHOWN_REASONS = 3
_RENAMED = "there "
_INDENT = " " * 13


def lines(transfer: Transfer, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], tokens: str) -> list[str]:
    """Every tensor of both models, in groups: a group `network.blocks.*` is named where all of it has the same fate.

    Args:
        transfer: what was planned.
        ours, theirs: both state dicts.
        tokens: what is said of the vocabulary; empty where there is nothing to say.
    """
    carried = [*transfer.whole, *transfer.rows, *transfer.beginnings]
    numbers = sum(ours[name].numel() for name in transfer.whole)
    total = sum(value.numel() for value in ours.values())
    found = [f"  carried    {len(carried)} of {len(ours)} tensors, {numbers:,} of {total:,} numbers unchanged"]
    found += _said("", transfer.whole, ours, _renamed(transfer.whole))
    if transfer.rows:
        found.append(f"  by token   {tokens}")
        found += _said("rows of ", transfer.rows, ours, transfer.rows)
    if transfer.beginnings:
        found.append("  beginning  of what has another length here")
        found += _said("", transfer.beginnings, ours, transfer.beginnings)
    if transfer.new:
        found.append("  new        starts as initialised")
        found += _said("", transfer.new, ours, transfer.new)
    if transfer.left_out:
        found.append("  left out   there, and of no use here")
        found += _said("", transfer.left_out, theirs, dict.fromkeys(transfer.left_out, ""))
    return found


def _renamed(whole: Mapping[str, str]) -> dict[str, str]:
    return {name: "" if name == source else f"{_RENAMED}{source}" for name, source in whole.items()}


def _said(before: str, names: Iterable[str], all_names: Iterable[str], reasons: Mapping[str, str]) -> list[str]:
    """A line for each group of those names, and behind it what is said of them; those of which nothing is said are
    groups of their own."""
    chosen, found = list(names), []
    for silent in (True, False):
        some = [name for name in chosen if (reasons[name] == "") == silent]
        others = [_pattern(name) for name in all_names if name not in set(some)]
        groups: dict[str, list[str]] = {}
        for name in some:
            groups.setdefault(_group(_pattern(name), others), []).append(name)
        found += [f"{_INDENT}{before}{_line(group, members, reasons)}" for group, members in groups.items()]
    return found


def _line(group: str, members: Sequence[str], reasons: Mapping[str, str]) -> str:
    if len(members) == 1:
        (name,) = members
        return f"{name}: {reasons[name]}" if reasons[name] else name
    given = sorted({_pattern(reasons[name]) for name in members} - {""})
    said = "; ".join(given[:_SHOWN_REASONS]) + (" .." if len(given) > _SHOWN_REASONS else "")
    if len(given) > 1 and all(reason.startswith(_RENAMED) for reason in given):
        said = f"{_common(given)}.*"
    return f"{group} ({len(members)}){': ' if said else ''}{said}"


def _common(names: Sequence[str]) -> str:
    """The words with which all of them begin."""
    words = zip(*(name.split(".") for name in names), strict=False)
    return ".".join(same[0] for same in itertools.takewhile(lambda same: len(set(same)) == 1, words))


def frozen(names: Sequence[str], parameters: Mapping[str, Tensor]) -> list[str]:
    """What `--freeze` leaves as it is."""
    numbers = sum(parameters[name].numel() for name in names)
    total = sum(value.numel() for value in parameters.values())
    said = f"frozen: {len(names)} of {len(parameters)} tensors, {numbers:,} of {total:,} parameters"
    return [said, *_said("", names, parameters, dict.fromkeys(names, ""))]


def _pattern(name: str) -> str:
    """Numbers of blocks as *: what is said of one block is said of all."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _group(pattern: str, others: Sequence[str]) -> str:
    """The shortest beginning of the name, whole words of it, under which nothing else stands."""
    parts = pattern.split(".")
    for count in range(1, len(parts)):
        beginning = ".".join(parts[:count]) + "."
        if not any(other.startswith(beginning) for other in others):
            return f"{beginning}*"
    return pattern


def about_tokens(vocabulary: Vocabulary, ours: Codec | None, theirs: Codec | None) -> str:
    """How many tokens both know, and which are new or left out."""
    if vocabulary.rows is None:
        return "which tokens are the same is not known"
    known = {row for row in vocabulary.rows.tolist() if row >= 0}
    new = [i for i, row in enumerate(vocabulary.rows.tolist()) if row < 0]
    gone = [i for i in range(vocabulary.theirs) if i not in known]
    said = f"{vocabulary.ours - len(new):,} of {vocabulary.ours:,} tokens are known there"
    if new:
        said += f"; {len(new):,} new ones start as initialised ({_tokens(new, ours)})"
    if gone:
        said += f"; {len(gone):,} of its tokens are unknown here ({_tokens(gone, theirs)})"
    return said


def _tokens(ids: Sequence[int], codec: Codec | None) -> str:
    """The first of them, as they are written."""
    first = list(ids[:_SHOWN_TOKENS])
    try:
        shown = [str(i) for i in first] if codec is None else [repr(codec.text([i])) for i in first]
    except ValueError:  # levels of brightness have no text
        shown = [str(i) for i in first]
    return " ".join(shown) + (" .." if len(ids) > len(first) else "")
