"""What follows from a network with a mask at a few free sites of one row, all else known: all their states enumerated.

    orders          p(a | known) p(b | a, known) ..., at the time at which as many sites are masked
    ancestral       the chain of its steps: a masked site is revealed with r = (u_t - u_s) / u_t, the network told t
    first_hitting   the same in infinitely many steps: between u and u' < u each masked site is revealed with 1 - u'/u,
                    one after the other in any order                                                              (1)

    GGM             the chain of its visits, from pi, with the rounds of ReDeNoise that infilling has

The first three are one law where the network is exact. A trained one moves with the time that it is told.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ggm_lightning.core import times
from ggm_lightning.exact.states import all_states, product, total_variation
from ggm_lightning.models.ggm import GGM
from ggm_lightning.sampling.first_hitting import FirstHitting
from ggm_lightning.sampling.plan import Ancestral
from ggm_lightning.sampling.sampler import Sampler

_PIECES = 64  # of u, in each of which the network is asked in the middle
_TIMES = 9


@dataclass
class Chains:
    """The free sites of one row.

    Attributes:
        model: with a mask and one schedule for all classes.
        row: Int64[*shape]. sites: the free ones. label: of the row.
    """

    model: Any
    row: Tensor
    sites: list[int]
    label: Tensor | None = None

    @cached_property
    def states(self) -> Tensor:
        """Of the free sites, masks included, Int64[(V + 1)^k, k]."""
        return all_states(self.model.num_classes + 1, len(self.sites)).to(self.model.device)

    @cached_property
    def masked(self) -> Tensor:
        """Bool[(V + 1)^k, k]."""
        return self.states == self.model.mask_id

    def answers(self, states: Tensor, t: Tensor) -> Tensor:
        """What the network says at the free sites in these states at t Float64[1], Float64[m, k, V]."""
        m, k = states.shape
        z = self.row.flatten().expand(m, -1).clone()
        z[:, self.sites] = states
        at = torch.tensor(self.sites, device=z.device).expand(m, k)
        labels = None if self.label is None else self.label.expand(m)
        with self.model.evaluating("sampling"):
            logits = self.model.logits_at(z.reshape(-1, *self.model.shape), t.expand(m), labels, at)
        return logits.double().softmax(-1).reshape(m, k, -1)

    def time_of(self, u: float) -> Tensor:
        """Float64[1]: when u of the sites are masked."""
        return self.model.schedule.inverse(torch.full((1,), u, dtype=torch.float64, device=self.model.device))

    # ------------------------------------------------------------------ the chain rule

    def orders(self) -> Tensor:
        """Float64[k!, V^k]."""
        k, laws = len(self.sites), []
        clean = all_states(self.model.num_classes, k).to(self.model.device)
        for order in itertools.permutations(range(k)):
            p = torch.ones(len(clean), dtype=torch.float64, device=clean.device)
            for place, which in enumerate(order):
                states = clean.clone()
                states[:, list(order[place:])] = self.model.mask_id
                said = self.answers(states, self.time_of((k - place) / self.model.num_sites))[:, which]
                p = p * said.gather(1, clean[:, which : which + 1])[:, 0]
            laws.append(p.cpu())
        return torch.stack(laws)

    def moves(self) -> float:
        """How far another sampler's law may be from the mean over the orders, by what the network says alone: total
        variation of the orders from their mean, and for each site that of its answers at other times."""
        laws, k = self.orders(), len(self.sites)
        apart = max(total_variation(law, laws.mean(0)) for law in laws)
        for count in range(1, k + 1):
            states = self.states[self.masked.sum(1) == count]
            there = self.answers(states, self.time_of(count / self.model.num_sites))
            most = torch.zeros((), dtype=torch.float64, device=states.device)
            for t in torch.linspace(0, 1, _TIMES, dtype=torch.float64, device=states.device):
                off = 0.5 * (self.answers(states, t[None]) - there).abs().sum(-1)
                most = torch.maximum(most, off[states == self.model.mask_id].max())
            apart += float(most)
        return apart

    # ------------------------------------------------------------------ laws of samplers

    def law_of(self, kind: type[Sampler], num_steps: int) -> Tensor | None:
        """Of the sampler, Float64[V^k]; None where it is not enumerated."""
        if issubclass(kind, Ancestral):
            return self.ancestral(num_steps)
        return self.first_hitting() if issubclass(kind, FirstHitting) else None

    def ancestral(self, num_steps: int) -> Tensor:
        """On the family's grid."""
        p = self._start()
        grid = torch.tensor(times.sampling_grid(num_steps, self.model.grids[0]), dtype=torch.float64).to(p.device)
        for t, s in itertools.pairwise(grid):
            p = self._stepped(p, t[None], self.model.schedule.reveal_probability(t, s))
        return self._finished(p)

    def first_hitting(self) -> Tensor:
        """Eq. (1): of m masked sites j are revealed with the binomial probability, each by the network's answer to what
        stands there by then."""
        p = self._start()
        ends = torch.tensor([1.0, 0.0], dtype=torch.float64, device=p.device)
        first, last = self.model.schedule.masked_fraction(ends).tolist()
        edges = torch.linspace(first, last, _PIECES + 1, dtype=torch.float64).tolist()
        m = self.masked.sum(1)
        for u, below in itertools.pairwise(edges):
            said = self.answers(self.states, self.time_of((u + below) / 2))
            reveal, total = 1 - below / u, torch.zeros_like(p)
            for count in range(len(self.sites) + 1):
                moved = torch.where(m == count, p, 0.0)
                for j in range(count + 1):
                    total = total + math.comb(count, j) * reveal**j * (1 - reveal) ** (count - j) * moved
                    moved = self._jumped(moved, said)
            p = total
        return self._finished(p)

    def _start(self) -> Tensor:
        """All free sites masked: the last of the states."""
        p = torch.zeros(len(self.states), dtype=torch.float64, device=self.model.device)
        p[-1] = 1.0
        return p

    def _stepped(self, p: Tensor, t: Tensor, reveal: Tensor) -> Tensor:
        """Every masked site by itself."""
        live = (p > 0) & self.masked.any(1)
        if not bool(live.any()):
            return p
        states = self.states[live]
        law = self._law(states, self.answers(states, t), reveal)
        return torch.where(live, 0.0, p) + p[live] @ product(law, self.states)

    def _law(self, states: Tensor, said: Tensor, reveal: Tensor | float) -> Tensor:
        """Float64[m, k, V + 1]."""
        hidden = (states == self.model.mask_id)[..., None]
        moved = torch.cat([reveal * said, (1 - reveal) * torch.ones_like(said[..., :1])], -1)
        return torch.where(hidden, moved, nn.functional.one_hot(states, self.model.num_classes + 1).double())

    def _jumped(self, p: Tensor, said: Tensor) -> Tensor:
        """One of the masked sites, any, gets a value."""
        V, k = self.model.num_classes, len(self.sites)
        share, moved = p / self.masked.sum(1).clamp(min=1), torch.zeros_like(p)
        for place in range(k):
            rows = torch.nonzero(self.masked[:, place] & (p > 0))[:, 0]
            values = torch.arange(V, device=p.device)
            to = rows[:, None] + (values - V) * (V + 1) ** (k - 1 - place)
            moved = moved.index_add(0, to.flatten(), (share[rows, None] * said[rows, place]).flatten())
        return moved

    def _finished(self, p: Tensor) -> Tensor:
        """What is left is filled at t = 0, all at once, Float64[V^k] on the CPU."""
        states, zero = self.states, torch.zeros(1, dtype=torch.float64, device=p.device)
        live = (p > 0) & self.masked.any(1)
        if bool(live.any()):
            said = self.answers(states[live], zero)
            if getattr(self.model, "leftover", "draw") == "argmax":
                said = nn.functional.one_hot(said.argmax(-1), said.shape[-1]).double()
            p = torch.where(live, 0.0, p) + p[live] @ product(self._law(states[live], said, 1.0), states)
        return p[~self.masked.any(1)].cpu()


