"""Kernels of the reversed pure-death process: how many births n happen between t and s, given y = E[x_0 - x_t | x_t].

Source: Blackout diffusion, arXiv 2305.11089, and its published code. pi is the bridge probability, eq. (3) of
core/death.py, M = cap - x_t the room left. Every kernel but "rounded" approaches the exact reversal as 1/T; its law is
what `BirthLaw.probs` gives and what `BirthLaw.draw` draws from.

    poisson     min(Poisson(pi y), M)                                        published (tau-leaping)
    capped      Binomial(M, pi y / M)                                        exact at every step for binary data
    stochastic  Binomial(N, pi), N = floor(y) or floor(y) + 1 with mean y, at most M
    rounded     Binomial(N, pi), N = round(y), at most M                     published (binomial bridging); biased
    posterior   Binomial(v - x_t, pi), v ~ p(x_0 | x_t)                      exact for independent sites at every step
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ggm_lightning.core import categorical, counting, logs, watch

KERNELS = ("capped", "poisson", "stochastic", "rounded", "posterior")
WITH_PROBABILITIES = ("capped", "poisson", "posterior")  # to every count from x_t to the cap
ROUNDED_BIAS = (
    "sampler 'rounded' is biased at any number of steps (total variation of exactly known laws: .30 for a coin of .3, "
    "which never comes up, .07 for a mixture on 0..20); 'capped' is right, this one is for comparison with publications"
)
_BELOW_ONE = 1 - 1e-12  # a success probability of 1 would make the bound infinite where the truth is a little less


def capped_probability(
    y: Float64[Tensor, "b n"], pi: Float64[Tensor, " b"], room: Int64[Tensor, "b n"]
) -> Float64[Tensor, "b n"]:
    """pi y / M, below 1; 0 where no room is left."""
    return torch.where(room > 0, (pi[:, None] * y / room.clamp(min=1)).clamp(max=_BELOW_ONE), 0.0)


@dataclass
class BirthLaw:
    """The law of x_s given x_t, site by site.

    Attributes:
        zt: Int64[b, n], x_t in 0..cap.
        y: Float64[b, n], expected deaths.
        pi: Float64[b], in [0, 1].
        cap: the largest count.
        kernel: one of KERNELS.
        log_posterior: Float64[b, n, v], log p(x_0 = v | x_t), -inf below x_t; for kernel "posterior" alone.
    """

    zt: Int64[Tensor, "b n"]
    y: Float64[Tensor, "b n"]
    pi: Float64[Tensor, " b"]
    cap: int
    kernel: str = "capped"
    log_posterior: Float64[Tensor, "b n v"] | None = None

    def _trials(self) -> tuple[Int64[Tensor, "b n"], Float64[Tensor, "b n"]]:
        """(N, fraction): Binomial(N, pi) with probability 1 - fraction, else Binomial(N + 1, pi); not yet at most M."""
        if self.kernel == "rounded":
            return torch.round(self.y).long(), torch.zeros_like(self.y)  # half to even, as published
        low = torch.floor(self.y)
        return low.long(), self.y - low

    def draw(self, uniform: Callable[[str], Float64[Tensor, "b n"]]) -> Int64[Tensor, "b n"]:
        """x_s; `uniform(stream)` gives this step's uniforms."""
        self.y = watch.deaths(self.y)
        room, u = self.cap - self.zt, uniform("birth")
        if self.kernel == "poisson":
            return self.zt + counting.poisson(self.pi[:, None] * self.y, room, u)
        if self.kernel == "capped":
            return self.zt + counting.binomial(room, capped_probability(self.y, self.pi, room), u)
        if self.kernel == "posterior" and self.log_posterior is not None:
            rows = self.log_posterior.flatten(0, 1)
            trials = categorical.draw(rows, uniform("origin").flatten()).reshape(room.shape) - self.zt
            trials = trials.clamp(min=0)  # negative where the row was no law, which is not reported yet
        else:
            low, fraction = self._trials()
            trials = torch.minimum(low + (uniform("round") < fraction), room)
        return self.zt + counting.thin(trials, self.pi, 1 - self.pi, u, self.cap)

    def probs(self) -> Float64[Tensor, "b n v"]:
        """The whole law of x_s. For enumeration: V = cap + 1 numbers for each site, V^2 on the way."""
        births = torch.arange(self.cap + 1, dtype=torch.float64, device=self.zt.device)
        room = (self.cap - self.zt)[..., None]
        if self.kernel == "poisson":
            rate = (self.pi[:, None] * self.y)[..., None]
            law = torch.exp(torch.xlogy(births, rate) - rate - counting.log_factorial(self.cap, rate.device))
        elif self.kernel == "capped":
            p = capped_probability(self.y, self.pi, room[..., 0])[..., None]
            law = counting.log_pmf(births, room.double(), p, 1 - p).exp()
        elif self.kernel == "posterior":
            law = self.log_births().exp()
        else:
            law = self._mixed(births, room)
        law = torch.where(births < room, law, 0.0)
        law = law + (births == room) * (1 - law.sum(-1, keepdim=True)).clamp(
            min=0
        )  # what would pass the cap stops at it
        v = births.long() - self.zt[..., None]
        return torch.where(v >= 0, law.gather(-1, v.clamp(min=0)), 0.0)

    def log_prob(self, xs: Int64[Tensor, "b n"]) -> Float64[Tensor, "b n"]:
        """log P(x_s = xs | x_t), -inf below x_t; for the kernels of `WITH_PROBABILITIES`."""
        room = (self.cap - self.zt).double()
        born = (xs - self.zt).double()
        if self.kernel == "capped":
            p = capped_probability(self.y, self.pi, self.cap - self.zt)
            return counting.log_pmf(born, room, p, 1 - p)
        if self.kernel == "poisson":
            rate = self.pi[:, None] * self.y
            n = born.clamp(min=0)
            one = torch.xlogy(n, rate) - rate - torch.lgamma(n + 1)
            # P(Poisson(rate) >= room): what would pass the cap stops at it; its first term where that underflows
            rest = torch.maximum(torch.special.gammainc(room.clamp(min=1), rate).log(), one)
            log_p = torch.where(born < room, one, torch.where(room > 0, rest, 0.0))
            return torch.where(born >= 0, log_p, -torch.inf)
        if self.kernel == "posterior" and self.log_posterior is not None:
            x0 = torch.arange(self.cap + 1, device=self.zt.device)
            trials = (x0 - self.zt[..., None]).clamp(min=0).double()  # below x_t the posterior is 0
            pi = self.pi[:, None, None]
            return logs.log_sum(self.log_posterior + counting.log_pmf(born[..., None], trials, pi, 1 - pi))
        raise ValueError(f"kernel '{self.kernel}' gives some counts no probability; take {WITH_PROBABILITIES}")

    def taken(self, rows: Int64[Tensor, " m"]) -> BirthLaw:
        """The law of these rows."""
        log_posterior = None if self.log_posterior is None else self.log_posterior[rows]
        return replace(self, zt=self.zt[rows], y=self.y[rows], pi=self.pi[rows], log_posterior=log_posterior)

    def _mixed(self, births: Tensor, room: Tensor) -> Tensor:
        """Binomial(N, pi) averaged over the law of N."""
        table = binomial_table(self.pi, self.cap)  # [b, trials, births]
        low, fraction = (part[..., None] for part in self._trials())
        at = [torch.minimum(low + more, room) == births for more in (0, 1)]
        weight = (1 - fraction) * at[0] + fraction * at[1]
        return weight @ table

    def log_births(self) -> Float64[Tensor, "b n v"]:
        """Kernel "posterior": log P(n births), n in 0..cap, Binomial(v - x_t, pi) averaged over v ~ p(x_0 | x_t)."""
        assert self.log_posterior is not None
        v = torch.arange(self.cap + 1, device=self.zt.device) + self.zt[..., None]
        log_trials = torch.where(v <= self.cap, self.log_posterior.gather(-1, v.clamp(max=self.cap)), -torch.inf)
        return logs.log_matmul(log_trials, log_binomial_table(self.pi, self.cap).transpose(1, 2))


