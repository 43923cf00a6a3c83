"""The order of the data as a function of (seed, epoch, position), in O(1) memory.

A shuffled index list of 9 billion windows does not fit, and a generator's history cannot be resumed in the middle.
Here the shuffle of `range(size)` is a keyed bijection evaluated at one position: a Feistel network (Luby and Rackoff
1988, doi 10.1137/0217022) on the smallest even number of bits that holds `size`, walked along its cycle until the
value falls below `size` (Black and Rogaway 2002, doi 10.1007/3-540-45760-7_9). So a run resumed at step k, or spread
over other ranks, sees exactly the rows that the undisturbed run on one device would have seen.

Here, too, rows get the numbers under which a model draws their noise (`Dealt.row`), and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

import numpy as np
from jaxtyping import Int64
from torch.utils.data import Sampler

_ROUNDS = 8
_TOGETHER = 4096  # positions permuted in one call: numpy's cost per call is then shared by many batches
_LARGEST = 2**40
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31 = np.uint64(27), np.uint64(30), np.uint64(31)


def _mix(h: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, modulo 2^64."""
    h = (h ^ (h >> _S30)) * _MIX_1
    h = (h ^ (h >> _S27)) * _MIX_2
    return h ^ (h >> _S31)


def _absorb(h: np.ndarray, number: np.ndarray) -> np.ndarray:
    return _mix(_mix(h) + (number + np.uint64(1)) * _GOLDEN)


def _feistel(value: np.ndarray, key: np.ndarray, half_bits: int) -> np.ndarray:
    """(L, R) -> (R, L xor F(R)) per round: invertible whatever F is."""
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = value >> shift, value & mask
    for _ in range(_ROUNDS):
        key = key + _GOLDEN
        left, right = right, left ^ (_mix(_mix(right + key) ^ key) & mask)
    return (left << shift) | right


def permuted(
    position: Int64[np.ndarray, " b"], size: int, seed: int, epoch: int | Int64[np.ndarray, " b"]
) -> Int64[np.ndarray, " b"]:
    """Where each position of `range(size)` goes in the shuffle of (seed, epoch): a bijection of range(size) for each.

    `epoch` is one number, or one per position (a batch may straddle two epochs). `size` at most 2^40.
    """
    if not 1 <= size <= _LARGEST:
        raise ValueError(f"permuted: size {size} is outside 1..2^40; split the data or use longer windows")
    position = np.asarray(position, dtype=np.int64)
    if position.size and (position.min() < 0 or position.max() >= size):
        raise ValueError(f"permuted: positions must lie in 0..{size - 1}, got {position.min()}..{position.max()}")
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    numbers = np.array([seed, size], dtype=np.int64).astype(np.uint64)
    epochs = np.broadcast_to(np.asarray(epoch, dtype=np.int64), position.shape).astype(np.uint64)
    key = _absorb(_absorb(numbers[:1], numbers[1:]), epochs.reshape(-1))
    value = _feistel(position.reshape(-1).astype(np.uint64), key, half_bits)
    outside = np.flatnonzero(value >= np.uint64(size))
    while outside.size:  # the domain is at most four times `size`, so few walks are long
        value[outside] = _feistel(value[outside], key[outside], half_bits)
        outside = outside[value[outside] >= np.uint64(size)]
    return value.astype(np.int64).reshape(position.shape)


