"""The laws of plans by enumeration: V = N = 3, an exact network, every state and every step. Written without the plans'
own code, but for the order of ties."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ggm_lightning.core.schedules import Linear
from ggm_lightning.exact import states
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.networks import HollowMasked, Masked
from ggm_lightning.models.md4 import MD4

V = N = 3
ROWS = 40_000
LAW = JointLaw.random(N, V, seed=3)
NETWORK = Masked(LAW)
HOLLOW = HollowMasked(LAW)  # the same law: at each site given all others, whatever stands at the site
STATES = NETWORK.states
CLEAN = (STATES < V).all(-1)
MASKED = STATES == V
MU = NETWORK(STATES).exp()  # [64, N, V]
NOTHING = MASKED.all(-1).double()  # the law of the state before the first step

Step = tuple[float, float, float]  # alpha_t, alpha_s, sigma


def md4(network: nn.Module = NETWORK, **more: object) -> MD4:
    return MD4(network, V, (N,), Linear(0.0), **more)


def frequencies(x: Tensor, base: int = V) -> Tensor:
    """Float64[base^3] of Int64[b, 3]."""
    return states.frequencies(x, base)


def worst(found: Tensor, expected: Tensor) -> float:
    """Largest deviation in standard errors of ROWS rows; outcomes expected less than ten times count as one."""
    return states.standard_errors(found, expected, ROWS)[0]


def kernel(site: Tensor) -> Tensor:
    """[64, 64], P(to | from), of sites [64, N, V + 1] that move independently."""
    return states.product(site, STATES)


def step_kernel(step: Step, mu: Tensor = MU, compensate: bool = True, free: Tensor | None = None) -> Tensor:
    """Of remasking: masked sites are revealed, free ones (Bool[N]) hidden."""
    a_t, a_s, sigma = step
    reveal = (a_s - (1 - sigma) * a_t) / (1 - a_t) if compensate else (a_s - a_t) / (1 - a_t)
    free = torch.ones(N, dtype=torch.bool) if free is None else free
    site = nn.functional.one_hot(STATES, V + 1).double()
    hidden = (free & ~MASKED)[..., None] * sigma
    last = nn.functional.one_hot(torch.full_like(STATES, V), V + 1).double()
    site = (1 - hidden) * site + hidden * last
    shown = torch.cat([reveal * mu.nan_to_num(), torch.full((len(STATES), N, 1), 1 - reveal, dtype=torch.float64)], -1)
    return kernel(torch.where(MASKED[..., None], shown, site))


def state_law(steps: Sequence[Step], start: Tensor = NOTHING, **more: object) -> Tensor:
    """Float64[64]: the law of the state after these steps."""
    law = start
    for step in steps:
        law = law @ step_kernel(step, **more)
    return law


def stepwise(steps: Sequence[Step], start: Tensor = NOTHING, **more: object) -> Tensor:
    """Float64[27]: the law of x after these steps, what is left being revealed at once."""
    everything = {**more, "compensate": True}
    return (state_law(steps, start, **more) @ step_kernel((0.0, 1.0, 0.0), **everything))[CLEAN]


def times(num_steps: int) -> list[tuple[float, float]]:
    grid = [1 - i / num_steps for i in range(num_steps + 1)]
    return list(itertools.pairwise(grid))


def most(a_t: float, a_s: float) -> float:
    return 1.0 if a_t <= 0 else min(1.0, (1 - a_s) / a_t)


def remasking(rule: str, num_steps: int, eta: float) -> list[Step]:
    """With alpha = 1 - t; loop with t_on .6, t_off .2, alpha_on .8."""
    steps = []
    for t, s in times(num_steps):
        a_t, a_s = 1 - t, 1 - s
        if rule == "loop":
            a_t, a_s = loop_level(t), loop_level(s)
        bound = most(a_t, a_s)
        sigma = {
            "cap": eta,
            "rescale": eta * bound,
            "rate": eta * (t - s),
            "forward_backward": eta * (a_s - a_t) / a_t if a_t > 0 else 1.0,
            "psi": eta * (1 - a_s),
            "loop": eta if 0.2 < t <= 0.6 else 0.0,
        }[rule]
        steps.append((a_t, a_s, min(sigma, bound)))
    return steps


def loop_level(x: float) -> float:
    if x >= 0.6:
        return (1 - x) * 0.8 / 0.4
    return 1 - x if x <= 0.2 else 0.8


def entropy(p: Sequence[float]) -> float:
    return -sum(q * math.log(q) for q in p if q > 0)


SCORES: dict[str, Callable[[Sequence[float]], float]] = {
    "confidence": max,
    "margin": lambda p: sorted(p)[-1] - sorted(p)[-2],
    "entropy": lambda p: -entropy(p),
}


def surest(state: int, score: str, k: int | None, gamma: float | None) -> list[int]:
    """The sites that are revealed in this state, by the network's own law."""
    laws = {n: MU[state, n].tolist() for n in range(N) if MASKED[state, n]}
    order = sorted(laws, key=lambda n: -SCORES[score](laws[n]))
    if gamma is None:
        return order[:k]
    taken = order[:1]
    for n in order[1:]:
        nats = [entropy(laws[m]) for m in [*taken, n]]
        if sum(nats) - max(nats) > gamma:
            break
        taken.append(n)
    return taken


