"""The pure-death process on counts, and what its reversal needs: times, thinning, bridge, birth rates, weights, losses.

Source: Blackout diffusion, arXiv 2305.11089, and its published code (lanl/Blackout-Diffusion, b35e1fd). Each of x0
units dies at rate 1; p = e^-t survives, m = x0 - x_t are the deaths so far, f = logit p. Our own equation numbers:

    x_t | x_0       ~ Binomial(x_0, p)                                                                           (1)
    f_k             = F - 2 F k / (T - 1),  F = ln(e^{t_end} - 1),  t_k = softplus(-f_k),  t_{-1} = 0            (2)
    x_s | x_t, x_0  ~ x_t + Binomial(m, pi),  pi = (e^-s - e^-t) / (1 - e^-t)                                    (3)
    birth rate      = y p / (1 - p),  y = E[m | x_t]                                                             (4)
    -log p(x_0)    <= sum over sites of the integral of p E[y - m + m ln(m/y)] df, plus both ends                (5)
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn import functional

from ggm_lightning.core import categorical, counting


def last_logit(t_end: float) -> float:
    """F of eq. (2): logit(1 - e^{-t_end})."""
    return math.log(math.expm1(t_end))


def time_of(f: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
    """t = -ln p = softplus(-f), accurate at both ends (functional.softplus is not beyond 20)."""
    return torch.logaddexp(torch.zeros_like(f), -f)


def logit_of(t: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
    """f = logit e^-t; inf at t = 0."""
    return -torch.log(torch.expm1(t))


def observation_times(num_times: int, t_end: float) -> Float64[Tensor, " t"]:
    """t_0 < ... < t_{T-1} = t_end of eq. (2), equally spaced in logit p; one time is t_end alone."""
    if num_times < 1:
        raise ValueError(f"observation_times: num_times is {num_times}; at least one time is needed")
    if not 0 < t_end < 700:
        raise ValueError(f"observation_times: t_end is {t_end}; it must lie in (0, 700), 15 is the published one")
    last = last_logit(t_end)
    k = torch.arange(num_times, dtype=torch.float64)
    times = time_of(last - 2 * last * k / max(num_times - 1, 1))
    times[-1] = t_end
    return times


def survival(t: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
    """p."""
    return torch.exp(-t)


def death_probability(t: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
    """1 - p, computed directly: 1 - exp(-t) in float32 is 2.6 % off at the first published time."""
    return -torch.expm1(-t)


def log_transition(
    xt: Int64[Tensor, "b n"], t: Float64[Tensor, " b"], cap: int, dtype: torch.dtype = torch.float64
) -> Float[Tensor, "b n v"]:
    """ln q(x_t | x_0) of eq. (1) for x_0 = 0..cap without x_t ln p, which is the same for all; -inf below x_t:

        ln C(x_0, x_t) + (x_0 - x_t) ln(1 - p)

    0 for all x_0 where t is large and nobody is left: then x_t tells nothing.
    """
    x0 = torch.arange(cap + 1, device=xt.device)
    died = (x0 - x0[:, None]).clamp(min=0)  # [x_t, x_0]
    ln = counting.log_factorial(cap, xt.device)
    choices = (ln - ln[died] - ln[:, None]).to(dtype)
    died_now = (x0 - xt[..., None]).clamp(min=0).to(dtype)
    each = torch.log(death_probability(t)).to(dtype)[:, None, None]
    # nobody has died at t = 0: 0 log 0 is 0
    log_q = choices[xt] + torch.where(died_now > 0, died_now * each, 0.0)
    return torch.where(x0 >= xt[..., None], log_q, -torch.inf)


def bridge_probability(t: Float64[Tensor, "*b"], s: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
    """pi of eq. (3), s < t: p (e^{t-s} - 1) / (1 - p), which cancels at neither end; exactly 1 at s = 0."""
    pi = survival(t) * torch.expm1(t - s) / death_probability(t)
    return torch.where(s == 0, 1.0, pi).clamp(max=1.0)


def thin(
    x0: Int64[Tensor, "b n"], t: Float64[Tensor, " b"], u: Float64[Tensor, "b n"], cap: int
) -> Int64[Tensor, "b n"]:
    """x_t ~ q(. | x_0), eq. (1): the smallest count whose cumulative probability exceeds u, as published."""
    return counting.thin(x0, survival(t), death_probability(t), u, cap)


def thin_on_gpu(
    x0: Int64[Tensor, "b n"], t: Float64[Tensor, " b"], cap: int, row: Int64[Tensor, " b"], key: int, dtype: torch.dtype
) -> tuple[Int64[Tensor, "b n"], Float[Tensor, "b n"]] | None:
    """(x_t of eq. (1), x_t - p cap / 2 in `dtype`) from one kernel: coins under `key`, other draws than `thin`'s, of
    the same law to 2^-48. None without Triton."""
    kernels = categorical.triton_draws()
    if kernels is None:
        return None
    p = survival(t)
    return kernels.thin(x0, p, p * (cap / 2), row, key, dtype)


def bridge(
    x0: Int64[Tensor, "b n"], xt: Int64[Tensor, "b n"], pi: Float64[Tensor, " b"], u: Float64[Tensor, "b n"], cap: int
) -> Int64[Tensor, "b n"]:
    """x_s ~ q(. | x_t, x_0), eq. (3)."""
    return xt + counting.thin(x0 - xt, pi, 1 - pi, u, cap)


def birth_rate(y: Float[Tensor, " b *s"], t: Float64[Tensor, " b"]) -> Float[Tensor, " b *s"]:
    """Rate of x -> x + 1 in the reversed process, eq. (4)."""
    odds = survival(t) / death_probability(t)
    return y * odds.reshape(-1, *[1] * (y.dim() - 1))


def instantaneous_weight(t: Float64[Tensor, "*b"], s: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
    """e^-t (t - s): the published weight of y - m ln y at t, s the observation time before it."""
    return survival(t) * (t - s)


def finite_time_weight(t: Float64[Tensor, "*b"], s: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
    """e^-s - e^-t, the published finite-time weight."""
    return survival(t) * torch.expm1(t - s)


def likelihood_weight(t: Float64[Tensor, "*b"], t_end: float) -> Float64[Tensor, "*b"]:
    """2 F p: the weight for f uniform in [-F, F], eq. (5). The published weights are this times (1 - p), but for the
    constant: they leave small t out."""
    return 2 * last_logit(t_end) * survival(t)


def log_softplus(raw: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """ln softplus(raw), finite with finite gradients down to -1e30: below -15 it is raw - e^raw / 2."""
    low = raw < -15
    rest = torch.log(functional.softplus(torch.where(low, 0.0, raw)))
    tail = torch.where(low, raw, -15.0)
    return torch.where(low, tail - torch.exp(tail) / 2, rest)


def cross_term(m: Float[Tensor, "*s"], log_y: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """m ln y, and 0 with no gradient where m = 0, even if y is 0 there."""
    return m * torch.where(m > 0, log_y, 0.0)


def published_loss(y: Float[Tensor, "*s"], log_y: Float[Tensor, "*s"], m: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """y - m ln y: of all functions of x_t, E[m | x_t] makes it smallest."""
    return y - cross_term(m, log_y)


def divergence(y: Float[Tensor, "*s"], log_y: Float[Tensor, "*s"], m: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """y - m + m ln(m/y) >= 0, nats: the integrand of eq. (5), published_loss plus what does not depend on y."""
    return y - m + torch.xlogy(m, m) - cross_term(m, log_y)


def prior_divergence(cap: int, t_end: float, mean: float) -> Float64[Tensor, " v"]:
    """KL(q(x_T | x_0) || Poisson(e^{-t_end} mean)), nats, for x_0 = 0..cap. A prior that is 0 for sure has an infinite
    one; `mean` is the data's, and a wrong one costs little."""
    p = torch.tensor(math.exp(-t_end), dtype=torch.float64)
    rate = p * mean
    x = torch.arange(cap + 1, dtype=torch.float64)
    log_q = counting.log_pmf(x, x[:, None], p, -torch.expm1(torch.tensor(-t_end, dtype=torch.float64)))
    log_poisson = x * torch.log(rate) - rate - counting.log_factorial(cap)
    return torch.where(log_q > -torch.inf, log_q.exp() * (log_q - log_poisson), 0.0).sum(-1)
