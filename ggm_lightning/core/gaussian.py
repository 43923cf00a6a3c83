"""The variance-preserving process of a continuous latent, its reverse steps, and the clocks of LDDM.

Source: arXiv 2510.18114 (Latent Discrete Diffusion Models), its released code for the schedules; the weights below are
derived here. A schedule of core/schedules.py serves the latent too: its alpha(t) is the share of signal abar_t^2, its
masked fraction the share of noise sbar_t^2 = 1 - abar_t^2, each with a formula of its own.

    forward   z_t = abar_t z_0 + sbar_t e,  e ~ N(0, I),  SNR(t) = abar_t^2 / sbar_t^2                          (1)
    DDPM      q(z_s | z_t, z_0) = N((abar_t/abar_s) sbar_s^2/sbar_t^2 z_t + abar_s v/sbar_t^2 z_0, v sbar_s^2/sbar_t^2),
              v = 1 - abar_t^2/abar_s^2                                                                         (2)
    DDIM      z_s = abar_s z_0 + sbar_s (z_t - abar_t z_0)/sbar_t                                               (3)
    bound     KL of one DDPM step with z_0-prediction h: (SNR(s) - SNR(t))/2 |z_0 - h|^2, in the limit of small
              steps -SNR'(t)/2 |z_0 - h|^2 dt                                                                   (4)

Everything is float64: a latent is a few hundred numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ggm_lightning.core import noise, times, watch
from ggm_lightning.core.schedules import Floored, Schedule

STEPS = ("ddim", "ddpm")


class Sqrt(Floored):
    """abar^2 = sqrt(1 - t), the published default."""

    def _a0(self, t: Tensor) -> Tensor:
        return torch.sqrt(1 - t)

    def _u0(self, t: Tensor) -> Tensor:
        return t / (1 + torch.sqrt(1 - t))  # 1 - sqrt(1 - t) without cancellation near t = 0

    def _du0(self, t: Tensor) -> Tensor:
        return 0.5 / torch.sqrt(1 - t)

    def _u0_inverse(self, u0: Tensor) -> Tensor:
        return u0 * (2 - u0)


class SquaredCosine(Floored):
    """abar^2 = cos^2(pi/2 (t + offset) / (1 + offset))."""

    def __init__(self, offset: float = 0.008, eps: float = 1e-4) -> None:
        super().__init__(eps)
        if not 0 <= offset < math.inf:
            raise ValueError(f"schedule: offset is {offset}; it must be at least 0 and finite, 0.008 is published")
        self.offset = offset

    def _angle(self, t: Tensor) -> Tensor:
        return math.pi / 2 * (t + self.offset) / (1 + self.offset)

    def _a0(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * (1 - t) / (1 + self.offset)) ** 2  # the cosine, accurate near t = 1

    def _u0(self, t: Tensor) -> Tensor:
        return torch.sin(self._angle(t)) ** 2

    def _du0(self, t: Tensor) -> Tensor:
        return math.pi / 2 / (1 + self.offset) * torch.sin(2 * self._angle(t))

    def _u0_inverse(self, u0: Tensor) -> Tensor:
        t = torch.asin(torch.sqrt(u0)) * 2 / math.pi * (1 + self.offset) - self.offset
        return t.clamp(min=0.0)


class LatentLeads(Floored):
    """A clock for the tokens that lets the latent lead: w(t) = 1 - (1 - t)^exponent, so that they are revealed later.

    At equal numbers of steps 2 to 3 is best for two perfectly correlated bits; 1 is linear (the published clock).
    """

    def __init__(self, exponent: float = 2.0, eps: float = 0.0) -> None:
        super().__init__(eps)
        if not 0 < exponent < math.inf:
            raise ValueError(f"schedule: exponent is {exponent}; it must be positive and finite, 1 is linear")
        self.exponent = exponent

    def _a0(self, t: Tensor) -> Tensor:
        return (1 - t) ** self.exponent

    def _u0(self, t: Tensor) -> Tensor:
        return -torch.expm1(self.exponent * torch.log1p(-t))

    def _du0(self, t: Tensor) -> Tensor:
        return self.exponent * (1 - t) ** (self.exponent - 1)

    def _u0_inverse(self, u0: Tensor) -> Tensor:
        return -torch.expm1(torch.log1p(-u0) / self.exponent)


def snr(schedule: Schedule, t: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
    """abar_t^2 / sbar_t^2."""
    return schedule.alpha(t) / schedule.masked_fraction(t)


def snr_drop(schedule: Schedule, s: Float64[Tensor, "*b"], t: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
    """SNR(s) - SNR(t) for s <= t, from the difference of the noise shares: SNR is 1/sbar^2 - 1."""
    at_s, at_t = schedule.masked_fraction(s), schedule.masked_fraction(t)
    return (at_t - at_s) / (at_s * at_t)


def snr_rate(schedule: Schedule, t: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
    """-SNR'(t) >= 0."""
    return -schedule.dalpha(t) / schedule.masked_fraction(t) ** 2


