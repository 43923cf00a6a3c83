"""Hollow networks on 27 states for GGM with order: random: the exact one, one of random numbers, and one that leaks."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from ggm_lightning.models.ggm import GGM
from tests.models.exact_chain import LAW, STATES, ExactChain, N, V, index, product_law, step_matrix

SUBSETS = torch.tensor(list(itertools.product([False, True], repeat=N)))
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


class ExactHollow(ExactChain):
    """ExactChain at every site, each with its own token hidden, plus `tilt`."""

    tilt: Tensor | float = 0.0

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
        answers = []
        for i in range(N):
            hidden, bits = z.clone(), visited.clone()
            hidden[:, i], bits[:, i] = V, False
            answers.append(super().forward(hidden, t, label, bits)[:, i])
        return torch.stack(answers, 1) + self.tilt


class ExactLevels(nn.Module):
    """log p_t(x|y) - log pi(x) at every site from tokens and levels of the others and t = 1 - a alone, by Bayes' rule
    over the 27 clean states, plus `tilt`. Nothing of the chain is known to it."""

    levels = True

    def __init__(self) -> None:
        super().__init__()
        self.tilt = nn.Parameter(torch.zeros(N, V, dtype=torch.float64))
        self.model: list[GGM] = []  # in a list, so that it is no submodule

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, levels: Tensor | None = None) -> Tensor:
        log_pi = self.model[0].log_pi
        level, one_hot = levels[:, None], nn.functional.one_hot(STATES, V).double()
        match = level * (z[:, None] == STATES) + (1 - level) * log_pi.exp()[z][:, None]  # [b, 27, n]
        answers = []
        for i in range(N):
            weight = LAW * match[..., [j for j in range(N) if j != i]].prod(-1)
            answers.append((weight @ one_hot[:, i]) / weight.sum(-1, keepdim=True))
        p0 = torch.stack(answers, 1)
        if self.model[0].objective in ("ce_x0", "bound"):
            return p0.log() - log_pi + self.tilt
        a = (1 - t)[:, None, None]
        return torch.log(a * p0 + (1 - a) * log_pi.exp()) - log_pi + self.tilt


def tabled(num_sweeps: int = 2, leak: float = 0.0, **options: object) -> GGM:
    settings = {"last_survival": 0.08, "noise_law": [0.5, 0.3, 0.2], "order": "random", **options}
    return GGM(HollowTable(num_sweeps, leak), V, (N,), num_sweeps=num_sweeps, **settings).double()


def exact(**options: object) -> GGM:
    network = ExactHollow()
    model = GGM(network, V, (N,), **{"last_survival": 0.02, "order": "random", **options})
    network.model.append(model)
    return model


def exact_levels(**options: object) -> GGM:
    network = ExactLevels()
    model = GGM(network, V, (N,), **{"last_survival": 0.02, "order": "random", "levels": True, **options})
    network.model.append(model)
    return model


def state_law(model: GGM, x0: Tensor, r: int, visited: Tensor) -> Tensor:
    """P(X | x0) of all 27 states where sweep r has visited Bool[n]: Float64[27]."""
    a = model.sweeps.survival[r + visited.long()][:, None]
    clean = nn.functional.one_hot(x0, V).double()
    return product_law(a * clean + (1 - a) * model.log_pi.exp())


def weight_of(visited: Tensor) -> float:
    """P(S): its size uniform on 0..n."""
    return 1 / (N + 1) / math.comb(N, int(visited.sum()))


def noisy_law(model: GGM) -> Tensor:
    """P_T."""
    last = model.sweeps.num_sweeps - 1
    everything = torch.ones(N, dtype=torch.bool)
    return sum(p * state_law(model, x0, last, everything) for p, x0 in zip(LAW, STATES, strict=True))


def reverse(model: GGM, p: Tensor, sampler: str, size: int = 1) -> Tensor:
    """The law of X_0 when X_T ~ p, over all orders of each sweep."""
    for r in reversed(range(model.sweeps.num_sweeps)):
        p = sum(_one_sweep(model, p, sampler, size, r, order) for order in ORDERS) / len(ORDERS)
    return p


def _one_sweep(model: GGM, p: Tensor, sampler: str, size: int, r: int, order: Tensor) -> Tensor:
    b = len(STATES)
    for first in reversed(range(0, N, size)):
        s = torch.full((b,), r * N + first)
        t = torch.full((b,), r * N + min(first + size, N))
        law = model.reverse_law(STATES, t, s, sampler=sampler, order=order.expand(b, N))
        p = p @ step_matrix(law.probs())
    return p
