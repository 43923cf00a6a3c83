"""docs/extend/family.md: followed word by word, and its mathematics enumerated."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ggm_lightning.exact import JointLaw, proof
from ggm_lightning.exact.networks import Masked
from ggm_lightning.exact.states import frequencies, standard_errors
from tests.extend import pages

N, V = 3, 2


LAW = JointLaw.random(N, V, seed=1)


class Tilted(Masked):
    """Not exact: the second class is likelier than it should be."""

    def forward(self, z: Tensor, t: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        return super().forward(z) + 0.3 * torch.arange(V)


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
    exact, tilted = Masked(LAW), Tilted(LAW)
    for x, p in zip(LAW.x, LAW.p, strict=True):
        assert bound(family(exact, V, (N,)), x) == pytest.approx(-math.log(p), abs=1e-12)
    # control: of another network it is above -log p in the mean
    means = [float(p) * bound(family(tilted, V, (N,)), x) for x, p in zip(LAW.x, LAW.p, strict=True)]
    assert sum(means) > LAW.entropy + 0.005


def test_nelbo_is_its_mean(family: Any) -> None:
    model, x = family(Masked(LAW), V, (N,)), LAW.x[[5]]
    found = model.nelbo(x.expand(6_000, N), seed=1)
    stderr = float(found.std()) / math.sqrt(len(found))
    assert float(found.mean()) == pytest.approx(bound(model, x[0]), abs=4.5 * stderr)
    assert stderr < 0.03


def test_first_hitting_draws_from_p(family: Any) -> None:
    rows = 20_000
    found = frequencies(family(Masked(LAW), V, (N,)).sample(rows, 1).x, V)
    assert standard_errors(found, LAW.p, rows)[0] < 4.5
    assert standard_errors(found, LAW.p.roll(1), rows)[0] > 45  # control


def test_its_last_step_proves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the samplers, of which one is above; the others in tests/exact."""
    pages.write("family.md", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "agnostic", raising=False)
    monkeypatch.setattr(proof.samplers, "all_of", lambda subject, more: [])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(tmp_path / "proof.py"))
    assert "FAILS" not in printed.getvalue()
    assert {"bound", "equal", "reverse_law"} <= set(printed.getvalue().split())


@pytest.mark.slow
def test_the_page(tmp_path: Path) -> None:
    page = "family.md"
    pages.write(page, tmp_path)
    fit, sample, evaluate = pages.commands_of(page)
    pages.run_here(fit, tmp_path, *pages.QUICK, "--model.network.num_layers=1", "--model.network.feature_dim=8")
    pages.run(sample, tmp_path)
    assert len(list(tmp_path.glob("runs/own/samples-*/samples.txt"))) == 1
    assert "bits" in pages.run_here(evaluate, tmp_path, "--limit=16")
