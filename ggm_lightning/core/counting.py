"""Exact binomial and Poisson draws, each from one uniform, by inversion: the smallest k with u < P(X <= k).

So a draw is a function of (law, u) on every device, which torch.binomial (whose CUDA kernel works in float32 and from a
generator's history) is not. Both laws obey one recursion, with which the cumulative sum is walked upwards:

    P(j + 1) = P(j) (A - B j) / (j + 1);    Binomial(n, p): B = p/(1-p), A = n B;    Poisson(l): B = 0, A = l

Sources: the recursion is that of the (a, b, 0) class of laws; counts, used in Blackout diffusion (arXiv 2305.11089).
"""

from __future__ import annotations

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

_STARTS = 6  # points of each law from which a walk may start
_DENSE_STEPS = 2  # steps between two looks at which walks are not over
_TINY = 1e-300
_CPU_ENTRIES = 1 << 17  # counts at once on a CPU: what is at work stays in its cache


def log_factorial(cap: int, device: torch.device | None = None) -> Float64[Tensor, " v"]:
    """ln 0!, ..., ln cap!"""
    return torch.lgamma(torch.arange(1, cap + 2, dtype=torch.float64, device=device))


def log_pmf(
    k: Float64[Tensor, "*#s"], n: Float64[Tensor, "*#s"], p: Float64[Tensor, "*#s"], q: Float64[Tensor, "*#s"]
) -> Float64[Tensor, "*s"]:
    """ln P(k) of Binomial(n, p), q = 1 - p given by itself; exact at p = 0 and 1. -inf off 0..n."""
    choose = torch.lgamma(n + 1) - torch.lgamma(k.clamp(min=0) + 1) - torch.lgamma((n - k).clamp(min=0) + 1)
    inside = (k >= 0) & (k <= n)
    log_p = choose + torch.xlogy(k.clamp(min=0), p) + torch.xlogy((n - k).clamp(min=0), q)
    return torch.where(inside, log_p, -torch.inf)


def _walk(j: Tensor, limit: Tensor, factor: Tensor, rate: bool, pmf: Tensor, r: Tensor) -> Tensor:
    """The end of each walk, Float64[k]: from j, of probability pmf, upwards while r = u - P(X <= j) >= 0, at most to
    `limit`. P(j + 1) / P(j) is factor / (j + 1) for a `rate`, else factor (limit - j) / (j + 1)."""
    i, end = j, j.clone()
    left = None
    while len(i):
        for _ in range(_DENSE_STEPS):
            on = r >= 0
            i = i + 1
            pmf = pmf * factor / i if rate else pmf * factor * (limit - i + 1) / i
            r = r - pmf
            j = j + on
        j = torch.minimum(j, limit)
        end = j if left is None else end.index_copy(0, left, j)
        more = torch.nonzero((r >= 0) & (j < limit))[:, 0]
        left = more if left is None else left.index_select(0, more)
        i, j, limit, factor, pmf, r = (part.index_select(0, more) for part in (i, j, limit, factor, pmf, r))
    return end


