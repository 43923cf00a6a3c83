"""The data order: a bijection, the same for any split over ranks, and resumable at any step."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from ggm_lightning.data.order import EvalOrder, TrainOrder, divide_batch, permuted

PINNED = [1, 9, 6, 8, 4, 10, 7, 2, 3, 5, 0]
SIZES = sorted({*range(1, 40), *(2**k + d for k in range(5, 13) for d in (-1, 0, 1)), 997, 10007})


def _shuffle(size: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return permuted(np.arange(size), size, seed, epoch)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_permuted_bijectively(size: int) -> None:
    for seed, epoch in ((0, 0), (7, 3), (2**40 + 5, 11)):
        assert np.array_equal(np.sort(_shuffle(size, seed, epoch)), np.arange(size))


def test_neighbouring_keys_give_unrelated_orders() -> None:
    size = 1009
    orders = [_shuffle(size), _shuffle(size, seed=1), _shuffle(size, epoch=1), np.arange(size)]
    for i, one in enumerate(orders):
        for other in orders[:i]:  # agreements of two random permutations: Poisson(1)
            assert (one == other).sum() < 10
            assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(size)
    assert (orders[0] == _shuffle(size)).all()  # control: the same key agrees everywhere


@pytest.mark.parametrize("size", [2, 3, 5, 7, 11])
def test_each_row_comes_to_each_place_equally_often(size: int) -> None:
    """Chi-square over 4000 epochs, (size-1)^2 degrees of freedom: within 6 standard deviations; the identity fails."""
    epochs = 4000
    position, epoch = np.tile(np.arange(size), epochs), np.repeat(np.arange(epochs), size)

    def excess(value: np.ndarray) -> float:
        counts = np.bincount(position * size + value, minlength=size * size)
        freedom = (size - 1) ** 2
        return float((((counts - epochs / size) ** 2) / (epochs / size)).sum() - freedom) / (2 * freedom) ** 0.5

    assert excess(permuted(position, size, 5, epoch)) < 6
    assert excess(position) > 60


def test_the_largest_sizes_stay_in_range_and_distinct() -> None:
    for size in (2**40, 2**40 - 1, 2**39 + 1, 10**11):
        position = np.unique(np.concatenate([np.arange(1000), np.linspace(0, size - 1, 1000).astype(np.int64)]))
        value = permuted(position, size, 3, 2)
        assert value.min() >= 0
        assert value.max() < size
        assert len(np.unique(value)) == len(position)
        assert abs(value.mean() / size - 0.5) < 5 * 0.29 / len(position) ** 0.5


def test_the_order_is_pinned() -> None:
    """A run started by one version must be resumed by the next."""
    assert _shuffle(11, seed=1, epoch=2).tolist() == PINNED


@pytest.mark.parametrize(("position", "size"), [(5, 5), (-1, 5), (0, 0), (0, 2**40 + 1)])
def test_outside_the_range_is_refused(position: int, size: int) -> None:
    with pytest.raises(ValueError, match="permuted"):
        permuted(np.array([position]), size, 0, 0)


def _steps(order: TrainOrder, steps: int) -> list[list[int]]:
    return list(islice(iter(order), steps * order.accumulation))


def test_two_ranks_and_three_micro_batches_make_the_batches_of_one_rank() -> None:
    size, batch = 31, 12
    alone = TrainOrder(size, batch, seed=5)
    ranks = [TrainOrder(size, batch, world=2, rank=r, accumulation=3, seed=5) for r in range(2)]
    whole = _steps(alone, alone.steps_per_epoch)
    parts = [_steps(order, alone.steps_per_epoch) for order in ranks]
    for k, expected in enumerate(whole):
        dealt = [parts[r][3 * k + a] for a in range(3) for r in range(2)]
        assert [i for row in zip(*dealt, strict=True) for i in row] == expected
    dealt = [parts[r][a] for a in range(3) for r in (1, 0)]
    swapped = [i for row in zip(*dealt, strict=True) for i in row]
    assert swapped != whole[0]  # control: the order of the ranks matters


def test_the_stream_covers_each_epoch_of_the_data_and_drops_nothing() -> None:
    size, batch = 13, 5
    order = TrainOrder(size, batch, seed=2)
    stream = [i for step in range(13) for i in order.indices(step, 0)]
    for epoch in range(5):
        assert sorted(stream[epoch * size : (epoch + 1) * size]) == list(range(size))
        assert stream[epoch * size : (epoch + 1) * size] == _shuffle(size, 2, epoch).tolist()


def test_data_smaller_than_the_batch_fill_it() -> None:
    order = TrainOrder(3, 7, seed=1)
    assert len(order) == 1
    (batch,) = list(order)
    assert len(batch) == 7
    assert sorted(batch[:3]) == sorted(batch[3:6]) == [0, 1, 2]


@pytest.mark.parametrize("start", range(0, 9))
def test_resuming_at_any_step_continues_identically(start: int) -> None:
    size, batch = 17, 6  # three steps per nominal epoch

    def order(first: int) -> TrainOrder:
        return TrainOrder(size, batch, accumulation=3, seed=4, first_step=lambda: first)

    undisturbed = [b for epoch in range(4) for b in order(3 * epoch)]
    resumed = list(order(start))
    assert resumed == undisturbed[start * 3 : (start // 3 + 1) * 9]
    assert len(order(start)) == 9  # the length of the nominal epoch, whatever the start


def test_permuting_steps_together_changes_nothing() -> None:
    """More steps than fit into one block: each micro-batch is the one that its number alone gives."""
    order = TrainOrder(20_011, 32, world=2, rank=1, accumulation=2, seed=9, first_step=lambda: 5)
    expected = [order.indices(k, a) for k in range(5, order.steps_per_epoch) for a in range(2)]
    assert len(expected) * len(order.numbers[0]) > 2 * 4096
    assert list(order) == expected


def test_shorter_epochs_have_the_same_steps_and_end_at_their_multiples() -> None:
    whole = TrainOrder(23, 6, accumulation=3, seed=5)
    for start in range(7):
        short = TrainOrder(23, 6, accumulation=3, seed=5, epoch_steps=3, first_step=lambda start=start: start)
        end = (start // 3 + 1) * 3
        assert list(short) == [whole.indices(k, a) for k in range(start, end) for a in range(3)]
    assert len(short) == 9


def test_repeated_epochs_have_the_first_rows_unshuffled() -> None:
    order = TrainOrder(11, 4, world=2, accumulation=2, rank=1, epoch_steps=2, repeats=True)
    assert [order.indices(k, a) for k in (0, 1, 2, 3) for a in (0, 1)] == [[1], [3], [5], [7]] * 2
    shuffled = TrainOrder(11, 4, world=2, accumulation=2, rank=1, epoch_steps=2)
    assert [shuffled.indices(k, a) for k in (0, 1) for a in (0, 1)] != [[1], [3], [5], [7]]  # control


def test_the_step_is_asked_when_iteration_starts() -> None:
    now = [0]
    order = TrainOrder(17, 6, first_step=lambda: now[0])
    iterator = iter(order)
    now[0] = 2
    assert next(iterator) == order.indices(0, 0)
    assert next(iter(order)) == order.indices(2, 0)


@pytest.mark.parametrize(("size", "batch", "world"), [(11, 2, 1), (11, 2, 3), (7, 3, 2), (2, 5, 3), (12, 4, 3)])
def test_evaluation_reads_every_row_once_in_strides(size: int, batch: int, world: int) -> None:
    seen = []
    for rank in range(world):
        order = EvalOrder(size, batch, world=world, rank=rank)
        batches = list(order)
        assert len(batches) == len(order)
        rows = [i for b in batches for i in b]
        assert rows == [rank + j * world for j in range(len(rows))]
        assert all(len(b) == batch for b in batches[:-1])
        seen += rows
    assert sorted(seen) == list(range(size))


def test_the_smallest_accumulation_that_fits() -> None:
    assert divide_batch(64, 1, None) == (1, 64)
    assert divide_batch(64, 2, 16) == (2, 16)
    assert divide_batch(12, 1, 5) == (3, 4)
    assert divide_batch(12, 1, 12) == (1, 12)
    assert divide_batch(64, 5, None) == (1, 13)  # four parts of 13 rows, one of 12
    assert divide_batch(64, 3, 4) == (6, 4)
    for batch, world, limit in ((64, 65, None), (5, 4, 1)):
        with pytest.raises(ValueError, match=rf"G={batch} .* {world} device.*batch"):
            divide_batch(batch, world, limit)
    for batch, limit in ((0, None), (8, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            divide_batch(batch, 1, limit)


def test_impossible_orders_are_refused() -> None:
    for bad in ({"world": 2, "rank": 2}, {"accumulation": 7}):
        with pytest.raises(ValueError, match="TrainOrder"):
            TrainOrder(10, 6, **bad)
    with pytest.raises(ValueError, match="no rows"):
        TrainOrder(0, 6)
    with pytest.raises(ValueError, match="eval_batch_size"):
        EvalOrder(3, 0)