def log_binomial_table(pi: Float64[Tensor, " b"], cap: int) -> Float64[Tensor, "b v w"]:
    """log P(n births of m trials) [b, m, n], m and n in 0..cap."""
    n = torch.arange(cap + 1, dtype=torch.float64, device=pi.device)
    p = pi[:, None, None]
    return counting.log_pmf(n, n[:, None], p, 1 - p)


def binomial_table(pi: Float64[Tensor, " b"], cap: int) -> Float64[Tensor, "b v w"]:
    """P(n births of m trials) [b, m, n], m and n in 0..cap."""
    return log_binomial_table(pi, cap).exp()


def kernel_divergence(law: BirthLaw, m: Int64[Tensor, "b n"], log_y: Float64[Tensor, "b n"]) -> Float64[Tensor, "b n"]:
    """KL(Binomial(m, pi) || law), nats: one step of the discrete-time bound, for a state x_t with m = x_0 - x_t deaths.

    With E over n ~ Binomial(m, pi):
        poisson  E ln m!/(m-n)! + m pi ln pi + m (1-pi) ln(1-pi) + pi y - m pi ln(pi y)
        capped   E ln C(m,n)/C(M,n) + m pi ln pi + m (1-pi) ln(1-pi) - m pi ln r - (M - m pi) ln(1 - r), r = pi y/M
    The Poisson kernel is taken as it is, not stopped at the cap: a bound of a model that may leave the range.
    """
    if law.kernel not in ("poisson", "capped", "posterior"):
        raise ValueError(
            f"bound: kernel '{law.kernel}' gives counts no probability, its bound is infinite; use capped or poisson"
        )
    f = counting.log_factorial(law.cap, law.zt.device)
    table = binomial_table(law.pi, law.cap)
    pi, deaths = law.pi[:, None], m.double()
    # E ln m!/(m-n)!, a table over m
    remain = torch.arange(law.cap + 1, device=m.device)
    remain = (remain[:, None] - remain).clamp(min=0)
    falling = (f - (table * f[remain]).sum(-1)).gather(1, m)
    stay = deaths * torch.xlogy(1 - pi, 1 - pi)
    if law.kernel == "poisson":
        return falling + stay + pi * law.y - torch.where(m > 0, deaths * pi * log_y, 0.0)
    if law.kernel == "capped":
        room = law.cap - law.zt
        p = capped_probability(law.y, law.pi, room)
        # E ln M!/(M-n)!, a table over (m, M)
        room_falling = (f - table @ f[remain].transpose(-1, -2)).flatten(1).gather(1, m * (law.cap + 1) + room)
        # through log_y, which is finite where y has underflowed
        log_p = (torch.log(pi) + log_y - torch.log(room.clamp(min=1).double())).clamp(max=math.log(_BELOW_ONE))
        births = torch.where(m > 0, deaths * pi * log_p, 0.0)
        gone = (room - deaths * pi) * torch.log1p(-p)
        return falling - room_falling + torch.xlogy(deaths * pi, pi) + stay - births - gone
    truth = table.gather(1, m[..., None].expand(-1, -1, law.cap + 1))
    return logs.divergence(truth, law.log_births())