def _starts(p: Tensor, q: Tensor, cap: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each row's p and each n = 0..cap, `_STARTS` points k near equally spaced quantiles of Binomial(n, p), with
    P(k) and P(X <= k): three Float64[b, starts, cap + 1].

    Along a path k(n) that rises by 0 or 1 with n, P(X_n <= k) changes by -p P_{n-1}(k(n-1)), plus P_n(k(n)) where it
    rises: the cumulative probabilities need no sum over k.
    """
    n = torch.arange(cap + 1, dtype=torch.float64, device=p.device)
    quantile = (torch.arange(_STARTS, dtype=torch.float64, device=p.device) + 0.5) / _STARTS
    z = torch.special.ndtri(quantile)[:, None]
    p, q = p[:, None, None], q[:, None, None]
    near = torch.floor(n * p + (z * torch.sqrt(p * q)) * torch.sqrt(n))
    rise = torch.minimum(near.clamp(min=0), n).diff(dim=-1).clamp(0, 1)
    k = torch.nn.functional.pad(rise.cumsum(-1), (1, 0))
    f = log_factorial(cap, p.device)
    alive, dead = (f.index_select(0, part.flatten().int()).reshape(k.shape) for part in (k, n - k))
    log_p = f - alive - dead
    # a probability of 0 must not make 0 * inf of the outcomes that do not need it
    log_p += k * torch.log(p.clamp(min=_TINY)) + (n - k) * torch.log(q.clamp(min=_TINY))
    pmf = torch.exp(log_p)
    change = rise * pmf[..., 1:] - p * pmf[..., :-1]
    cdf = torch.nn.functional.pad(change.cumsum(-1), (1, 0)) + 1
    return k, pmf, cdf


def thin(
    x: Int64[Tensor, "b n"], p: Float64[Tensor, " b"], q: Float64[Tensor, " b"], u: Float64[Tensor, "b n"], cap: int
) -> Int64[Tensor, "b n"]:
    """Binomial(x, p) with one p per row and counts in 0..cap. q = 1 - p is given by itself, so that near p = 1 the
    deaths have their own, exact probability; the probabilities of counts are right to about 1e-13."""
    rows = _CPU_ENTRIES // x.shape[1] if x.device.type == "cpu" else len(x)
    if 0 < rows < len(x):
        parts = zip(*(part.split(rows) for part in (x, p, q, u)), strict=True)
        return torch.cat([thin(x_, p_, q_, u_, cap) for x_, p_, q_, u_ in parts])
    tables = [part.flatten() for part in _starts(p, q, cap)]
    row = torch.arange(len(x), device=x.device)[:, None] * _STARTS
    index = ((row + (u * _STARTS).long()) * (cap + 1) + x).flatten()
    k, pmf, cdf = (table.index_select(0, index) for table in tables)
    u = u.flatten()
    above = u - cdf  # >= 0: walk up; below -pmf: walk down, which is up in the count of deaths
    move = torch.nonzero((above >= 0) | (above < -pmf))[:, 0]
    start, pmf, above = (v.index_select(0, move) for v in (k, pmf, above))
    total = x.flatten().index_select(0, move).double()
    up = above >= 0
    odds = (p / q)[:, None].expand(x.shape).reshape(-1).index_select(0, move)
    odds, start = torch.where(up, odds, 1 / odds), torch.where(up, start, total - start)
    end = _walk(start, total, odds, False, pmf, torch.where(up, above, -above - pmf))
    k.index_copy_(0, move, torch.where(up, end, total - end))
    return k.long().reshape(x.shape)


def binomial(n: Int64[Tensor, "*s"], p: Float64[Tensor, "*s"], u: Float64[Tensor, "*s"]) -> Int64[Tensor, "*s"]:
    """Binomial(n, p) with a p for each entry; time grows with n min(p, 1 - p)."""
    count, v, flipped = n.flatten().double(), u.flatten(), p.flatten() > 0.5
    p = torch.where(flipped, 1 - p.flatten(), p.flatten())  # the rarer of success and failure is counted
    v = torch.where(flipped, 1 - v, v)
    odds = p / (1 - p)
    pmf = torch.exp(count * torch.log1p(-p))
    end = _walk(torch.zeros_like(count), count, odds, False, pmf, v - pmf)
    return torch.where(flipped, count - end, end).long().reshape(n.shape)


def poisson(rate: Float64[Tensor, "*s"], limit: Int64[Tensor, "*s"], u: Float64[Tensor, "*s"]) -> Int64[Tensor, "*s"]:
    """min(Poisson(rate), limit). Rates above 700, whose e^-rate is 0 in float64, are refused."""
    if bool((rate > 700).any()):
        raise ValueError(
            f"Poisson births: a rate of {float(rate.max()):.0f} is too high to draw; use sampler capped or more steps"
        )
    a = rate.flatten()
    pmf = torch.exp(-a)
    end = _walk(torch.zeros_like(a), limit.flatten().double(), a, True, pmf, u.flatten() - pmf)
    return end.long().reshape(rate.shape)
