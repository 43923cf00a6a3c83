"""The 27-state law of the specification, its exact denoiser as a network for GGM, and the chain step by step."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from ggm_lightning.models.ggm import GGM

V = N = 3
STATES = torch.tensor(list(itertools.product(range(V), repeat=N)))
FIRST = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
STEP = torch.tensor([[0.80, 0.15, 0.05], [0.10, 0.70, 0.20], [0.30, 0.05, 0.65]], dtype=torch.float64)
LAW = FIRST[STATES[:, 0]] * STEP[STATES[:, 0], STATES[:, 1]] * STEP[STATES[:, 1], STATES[:, 2]]
SKEWED = [0.5, 0.3, 0.2]


def index(x: Tensor) -> Tensor:
    return (x * torch.tensor([9, 3, 1])).sum(-1)


def distance(p: Tensor, q: Tensor) -> float:
    """Total variation."""
    return 0.5 * float((p - q).abs().sum())


class ExactChain(nn.Module):
    """o = log p_t(x|y) - log pi(x) by Bayes' rule over the 27 clean states, given the hidden sites (id V), t = r/R and
    the visited bits. The survivals and pi are those of `model`, set after it is built.

    Mistakes, for negative controls: "late" (the conditional of P_{t+1}), "blind" (no visited bits), "bare" (no log pi
    in the softmax), "clean" (p0 in place of p_t).
    """

    def __init__(self, mistake: str = "") -> None:
        super().__init__()
        self.mistake = mistake
        self.model: list[GGM] = []  # in a list, so that it is no submodule

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
        """Computed once per distinct row."""
        r = (t.double() * self.model[0].sweeps.num_sweeps).round().long()
        columns = torch.cat([z, visited.long(), r[:, None]], 1)
        code = (columns * (V + 1) ** torch.arange(2 * N, -1, -1)).sum(1)
        _, back, count = code.unique(return_inverse=True, return_counts=True)
        first = back.argsort(stable=True)[count.cumsum(0) - count]  # one row of each kind
        rows = columns[first]
        return self._answer(rows[:, :N], rows[:, N : 2 * N], rows[:, -1])[back]

    def _answer(self, z: Tensor, visited: Tensor, r: Tensor) -> Tensor:
        model = self.model[0]
        survival, log_pi = model.sweeps.survival, model.log_pi
        seen = torch.zeros_like(visited) if self.mistake == "blind" else visited
        a = survival[r[:, None] + seen]
        shown = z < V
        ids = torch.where(shown, z, 0)
        # [b, 27, n]: P(X_j = z_j | X_0) at shown sites, 1 at hidden ones
        match = a[:, None] * (ids[:, None] == STATES) + (1 - a[:, None]) * log_pi.exp()[ids][:, None]
        weight = LAW * torch.where(shown[:, None], match, 1.0).prod(-1)
        one_hot = nn.functional.one_hot(STATES, V).double()
        p0 = torch.einsum("bs,snv->bnv", weight / weight.sum(-1, keepdim=True), one_hot)
        if model.objective in ("ce_x0", "bound") or self.mistake == "clean":
            return p0.log() - log_pi
        own = survival[r + (self.mistake == "late")][:, None, None]
        o = torch.log(own * p0 + (1 - own) * log_pi.exp()) - log_pi
        return o - log_pi if self.mistake == "bare" else o


def exact(mistake: str = "", **options: object) -> GGM:
    network = ExactChain(mistake)
    model = GGM(network, V, (N,), **{"last_survival": 0.02, "block_size": N, **options})
    network.model.append(model)
    return model


def product_law(per_site: Tensor) -> Tensor:
    """Float64[27] from Float64[n, V]."""
    return per_site[torch.arange(N), STATES].prod(-1)


def noise_state(model: GGM) -> Tensor:
    """pi^n."""
    return product_law(model.log_pi.exp().expand(N, V))


def forward_laws(model: GGM) -> list[Tensor]:
    """P_0..P_T, one visit at a time."""
    pi, chain = model.log_pi.exp(), model.sweeps
    laws = [LAW]
    for t in range(chain.num_steps):
        site, keep = int(chain.order[t % N]), chain.keep[t // N]
        p = laws[-1]
        out = keep * p
        for v in range(V):
            x = STATES.clone()
            x[:, site] = v
            out = out.index_add(0, index(x), (1 - keep) * pi[v] * p)
        laws.append(out)
    return laws


def conditional(p: Tensor, site: int) -> Tensor:
    """P(X_site = v | other sites), Float64[27, V]."""
    joint = torch.empty(len(STATES), V, dtype=torch.float64)
    for v in range(V):
        x = STATES.clone()
        x[:, site] = v
        joint[:, v] = p[index(x)]
    return joint / joint.sum(1, keepdim=True)


def step_matrix(probs: Tensor) -> Tensor:
    """Float64[27, 27] from the law site by site Float64[27, n, V]."""
    return probs[:, torch.arange(N), STATES].prod(-1)


def reverse(model: GGM, p: Tensor, sampler: str, size: int = 1, gated: bool | None = None) -> Tensor:
    """The exact law of X_0 when X_T ~ p. `gated` overrides what the sampler would do (a negative control)."""
    for t, s in itertools.pairwise(model.sweeps.grid(size)):
        when = torch.tensor([[t], [s]]).expand(2, len(STATES))
        law = model.reverse_law(STATES, when[0], when[1], sampler=sampler)
        law.gated = law.gated if gated is None else gated
        p = p @ step_matrix(law.probs())
    return p
