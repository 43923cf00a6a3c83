"""The one loop of all samplers: start -> move x steps -> finish, with the trace, the bar, the counts and the watch.

Samples are a function of (seed, row): step i draws from noise.uniform(stream, seed, step=i, row).
"""

from __future__ import annotations

from collections import Counter
from copy import copy

from ggm_lightning.core import watch
from ggm_lightning.sampling.contract import Denoises
from ggm_lightning.sampling.request import Request, Samples, Trace
from ggm_lightning.sampling.sampler import Run, Sampler


def run(model: Denoises, request: Request, sampler: Sampler) -> Samples:
    """From the prior to x."""
    calls, rows, others = model.network_calls, model.rows_sent, Counter(model.other_calls)
    this, sampler = Run(model, request), copy(sampler)
    this.z = sampler.start(this).flatten(1)
    steps = sampler.steps(this)
    trace = Trace(request, len(steps))
    if steps:  # else the state is x already
        trace.add(0, sampler.state(this))
    costs = sampler.costs(this, len(steps))
    with request.bar(sum(costs), sampler.unit) as bar:
        for i, when in enumerate(steps):
            watch.at(i)
            this.enter(i, when)
            sampler.move(this)
            bar.update(costs[i])
            if i + 1 < len(steps):
                trace.add(i + 1, sampler.state(this))
    this.step = len(steps)
    watch.at(this.step)
    x = sampler.finish(this)
    trace.add(len(steps), x)
    calls, rows = model.network_calls - calls, model.rows_sent - rows
    return Samples(x, calls, trace.states, rows, model.other_calls - others)
