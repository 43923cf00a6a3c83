"""A checkpoint is read once on each node, and is the same on every rank of it."""

from __future__ import annotations

import multiprocessing
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from ggm_lightning.rundir.sharing import once_per_node


def content() -> dict[str, Any]:
    drawn = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    weights = OrderedDict(a=drawn, b=drawn.to(torch.bfloat16), empty=torch.zeros(0, 7), flag=torch.tensor(True))
    return {"state_dict": weights, "step": 7, "nested": [{"x": torch.arange(11)[::2]}, (None, 1.5, "text")]}


def _rank(rank: int, folder: Path, nodes: tuple[str, ...], fails: bool, told: Any) -> None:
    import os

    os.environ["SLURMD_NODENAME"] = nodes[rank]
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(nodes))

    def read() -> dict[str, Any]:
        (folder / f"read-by-{rank}").touch()
        if fails:
            raise ValueError("last.ckpt: truncated")
        return content()

    try:
        found = once_per_node(read)
        ours = content()
        weights, theirs = ours["state_dict"], found["state_dict"]
        same = type(theirs) is OrderedDict and all(torch.equal(weights[name], theirs[name]) for name in weights)
        same = same and all(weights[name].dtype == theirs[name].dtype for name in weights)
        same = same and torch.equal(ours["nested"][0]["x"], found["nested"][0]["x"])
        told.put((rank, same and found["nested"][1] == (None, 1.5, "text")))
    except ValueError as error:
        told.put((rank, str(error)))


@pytest.mark.parametrize(
    ("nodes", "fails", "readers"),
    [(("n1", "n1"), False, [0]), (("n1", "n2"), False, [0, 1]), (("n1", "n1"), True, [0])],
    ids=["one node", "two nodes", "damaged"],
)
def test_one_rank_of_each_node_reads(nodes: tuple[str, ...], fails: bool, readers: list[int], tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    ranks = [context.Process(target=_rank, args=(r, tmp_path, nodes, fails, told)) for r in range(len(nodes))]
    for process in ranks:
        process.start()
    wanted = "last.ckpt: truncated" if fails else True
    assert sorted(told.get(timeout=60) for _ in ranks) == [(r, wanted) for r in range(len(nodes))]
    for process in ranks:
        process.join(60)
    assert sorted(file.name for file in tmp_path.glob("read-by-*")) == [f"read-by-{rank}" for rank in readers]


def test_alone_it_is_read_as_it_is() -> None:
    given = content()
    assert once_per_node(lambda: given) is given
