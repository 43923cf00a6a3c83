"""The loop of chains that move a few sites at a time (GGM): along a path of chain times, down by the reverse kernel, up
by noise (ReDeNoise), with known sites left out.

Samples are a function of (seed, row): step i of the path draws from noise.uniform(stream, seed, step=i, row).
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from ggm_lightning.core import watch
from ggm_lightning.core.sweeps import Sweeps
from ggm_lightning.sampling.request import Request, Samples, Trace

if TYPE_CHECKING:
    from ggm_lightning.models.ggm import GGM

PARALLEL_HEAT_BATH = (
    "sites drawn at once, each ignoring its present token, never reach the model's law (27-state example: total "
    "variation over .36 at any number of sweeps); use 'parallel'"
)

HIDDEN_BLOCK = (
    "sampler 'parallel' with hide: block does not converge in sweeps: within a block sites are independent (law of 4 "
    "sites, blocks of 2: total variation .19 with 1 sweep, .21 with 16; hide: own .19 and .02); set hide: own, or give "
    "more steps, which makes blocks smaller, or take sampler 'heat_bath' or 'gated'"
)


def visits_at_once(num_steps: int, sweeps: Sweeps, block_size: int) -> int:
    """Sites per step of "parallel": what cuts a sweep into num_steps // R blocks, at most `block_size`."""
    n, num_sweeps = sweeps.num_sites, sweeps.num_sweeps
    if num_steps < num_sweeps:
        raise ValueError(f"num_steps is {num_steps}; sampler 'parallel' needs one for each of the {num_sweeps} sweeps")
    size = -(-n // min(num_steps // num_sweeps, n))
    if size > block_size:
        raise ValueError(
            f"num_steps {num_steps} means blocks of {size} sites, but the model was trained with block_size "
            f"{block_size}; give at least {num_sweeps * sweeps.num_blocks(block_size)}"
        )
    return size


def run(model: GGM, request: Request, size: int) -> Samples:
    """From X_T to 0 in steps of `size` visits, and with a clamp `redenoise` times one sweep up and down again.

    A step whose sites are known in all rows is skipped. The bar counts network calls.
    """
    n, device = model.num_sites, model.device
    path = model.sweeps.grid(size)
    known = None
    if request.clamp is not None:
        path = path + model.redenoise * model.sweeps.grid(size, first_sweeps=1)
        known = request.clamp[1]
    order = model.sweeps.order.tolist()
    free = [True] * n if known is None else (~known.flatten(1).all(0)).tolist()

    def cost(t: int, s: int) -> int:
        """Network calls of a step."""
        moves = s < t and any(free[i] for i in order[s % n : s % n + t - s])
        return (t - s if model.hide == "own" else 1) if moves else 0

    steps = list(pairwise(path))
    costs = [cost(t, s) for t, s in steps]
    before, trace = model.network_calls, Trace(request, len(steps))
    uniform = request.uniform(n)
    z = request.clamped(model.prior_sample(request.num_samples, partial(uniform, step=0)))
    trace.add(0, z)
    with request.bar(None, sum(costs), unit="call") as bar:
        for i, (t, s) in enumerate(steps):
            watch.at(i)
            when = torch.tensor([t, s], device=device)[:, None].expand(2, request.num_samples)
            if s > t:
                z = model.corrupt(z, when[1], partial(uniform, step=i))
            elif costs[i]:
                law = model.reverse_law(
                    z, when[0], when[1], request.label, request.temperature, request.top_p, request.sampler, known
                )
                z = law.draw(partial(uniform, step=i)).reshape(z.shape)
            z = request.clamped(z)
            bar.update(costs[i])
            trace.add(i + 1, z)
    return Samples(z, model.network_calls - before, trace.states)
