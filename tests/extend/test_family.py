"""docs/extend/family.md: followed word by word, and its mathematics enumerated."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.extend import pages

N, V = 3, 2


class Exact(nn.Module):
    """The law of each site given what is not hidden, of a random joint law over V^N states."""

    def __init__(self, tilt: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.states = torch.tensor(list(itertools.product(range(V), repeat=N)))
        self.p = torch.softmax(torch.randn(len(self.states), dtype=torch.float64, generator=generator), 0)
        self.tilt = tilt

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        agrees = ((z[:, None] == V) | (z[:, None] == self.states)).all(-1)  # [b, states]
        weight = agrees * self.p
        one_hot = nn.functional.one_hot(self.states, V).double()
        law = torch.einsum("bs,snv->bnv", weight, one_hot) / weight.sum(1)[:, None, None]
        return law.log() + self.tilt * torch.arange(V)


@pytest.fixture(scope="module")
def family() -> Any:
    space: dict = {"__name__": "agnostic"}
    exec(pages.files_of("family.md")["agnostic.py"], space)
    return space["OrderAgnostic"]


def bound(model: Any, x: Tensor) -> float:
    """The mean of `terms` over all k and all sets of k hidden sites."""
    total = 0.0
    for k in range(1, N + 1):
        sets = list(itertools.combinations(range(N), k))
        for hidden in sets:
            z = x.clone()
            z[list(hidden)] = V
            total += float(model.terms(x[None], z[None], torch.tensor([k]))) / len(sets) / N
    return total


def test_the_bound_by_enumeration(family: Any) -> None:
    exact, tilted = Exact(), Exact(tilt=0.3)
    for x, p in zip(exact.states, exact.p, strict=True):
        assert bound(family(exact, V, (N,)), x) == pytest.approx(-math.log(p), abs=1e-12)
    # control: of another network it is above -log p in the mean
    means = [float(p) * bound(family(tilted, V, (N,)), x) for x, p in zip(exact.states, exact.p, strict=True)]
    entropy = -float((exact.p * exact.p.log()).sum())
    assert sum(means) > entropy + 0.005


def test_nelbo_is_its_mean(family: Any) -> None:
    model, x = family(Exact(), V, (N,)), Exact().states[[5]]
    found = model.nelbo(x.expand(6_000, N), seed=1)
    stderr = float(found.std()) / math.sqrt(len(found))
    assert float(found.mean()) == pytest.approx(bound(model, x[0]), abs=4.5 * stderr)
    assert stderr < 0.03


def test_first_hitting_draws_from_p(family: Any) -> None:
    exact, rows = Exact(), 20_000
    drawn = family(exact, V, (N,)).sample(rows, 1).x
    count = torch.bincount(drawn @ torch.tensor([4, 2, 1]), minlength=8).double()
    deviation = (count / rows - exact.p) / (exact.p * (1 - exact.p) / rows).sqrt()
    assert deviation.abs().max() < 4.5


def test_the_page(tmp_path: Path) -> None:
    page = "family.md"
    pages.write(page, tmp_path)
    fit, sample, evaluate = pages.commands_of(page)
    pages.run_here(fit, tmp_path, *pages.QUICK, "--model.network.num_layers=1", "--model.network.feature_dim=8")
    pages.run(sample, tmp_path)
    assert len(list(tmp_path.glob("runs/own/samples-*/samples.txt"))) == 1
    assert "bits" in pages.run_here(evaluate, tmp_path, "--limit=16")
