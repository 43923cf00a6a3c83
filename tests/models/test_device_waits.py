"""A training step asks the device for nothing: in every family, alone and with a second rank."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ggm_lightning.core import counting, masked_sites
from ggm_lightning.core.masked_sites import MaskedSites
from ggm_lightning.models.base import Family
from tests.models.device_waits import DeviceWaits
from tests.models.test_fused_training import N, family

HOLLOW = ("hollow_bce of 7", "hollow_bce of 99", "hollow_bce_sampled of 1", "hollow_ce_x0 of 1", "hollow_bound of 1")
FAMILIES = (*HOLLOW, "md4", "md4_bias", "genmd4", "ar", "ggm", "blackout", "blackout_scaled", "fuji", "seq", "markov")


class Arrived:
    """A number that has travelled to the host beside the step, as one on its way from a GPU does."""

    def __init__(self, number: Tensor) -> None:
        self.number = number

    def value(self) -> int:
        with _disable_current_modes():
            return int(self.number)


def model_of(name: str, fused: bool) -> tuple[Family, Tensor]:
    """What is made once and what is looked at once is made and looked at here."""
    model = family(name)
    model.fused = fused
    x = torch.randint(model.num_classes, (4, N), generator=torch.Generator().manual_seed(0))
    model.loss(x, step=0).backward()
    return model, x


def step_on_meta(model: Family, x: Tensor) -> Counter[str]:
    model, x = model.to("meta"), x.to("meta")
    model.loss(x, step=1).backward()  # what lies on another device is moved once
    model.zero_grad()
    with DeviceWaits() as seen:
        model.loss(x, step=2).backward()
    assert all(p.grad is None or p.grad.is_meta for p in model.parameters())
    return seen.counts


def step_here(model: Family, x: Tensor) -> Counter[str]:
    with DeviceWaits(host=True) as seen:
        model.loss(x, step=1).backward()
    return seen.counts


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blackout's counts are thinned by a kernel there (core/draw_kernels.py); masks are counted beside the step."""
    monkeypatch.setattr(counting, "thin", lambda x, p, q, u, cap: (x * p[:, None]).long())
    monkeypatch.setattr(masked_sites, "_waits", lambda mask: not mask.is_meta)
    monkeypatch.setattr(masked_sites, "_Arriving", Arrived)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_no_step_waits(name: str, fused: bool) -> None:
    model, x = model_of(name, fused)
    assert not step_here(model, x)
    assert not step_on_meta(model, x)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("name", ["md4", "fuji"])
def test_a_step_with_counted_sites_is_the_same_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = model_of(name, True)
    losses = []
    for waits in (True, False):
        monkeypatch.setattr(masked_sites, "_waits", lambda mask, waits=waits: waits)
        model.zero_grad()
        loss = model.loss(x, step=3)
        loss.backward()
        losses.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))


@pytest.mark.parametrize("count", [0, 1, 7, 35])
def test_sites_of_a_known_number_are_those_of_nonzero(count: int) -> None:
    mask = (torch.arange(35)[torch.randperm(35, generator=torch.Generator().manual_seed(1))] < count).reshape(5, 7)
    assert torch.equal(MaskedSites(mask, count).index(), MaskedSites(mask).index())


def test_a_gather_that_asks_is_seen() -> None:
    """Control: on a CPU, where nothing has to be counted beside the step, `nonzero` is one wait."""
    assert step_here(*model_of("md4", True)) == Counter({"nonzero": 1})


def test_what_counts_is_counted() -> None:
    """Controls: each kind of wait is seen, and a number of the host's is none."""
    x = torch.arange(5.0)
    with DeviceWaits(host=True) as seen:
        x[0].item()
        bool(x[1] > 0)
        x[x > 2]
        torch.nonzero(x)
        torch.masked_select(x, x > 1)
    assert set(seen.counts) >= {"_local_scalar_dense", "index", "nonzero", "masked_select"}
    assert sum(seen.counts.values()) >= 5
    on_device = x.to("meta")
    with DeviceWaits() as seen:
        on_device + torch.tensor(3.0)
        int(torch.tensor(3))
    assert not seen.counts
    with DeviceWaits() as seen:
        torch.tensor([1.0, 2.0]).to("meta")
    assert seen.counts == Counter({"copy by _to_copy": 1})
    for look in (on_device[0].item, on_device.sum().tolist):
        with pytest.raises((RuntimeError, NotImplementedError)), DeviceWaits():
            look()


def of_two_ranks(*more: str) -> list[str]:
    """What either rank says."""
    environment: dict[str, Any] = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.models.two_ranks", *more]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return sorted(line for line in run.stdout.splitlines() if line.startswith("rank"))


@pytest.mark.slow
def test_no_step_of_two_ranks_waits() -> None:
    """Whole steps of a Trainer with the callbacks that every run has, on either of two ranks."""
    assert of_two_ranks() == [f"rank {rank}: asked 0 times in 4 steps" for rank in (0, 1)]


@pytest.mark.slow
def test_control_lightnings_own_question_is_seen() -> None:
    assert of_two_ranks("broadcast") == [f"rank {rank}: asked 4 times in 4 steps" for rank in (0, 1)]
