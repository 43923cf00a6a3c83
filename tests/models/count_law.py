"""Enumerable laws of counts, their exact expected deaths as a network, and the exact law of a sampler."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from scipy.special import gammaln
from scipy.stats import binom
from torch import Tensor, nn

from ggm_lightning.core import death
from ggm_lightning.models.blackout import Blackout


def laws() -> dict[str, np.ndarray]:
    n = np.arange(21)
    mix = 0.4 * binom.pmf(n, 20, 0.15) + 0.4 * binom.pmf(n, 20, 0.8)
    mix[0] += 0.1
    mix[10] += 0.1
    even = np.zeros(21)
    even[::2] = 1 + np.cos(np.arange(11))
    return {"mix21": mix / mix.sum(), "even21": even / even.sum(), "bern0.3": np.array([0.7, 0.3])}


def img256() -> np.ndarray:
    """Like the levels of a picture: two wide peaks, a narrow one, and much of black and white."""
    n = np.arange(256)
    table = np.zeros(256)
    for share, middle, width in ((0.45, 60, 25), (0.35, 190, 20), (0.06, 120, 3)):
        peak = np.exp(-(((n - middle) / width) ** 2) / 2)
        table += share * peak / peak.sum()
    table[[0, 255]] += 0.05, 0.09
    return table / table.sum()


class Counts(nn.Module):
    """P as a table of shape (V,) * n; as a network, given f = logit p, it returns E[x_0 - x_t | x_t] of every site, or
    (distribution) the logits of each site's x_0, or the raw value of one of the published parameterisations.

    `parametrisation` is the model's: with prior, q(x_t | x_0) of the site is divided out of the logits, and what lies
    below x_t gets any value."""

    parametrisation = "prior"

    def __init__(self, table: np.ndarray, output: str = "deaths") -> None:
        super().__init__()
        self.output = output
        self.num_sites, self.cap = table.ndim, table.shape[0] - 1
        self.x = torch.tensor(list(itertools.product(range(self.cap + 1), repeat=self.num_sites)))
        self.p = torch.from_numpy(table).flatten()
        self.dtype = nn.Parameter(torch.zeros((), dtype=torch.float64), requires_grad=False)  # t is given in float64

    @property
    def entropy(self) -> float:
        return float(-torch.xlogy(self.p, self.p).sum())

    def of_one_site(self, f: float) -> np.ndarray:
        """P(x_t | x_0) of a single count [x_0, x_t] at p = sigmoid(f)."""
        log_p, log_q = -np.logaddexp(0, -f), -np.logaddexp(0, f)
        n = np.arange(self.cap + 1)
        with np.errstate(invalid="ignore"):
            choose = gammaln(n[:, None] + 1) - gammaln(n + 1) - gammaln(n[:, None] - n + 1)
            return np.exp(np.where(n[:, None] >= n, choose + n * log_p + (n[:, None] - n) * log_q, -np.inf))

    def likelihood(self, f: float) -> Tensor:
        """P(x_t | x_0) [x_0, x_t] at p = sigmoid(f)."""
        one, x = self.of_one_site(f), self.x.numpy()
        return torch.from_numpy(one[x[:, None], x[None]]).prod(-1)

    def index(self, x: Tensor) -> Tensor:
        return (x * (self.cap + 1) ** torch.arange(self.num_sites - 1, -1, -1)).sum(-1)

    def posterior(self, f: float) -> Tensor:
        """P(x_0 | x_t) [x_t, x_0]; zeros where x_t cannot be."""
        joint = (self.p[:, None] * self.likelihood(f)).T
        total = joint.sum(1, keepdim=True)
        return torch.where(total > 1e-290, joint / total.clamp(min=1e-300), 0.0)

    def forward(self, z: Tensor, f: Tensor, label: Tensor | None = None) -> Tensor:
        assert bool((f == f[0]).all())
        gone = float(torch.sigmoid(-f[0]))
        x = torch.round(z + self.cap / 2 * torch.sigmoid(f)[:, None]).long()
        posterior = self.posterior(float(f[0]))[self.index(x)]
        if self.output == "distribution":
            value = nn.functional.one_hot(self.x, self.cap + 1).double()
            log_posterior = torch.log(torch.einsum("bi,inv->bnv", posterior, value))
            if self.parametrisation == "posterior":
                return log_posterior
            reach = torch.from_numpy(self.of_one_site(float(f[0]))).T[x]  # [b, n, x_0]
            return torch.where(reach > 0, log_posterior - reach.log(), 5.0)
        y = (posterior @ self.x.double() - x).clamp(min=0)
        if self.output == "deaths":
            return y
        y = y.clamp(min=1e-290) / (gone if self.output == "scaled" else 1.0)
        return torch.where(y > 20, y, torch.log(torch.expm1(y)))  # the inverse of torch's softplus


def model_of(law: Counts, **kwargs: object) -> Blackout:
    reading = {"output": law.output, "parametrisation": law.parametrisation}
    kwargs = reading | {"time_input": "logit", "loss": "likelihood"} | kwargs
    if law.output == "distribution":
        kwargs["loss"] = "cross_entropy"
    return Blackout(law, law.cap + 1, (law.num_sites,), **kwargs)


def sampler_law(law: Counts, num_steps: int, sampler: str, t_end: float = 15.0) -> Tensor:
    """The exact law of x after num_steps, Float64[states], through reverse_law alone."""
    model = model_of(law, t_end=t_end)
    d = torch.zeros(len(law.x), dtype=torch.float64)
    d[0] = 1.0
    path = [*death.observation_times(num_steps, t_end).flip(0).tolist(), 0.0]
    for t, s in itertools.pairwise(path):
        when = torch.tensor([[t], [s]], dtype=torch.float64).expand(2, len(law.x))
        sites = model.reverse_law(law.x, when[0], when[1], sampler=sampler).probs()
        matrix = sites[:, 0]
        for n in range(1, law.num_sites):
            matrix = (matrix[:, :, None] * sites[:, n][:, None, :]).reshape(len(matrix), -1)
        d = d @ matrix
    return d


def distance(a: Tensor, b: Tensor) -> float:
    return 0.5 * float((a - b).abs().sum())