def of_visits(model: GGM, row: Tensor, sites: list[int], sampler: str, label: Tensor | None = None) -> Tensor:
    """Of GGM's heat_bath or gated (order: raster or permuted) at the free sites, Float64[V^k] on the CPU."""
    V, device, sweeps = model.num_classes, model.device, model.sweeps
    states = all_states(V, len(sites)).to(device)
    z = row.flatten().expand(len(states), -1).clone()
    z[:, sites] = states
    known = torch.ones(len(states), model.num_sites, dtype=torch.bool, device=device)
    known[:, sites] = False
    zt, given = z.reshape(-1, *model.shape), known.reshape(-1, *model.shape)
    labels = None if label is None else label.expand(len(states))
    pi = model.log_pi.exp().to(device)
    p = product(pi.expand(1, len(sites), V), states)[0]
    path = sweeps.grid(1) + model.redenoise * sweeps.grid(1, first_sweeps=1)
    for t, s in itertools.pairwise(path):
        if s > t:
            kept = sweeps.survival_at(torch.tensor([s], device=device))[:, sites, None]
            law = kept * nn.functional.one_hot(states, V) + (1 - kept) * pi
        elif int(sweeps.order[s % model.num_sites]) in sites:
            at = torch.full((2, len(states)), t, device=device)
            at[1] = s
            with model.evaluating("sampling"):
                law = model.reverse_law(zt, at[0], at[1], labels, sampler=sampler, known=given).probs()[:, sites]
        else:
            continue
        p = p @ product(law.double(), states)
    return p.cpu()
