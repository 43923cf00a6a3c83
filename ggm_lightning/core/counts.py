"""Masks of a drawn size: the continuous-time masking bound with the number of masked sites in the place of the time.

Source: LLaDA, arXiv 2502.09992 (its likelihood estimate with exactly l masked tokens); derived here for any schedule
and for networks that see t.

Of n sites l are masked with probability C(n, l) u^l (1 - u)^(n - l) where the masked fraction is u = u(t). In the bound
of MD4 (arXiv 2406.04329, eq. (5)) put u for t, du = -alpha'(t) dt:

    L = integral du/u sum_l C(n, l) u^l (1 - u)^(n - l) CE_l(u) = mean over l in 1..n of (n / l) E CE_l(u),

CE_l(u): the cross-entropy over the masked sites, mean over the masks of l sites, of a network that is told t(u); and
u ~ Beta(l, n - l + 1), as C(n, l) B(l, n - l + 1) = 1 / l. That is the law of the l-th smallest of n uniforms, and
which sites hold the l smallest is independent of it: one set of uniforms gives both. A schedule with floors runs over
u(0) <= u <= u(1) alone: outside, the weight is 0.

So the schedule matters for two things: the ends, and the time that the network is told. The finite-time bound L_T has
other weights, n sum_i (u_i - u_{i-1}) C(n, l) u_i^(l - 1) (1 - u_i)^(n - l), and is not estimated here.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64, Int64
from torch import Tensor


def stratified(t: Float64[Tensor, "*b"], num_sites: int | Int64[Tensor, "*b"]) -> Int64[Tensor, "*b"]:
    """l in 1..n from times in [0, 1), each with probability 1/n where t is uniform, and stratified as t is. `num_sites`
    n, of all rows or of each."""
    if isinstance(num_sites, Tensor):
        return torch.minimum(torch.floor(t * num_sites).long() + 1, num_sites)
    return (torch.floor(t * num_sites).long() + 1).clamp(max=num_sites)


def corrupt(
    x0: Int64[Tensor, "b n"], count: Int64[Tensor, " b"], u: Float64[Tensor, "b n"], mask_id: int
) -> tuple[Int64[Tensor, "b n"], Float64[Tensor, " b"]]:
    """(z with exactly `count` sites masked, the fraction u it stands for): the sites of the `count` smallest uniforms,
    and the largest of these."""
    fraction = u.sort(-1).values.gather(1, count[:, None] - 1)
    return torch.where(u <= fraction, mask_id, x0), fraction[:, 0]


def weight(
    count: Int64[Tensor, " b"], num_sites: int, fraction: Float64[Tensor, " b"], first: float, last: float
) -> Float64[Tensor, " b"]:
    """The factor n / l of the cross-entropy; 0 where the fraction lies outside the schedule's, `first` to `last`."""
    inside = (first <= fraction) & (fraction <= last)
    return torch.where(inside, num_sites / count.double(), 0.0)
