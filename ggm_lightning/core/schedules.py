"""Masking schedules: alpha(t), the probability that a site is still clean at time t, its derivative and inverse.

`Schedule` asks for alpha alone; docs/extend/schedule.md shows one that lives outside the package. The published ones
are those of MD4 (arXiv 2406.04329), Table 4 and appendix J.1. With the raw schedule a0(t) and u0 = 1 - a0 (`Floored`)

    alpha(t)  = (1 - 2 eps) a0(t) + eps                    so alpha(0) = 1 - eps, alpha(1) = eps
    u(t)      = 1 - alpha(t) = (1 - 2 eps) u0(t) + eps
    weight(t) = alpha'(t) / (1 - alpha(t)) = -(1 - 2 eps) u0'(t) / u(t)   <= 0

a0 and u0 each have a formula of their own, because 1 - a0 in float32 is wrong by 4e-4 (linear) to 1.2e-3 (cosine) of
itself near t = 0, and 1 - u0 near t = 1. Times are few (one per example), so everything is computed in float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float64
from torch import Tensor

_FIRST, _LAST = 1e-150, 1 - 2**-53  # the slopes of log t, sqrt(t) and log(1 - t) are finite here, and not at 0 and 1
_HALVINGS = 64


class Schedule(ABC):
    """alpha(t), falling from 1 at t = 0 to 0 at t = 1. A subclass gives `alpha`, and nothing else is needed:

        class Cubic(Schedule):
            def alpha(self, t):
                return 1 - t**3

    `alpha` is given times in [0, 1], Float64 of any shape, and returns Float64 of the same shape, in which each number
    depends on its own time alone. What follows from it may be given too, where there is a better formula:

        masked_fraction  u = 1 - alpha. The difference is off by up to 1e-16, whatever its size: of a fraction of 1e-8
                         eight digits are right, of one below 1e-16 none. The bound does not show it (the times with
                         u < 1e-12 are 1e-12 N ln V nats of it), a signal-to-noise ratio above 1e8 does: that of a
                         `latent_schedule` with so large a `max_snr`. The cubic one would return t**3.
        dalpha           alpha', by autograd from masked_fraction. At t = 0 and 1 it is the slope just inside.
        inverse          the time of a masked fraction, by bisection: 64 evaluations, t to 2^-64.

    A model checks all of this when it is built, see `checked`. Nothing in a schedule is trained (GenMD4 does that).

    Attributes:
        floor: the most that may be masked at t = 0 and clean at t = 1. More is refused as a slip; a class whose ends
            are rough on purpose sets its own. The bound pays for both ends (N u(0) ln V and N alpha(1) ln V nats).
    """

    floor: float = 1e-3

    @abstractmethod
    def alpha(self, t: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
        """Probability that a site is clean at t."""

    def masked_fraction(self, t: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
        """u(t) = 1 - alpha(t)."""
        return 1 - self.alpha(t)

    def dalpha(self, t: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
        """alpha'(t) <= 0."""
        # bounds are computed in inference mode, where autograd records nothing
        with torch.inference_mode(False), torch.enable_grad():
            t = t.detach().clone().clamp(_FIRST, _LAST).requires_grad_()
            u = self.masked_fraction(t)
            if not u.requires_grad:
                raise ValueError(
                    f"{type(self).__name__}: autograd cannot see how alpha depends on t; write it in torch operations "
                    "without item, numpy and detach, or give dalpha(t) as well"
                )
            return -torch.autograd.grad(u.sum(), t)[0]

    def weight(self, t: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
        """alpha'(t) / (1 - alpha(t)) <= 0, the weight of the continuous-time bound (eq. (5)); 0 where u(t) = 0 and so
        nothing is masked."""
        u = self.masked_fraction(t)
        return torch.where(u > 0, self.dalpha(t) / u, 0.0)

    def log_snr(self, t: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
        """log(alpha / (1 - alpha))."""
        return torch.log(self.alpha(t)) - torch.log(self.masked_fraction(t))

    def inverse(self, u: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
        """The time t at which the masked fraction is u; outside u(0) .. u(1) the nearer end. Where u is the same over a
        while: a time of it."""
        low, high = torch.zeros_like(u), torch.ones_like(u)
        first, last = self.masked_fraction(low), self.masked_fraction(high)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            is_later = self.masked_fraction(middle) < u
            low = torch.where(is_later, middle, low)
            high = torch.where(is_later, high, middle)
        t = torch.where(u <= first, 0.0, (low + high) / 2)
        return torch.where(u >= last, 1.0, t)

    def reveal_probability(self, t: Float64[Tensor, "*b"], s: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
        """r = (alpha_s - alpha_t) / (1 - alpha_t): a site masked at t is clean at s < t (appendix C). 1 where u(t) = 0
        and so nothing is masked."""
        u_t = self.masked_fraction(t)
        return torch.where(u_t > 0, (u_t - self.masked_fraction(s)) / u_t, 1.0)


class Floored(Schedule):
    """From a0, u0 = 1 - a0, u0' and the inverse of u0, each by a formula of its own, with a floor at both ends.

    Args:
        eps: floor of both ends; 1e-4 in the published code, 0 for the exact process, whose bound is -log p(x) for every
            x (with 1e-4: 1.7e-4 nats off in the mean, up to 3e-3 for single x, in the example of models/md4.py).
    """

    floor = 0.5

    def __init__(self, eps: float = 1e-4) -> None:
        if not 0 <= eps < 0.5:
            raise ValueError(f"schedule: eps is {eps}; it must lie in [0, 0.5), the published value is 1e-4")
        self.eps = eps

    @abstractmethod
    def _a0(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _u0(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _du0(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _u0_inverse(self, u0: Tensor) -> Tensor: ...

    def alpha(self, t: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
        return (1 - 2 * self.eps) * self._a0(t) + self.eps

    def masked_fraction(self, t: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
        """u(t) = 1 - alpha(t), accurate where it is small."""
        return (1 - 2 * self.eps) * self._u0(t) + self.eps

    def dalpha(self, t: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
        """alpha'(t) <= 0. A polynomial of exponent below 1 has -inf at t = 0, as the formula says."""
        return -(1 - 2 * self.eps) * self._du0(t)

    def inverse(self, u: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
        """The time t at which the masked fraction is u, eps <= u <= 1 - eps (outside: the nearer end)."""
        u0 = ((u - self.eps) / (1 - 2 * self.eps)).clamp(0.0, 1.0)
        return self._u0_inverse(u0)


class Linear(Floored):
    """a0 = 1 - t."""

    def _a0(self, t: Tensor) -> Tensor:
        return 1 - t

    def _u0(self, t: Tensor) -> Tensor:
        return t

    def _du0(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _u0_inverse(self, u0: Tensor) -> Tensor:
        return u0


class Polynomial(Floored):
    """a0 = 1 - t^exponent."""

    def __init__(self, exponent: float = 2.0, eps: float = 1e-4) -> None:
        super().__init__(eps)
        if not 0 < exponent < math.inf:
            raise ValueError(f"schedule: exponent is {exponent}; it must be positive and finite, 1 is linear")
        self.exponent = exponent

    def _a0(self, t: Tensor) -> Tensor:
        return -torch.expm1(self.exponent * torch.log(t))  # 1 - t^w without cancellation near t = 1

    def _u0(self, t: Tensor) -> Tensor:
        return t**self.exponent

    def _du0(self, t: Tensor) -> Tensor:
        return self.exponent * t ** (self.exponent - 1)

    def _u0_inverse(self, u0: Tensor) -> Tensor:
        return u0 ** (1 / self.exponent)


class Cosine(Floored):
    """a0 = 1 - cos(pi/2 (1 - t)); u0 = sin(pi t / 2)."""

    def _a0(self, t: Tensor) -> Tensor:
        return 2 * torch.sin(math.pi / 4 * (1 - t)) ** 2

    def _u0(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)

    def _du0(self, t: Tensor) -> Tensor:
        return math.pi / 2 * torch.sin(math.pi / 2 * (1 - t))

    def _u0_inverse(self, u0: Tensor) -> Tensor:
        return 2 / math.pi * torch.asin(u0)


class Geometric(Floored):
    """a0 = exp(-b(t)), b = b_min^(1-t) b_max^t. The paper's figure 1 uses b_min = 1e-5, b_max = 20.

    u0 runs from b_min to nearly 1 by itself, so the default eps is 0; b_min is then the floor that eps is elsewhere
    (the example of models/md4.py: 1.6e-5 nats off in the mean, up to 3e-4 for single x). Table 4 prints its weight with
    the sign of the logarithm turned round; here weight = -b ln(b_max / b_min) / (e^b - 1) at eps = 0.
    """

    def __init__(self, b_min: float = 1e-5, b_max: float = 20.0, eps: float = 0.0) -> None:
        super().__init__(eps)
        if not 0 < b_min < b_max < math.inf:
            raise ValueError(f"schedule: b_min {b_min} and b_max {b_max} must satisfy 0 < b_min < b_max, both finite")
        self.b_min, self.b_max = b_min, b_max

    def _b(self, t: Tensor) -> Tensor:
        return torch.exp(math.log(self.b_min) * (1 - t) + math.log(self.b_max) * t)

    def _a0(self, t: Tensor) -> Tensor:
        return torch.exp(-self._b(t))

    def _u0(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._b(t))

    def _du0(self, t: Tensor) -> Tensor:
        return self._a0(t) * self._b(t) * math.log(self.b_max / self.b_min)

    def _u0_inverse(self, u0: Tensor) -> Tensor:
        b = (-torch.log1p(-u0)).clamp(self.b_min, self.b_max)
        return torch.log(b / self.b_min) / math.log(self.b_max / self.b_min)
