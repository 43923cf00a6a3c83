"""The learning rate: warm-up, then half a cosine that begins where the warm-up ends and reaches 0 at the last step."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.trained import Optimizer
from tests.models.every_family import N, V, small

WARM, LAST = 3, 11


def test_warm_up_then_half_a_cosine() -> None:
    """At each step, and at its ends and middle by hand. Control: a cosine that begins at step 0."""
    o = Optimizer(warmup_steps=WARM)
    found = [o.factor(k, LAST) for k in range(LAST + 3)]
    assert found[:WARM] == [0.0, 1 / 3, 2 / 3]
    assert found[WARM] == 1.0
    assert found[WARM + 4] == pytest.approx(0.5, abs=1e-15)  # half way between 3 and 11
    assert found[LAST:] == pytest.approx([0.0] * 3, abs=1e-15)
    expected = [0.5 * (1 + math.cos(math.pi * (k - WARM) / (LAST - WARM))) for k in range(WARM, LAST + 1)]
    assert found[WARM : LAST + 1] == pytest.approx(expected, abs=1e-15)
    early = [0.5 * (1 + math.cos(math.pi * k / LAST)) for k in range(WARM, LAST)]
    assert min(abs(a - b) for a, b in zip(early, found[WARM:LAST], strict=True)) > 1e-2


def test_a_constant_rate_warms_up_and_stays() -> None:
    o = Optimizer(warmup_steps=WARM, decay="constant")
    assert [o.factor(k, LAST) for k in (0, 1, 2, 3, 4, 10, 99)] == [0.0, 1 / 3, 2 / 3, 1.0, 1.0, 1.0, 1.0]


def test_without_warm_up_the_cosine_begins_at_the_first_step() -> None:
    o = Optimizer()
    assert [o.factor(k, 8) for k in (0, 4, 8)] == pytest.approx([1.0, 0.5, 0.0], abs=1e-15)
    assert o.factor(0, math.inf) == 1.0  # a run without end does not decay


@pytest.mark.parametrize("warm", [LAST, LAST + 4])
def test_a_warm_up_longer_than_the_run_only_warms(warm: int) -> None:
    o = Optimizer(warmup_steps=warm)
    assert [o.factor(k, LAST) for k in range(LAST)] == [k / warm for k in range(LAST)]


class Rates(Callback):
    """The learning rate of each parameter group with which each step was made."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def rates_of(model: torch.nn.Module) -> list[list[float]]:
    seen = Rates()
    x = torch.randint(V, (2 * LAST, N), generator=torch.Generator().manual_seed(0))
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_steps=LAST, callbacks=[seen], enable_model_summary=False, **silent)
    trainer.fit(model, DataLoader([{"x": row} for row in x], batch_size=2))
    return seen.rates


def test_a_fit_takes_these_rates_in_every_group() -> None:
    o = Optimizer(lr=1e-3, warmup_steps=WARM)
    model = small("genmd4", optimizer=o, exponent_lr=1e-2)
    assert isinstance(model, GenMD4)
    factor = [o.factor(k, LAST) for k in range(LAST)]
    expected = [[1e-3 * f, 1e-2 * f] for f in factor]
    torch.testing.assert_close(torch.tensor(rates_of(model)), torch.tensor(expected), rtol=1e-6, atol=0)
    late = torch.tensor([o.factor(k + 1, LAST) for k in range(LAST)])  # control: one step too early
    assert (late - torch.tensor(factor)).abs().min() > 1e-2
