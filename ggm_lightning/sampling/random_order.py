"""The loop of GGM with order: random: each sweep goes through its sites in an order of its own, drawn for each row, in
blocks of one network call each.

Samples are a function of (seed, row): step i of the path draws from noise.uniform(stream, seed, step=i, row), the order
of a sweep included.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ggm_lightning.core import watch
from ggm_lightning.sampling.request import Request, Samples, Trace

if TYPE_CHECKING:
    from ggm_lightning.models.ggm import GGM

_CORRECTED = 8  # a call of the corrector draws one out of so many sites anew


def block_size(model: GGM, request: Request) -> int:
    """Sites of one call: 1, or for "parallel" what cuts a sweep into num_steps // R blocks."""
    if request.sampler != "parallel":
        return 1
    num_sweeps = model.sweeps.num_sweeps
    if request.num_steps < num_sweeps:
        raise ValueError(
            f"num_steps is {request.num_steps}; sampler 'parallel' needs one for each of the {num_sweeps} sweeps"
        )
    return -(-model.num_sites // min(request.num_steps // num_sweeps, model.num_sites))


def run(model: GGM, request: Request) -> Samples:
    """From X_T to 0, with a clamp `redenoise` times one sweep up and down again, and `corrector_steps` calls of Gibbs.

    Known sites are the last ones that a sweep would visit: the network takes them for as little noised as the sweep
    allows, and the calls for blocks that are known in all rows are left out.
    """
    n, size = model.num_sites, block_size(model, request)
    known = torch.zeros(request.num_samples, n, dtype=torch.bool, device=model.device)
    rounds = 0
    if request.clamp is not None:
        known, rounds = request.clamp[1].flatten(1), model.redenoise
    free = n - int(known.sum(1).min())  # in the row where most are unknown
    sweeps = [*range(model.sweeps.num_sweeps)][::-1] + [0] * rounds
    corrections = model.corrector_steps if free else 0
    calls = len(sweeps) * -(-free // size) + corrections
    before, trace = model.network_calls, Trace(request, calls)
    uniform = request.uniform(n)
    z = request.clamped(model.prior_sample(request.num_samples, partial(uniform, step=0)))
    trace.add(0, z)
    step = 0
    with request.bar(None, calls, unit="call") as bar:
        for place, r in enumerate(sweeps):
            order = (uniform("order", step=step) + known).argsort(1)
            if place >= model.sweeps.num_sweeps:
                z = _one_sweep_up(model, request, z, step)
            for first in reversed(range(0, free, size)):
                watch.at(step)
                z = _undo(model, request, z, (r * n + first, r * n + min(first + size, free)), order, step)
                step += 1
                bar.update()
                trace.add(step, z)
        for _ in range(corrections):
            watch.at(step)
            z = _correct(model, request, z, known, step)
            step += 1
            bar.update()
            trace.add(step, z)
    return Samples(z, model.network_calls - before, trace.states)


def _one_sweep_up(model: GGM, request: Request, z: Tensor, step: int) -> Tensor:
    """Noise of one whole sweep on all but the known sites (ReDeNoise)."""
    t = torch.full((request.num_samples,), model.num_sites, device=z.device)
    noise = request.uniform(model.num_sites)
    return request.clamped(model.corrupt(z, t, lambda stream: noise(f"up {stream}", step=step)))


def _undo(model: GGM, request: Request, z: Tensor, when: tuple[int, int], order: Tensor, step: int) -> Tensor:
    """The visits when[0]..when[1] - 1 undone, by one call."""
    s, t = (torch.full((request.num_samples,), time, device=z.device) for time in when)
    sharpening = (request.temperature, request.top_p)
    law = model.reverse_law(z, t, s, request.label, *sharpening, request.sampler, order=order)
    drawn = law.draw(partial(request.uniform(model.num_sites), step=step))
    return request.clamped(drawn.reshape(z.shape))


def _correct(model: GGM, request: Request, z: Tensor, known: Tensor, step: int) -> Tensor:
    """One call of parallel Gibbs: an eighth of the sites, drawn for each row, unknown ones first."""
    uniform = partial(request.uniform(model.num_sites), step=step)
    sites = (uniform("corrected") + known).argsort(1)[:, : max(1, model.num_sites // _CORRECTED)]
    law = model.gibbs_law(z, sites, request.label, request.temperature, request.top_p)
    return request.clamped(law.draw(uniform).reshape(z.shape))
