"""First-hitting sampling of masked diffusion: one token per row and network call, at the very times of the continuous
process, with no grid and so no error of one.

Source: Zheng et al., arXiv 2409.02908, section 4. With n masked sites at time t, each is revealed when its own time
comes, and a site masked at t is masked at s < t with probability u(s) / u(t). The first of n comes at s where

    u(s) = u(t) U^(1/n),  U uniform on (0, 1)                                                                   (1)

at a site that is any of the n with equal probability; the value is drawn from the network at (z, s). Rows keep their
own times. What is masked when u falls below u(0) is left to `finish`, as in the other samplers.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ggm_lightning.core import categorical, watch
from ggm_lightning.sampling.request import Request, Samples, Trace

if TYPE_CHECKING:
    from ggm_lightning.models.md4 import MD4


def run(model: MD4, request: Request) -> Samples:
    """As many network calls as there are unknown sites; num_steps is not used."""
    before, n = model.network_calls, model.num_sites
    uniform, alone = request.uniform(n), request.uniform(1)
    z = request.clamped(model.prior_sample(request.num_samples)).flatten(1)
    one, zero = request.times(1.0, 0.0)
    u, last = model.schedule.masked_fraction(one), model.schedule.masked_fraction(zero)
    steps = int((z == model.mask_id).sum(-1).max())
    trace = Trace(request, steps)
    trace.add(0, z.reshape(-1, *model.shape))
    for i in request.bar(range(steps), steps):
        masked = z == model.mask_id
        u = next_masked_fraction(u, masked.sum(-1), alone("time", step=i)[:, 0])
        row = torch.nonzero(masked.any(-1) & (u > last))[:, 0]
        if not len(row):
            break
        watch.at(i, request.row[row])
        site = chosen(masked[row], alone("site", step=i)[row, 0])
        label = None if request.label is None else request.label[row]
        logits = model.logits_at(z[row].reshape(-1, *model.shape), model.schedule.inverse(u[row]), label, site[:, None])
        u_value, here = alone("value", step=i)[row, 0], (torch.arange(len(row), device=row.device), site)
        values = categorical.draw(logits, u_value, request.temperature, request.top_p, here)
        z = z.index_put((row, site), values)
        if i + 1 < steps:
            trace.add(i + 1, z.reshape(-1, *model.shape))
    z = z.reshape(-1, *model.shape)
    watch.at(steps)
    x = model.finish(z, request.label, partial(uniform, step=steps), request.temperature, request.top_p)
    trace.add(steps, x)
    return Samples(x, model.network_calls - before, trace.states)


def next_masked_fraction(
    u: Float64[Tensor, " b"], num_masked: Int64[Tensor, " b"], uniform: Float64[Tensor, " b"]
) -> Float64[Tensor, " b"]:
    """u(s) of the next site's time, eq. (1)."""
    return u * uniform ** (1 / num_masked.clamp(min=1))


def chosen(masked: Bool[Tensor, "k n"], uniform: Float64[Tensor, " k"]) -> Int64[Tensor, " k"]:
    """One of the True sites of each row, all with equal probability."""
    rank = masked.cumsum(-1)
    wanted = torch.floor(uniform * rank[:, -1]).long() + 1
    return torch.searchsorted(rank, wanted[:, None])[:, 0]