def time_at(schedule: Schedule, log_snr: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
    """The time at which ln SNR has this value; the nearer end outside the schedule's range."""
    return schedule.inverse(torch.sigmoid(-log_snr))


def _wide(x: Float64[Tensor, " b"]) -> Float64[Tensor, "b 1 1"]:
    return x[:, None, None]


def diffuse(
    schedule: Schedule, z0: Float[Tensor, "b s c"], t: Float64[Tensor, " b"], e: Float64[Tensor, "b s c"]
) -> Float64[Tensor, "b s c"]:
    """z_t, eq. (1)."""
    return _wide(schedule.alpha(t).sqrt()) * z0.double() + _wide(schedule.masked_fraction(t).sqrt()) * e


def prior(schedule: Schedule, z0: Float[Tensor, "b s c"]) -> Float64[Tensor, " b"]:
    """KL(q(z_1 | z_0) || N(0, I)) = 1/2 sum_i (abar^2 z_0i^2 - abar^2 - ln(1 - abar^2)), nats."""
    signal = schedule.alpha(torch.ones((), dtype=torch.float64, device=z0.device))
    return 0.5 * (signal * z0.double() ** 2 - signal - torch.log1p(-signal)).sum((1, 2))


@dataclass
class GaussianLaw:
    """N(mean, std^2) per coordinate.

    Attributes:
        mean: Float64[b, S, d]. std: Float64[b], 0 for a deterministic step.
    """

    mean: Float64[Tensor, "b s c"]
    std: Float64[Tensor, " b"]

    def draw(self, e: Float64[Tensor, "b s c"]) -> Float64[Tensor, "b s c"]:
        watch.latent(self.mean)
        return self.mean + _wide(self.std) * e


def step(
    kind: str,
    schedule: Schedule,
    latent: Float64[Tensor, "b s c"],
    z0: Float[Tensor, "b s c"],
    t: Float64[Tensor, " b"],
    s: Float64[Tensor, " b"],
) -> GaussianLaw:
    """The law of z_s given z_t = latent and a prediction z0, s < t: "ddpm", eq. (2), or "ddim", eq. (3)."""
    signal_t, signal_s = schedule.alpha(t), schedule.alpha(s)
    noise_t, noise_s = schedule.masked_fraction(t), schedule.masked_fraction(s)
    if kind == "ddim":
        e = (latent - _wide(signal_t.sqrt()) * z0) / _wide(noise_t.sqrt())
        return GaussianLaw(_wide(signal_s.sqrt()) * z0 + _wide(noise_s.sqrt()) * e, torch.zeros_like(t))
    if kind != "ddpm":
        raise ValueError(f"latent step '{kind}' is unknown; choose ddim or ddpm")
    added = (noise_t - noise_s) / signal_s  # v: 1 - signal_t / signal_s without cancellation
    keep = (signal_t / signal_s).sqrt() * noise_s / noise_t
    mean = _wide(keep) * latent + _wide(signal_s.sqrt() * added / noise_t) * z0
    return GaussianLaw(mean, (added * noise_s / noise_t).sqrt())


@dataclass(frozen=True)
class LatentClock:
    """The latent's path from pure noise at t = 1 to its cleanest level at t = 0, and the weights of its bound.

    The clean z_0 itself is never generated (its density would be a Dirac): tokens see the cleanest level.

    Attributes:
        schedule: of the latent.
        first_time: t1, the schedule's time of the cleanest level.
        num_levels: T of the discrete bound; None for continuous time.
        first_level: the lowest level k whose step to k - 1 moves the latent: 1, or 2 where the last step reveals tokens
            alone.
    """

    schedule: Schedule
    first_time: float = 0.0
    num_levels: int | None = None
    first_level: int = 1

    @classmethod
    def to_snr(cls, schedule: Schedule, max_snr: float | None, num_levels: int | None, first_level: int) -> LatentClock:
        """With the cleanest level at SNR `max_snr`; None takes all of the schedule."""
        ends = snr(schedule, torch.tensor([1.0, 0.0], dtype=torch.float64))
        if max_snr is None:
            if (num_levels is None or first_level == 1) and not bool(ends[1] < math.inf):
                raise ValueError(
                    "max_snr is null, but the latent schedule has no noise at t = 0, where the bound is infinite; give "
                    "latent_schedule an eps above 0 (1e-4 is published), or set max_snr"
                )
            return cls(schedule, 0.0, num_levels, first_level)
        if not ends[0] < max_snr <= ends[1]:
            raise ValueError(
                f"max_snr is {max_snr}; the latent schedule runs from {ends[0]:.1e} to {ends[1]:.4g}: choose a value "
                "above the first, up to the second, or null for all of it"
            )
        first = time_at(schedule, torch.tensor(math.log(max_snr), dtype=torch.float64))
        return cls(schedule, float(first), num_levels, first_level)

    def time(self, t: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
        """The schedule's time at t in [0, 1]."""
        return self.first_time + (1 - self.first_time) * t

    def _level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(previous level's, this level's) time of the schedule for t = k/T."""
        assert self.num_levels is not None
        k = torch.round(t * self.num_levels)
        return self.time((k - 1) / self.num_levels), self.time(k / self.num_levels)

    def weight(self, t: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """The factor of |z_0 - h|^2 at t ~ U(0, 1), eq. (4); for finite T at t in {1/T, ..., 1}."""
        if self.num_levels is None:
            return 0.5 * (1 - self.first_time) * snr_rate(self.schedule, self.time(t))
        below, here = self._level(t)
        moves = torch.round(t * self.num_levels) >= self.first_level
        return torch.where(moves, 0.5 * self.num_levels * snr_drop(self.schedule, below, here), 0.0)

    def importance(self, u: Float64[Tensor, " b"]) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
        """(t, factor of |z_0 - h|^2) with t spread evenly over ln(1 + SNR) instead of time, for uniform u.

        The mean of factor x error is the same as with `weight`. For a latent that is a unit Gaussian to the denoiser
        the error is 1/(1 + SNR), so that the product does not vary at all.
        """
        lowest = 0.0 if self.num_levels is None else (self.first_level - 1) / self.num_levels
        if lowest == 1:
            return torch.ones_like(u), torch.zeros_like(u)  # a single step, which moves no latent
        low, high = self._depth(torch.tensor([1.0, lowest], dtype=torch.float64, device=u.device))
        when = self.schedule.inverse(torch.exp(-(low + u * (high - low))))
        t = ((when - self.first_time) / (1 - self.first_time)).clamp(lowest, 1.0)
        if self.num_levels is None:
            return t, 0.5 * (high - low) * (1 + snr(self.schedule, self.time(t)))
        k = torch.ceil(t * self.num_levels).clamp(self.first_level, self.num_levels)
        below, t = (k - 1) / self.num_levels, k / self.num_levels
        share = (self._depth(below) - self._depth(t)) / (high - low)  # how often this level is hit
        return t, 0.5 * snr_drop(self.schedule, *self._level(t)) / share

    def _depth(self, t: Tensor) -> Tensor:
        """ln(1 + SNR) at t, finite also where the latent is pure noise."""
        return -torch.log(self.schedule.masked_fraction(self.time(t)))


def independent_times(*, seed: int, step: int, row: Int64[Tensor, " b"], total: int) -> Float64[Tensor, " b"]:
    """Times of a second clock, stratified like times.stratified and independent of it.

    Rows are dealt to strata by a rank-1 lattice, row -> row g mod total with g near the golden section of total and
    coprime to it: each clock has one row per stratum and the pairs fill the square (in equal order they would all lie
    on one line).
    """
    g = max(1, round(total * (math.sqrt(5) - 1) / 2))
    while math.gcd(g, total) > 1:
        g += 1
    other = noise.integer_seed("latent time", seed=seed, step=step)
    return times.stratified(seed=other, step=step, row=row * g % total, total=total)
