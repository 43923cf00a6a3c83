"""What the loop does with the sites that a plan chooses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.core.schedules import Linear
from ggm_lightning.models.md4 import MD4
from ggm_lightning.sampling.first_hitting import FirstHitting
from ggm_lightning.sampling.plan import Ancestral, Plan, Sites
from ggm_lightning.sampling.sampler import Run

B, N, V = 3, 5, 7
VALUES = torch.arange(B * N).reshape(B, N) % V
KNOWN = torch.tensor([[True, False, False, False, False], [True] * 5, [False] * 5])


class Sure(nn.Module):
    """Class `site` for certain; keeps the states that it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Tensor] = []

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        self.sent.append(z)
        return nn.functional.one_hot(torch.arange(N), V).double().log().expand(len(z), N, V)


def md4(network: nn.Module | None = None) -> MD4:
    return MD4(network or Sure(), V, (N,), Linear(0.0))


class Everything(Plan):
    """Reveals and hides whatever there is, in every other step."""

    def choose(self, run: Run) -> Sites:
        everywhere = torch.ones_like(run.masked)
        return Sites(everywhere if run.step % 2 == 0 else ~everywhere, everywhere if run.step % 2 else None)


def test_free_sites_are_hidden_and_known_ones_are_not() -> None:
    drawn = md4().sample(B, 3, sampler=Everything(), clamp=(VALUES, KNOWN), trace=True)
    first, revealed, hidden, again = drawn.trace
    filled = torch.where(KNOWN, VALUES, torch.arange(N))
    assert torch.equal(first, torch.where(KNOWN, VALUES, V))
    assert torch.equal(revealed, filled)
    assert torch.equal(hidden, first)
    assert torch.equal(again, filled)
    assert (drawn.network_calls, drawn.rows) == (2, 4)  # the row of which everything is known is never sent


class Again(Plan):
    """Reveals a site for the second time."""

    def choose(self, run: Run) -> Sites:
        return Sites(torch.arange(N).expand(B, N) == 2)


def test_a_site_that_is_not_masked_is_left_alone() -> None:
    network = Sure()
    drawn = md4(network).sample(B, 4, sampler=Again(), trace=True)
    assert [int((state == V).sum()) for state in drawn.trace] == [B * N, *[B * (N - 1)] * 3, 0]
    assert [len(z) for z in network.sent] == [B, B]  # the first step, and what is left at the end


class Looks(Plan):
    """Asks for logits at all masked sites, reveals the first of them; `apart`: at another time."""

    def __init__(self, apart: bool = False) -> None:
        self.apart = apart

    def choose(self, run: Run) -> Sites:
        self.seen = run.logits(run.masked)
        if self.apart:
            run.t = run.t * 0.5
        return Sites(run.masked & (run.masked.cumsum(1) == 1))


def test_what_a_step_has_asked_is_not_asked_again() -> None:
    for plan, calls in ((Looks(), N), (Looks(apart=True), 2 * N)):
        network = Sure()
        drawn = md4(network).sample(B, N, sampler=plan)
        assert torch.equal(drawn.x, torch.arange(N).expand(B, N))
        assert (drawn.network_calls, drawn.rows) == (calls, calls * B)


@pytest.mark.parametrize("plan", [Looks(), FirstHitting(), Ancestral()])
def test_a_run_leaves_the_sampler_as_it_was(plan: Plan) -> None:
    before = dict(vars(plan))
    first, second = (md4().sample(B, N, sampler=plan, seed=5).x for _ in range(2))
    assert vars(plan) == before
    assert torch.equal(first, second)


@pytest.mark.parametrize("sampler", ["ancestral", "first_hitting"])
def test_nothing_is_left_to_do(sampler: str) -> None:
    drawn = md4().sample(B, 4, sampler=sampler, clamp=(VALUES, torch.ones(B, N).bool()), trace=True)
    assert (drawn.network_calls, drawn.rows) == (0, 0)
    assert torch.equal(drawn.x, VALUES)
    assert torch.equal(drawn.trace[-1], VALUES)
    steps = {"ancestral": 4, "first_hitting": 0}[sampler]
    assert len(drawn.trace) == steps + 1  # the state before each step, and x: once, also where there is no step


class Broken(Sure):
    """NaN for the row that shows class 6 at its last site."""

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        logits = super().forward(z, t, label).clone()
        logits[z[:, -1] == 6] = math.nan
        return logits if len(self.sent) > 1 else logits.nan_to_num(0.0)


@pytest.mark.parametrize("plan", [Looks(), Ancestral(), FirstHitting()])
def test_a_fault_is_named_by_the_rows_own_number(plan: Plan) -> None:
    """Also where the row before it is not sent any more."""
    known = torch.zeros(B, N, dtype=torch.bool)
    known[:, -1], known[0] = True, True
    values = torch.zeros(B, N, dtype=torch.int64)
    values[1, -1] = 6
    with pytest.raises(ValueError, match=r"row 17, site \d: the network's logits are NaN"):
        md4(Broken()).sample(B, 9, sampler=plan, clamp=(values, known), row=torch.tensor([13, 17, 19]))
