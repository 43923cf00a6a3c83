"""Work in parts that are kept on the disk: gone on with after a stop, and divided over ranks (cli/ranks.py).

A part is the batch that one process would compute, [start, stop) of the rows, and its noise is a function of its rows.
So the parts, and what they are put together to, are the same bit by bit whoever has computed them. A part's file is
named by its rows and says of which settings it is; it appears as a whole.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ggm_lightning.cli import ranks
from ggm_lightning.data.arrays import DAMAGE

Arrays = dict[str, np.ndarray]
Span = tuple[int, int]  # rows start..stop-1
_SEEN_LATE = 60.0  # seconds until what another node has written is seen here
_SLOWER = 4.0  # how many times as long as on rank 0 a part may take elsewhere


@dataclass(frozen=True)
class Parts:
    """The files of parts.

    Attributes:
        folder: hidden, and removed when the parts are put together.
        settings: all that they depend on, as JSON.
    """

    folder: Path
    settings: str

    def file(self, span: Span) -> Path:
        return self.folder / f"rows-{span[0]}-{span[1]}.npz"

    def read(self, span: Span) -> Arrays | None:
        """None where there is no such part of these settings."""
        try:
            with np.load(self.file(span), allow_pickle=False) as found:
                arrays = dict(found)
            return arrays if str(arrays.pop("settings")) == self.settings else None
        except (*DAMAGE, KeyError):
            return None

    def write(self, span: Span, arrays: Arrays) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{span[0]}-{os.urandom(4).hex()}.npz"
        np.savez(temporary, **{**arrays, "settings": np.array(self.settings)})  # type: ignore[arg-type]
        os.replace(temporary, self.file(span))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def batches(count: int, batch_size: int) -> list[Span]:
    return [(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def shares(costs: Sequence[tuple[int, float]], count: int) -> list[list[int]]:
    """Numbers of parts for each of `count` ranks: the dearest part first, each to the rank that has least to do.

    Args:
        costs: (number, cost) of each part that is to be made.
    """
    dealt: list[list[int]] = [[] for _ in range(count)]
    load = [0.0] * count
    for number, cost in sorted(costs, key=lambda one: -one[1]):
        least = load.index(min(load))
        dealt[least].append(number)
        load[least] += cost
    return [sorted(share) for share in dealt]


def divided(
    parts: Parts | None,
    spans: Sequence[Span],
    make: Callable[[int, int], Arrays],
    costs: Sequence[float] | None = None,
    begun: Callable[[Sequence[Span]], None] | None = None,
) -> list[Arrays] | None:
    """All parts in their order on rank 0, None on the others, whose parts are then written. All ranks call this.

    Args:
        parts: where they are kept; None keeps them in memory, and then nothing is divided.
        spans: of all parts.
        make: computes the rows start..stop-1.
        costs: of each part, in any unit; by default its rows.
        begun: told which parts this rank will make.

    Raises:
        Apart: a rank is gone, or its part has not come within the time limit; the line names it.
    """
    if parts is None:
        if begun is not None:
            begun(spans)
        return [make(*span) for span in spans]
    here = ranks.current()
    found: dict[int, Arrays] = {}
    dealt = here.agree(lambda: _dealt(parts, spans, costs, here.count, found))
    own = dealt[here.rank]
    if begun is not None:
        begun([spans[number] for number in own])
    slowest = 0.0
    for number in own:
        begin = time.monotonic()
        found[number] = make(*spans[number])
        parts.write(spans[number], found[number])
        slowest = max(slowest, time.monotonic() - begin)
        here.check_alive()
    if not here.is_first:
        return None
    limit = max(ranks.patience(), _SLOWER * slowest)
    for rank, share in enumerate(dealt):
        for number in share:
            if number not in found:
                found[number] = awaited(parts, spans[number], rank, limit)
    return [found[number] for number in range(len(spans))]


def _dealt(
    parts: Parts, spans: Sequence[Span], costs: Sequence[float] | None, count: int, found: dict[int, Arrays]
) -> list[list[int]]:
    """The shares of all ranks in what is missing; what is there is read into `found`."""
    missing = []
    for number, span in enumerate(spans):
        kept = parts.read(span)
        if kept is not None:
            found[number] = kept
        else:
            missing.append((number, costs[number] if costs is not None else span[1] - span[0]))
    return shares(missing, count)


def awaited(parts: Parts, span: Span, rank: int, seconds: float) -> Arrays:
    """The part that a rank writes. Raises Apart, with its number, where it does not come within so many seconds, or the
    rank has ended without it."""
    here = ranks.current()
    deadline = time.monotonic() + seconds
    since = None
    while True:
        arrays = parts.read(span)
        if arrays is not None:
            return arrays
        here.check_alive()
        now = time.monotonic()
        if since is None and here.hub is not None and here.hub.has_left(rank):
            since = now
        if since is not None and now > since + _SEEN_LATE:
            here.give_up(rank, f"has ended without writing {parts.file(span)}")
        if now > deadline:
            here.give_up(rank, f"has not written {parts.file(span)} within {seconds:.0f} s")
        time.sleep(ranks.LOOK)
