"""A training step does not ask the device for numbers: counted on a CPU from the operations themselves.

On a GPU the host waits wherever a tensor's value decides what is done next: `.item()`, `bool`, `float` of a tensor
(_local_scalar_dense), `nonzero`, and indexing by a mask, which is a nonzero in disguise. One such wait per step is
meant: the gather of the rows that carry loss.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ggm_lightning.core import counting
from tests.models.test_fused_training import N, family

HOLLOW = ("hollow_bce of 7", "hollow_bce of 99", "hollow_bce_sampled of 1", "hollow_ce_x0 of 1", "hollow_bound of 1")
FAMILIES = (*HOLLOW, "md4", "md4_bias", "genmd4", "ar", "ggm", "blackout", "blackout_scaled", "fuji", "seq", "markov")


class Waits(TorchDispatchMode):
    """Counts operations whose result's size or value the host must know."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or name in ("_local_scalar_dense", "nonzero", "masked_select", "unique2", "_unique2"):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def waits(name: str, fused: bool | None) -> Counter[str]:
    model = family(name)
    model.fused = fused
    x = torch.randint(model.num_classes, (4, N), generator=torch.Generator().manual_seed(0))
    model.loss(x, step=0).backward()  # what is made once is made here
    with Waits() as counted:
        model.loss(x, step=1).backward()
    return counted.counts


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_waits_for_one_gather_at_most(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Blackout's counts are thinned by a kernel there (core/draw_kernels.py); the path of CPUs waits twice
    monkeypatch.setattr(counting, "thin", lambda x, p, q, u, cap: (x * p[:, None]).long())
    assert sum(waits(name, fused=True).values()) <= 1


def test_what_counts_is_counted() -> None:
    """Controls: each kind of wait is seen."""
    x = torch.arange(5.0)
    with Waits() as counted:
        x[0].item()
        bool(x[1] > 0)
        x[x > 2]
        torch.nonzero(x)
        torch.masked_select(x, x > 1)
    assert sum(counted.counts.values()) >= 5
    assert set(counted.counts) >= {"_local_scalar_dense", "index", "nonzero", "masked_select"}
