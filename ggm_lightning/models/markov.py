"""Diffusion by any Markov process on finitely many states, after the general part of arXiv 2305.11089 (Blackout).

    x_t        every site moves by itself with the rates L: P(x_t | x_0) = exp(L tau(t)), tau = t_end t^power
    p(x_0|x_t) site by site: softmax of the network's logits + log P(x_t | x_0), the latter known      `parametrisation`
    p(x_s|x_t) = sum over o of p(o | x_t) P(x_s | x_t, x_0 = o), the exact bridge                    core/markov.py, (4)
    -log p(x) <= KL(q(x_1 | x) || prior) + sum over T steps of E KL(P(x_s | x_t, x) || p(x_s | x_t))

The last step (s = 0) is the reconstruction. The same sum is D3PM's bound (arXiv 2107.03006), here for rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ggm_lightning.core import categorical, logs, masking, noise, rates, times
from ggm_lightning.core.categorical import PLAIN, Sharpening
from ggm_lightning.core.markov import Chain, Grid, Step
from ggm_lightning.core.noise import StepNoise
from ggm_lightning.core.rates import Rates
from ggm_lightning.models.base import Family
from ggm_lightning.sampling import arguments
from ggm_lightning.sampling.naming import Maker
from ggm_lightning.sampling.plans import OF_MASKED
from ggm_lightning.sampling.reverse import Bridged

PARAMETRISATIONS = ("prior", "posterior")


@dataclass
class StateLaw:
    """The law of x_s given x_t, site by site: log_p Float64[b, n, states], normalised."""

    log_p: Tensor

    def draw(self, uniform: Callable[[str], Tensor]) -> Tensor:
        """Int64[b, n]."""
        return categorical.draw(self.log_p.flatten(0, 1), uniform("state").flatten()).reshape(self.log_p.shape[:2])

    def probs(self) -> Tensor:
        return self.log_p.exp()

    def log_prob(self, xs: Tensor) -> Tensor:
        """Float64[b, n], of xs Int64[b, n]."""
        return self.log_p.gather(-1, xs[..., None])[..., 0]

    def taken(self, rows: Tensor) -> StateLaw:
        """The law of these rows Int64[m]."""
        return StateLaw(self.log_p[rows])


class Absorption:
    """The schedule of process absorbing: a site is masked with u(t) = 1 - e^-tau(t), whatever its class.

    Args:
        t_end, power: tau = t_end t^power.
    """

    def __init__(self, t_end: float, power: float) -> None:
        self.t_end, self.power = t_end, power

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self.t_end * t.double() ** self.power)

    def masked_fraction(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.t_end * t.double() ** self.power)

    def inverse(self, u: Tensor) -> Tensor:
        """The time at which the masked fraction is u; 1 where that would be later."""
        tau = -torch.log1p(-u) / self.t_end
        return tau.clamp(max=1.0) ** (1 / self.power)


class MarkovDiffusion(Family):
    """Diffusion by a process that is given as a matrix of rates.

    Infilling: known sites follow the bridge of their own value and the others see them only as they are at the time, so
    that its error has a floor (total variation .10 to .12 with 400 steps, on a law where ignoring what is known costs
    .33); with `particles` it falls with their number and the steps (.03 with 50 steps and 16: sampling/particles.py).
    With process absorbing sampler first_hitting is exact.

    The network is called as network(z, t, label=None) with z Int64[b, *shape] in 0..S-1 and t Float[b] in [0, 1]; it
    returns logits of x_0, Float[b, n, V] or Float[b, *shape, V], read as `parametrisation` says. Constants of a row do
    not matter; -inf excludes a class, and is an infinite bound where the data have it.

    Args:
        network, num_classes, shape: see Family.
        process: uniform, absorbing (S = V + 1, the mask last) or gaussian, which moves between neighbouring levels and
            so is refused for classes that are names. Rates of one's own: S x S numbers with S >= V, `process[a][b]` the
            rate b -> a (the diagonal is not used); a .npy file of them; or a class derived from core.rates.Rates, whose
            rates may change with time.
        t_end: the process's time at t = 1. power: tau = t_end t^power.
        num_timesteps: T of loss and bound; a sampler may take any number of steps.
        width: of the gaussian process, in states.
        parametrisation: what softmax(logits) is. prior: the law of x_0 at a site given the x_t of the others, before
            its own x_t is looked at: P(x_t | x_0), which is known, is multiplied in, and equal logits have a bound of
            about N ln V. posterior: p(x_0 | x_t) itself, with all of P(x_t | x_0) left to the network; x_0 that cannot
            become x_t are left out. Either can say any law.
        matrix: the numbers of a .npy file that `process` names. A checkpoint gives them, and so needs no file.
        family: optimizer, label_dropout, eval_samples, seed, eval_seed (see Family).
    """

    samplers: Mapping[str, Maker] = MappingProxyType({"ancestral": Bridged})
    grids = ("uniform", "cosine")
    defaults_before = MappingProxyType({"parametrisation": "posterior"})

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        shape: tuple[int, ...],
        process: str | Rates | list[list[float]] = "uniform",
        t_end: float = 10.0,
        power: float = 2.0,
        num_timesteps: int = 100,
        width: float = 1.0,
        parametrisation: str = "prior",
        matrix: list[list[float]] | None = None,
        **family: Any,
    ) -> None:
        super().__init__(network, num_classes, shape, **family)
        for name, value in (("t_end", t_end), ("power", power), ("num_timesteps", num_timesteps)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be positive and finite")
        if parametrisation not in PARAMETRISATIONS:
            raise ValueError(f"parametrisation is '{parametrisation}'; choose {' or '.join(PARAMETRISATIONS)}")
        self.parametrisation = parametrisation
        self.t_end, self.power, self.num_timesteps = t_end, power, num_timesteps
        if matrix is not None and not rates.is_file(process):
            raise ValueError(f"matrix is given beside process '{process}'; it goes with the name of a .npy file alone")
        self.matrix = matrix
        if matrix is None and rates.is_file(process):
            self.matrix = rates.from_file(process)
        self.rates = rates.of(process if self.matrix is None else self.matrix, num_classes, width)
        self.needs_order = self.rates.needs_order
        self._process = rates.process_of(self.rates, num_classes, t_end)
        if process == "absorbing":
            self.mask_id, self.schedule = num_classes, Absorption(t_end, power)
            self.samplers = MappingProxyType({**OF_MASKED, **type(self).samplers})
        self._grid: Grid | None = None
        law = torch.zeros(self._process.num_states, dtype=torch.float64)
        law[:num_classes] = 1 / num_classes
        # x_1 of data that are uniform: no state that q(x_1 | x) can be in has probability 0
        self._prior = self._process.marginal(law, self.tau(torch.ones(1)))[0]

    def carried_arguments(self) -> dict[str, Any]:
        return {} if self.matrix is None else {"matrix": self.matrix}

    @property
    def prior_law(self) -> Tensor:
        """Float64[S]: no buffer, which a change of precision would round."""
        self._prior = self._prior.to(self.device)
        return self._prior

    @property
    def process(self) -> Chain:
        self._process = self._process.to(self.device)
        return self._process

    @property
    def grid(self) -> Grid:
        """The process at the times of loss and bound, k/T: made at its first use."""
        if self._grid is None:
            k = torch.arange(self.num_timesteps + 1, dtype=torch.float64, device=self.device)
            self._grid = Grid(self.process, self.tau(k / self.num_timesteps))
        self._grid = self._grid.to(self.device)
        return self._grid

    def step_of(self, t: Tensor) -> Tensor:
        """k Int64[b] of t = k/T."""
        return torch.round(t.double() * self.num_timesteps).long()

    def tau(self, t: Tensor) -> Tensor:
        """The process's time."""
        return self.rates.elapsed(self.t_end * t.double() ** self.power)

    # ------------------------------------------------------------------ corrupt

    def corrupt(self, x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        """x_t Int64[b, *shape] from x, t Float64[b] in [0, 1] and uniforms u Float64[b, n]."""
        return self._drawn(x, self.process.transition(self.tau(t)), u)

    def _drawn(self, x: Tensor, transition: Tensor, u: Tensor) -> Tensor:
        """x_t Int64[b, *shape] of P(x_t = a | x_0 = o) = transition Float64[b, states, states] [a, o]."""
        cumulative = transition.transpose(1, 2).cumsum(-1)  # [b, x_0, x_t]
        last = cumulative.shape[-1]
        rows = cumulative.gather(1, x.flatten(1)[..., None].expand(-1, -1, last))
        drawn = torch.searchsorted(rows, (u * rows[..., -1])[..., None], right=True)[..., 0]
        return drawn.clamp(max=last - 1).reshape(x.shape)

    # ------------------------------------------------------------------ reverse step

    def log_posterior(
        self,
        zt: Tensor,
        t: Tensor,
        step: Step,
        label: Tensor | None = None,
        sharpening: Sharpening = PLAIN,
    ) -> Tensor:
        """log p(x_0 | x_t) site by site, Float64[b, n, V], from one call of the network."""
        logits = self.readout(zt, t, label)().reshape(len(zt), self.num_sites, self.num_classes).double()
        reach = step.reach(zt.flatten(1), self.num_classes)
        if self.parametrisation == "prior":
            logits = logits + reach
        else:
            logits = torch.where(reach > -torch.inf, logits, -torch.inf)
        return sharpening.log_probabilities(logits)

    def reverse_law(
        self,
        zt: Tensor,
        t: Tensor,
        s: Tensor,
        label: Tensor | None = None,
        sharpening: Sharpening = PLAIN,
        known: tuple[Tensor, Tensor] | None = None,
    ) -> StateLaw:
        """p(x_s | x_t) site by site; 0 <= s < t <= 1. known: (x_0 Int64[b, n], Bool[b, n]), sites that follow the
        bridge of their own value."""
        arguments.check_law(self, zt, t, s, label, sharpening)
        step = self.process.step(self.tau(t), self.tau(s))
        posterior = self.log_posterior(zt, t, step, label, sharpening)
        if known is not None:
            own = torch.log(nn.functional.one_hot(known[0], self.num_classes).double())
            posterior = torch.where(known[1][..., None], own, posterior)
        return StateLaw(step.mixed(zt.flatten(1), posterior))

    def bridge_law(self, zt: Tensor, t: Tensor, s: Tensor, known: tuple[Tensor, Tensor]) -> StateLaw:
        """P(x_s | x_t, x_0) at known sites, zt Int64[b, n] and known as for `reverse_law`; equal elsewhere."""
        step = self.process.step(self.tau(t), self.tau(s))
        return StateLaw(torch.where(known[1][..., None], step.bridge(zt, known[0]), 0.0))

    # ------------------------------------------------------------------ loss and bound

    def terms(self, x: Tensor, zt: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Float64[b], nats: T times the divergence of the step from t to t - 1/T, t in {1/T, ..., 1}; its mean over t
        and x_t is the bound without the prior."""
        arguments.check_terms(self, x, zt, t, label)
        step, flat = self.grid.step(self.step_of(t)), zt.flatten(1)
        model = step.mixed(flat, self.log_posterior(zt, t, step, label))
        truth = step.bridge(flat, x.flatten(1))
        return self.num_timesteps * logs.divergence(truth.exp(), model).sum(1)

    def prior(self, x: Tensor) -> Tensor:
        """Float64[b], nats: KL(q(x_1 | x) || prior_law)."""
        last = torch.tensor([self.num_timesteps], device=x.device)
        q = self.grid.transition(last)[0].T[: self.num_classes]
        nats = torch.xlogy(q, q) - q * torch.log(torch.where(q > 0, self.prior_law, 1.0))
        return nats.sum(-1)[x.flatten(1)].sum(-1)

    def training_loss(self, x: Tensor, label: Tensor | None, draws: StepNoise) -> Tensor:
        """Bits per dimension, mean over the rows, without the prior."""
        t = masking.to_grid(times.of_step(draws), self.num_timesteps)
        zt = self._drawn(x, self.grid.transition(self.step_of(t)), draws.uniform("state", self.num_sites))
        return self.terms(x, zt, t, label).mean() / (self.num_sites * math.log(2))

    def nelbo(
        self, x: Tensor, label: Tensor | None = None, num_samples: int = 1, seed: int = 0, row: Tensor | None = None
    ) -> Tensor:
        """Float64[b], nats: the steps averaged over num_samples (t, x_t), plus the prior."""
        x, label, row = arguments.of_bound(self, x, label, row, num_samples, seed)
        nats = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        with self.evaluating():
            for j, u in enumerate(times.stratified_per_row(seed=seed, row=row, num_samples=num_samples)):
                t = masking.to_grid(u, self.num_timesteps)
                sites = noise.uniform("eval state", seed=seed, step=j, row=row, num_sites=self.num_sites)
                zt = self._drawn(x, self.grid.transition(self.step_of(t)), sites)
                nats += self.terms(x, zt, t, label)
            return nats / num_samples + self.prior(x)

    # ------------------------------------------------------------------ sampling

    def prior_sample(self, num_samples: int, uniform: Callable[[str], Tensor] | None = None) -> Tensor:
        """x_1, Int64[b, *shape]; without uniforms, rows 0..b-1 of seed 0."""
        row = torch.arange(num_samples, device=self.device)
        uniform = uniform or partial(noise.uniform, seed=0, step=0, row=row, num_sites=self.num_sites)
        return categorical.draw_common(self.prior_law, uniform("prior")).reshape(num_samples, *self.shape)
