"""The sampler of autoregressive models (AR in arXiv 2406.07524): one token after the other, from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ggm_lightning.core import watch
from ggm_lightning.core.categorical import PLAIN, Sharpening
from ggm_lightning.sampling.contract import Denoises
from ggm_lightning.sampling.sampler import Run, Sampler, Step


class Continues(Denoises, Protocol):
    """A model that says of a row what comes next; its times count the sites still to be drawn."""

    begin_id: int  # stands at the sites that are not drawn yet

    def new_cache(self) -> Any:
        """What the network will have read, empty; None where it reads whole rows in every call."""

    def reverse_law(
        self,
        zt: Tensor,
        t: Tensor,
        s: Tensor,
        label: Tensor | None = None,
        sharpening: Sharpening = PLAIN,
        cache: Any = None,
    ) -> Any: ...


class LeftToRight(Sampler):
    """Site after site, each drawn from the law given all before: as many network calls as there are sites unknown in
    some row, whatever num_steps says. Known sites have to be a beginning of their row.

    A network that keeps what it has read reads each token once, in all rows that are not complete; any other is sent
    whole rows, those in which the site is unknown. Both draw the same, given equal logits. Law: exact.
    """

    unit = "token"
    takes_num_steps = False
    only_where_offered = True

    def start(self, run: Run) -> Tensor:
        model = cast(Continues, run.model)
        z = run.request.clamped(model.prior_sample(run.request.num_samples))
        known = (z != model.begin_id).flatten(1)
        refuse_gaps(known)
        self._begun = known.sum(1)
        self._first = int(self._begun.min())
        self._incomplete = torch.nonzero(self._begun < model.num_sites)[:, 0]
        self._cache = model.new_cache()
        return z

    def steps(self, run: Run) -> Sequence[Step]:
        return [(float(t), t - 1.0) for t in range(run.model.num_sites - self._first, 0, -1)]

    def move(self, run: Run) -> None:
        model, request = cast(Continues, run.model), run.request
        site = self._first + run.step
        rows = self._incomplete
        if self._cache is None:
            rows = torch.nonzero(self._begun <= site)[:, 0]
        watch.narrow(rows)
        z, t, s = run.shaped(run.z[rows]), run.t[rows].long(), run.s[rows].long()
        law = model.reverse_law(z, t, s, request.labels(rows), request.sharpening, self._cache)
        # by the site and not by the step, which depends on what is known in other rows
        drawn = law.draw(partial(request.uniform(1, rows), step=site))
        run.put(run.z.index_copy(0, rows, drawn))


def refuse_gaps(known: Tensor) -> None:
    """ValueError unless the known sites of each row, Bool[b, n], come before all others."""
    behind = known & (~known).cumsum(1).bool()
    if not bool(behind.any()):
        return
    row = int(behind.any(1).nonzero()[0])
    gap, site = int((~known[row]).nonzero()[0]), int(behind[row].nonzero()[0])
    raise ValueError(
        f"clamp: in row {row} site {site} is known but site {gap} before it is not; an autoregressive model draws from "
        "left to right and can only go on from a known beginning: take MD4, GenMD4 or GGM for gaps"
    )
