"""Hollow networks on 27 states for GGM with order: random: the exact one, one of random numbers, and one that leaks."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from ggm_lightning.exact import glauber
from ggm_lightning.exact.states import masks
from ggm_lightning.models.ggm import GGM
from tests.models.chain_law import JOINT, LAW, STATES, N, V, index

SUBSETS = masks(N)
ORDERS = torch.tensor(list(itertools.permutations(range(N))))


class HollowTable(nn.Module):
    """Logits out of a table, one entry for each sweep, visited set, site and other tokens; x_i and bit i are not asked.

    leak: how much of another table, which is asked with the own token, comes in.
    """

    def __init__(self, num_sweeps: int, leak: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        size = (num_sweeps, 2**N, N, V**N, V)
        self.table = nn.Parameter(torch.randn(size, dtype=torch.float64, generator=generator))
        self.num_sweeps, self.leak = num_sweeps, leak

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
        r = (t * self.num_sweeps).round().long()
        answers = []
        for i in range(N):
            shown, bits = z.clamp(max=V - 1), visited.clone()  # the id V hides a token that nobody asks about
            shown[:, i], bits[:, i] = 0, False
            other = (bits * torch.tensor([4, 2, 1])).sum(1)
            answers.append(self.table[r, other, i, index(shown)] + self.leak * z[:, i : i + 1].double())
        return torch.stack(answers, 1)


def tabled(num_sweeps: int = 2, leak: float = 0.0, **options: object) -> GGM:
    settings = {"last_survival": 0.08, "noise_law": [0.5, 0.3, 0.2], "order": "random", **options}
    return GGM(HollowTable(num_sweeps, leak), V, (N,), num_sweeps=num_sweeps, **settings).double()


def exact(**options: object) -> GGM:
    return glauber.with_network(JOINT, glauber.Hollow(JOINT), **{"last_survival": 0.02, "order": "random", **options})


def exact_levels(**options: object) -> GGM:
    options = {"last_survival": 0.02, "order": "random", "levels": True, **options}
    return glauber.with_network(JOINT, glauber.Levels(JOINT), **options)


def state_law(model: GGM, x0: Tensor, r: int, visited: Tensor) -> Tensor:
    """P(X | x0) of all 27 states where sweep r has visited Bool[n]: Float64[27]."""
    return glauber.law_at(model, x0[None], model.sweeps.survival[r + visited.long()])[0]


def noisy_law(model: GGM) -> Tensor:
    """P_T."""
    return LAW @ glauber.law_at(model, STATES, model.sweeps.survival[-1].expand(N))
