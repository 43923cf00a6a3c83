"""Exact denoisers of GGM, and its chain by enumeration (models/ggm.py, equations as numbered there)."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.networks import Exact
from ggm_lightning.exact.states import all_states, distinct, index, product
from ggm_lightning.models.ggm import GGM


class Hidden(Exact):
    """o = log p_t(x | y) - log pi(x) at the hidden sites (id V), given the visible tokens, t = r/R and the visited
    bits; with loss ce_x0 or bound log p0(x | y) - log pi(x). `bind` says whose survivals and pi count.
    """

    def __init__(self, law: JointLaw) -> None:
        super().__init__(law)
        self.models: list[GGM] = []  # in a list, so that it is no submodule

    @property
    def model(self) -> GGM:
        return self.models[0]

    def bind(self, model: GGM) -> None:
        """From now on it answers this model."""
        self.models[:] = [model]

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
        assert visited is not None
        r = (t.double() * self.model.sweeps.num_sweeps).round().long()
        first, back = distinct(r, z.flatten(1), visited)
        return self.answer(z.flatten(1)[first], visited[first], r[first])[back]

    def answer(self, z: Tensor, visited: Tensor, r: Tensor) -> Tensor:
        """Float64[b, n, V] of states z Int64[b, n] in sweep r Int64[b]."""
        survival = self.model.sweeps.survival
        return self.read(self.clean(z, survival[r[:, None] + visited.long()]), survival[r][:, None, None])

    def clean(self, z: Tensor, level: Tensor, own: bool = True) -> Tensor:
        """p0(x_n = v | z), Float64[b, n, V], where site i survived with probability level Float64[b, n]."""
        pi, V = self.model.log_pi.exp(), self.law.num_classes
        shown = torch.where(z == V, 0, z)
        a = level[..., None]
        noisy = a * nn.functional.one_hot(shown, V) + (1 - a) * pi[shown][..., None]
        return self.law.posterior(torch.where((z == V)[..., None], 1.0, noisy), own=own)

    def read(self, p0: Tensor, own: Tensor) -> Tensor:
        """What the model's loss wants to hear of p0; `own`: the survival of the asked site."""
        log_pi = self.model.log_pi
        if self.model.objective in ("ce_x0", "bound"):
            return p0.log() - log_pi
        return torch.log(own * p0 + (1 - own) * log_pi.exp()) - log_pi


class Hollow(Hidden):
    """Hidden at every site, each with its own token hidden, as order: random asks; plus `tilt`."""

    tilt: Tensor | float = 0.0

    def answer(self, z: Tensor, visited: Tensor, r: Tensor) -> Tensor:
        survival = self.model.sweeps.survival
        p0 = self.clean(z, survival[r[:, None] + visited.long()], own=False)
        return self.read(p0, survival[r][:, None, None]) + self.tilt


class Levels(Hidden):
    """The same from the tokens and levels of the others and t = 1 - a alone (levels: true); plus `tilt`."""

    levels = True

    def __init__(self, law: JointLaw) -> None:
        super().__init__(law)
        self.tilt = nn.Parameter(torch.zeros(law.num_sites, law.num_classes, dtype=torch.float64))

    def forward(  # type: ignore[override]
        self, z: Tensor, t: Tensor, label: Tensor | None = None, levels: Tensor | None = None
    ) -> Tensor:
        assert levels is not None
        p0 = self.clean(z.flatten(1), levels, own=False)
        return self.read(p0, (1 - t)[:, None, None]) + self.tilt


def with_network(law: JointLaw, network: Hidden, **options: object) -> GGM:
    """A GGM of this law with this exact network."""
    model = GGM(network, law.num_classes, (law.num_sites,), **options)  # type: ignore[arg-type]
    network.bind(model)
    return model


# ------------------------------------------------------------------ the chain, visit by visit


def noise_law(model: GGM) -> Tensor:
    """pi^n, Float64[V^n]."""
    states = all_states(model.num_classes, model.num_sites)
    return product(model.log_pi.exp().expand(1, model.num_sites, -1), states)[0]


def law_at(model: GGM, x0: Tensor, survival: Tensor) -> Tensor:
    """P(X | x0) Float64[b, V^n] of x0 Int64[b, n] where site i has survived with probability survival Float64[n]."""
    a, states = survival[:, None], all_states(model.num_classes, model.num_sites)
    clean = nn.functional.one_hot(x0, model.num_classes).double()
    return product(a * clean + (1 - a) * model.log_pi.exp(), states)


