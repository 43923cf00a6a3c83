"""Correction by parallel Gibbs, of rows without a mask: an eighth of the sites is drawn anew, each from its law given
all others, by one call of a network that says this law of every site at once, a hollow one.

Drawn one at a time such sites keep the network's law, and lead to it from any other (Gibbs sampling). Drawn together
they do so up to what they say of each other, the less the fewer they are. Source: Zhao et al., arXiv 2407.21243.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ggm_lightning.core import hollow
from ggm_lightning.core.arguments import whole_number
from ggm_lightning.sampling.inside import Outer
from ggm_lightning.sampling.plan import Plan
from ggm_lightning.sampling.sampler import Run, Step

PART = 8  # a call draws one out of so many sites anew


def sites_drawn_anew(run: Run, rows: Tensor, uniform: Callable[[str], Tensor]) -> Tensor:
    """Int64[m, n/8], those of one call in the rows Int64[m]: drawn for each row, unknown ones first."""
    size = max(1, run.model.num_sites // PART)
    return (uniform("corrected") + run.known)[rows].argsort(1)[:, :size]


class Corrected(Outer):
    """Any plan, then `corrections` calls of parallel Gibbs on the unknown sites.

    The network has to be hollow (networks.hollow.HollowTransformer with visited_bits: false): what it says at a site
    may not depend on the site's own token. That is looked at before anything is drawn. It is told the time at which
    one site of a row is masked, in the mean.

    Law: towards the stationary law of the Gibbs chain, from whatever the plan left. With fewer than 16 sites one is
    drawn at a time, and that law is the network's own.

    Args:
        corrections: calls behind the plan's.
        inside, inside_options: the plan, see sampling/inside.py.
    """

    def __init__(
        self,
        corrections: int = 16,
        inside: str | Plan = "ancestral",
        inside_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(inside, inside_options)
        self.corrections = whole_number("corrected: corrections", corrections, 0)

    def start(self, run: Run) -> Tensor:
        self._plan = copy(self.inside)
        z = self._plan.start(run)
        schedule = run.model.schedule
        one = torch.full_like(run.t, 1 / run.model.num_sites)
        self._time = schedule.inverse(one.maximum(schedule.masked_fraction(torch.zeros_like(one))))
        refuse_leaks(run, z.flatten(1), self._time)
        return z

    def steps(self, run: Run) -> Sequence[Step]:
        within = list(self._plan.steps(run))
        self._within = len(within)
        return [*within, *[(0.0, 0.0)] * self.corrections]

    def move(self, run: Run) -> None:
        if run.step < self._within:
            self._plan.move(run)
            return
        if run.step == self._within:
            self._fill(run)
        # its noise is numbered by the call: the plan's steps may depend on what is known in other rows
        run.step -= self._within
        rows = torch.nonzero((~run.known).any(1))[:, 0]
        if len(rows):
            self._correct(run, rows)

    def _correct(self, run: Run, rows: Tensor) -> None:
        """One call of parallel Gibbs."""
        run.t = self._time
        sites = sites_drawn_anew(run, rows, partial(_of_corrector, run))
        logits = run.logits_of_rows(rows, sites)
        u = _of_corrector(run, "value", rows).gather(1, sites)
        place = torch.arange(len(rows), device=rows.device).repeat_interleave(sites.shape[1]), sites.flatten()
        values = run.request.sharpening.draw(logits, u.flatten(), place)
        run.put(run.z.index_copy(0, rows, run.z[rows].scatter(1, sites, values.reshape(sites.shape))))

    def _fill(self, run: Run) -> None:
        """What the plan leaves masked."""
        run.step = self._within
        run.put(self._plan.finish(run).flatten(1))
        run.step = self._within

    def finish(self, run: Run) -> Tensor:
        return self._plan.finish(run)


def _of_corrector(run: Run, stream: str, rows: Tensor | None = None) -> Tensor:
    """Uniforms of streams that no plan draws from."""
    return run.uniform(f"corrector's {stream}", rows=rows)


def refuse_leaks(run: Run, z: Tensor, t: Tensor) -> None:
    """ValueError if what the network says at a site moves with the site's own token; looked at in one site of each row
    Int64[b, n], which is not counted among the calls."""
    b, n = z.shape
    model, rows = run.model, torch.arange(len(z), device=z.device)
    site, changed = hollow.another_token(z, model.num_classes)
    calls, sent = model.network_calls, model.rows_sent
    everywhere, labels = torch.ones_like(z, dtype=torch.bool), run.request.label
    base, other = (
        run.denoiser(run.shaped(state), t, labels, everywhere, rows).reshape(b, n, -1) for state in (z, changed)
    )
    model.network_calls, model.rows_sent = calls, sent
    leak, _ = hollow.moved(base, other, site)
    if leak is not None:
        raise ValueError(
            f"sampler 'corrected' needs a hollow network, and what {type(model.network).__name__} returned at site "
            f"{leak} moved with the token of site {leak}; train with networks.hollow.HollowTransformer (visited_bits: "
            "false), or take another sampler"
        )