def ordered(
    score: str, k: int | None = None, gamma: float | None = None, mu: Tensor = MU, start: Tensor = NOTHING
) -> Tensor:
    """Float64[27]; mu Float64[64, 3, 3]: what values are drawn from."""
    law = start
    site = nn.functional.one_hot(STATES, V + 1).double()
    for state in range(len(STATES)):
        for n in surest(state, score, k, gamma):
            site[state, n] = torch.cat([mu[state, n], torch.zeros(1, dtype=torch.float64)])
    for _ in range(N):
        law = law @ kernel(site)
    return law[CLEAN]


def by_drawn_value() -> Tensor:
    """Float64[27]: values are drawn at all masked sites, the one whose value is the most probable stays (LLaDA)."""
    law = {(V,) * N: 1.0}
    for _ in range(N):
        following: dict[tuple[int, ...], float] = {}
        for z, mass in law.items():
            masked = [n for n in range(N) if z[n] == V]
            p = NETWORK(torch.tensor([z])).exp()[0]
            for values in itertools.product(range(V), repeat=len(masked)):
                chances = [float(p[n, value]) for n, value in zip(masked, values, strict=True)]
                best = chances.index(max(chances))
                new = list(z)
                new[masked[best]] = values[best]
                following[tuple(new)] = following.get(tuple(new), 0.0) + mass * math.prod(chances)
        law = following
    return torch.tensor([law.get(tuple(x), 0.0) for x in STATES[CLEAN].tolist()], dtype=torch.float64)


def in_windows(steps: Sequence[Step], windows: Sequence[Sequence[int]]) -> Tensor:
    """Float64[27]: `steps` of ancestral sampling in each window of sites, all of which are then revealed."""
    law = NOTHING
    for window in windows:
        inside = torch.tensor([n in window for n in range(N)])
        for step in [*steps, (0.0, 1.0, 0.0)]:
            reveal = (step[1] - step[0]) / (1 - step[0])
            site = nn.functional.one_hot(STATES, V + 1).double()
            stays = torch.full((len(STATES), N, 1), 1 - reveal, dtype=torch.float64)
            shown = torch.cat([reveal * MU.nan_to_num(), stays], -1)
            law = law @ kernel(torch.where((MASKED & inside)[..., None], shown, site))
    return law[CLEAN]


def gibbs() -> Tensor:
    """[27, 27]: one site, any with equal probability, drawn anew given the others."""
    x = STATES[CLEAN]
    law = torch.zeros(len(x), len(x), dtype=torch.float64)
    for site in range(N):
        others = torch.tensor([n != site for n in range(N)])
        same = (x[:, None, others] == x[None, :, others]).all(-1).double()
        law += same * LAW.p / (same @ LAW.p)[:, None] / N
    return law
