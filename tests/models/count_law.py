"""Laws of counts, and models of them with exact networks."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor

from ggm_lightning.exact import chains
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.networks import Deaths
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


class Counts(Deaths):
    """The exact network of a table; `parametrisation`, of its logits, is the model's."""

    parametrisation = "prior"

    def __init__(self, table: np.ndarray, output: str = "deaths") -> None:
        super().__init__(JointLaw(table), output)
        self.x, self.p, self.num_sites = self.law.x, self.law.p, self.law.num_sites
        self.entropy, self.index = self.law.entropy, self.law.index

    def likelihood(self, f: float) -> Tensor:
        """P(x_t | x_0) [x_0, x_t] at p = sigmoid(f)."""
        reach = self.reach(self.x, torch.full((len(self.x),), f, dtype=torch.float64))  # [x_t, n, V]
        return reach[:, torch.arange(self.num_sites), self.x].prod(-1).T

    def forward(self, z: Tensor, f: Tensor, label: Tensor | None = None) -> Tensor:
        self.own = self.parametrisation == "posterior"
        return super().forward(z, f, label)


def model_of(law: Counts, **kwargs: object) -> Blackout:
    reading = {"output": law.output, "parametrisation": law.parametrisation}
    kwargs = reading | {"time_input": "logit", "loss": "likelihood"} | kwargs
    if law.output == "distribution":
        kwargs["loss"] = "cross_entropy"
    return Blackout(law, law.cap + 1, (law.num_sites,), **kwargs)


def sampler_law(law: Counts, num_steps: int, sampler: str, t_end: float = 15.0) -> Tensor:
    """The exact law of x after num_steps, Float64[states], through reverse_law alone."""
    return chains.deaths(model_of(law, t_end=t_end), sampler, num_steps)