def forward_laws(model: GGM, law: JointLaw) -> list[Tensor]:
    """P_0..P_T, one visit at a time, by eq. (1) alone: Float64[V^n] each."""
    pi, chain, laws = model.log_pi.exp(), model.sweeps, [law.p]
    for t in range(chain.num_steps):
        site, keep = int(chain.order[t % law.num_sites]), float(chain.keep[t // law.num_sites])
        p = laws[-1]
        out = keep * p
        for v in range(law.num_classes):
            x = law.x.clone()
            x[:, site] = v
            out = out.index_add(0, index(x, law.num_classes), (1 - keep) * pi[v] * p)
        laws.append(out)
    return laws


def conditional(p: Tensor, site: int, law: JointLaw) -> Tensor:
    """P(X_site = v | other sites), Float64[V^n, V], of the law p on all states."""
    joint = torch.empty(len(law.x), law.num_classes, dtype=torch.float64)
    for v in range(law.num_classes):
        x = law.x.clone()
        x[:, site] = v
        joint[:, v] = p[index(x, law.num_classes)]
    return joint / joint.sum(1, keepdim=True)


def reverse(model: GGM, p: Tensor, sampler: str, size: int = 1, gated: bool | None = None) -> Tensor:
    """The law of X_0 when X_T ~ p, through `reverse_law` alone. `gated` overrides what the sampler would do (a negative
    control)."""
    states = all_states(model.num_classes, model.num_sites)
    rows = states.reshape(-1, *model.shape)
    for t, s in itertools.pairwise(model.sweeps.grid(size)):
        when = torch.tensor([[t], [s]]).expand(2, len(states))
        law = model.reverse_law(rows, when[0], when[1], sampler=sampler)
        law.gated = law.gated if gated is None else gated  # type: ignore[union-attr]
        p = p @ product(law.probs(), states)
    return p


def reverse_over_orders(model: GGM, p: Tensor, sampler: str, size: int = 1) -> Tensor:
    """The same with order: random, over all orders of each sweep."""
    n, states = model.num_sites, all_states(model.num_classes, model.num_sites)
    rows = states.reshape(-1, *model.shape)
    orders = [torch.tensor(order) for order in itertools.permutations(range(n))]
    for r in reversed(range(model.sweeps.num_sweeps)):
        found = torch.zeros_like(p)
        for order in orders:
            q = p
            for first in reversed(range(0, n, size)):
                s = torch.full((len(states),), r * n + first)
                t = torch.full((len(states),), r * n + min(first + size, n))
                law = model.reverse_law(rows, t, s, sampler=sampler, order=order.expand(len(states), n))
                q = q @ product(law.probs(), states)
            found = found + q
        p = found / len(orders)
    return p


def weight_of(visited: Tensor) -> float:
    """P(S) of a visited set Bool[n] with order: random: its size uniform on 0..n."""
    n = len(visited)
    return 1 / (n + 1) / math.comb(n, int(visited.sum()))


# ------------------------------------------------------------------ the bound


def bound(model: GGM, law: JointLaw) -> Tensor:
    """Eq. (8) for every x0, every state and visit enumerated: Float64[V^n], nats."""
    S, steps = len(law.x), model.sweeps.num_steps
    x0, zt = (x.reshape(-1, *model.shape) for x in (law.x.repeat_interleave(S, 0), law.x.repeat(S, 1)))
    total = torch.zeros(S, dtype=torch.float64)
    for t in range(1, steps + 1):
        q = law_at(model, law.x, model.sweeps.survival_at(torch.tensor([t]))[0])
        nats = model.terms(x0, zt, torch.full((S * S,), t)).reshape(S, S)
        total += torch.where(q > 0, q * nats, 0.0).sum(1) / steps
    return total + _prior(model, law)


def bound_over_orders(model: GGM, law: JointLaw) -> Tensor:
    """The same with order: random: over sweeps and all sets that one has visited, core/hollow.py, eq. (12)."""
    S, n, R = len(law.x), law.num_sites, model.sweeps.num_sweeps
    x0, zt = (x.reshape(-1, *model.shape) for x in (law.x.repeat_interleave(S, 0), law.x.repeat(S, 1)))
    total = torch.zeros(S, dtype=torch.float64)
    for r, visited in itertools.product(range(R), all_states(2, n).bool()):
        q = law_at(model, law.x, model.sweeps.survival[r + visited.long()])
        t = torch.full((S * S,), r * n + 1)
        nats = model.terms(x0, zt, t, visited=visited.expand(S * S, n)).reshape(S, S).detach()
        total += weight_of(visited) / R * torch.where(q > 0, q * nats, 0.0).sum(1)
    return total + _prior(model, law)


def _prior(model: GGM, law: JointLaw) -> Tensor:
    """KL(q(X_T | x0) || pi^n) of every x0: Float64[V^n], nats."""
    last = torch.full((law.num_sites,), float(model.sweeps.survival[-1]), dtype=torch.float64)
    q = law_at(model, law.x, last)
    return (q * (q.log() - noise_law(model).log())).sum(1)
