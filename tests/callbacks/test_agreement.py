"""Flags of several ranks: what one raises all see in the same step, the one behind it."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import distributed, multiprocessing

from ggm_lightning.callbacks.agreement import Agreement

QUESTIONS = 5


def answers(rank: int, store: str, out: list[list[bool]]) -> None:
    distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    agreement = Agreement(SimpleNamespace(world_size=2))
    found = [agreement.ask(rank == 1 and step == 2) for step in range(QUESTIONS)]
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
        assert list(out) == [[False, False, False, True, False, False, False]] * 2


def test_alone_it_is_known_at_once() -> None:
    strategy = SimpleNamespace(reduce_boolean_decision=lambda raised, all: raised)
    agreement = Agreement(SimpleNamespace(world_size=1, strategy=strategy))
    assert [agreement.ask(raised) for raised in (False, True)] == [False, True]
    assert not agreement.settle()
    assert not torch.distributed.is_initialized()
