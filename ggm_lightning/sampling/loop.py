"""The loop of the families whose every step moves all sites: prior -> (network -> reverse step) x num_steps -> finish.

Samples are a function of (seed, row): step i draws from noise.uniform(stream, seed, step=i, row).
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from ggm_lightning.core import times, watch
from ggm_lightning.sampling.request import Request, Samples, Trace

if TYPE_CHECKING:
    from ggm_lightning.models.base import Family


def run(model: Family, request: Request) -> Samples:
    """From z_1 along the grid to x; known sites are put back after every step."""
    before, steps = model.network_calls, request.num_steps
    uniform = request.uniform(model.num_sites)
    trace = Trace(request, steps)
    z = request.clamped(model.prior_sample(request.num_samples))
    trace.add(0, z)
    grid = pairwise(times.sampling_grid(steps, request.grid or model.grids[0]))
    for i, (t, s) in enumerate(request.bar(grid, steps)):
        watch.at(i)
        when = request.times(t, s)
        law = model.reverse_law(z, when[0], when[1], request.label, request.temperature, request.top_p)
        z = request.clamped(law.draw(partial(uniform, step=i)).reshape(z.shape))
        if i + 1 < steps:
            trace.add(i + 1, z)
    watch.at(steps)
    x = model.finish(z, request.label, partial(uniform, step=steps), request.temperature, request.top_p)
    trace.add(steps, x)
    return Samples(x, model.network_calls - before, trace.states)
