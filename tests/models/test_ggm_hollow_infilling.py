"""Infilling by GGM with order: random, by enumeration of 27 states: a known site is the last that a sweep would visit.

In sweep 0 it is then shown at the level that it has, 1: rounds of ReDeNoise keep the exact conditional law, and lead to
it.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from ggm_lightning.exact.states import product, total_variation
from ggm_lightning.models.ggm import GGM
from tests.models.chain_law import LAW, STATES, N, V, index
from tests.models.hollow_chain import ORDERS, exact

B = len(STATES)


def conditional(site: int, value: int) -> Tensor:
    target = LAW * (STATES[:, site] == value)
    return target / target.sum()


def known_last(site: int) -> list[Tensor]:
    others = [i for i in range(N) if i != site]
    return [torch.tensor([*order, site]) for order in itertools.permutations(others)]


def sweep(model: GGM, p: Tensor, r: int, site: int, sampler: str, orders: list[Tensor]) -> Tensor:
    """Down through sweep r, over all orders, the known site left out."""
    total = torch.zeros(B, dtype=torch.float64)
    for order in orders:
        q = p
        for k in reversed(range(N)):
            if int(order[k]) != site:
                s = torch.full((B,), r * N + k)
                law = model.reverse_law(STATES, s + 1, s, sampler=sampler, order=order.expand(B, N))
                q = q @ product(law.probs(), STATES)
        total += q / len(orders)
    return total


def noise(model: GGM, p: Tensor, site: int) -> Tensor:
    """One sweep of noise on all but the known site."""
    a, eye = model.sweeps.survival[1], torch.eye(V, dtype=torch.float64)
    law = a * eye[STATES] + (1 - a) / V
    law[:, site] = eye[STATES[:, site]]
    return p @ product(law, STATES)


def infilled(model: GGM, site: int, value: int, rounds: int, orders: list[Tensor]) -> Tensor:
    start = torch.full((N, V), 1 / V, dtype=torch.float64)
    start[site] = torch.eye(V, dtype=torch.float64)[value]
    p = product((start)[None], STATES)[0]
    for r in reversed(range(model.sweeps.num_sweeps)):
        p = sweep(model, p, r, site, "heat_bath", orders)
    for _ in range(rounds):
        p = sweep(model, noise(model, p, site), 0, site, "heat_bath", orders)
    return p


@pytest.mark.parametrize("sampler", ["heat_bath", "gated"])
@pytest.mark.parametrize("site", [0, 1])
def test_a_round_of_redenoise_keeps_the_exact_law(sampler: str, site: int) -> None:
    model, target = exact(num_sweeps=4), conditional(site, 2)
    up = noise(model, target, site)
    down = sweep(model, up, 0, site, sampler, known_last(site))
    assert (down - target).abs().max() < 1e-13
    wrong = sweep(model, up, 0, site, sampler, list(ORDERS))  # control: the known site anywhere in the order
    assert total_variation(wrong, target) > 1e-2


def test_the_error_of_infilling_vanishes_with_the_rounds() -> None:
    model, target = exact(num_sweeps=8, last_survival=1e-3), conditional(0, 2)
    errors = [total_variation(infilled(model, 0, 2, rounds, known_last(0)), target) for rounds in (0, 1, 4)]
    assert errors[0] == pytest.approx(0.046, abs=1e-3)
    assert errors[1] < errors[0] / 2
    assert errors[2] < 1e-3
    anywhere = infilled(model, 0, 2, 4, list(ORDERS))  # control: four rounds do not help there
    assert total_variation(anywhere, target) > 0.05


def test_sample_infills_by_that_law() -> None:
    """20,000 draws: as near to the exact conditional law as draws from it are."""
    model, target = exact(num_sweeps=4, last_survival=1e-3), conditional(0, 2)
    known = torch.tensor([True, False, False])
    drawn = model.sample(20_000, 1, clamp=(torch.tensor([2, 0, 0]), known), seed=3)
    assert drawn.network_calls == (4 + 4) * 2
    share = index(drawn.x).bincount(minlength=B) / 20_000
    assert total_variation(share, target) < 0.012  # the floor is .006
    assert total_variation(share, LAW) > 0.3