def divide_batch(global_batch: int, world: int, max_micro: int | None) -> tuple[int, int]:
    """(accumulation, rows of the largest micro-batch): the smallest accumulation whose parts of the global batch G, one
    to each of world * accumulation, have at most max_micro rows. Parts differ by one row where G does not divide."""
    if global_batch < 1:
        raise ValueError(f"data.global_batch_size is {global_batch}; it must be a whole number of at least 1")
    if max_micro is not None and max_micro < 1:
        raise ValueError(f"data.max_batch_per_device is {max_micro}; it must be at least 1, or null for no limit")
    accumulation = 1 if max_micro is None else -(-global_batch // (world * max_micro))
    parts = world * accumulation
    if parts > global_batch:
        raise ValueError(
            f"data.global_batch_size G={global_batch} has no row for each of {world} device(s) x {accumulation} micro-"
            f"batch(es); choose G of at least {parts}, fewer devices, or a larger data.max_batch_per_device"
        )
    return accumulation, -(-global_batch // parts)


def _at_the_start() -> int:
    return 0


class Dealt(list[int]):
    """The rows of one batch, as indices into the data set, and what their numbers are.

    Attributes:
        row: in training the places in the step's global batch of G rows, each of 0..G-1 once over all ranks and
            micro-batches; in evaluation the indices themselves.
    """

    def __init__(self, index: Iterable[int], row: list[int]) -> None:
        super().__init__(index)
        self.row = row


class TrainOrder(Sampler[Dealt]):
    """Lists of dataset indices, one per micro-batch of this rank, without end to the data and resumable at any step.

    Optimiser step k takes positions kG .. (k+1)G-1 of an infinite stream; position p is row permuted(p mod size) of
    data epoch p // size. Within the step, micro-batch a of rank r takes every parts-th position, kG + part, kG + part +
    parts, ... below (k+1)G, with parts = world*accumulation and part = a*world + r. These places less kG are the rows'
    numbers, so each micro-batch has its times spread over all of [0, 1). Nothing is dropped and a batch may straddle
    epochs, so data smaller than G works too. Where G does not divide into the parts, the first G mod parts of them have
    a row more than the others; whoever averages over them has to weigh them by their rows (models/trained.py).
    One pass over this sampler (a Lightning epoch) ends with step S, 2S, ... for S = ceil(size/G), and starts at
    `first_step()`, which is asked each time: that is what makes a resumed run continue where it stopped.

    Args:
        size: rows of the training split.
        global_batch: G.
        world, rank, accumulation: as above.
        seed: of the shuffles.
        first_step: the number of optimiser steps taken so far.
        epoch_steps: a smaller S. The rows of a step are the same as without: an epoch goes on where the last one ended.
        repeats: each epoch has the rows 0 .. SG-1 (modulo size), unshuffled: to see whether a model can learn them.

    Attributes:
        numbers: of this rank's rows in the global batch, for each micro-batch Int64[m]; the same in every step.
    """

    def __init__(
        self,
        size: int,
        global_batch: int,
        *,
        world: int = 1,
        rank: int = 0,
        accumulation: int = 1,
        seed: int = 0,
        first_step: Callable[[], int] = _at_the_start,
        epoch_steps: int | None = None,
        repeats: bool = False,
    ) -> None:
        if size < 1:
            raise ValueError("TrainOrder: the training split has no rows; check the path and the length")
        if not 0 <= rank < world:
            raise ValueError(f"TrainOrder: rank {rank} is outside 0..{world - 1}")
        if global_batch < world * accumulation:
            raise ValueError(
                f"TrainOrder: global batch {global_batch} has no row for each of {world} ranks x {accumulation} micro-"
                f"batches; make it at least {world * accumulation}"
            )
        self.size, self.global_batch, self.seed = size, global_batch, seed
        self.world, self.rank, self.accumulation = world, rank, accumulation
        parts = world * accumulation
        firsts = range(rank, parts, world)
        self.numbers = [np.arange(part, global_batch, parts, dtype=np.int64) for part in firsts]
        self.first_step = first_step
        self.steps_per_epoch = -(-size // global_batch) if epoch_steps is None else epoch_steps
        self.repeats = repeats

    def __len__(self) -> int:
        return self.steps_per_epoch * self.accumulation

    def indices(self, step: int, micro_batch: int) -> list[int]:
        """The rows of one micro-batch of this rank."""
        begin = sum(len(row) for row in self.numbers[:micro_batch])
        return self._indices(step, step + 1)[0, begin : begin + len(self.numbers[micro_batch])].tolist()

    def _indices(self, first: int, end: int) -> Int64[np.ndarray, "steps m"]:
        """The rows of this rank in steps first .. end-1, micro-batch after micro-batch."""
        step = np.arange(first, end, dtype=np.int64)[:, None]
        if self.repeats:
            step = step % self.steps_per_epoch
        position = step * self.global_batch + np.concatenate(self.numbers)
        epoch, offset = np.divmod(position, self.size)
        if self.repeats:
            return offset
        return permuted(offset.reshape(-1), self.size, self.seed, epoch.reshape(-1)).reshape(position.shape)

    def __iter__(self) -> Iterator[Dealt]:
        first = self.first_step()  # now, not at the first batch: the step may move on before that
        return self._from(first)

    def _from(self, first: int) -> Iterator[Dealt]:
        end = (first // self.steps_per_epoch + 1) * self.steps_per_epoch
        numbers = [part.tolist() for part in self.numbers]
        begins = list(accumulate((len(row) for row in numbers), initial=0))
        block = max(1, _TOGETHER // begins[-1])
        for start in range(first, end, block):
            for step in self._indices(start, min(start + block, end)).tolist():
                for begin, row in zip(begins, numbers, strict=False):  # the last is where the step ends
                    yield Dealt(step[begin : begin + len(row)], row)


class EvalOrder(Sampler[Dealt]):
    """Rank r reads rows r, r + world, r + 2*world, ... in order, `batch_size` at a time; each row exactly once.

    A row's number is its index in the data set, whichever rank and batch it comes to. Ranks may differ by one row; the
    last batch may be smaller.
    """

    def __init__(self, size: int, batch_size: int, *, world: int = 1, rank: int = 0) -> None:
        if batch_size < 1:
            raise ValueError(f"data.eval_batch_size is {batch_size}; it must be at least 1")
        if not 0 <= rank < world:
            raise ValueError(f"EvalOrder: rank {rank} is outside 0..{world - 1}")
        self.rows, self.batch_size = range(rank, size, world), batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Dealt]:
        for start in range(0, len(self.rows), self.batch_size):
            index = list(self.rows[start : start + self.batch_size])
            yield Dealt(index, row=index)
