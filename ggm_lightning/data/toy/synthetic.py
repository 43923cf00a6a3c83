"""Sources whose log-likelihood is computable, so that a bound can be compared with the truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Integer
from torch import Tensor

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.text import Characters, Integers
from ggm_lightning.core.known_law import HiddenChain, Mixture
from ggm_lightning.data.base import DiscreteData
from ggm_lightning.data.rows import Rows, RowSource

SPLIT_NUMBER = {"train": 1, "val": 2}


def _entropy(p: np.ndarray) -> np.ndarray:
    """-sum p log p along the last axis, nats, with 0 log 0 = 0."""
    return np.asarray(-(p * np.log(np.where(p > 0, p, 1.0))).sum(-1))


def _check_draws(num_train: int, num_val: int, source_seed: int) -> None:
    for key, value, least in (("num_train", num_train, 1), ("num_val", num_val, 1), ("source_seed", source_seed, 0)):
        if not least <= value < 2**63:
            raise ValueError(f"data.{key} is {value}; it must be at least {least} and fit into 64 bits")


class MarkovChain(DiscreteData):
    """A stationary order-1 chain: x_1 ~ pi, x_{i+1} ~ P[x_i, :], rows of P drawn from Dirichlet(0.3).

    P is what torch.manual_seed(source_seed) and torch.distributions.Dirichlet([0.3]*V in float64).sample((V,)) give on
    the CPU. Entropy per token of n tokens, by the chain rule: (H(pi) + (n-1) H(P|pi))/n. With the defaults (V=11, n=64,
    source_seed=0) it is 1.4550054 nats per token, the rate H(P|pi) is 1.4414308 and a single token has H(pi) =
    2.3102105 nats.

    Args:
        num_symbols: V. length: n. num_train, num_val: rows.
        source_seed: of the chain and of its draws (`seed` is of their order).
        batches: global_batch_size, max_batch_per_device, eval_batch_size, num_workers, seed (see DiscreteData).
    """

    def __init__(
        self,
        num_symbols: int = 11,
        length: int = 64,
        num_train: int = 65536,
        num_val: int = 2048,
        source_seed: int = 0,
        **batches: Any,
    ) -> None:
        super().__init__(**batches)
        if num_symbols < 2 or length < 1:
            raise ValueError(f"data.num_symbols {num_symbols} must be at least 2 and data.length {length} at least 1")
        _check_draws(num_train, num_val, source_seed)
        self.num_symbols, self.length, self.source_seed = num_symbols, length, source_seed
        self.num_rows = {"train": num_train, "val": num_val}
        # what Dirichlet.sample calls, which itself takes no generator: another thread may draw from torch's own
        generator = torch.Generator().manual_seed(source_seed)
        concentration = torch.full((num_symbols, num_symbols), 0.3, dtype=torch.float64)
        law = torch._sample_dirichlet(concentration, generator).numpy()
        # pi P = pi and sum pi = 1: V+1 consistent equations in V unknowns.
        equations = np.vstack([law.T - np.eye(num_symbols), np.ones(num_symbols)])
        pi = np.linalg.lstsq(equations, np.append(np.zeros(num_symbols), 1.0), rcond=None)[0]
        self.transition: Float64[Tensor, "V V"] = torch.from_numpy(law)
        self.stationary: Float64[Tensor, " V"] = torch.from_numpy(pi)
        self.marginal_entropy = float(_entropy(pi))
        self.entropy_rate = float(pi @ _entropy(law))

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def codec(self) -> Codec:
        return Integers(self.num_symbols)

    @property
    def entropy(self) -> float:
        """Nats per token of a whole example."""
        return (self.marginal_entropy + (self.length - 1) * self.entropy_rate) / self.length

    def law(self) -> HiddenChain:
        """The symbol is the state."""
        says = torch.eye(self.num_symbols, dtype=torch.float64)
        nats = self.entropy * self.length
        return HiddenChain(self.stationary, self.transition, says, self.length, lambda: (nats, 0.0))

    def log_likelihood(self, x: Integer[Tensor, "b n"]) -> Float64[Tensor, " b"]:
        """log pi[x_1] + sum_i log P[x_i, x_{i+1}], nats."""
        x = x.cpu().long()
        steps = self.transition.log()[x[:, :-1], x[:, 1:]].sum(1)
        return self.stationary.log()[x[:, 0]] + steps

    def draw(self, num_rows: int, rng: np.random.Generator) -> Integer[np.ndarray, "b n"]:
        """Fresh rows, by inverting the cumulated law of each step."""
        law = self.transition.numpy().cumsum(1)
        law[:, -1] = 1.0  # rounding must not leave a gap below 1
        first = self.stationary.numpy().cumsum()
        first[-1] = 1.0
        dtype = np.uint8 if self.num_symbols <= 256 else np.int32
        x = np.empty((num_rows, self.length), dtype=dtype)
        x[:, 0] = np.searchsorted(first, rng.random(num_rows), side="right")
        for i in range(1, self.length):
            x[:, i] = (rng.random((num_rows, 1)) >= law[x[:, i - 1]]).sum(1)
        return x

    def load(self, split: str) -> RowSource:
        rng = np.random.default_rng([self.source_seed, SPLIT_NUMBER[split]])
        return Rows(self.draw(self.num_rows[split], rng), name=f"MarkovChain({self.source_seed})")

    def references(self) -> dict[str, float]:
        return {"entropy": self.entropy / math.log(2), "independent tokens": self.marginal_entropy / math.log(2)}


class Sawtooth(DiscreteData):
    """The binary sawtooth: bits that are independent given one hidden phase.

        x_i ~ Bernoulli(p_i),  p_i = scale + (1 - 2 scale) tri(saws (i/n + u) mod 1),  u ~ U[0, 1),
        tri(v) = 1 - |2v - 1|.

    With the defaults H(x) = 67.90 +- .06 nats per example, of which 65.23 are left when the phase is known.

    Args:
        length: n. saws: teeth per row. scale: the lowest probability.
        num_train, num_val: rows. source_seed: of the draws (`seed` is of their order).
        batches: global_batch_size, max_batch_per_device, eval_batch_size, num_workers, seed (see DiscreteData).
    """

    grid_points = 2048  # phases of the integral

    def __init__(
        self,
        length: int = 128,
        saws: int = 2,
        scale: float = 0.01,
        num_train: int = 204800,
        num_val: int = 2048,
        source_seed: int = 0,
        **batches: Any,
    ) -> None:
        super().__init__(**batches)
        if length < 1 or saws < 1 or not 0 < scale < 0.5:
            raise ValueError(
                f"data.length {length} and data.saws {saws} must be at least 1, data.scale {scale} in (0, .5)"
            )
        _check_draws(num_train, num_val, source_seed)
        self.length, self.saws, self.scale, self.source_seed = length, saws, scale, source_seed
        self.num_rows = {"train": num_train, "val": num_val}

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def codec(self) -> Codec:
        return Characters("01", unknown=None)

    def probabilities(self, phase: Float64[Tensor, " p"]) -> Float64[Tensor, "p n"]:
        """p_i for each phase u."""
        site = torch.arange(self.length, dtype=torch.float64) / self.length
        tooth = (self.saws * (site + phase[:, None])) % 1.0
        return self.scale + (1 - 2 * self.scale) * (1 - (2 * tooth - 1).abs())

    @property
    def _grid(self) -> Float64[Tensor, " p"]:
        """Midpoints of one period."""
        return (torch.arange(self.grid_points, dtype=torch.float64) + 0.5) / (self.grid_points * self.saws)

    def law(self) -> Mixture:
        """The phase is the hidden state, on the grid of `log_likelihood`."""
        p = self.probabilities(self._grid)
        weight = torch.full((self.grid_points,), 1 / self.grid_points, dtype=torch.float64)
        return Mixture(weight, torch.stack([1 - p, p], -1), self._entropy_by_phase)

    def log_likelihood(self, x: Integer[Tensor, "b n"]) -> Float64[Tensor, " b"]:
        """log of the mean over the phase of prod_i p_i^x_i (1 - p_i)^(1 - x_i), nats; midpoints of one period."""
        p = self.probabilities(self._grid)
        bits = x.cpu().to(torch.float64)
        joint = bits @ (p.log() - (-p).log1p()).T + (-p).log1p().sum(1)
        return joint.logsumexp(1) - math.log(self.grid_points)

    def entropy_estimate(self, num_samples: int = 8192, seed: int = 0) -> tuple[float, float]:
        """(mean, standard error) of -log p(x) over fresh draws: H(x) in nats per example."""
        x = torch.from_numpy(self.draw(num_samples, np.random.default_rng(seed)))
        nats = -torch.cat([self.log_likelihood(part) for part in x.split(2048)])
        return float(nats.mean()), float(nats.std() / math.sqrt(num_samples))

    def _entropy_by_phase(self, num_samples: int = 8192) -> tuple[float, float]:
        """(H(x) in nats per example, its standard error) as H(x | phase), which is exact, and the information of x on
        the phase, estimated from fresh draws: a fifth of the error of `entropy_estimate`."""
        rng = np.random.default_rng([self.source_seed, 3])
        p = self.probabilities(self._grid)
        own = p[torch.from_numpy(rng.integers(self.grid_points, size=num_samples))]
        bits = torch.from_numpy(rng.random(own.shape)) < own
        given = torch.where(bits, own, 1 - own).log().sum(1)
        nats = torch.cat([self.log_likelihood(part) for part in bits.long().split(2048)])
        information = given - nats
        known = float(_entropy(torch.stack([1 - p, p], -1).numpy()).sum(1).mean())
        return known + float(information.mean()), float(information.std() / math.sqrt(num_samples))

    def draw(self, num_rows: int, rng: np.random.Generator) -> Integer[np.ndarray, "b n"]:
        """Fresh rows, a phase each."""
        parts = []
        for start in range(0, num_rows, 8192):  # bounded memory
            phase = rng.random(min(8192, num_rows - start))
            p = self.probabilities(torch.from_numpy(phase)).numpy()
            parts.append((rng.random(p.shape) < p).astype(np.uint8))
        return np.concatenate(parts) if parts else np.zeros((0, self.length), dtype=np.uint8)

    def load(self, split: str) -> RowSource:
        rng = np.random.default_rng([self.source_seed, SPLIT_NUMBER[split]])
        return Rows(self.draw(self.num_rows[split], rng), name=f"Sawtooth({self.source_seed})")

    def references(self) -> dict[str, float]:
        """Bits per bit: the entropy (estimated from 8192 draws) and the product of the marginals (1, by symmetry)."""
        entropy, _ = self.entropy_estimate()
        phase = (torch.arange(self.grid_points, dtype=torch.float64) + 0.5) / (self.grid_points * self.saws)
        marginal = self.probabilities(phase).mean(0).numpy()
        independent = float(_entropy(np.stack([marginal, 1 - marginal], -1)).mean())
        return {"entropy": entropy / self.length / math.log(2), "independent tokens": independent / math.log(2)}
