"""Codes of several ranks: the largest is seen by all in the same step, the one behind it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import distributed, multiprocessing

from ggm_lightning.callbacks.agreement import Agreement


def answers(rank: int, store: str, out: list[list[int]]) -> None:
    distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    agreement = Agreement(SimpleNamespace(world_size=2))
    codes = {0: [0, 0, 0, 2, 0], 1: [0, 0, 3, 1, 0]}[rank]
    found = [agreement.ask(code) for code in codes]
    out[rank] = [*found, agreement.settle(), agreement.settle()]
    distributed.destroy_process_group()


def test_all_ranks_hear_of_it_in_the_same_step(tmp_path) -> None:
    with multiprocessing.get_context("fork").Manager() as manager:
        out = manager.list([[], []])
        context = multiprocessing.start_processes(
            answers, (str(tmp_path / "store"), out), nprocs=2, join=False, start_method="fork"
        )
        while not context.join():
            pass
        assert list(out) == [[0, 0, 0, 3, 2, 0, 0]] * 2


def test_alone_it_is_known_at_once() -> None:
    agreement = Agreement(SimpleNamespace(world_size=1))
    assert [agreement.ask(code) for code in (0, 3)] == [0, 3]
    assert agreement.settle() == 0
    assert not torch.distributed.is_initialized()


class Decides:
    """A strategy without a process group, of a rank whose code is 0 and of another one."""

    def __init__(self, theirs: int) -> None:
        self.theirs, self.asked = theirs, 0

    def reduce_boolean_decision(self, decision: bool, all: bool) -> bool:
        assert not all
        self.asked += 1
        return decision or self.theirs >= self.asked


@pytest.mark.parametrize(("ours", "theirs"), [(0, 0), (0, 3), (2, 1), (2, 2)])
def test_without_a_process_group_yes_and_no_are_enough(ours: int, theirs: int) -> None:
    strategy = Decides(theirs)
    assert Agreement(SimpleNamespace(world_size=2, strategy=strategy)).ask(ours) == max(ours, theirs)
    assert strategy.asked == 1 + max(ours, theirs)  # once in a step without a signal: each may wait for the device
