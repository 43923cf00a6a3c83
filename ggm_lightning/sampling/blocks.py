"""Window by window: any plan, in windows of a row from left to right, and so texts that are longer than the model.

    window j    the sites j stride .. (j + 1) stride - 1 of a row of `length` sites
    the network sees the n sites up to the window's end, or the first n where there are not so many

What stands before a window is known in it, what comes behind it is masked and stays so. Semi-autoregressive sampling:
block diffusion, arXiv 2503.09573, and LLaDA, arXiv 2502.09992; here with a network that was trained on whole rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ggm_lightning.core.arguments import whole_number
from ggm_lightning.sampling.contract import Denoises
from ggm_lightning.sampling.inside import Outer
from ggm_lightning.sampling.plan import Plan
from ggm_lightning.sampling.sampler import Run, Step


class Blocks(Outer):
    """The plan `inside` in each window; num_steps are those of one window.

    Law: the chain rule over the windows, with the plan's own law in each: exact where that one is and the network sees
    all that stands before. Windows of which the network does not see the beginning, in longer texts, are drawn given
    the n - stride sites before them.

    A longer text is a row of `length` tokens, which a clamp may begin: it is of the model's n sites, the first ones.

    Args:
        stride: sites of a window; None is all n of the model, or half of them where the text is longer.
        length: of the text; None is n.
        inside, inside_options: the plan, see sampling/inside.py.
    """

    def __init__(
        self,
        stride: int | None = None,
        length: int | None = None,
        inside: str | Plan = "ancestral",
        inside_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(inside, inside_options)
        if stride is not None:
            whole_number("blocks: stride", stride, 1)
        if length is not None:
            whole_number("blocks: length", length, 1)
        self.stride, self.length = stride, length

    def check(self, model: Denoises) -> None:
        super().check(model)
        n, length = model.num_sites, self._length(model)
        if self.stride is not None and self.stride > n:
            raise ValueError(f"blocks: stride is {self.stride}; the model has {n} sites, give at most as many")
        if length < n:
            raise ValueError(f"blocks: length is {length}; the model's own is {n}, give at least as much")
        if length > n and len(model.shape) > 1:
            raise ValueError(f"blocks: length is {length}, but rows of shape {model.shape} are no texts; leave it out")
        if length > n and model.denoiser_options:
            raise ValueError(
                f"blocks: length is {length}, but {type(model).__name__} draws a latent of {n} sites; leave it out"
            )

    def _length(self, model: Denoises) -> int:
        return self.length or model.num_sites

    # ------------------------------------------------------------------ a run

    def start(self, run: Run) -> Tensor:
        n, length = run.model.num_sites, self._length(run.model)
        stride = self.stride or (n if length == n else max(1, n // 2))
        self._windows = [(first, min(first + stride, length)) for first in range(0, length, stride)]
        self._view = 0
        self._left: list[Tensor] = []  # what has left the view
        self._started = copy(self.inside)
        return self._started.start(run)

    def steps(self, run: Run) -> Sequence[Step]:
        """Those of each window, in turn."""
        self._path: list[tuple[int, int, bool]] = []  # (window, step in it, whether it is the last one)
        every = []
        for window in range(len(self._windows)):
            steps = self._steps_of(run, window)
            self._path += [(window, i, i + 1 == len(steps)) for i in range(len(steps))]
            every += steps
        self._window = -1
        return every

    def _steps_of(self, run: Run, window: int) -> list[Step]:
        probe = copy(run)
        view = self._enter(probe, window)
        if view > 0:  # of which nothing is known yet
            probe.z = torch.full_like(run.z, run.model.mask_id)
        return list(copy(self._started).steps(probe))

    def _enter(self, run: Run, window: int) -> int:
        """Lets the run see this window's sites alone; what its view begins with."""
        first, last = self._windows[window]
        view = max(0, last - run.model.num_sites)
        site = torch.arange(view, view + run.model.num_sites, device=run.z.device)
        run.window = (site >= first) & (site < last)
        return view

    def move(self, run: Run) -> None:
        window, step, is_last = self._path[run.step]
        if window != self._window:
            self._next(run, window)
        run.step = step
        self._plan.move(run)
        if is_last and bool(run.masked.any()):
            self._fill(run, step + 1)

    def _next(self, run: Run, window: int) -> None:
        """The view moves to the window, whose plan begins; all that stands is known from now on."""
        self._slide(run, self._enter(run, window))
        self._plan, self._window = copy(self._started), window
        self._plan.steps(copy(run))
        if window > 0:
            known = run.z != run.model.mask_id
            values = torch.where(known, run.z, 0)
            run.request = replace(run.request, clamp=(run.shaped(values), run.shaped(known)))
        # a window's noise is numbered by itself: how many steps others take may depend on other rows
        run.first_step = window * (1 + max(run.request.num_steps, run.model.num_sites))

    def _slide(self, run: Run, view: int) -> None:
        moved, self._view = view - self._view, view
        if moved:
            self._left.append(run.z[:, :moved])
            run.z = torch.cat([run.z[:, moved:], torch.full_like(run.z[:, :moved], run.model.mask_id)], 1)

    def _fill(self, run: Run, step: int) -> None:
        """What the plan leaves masked in its window; where there is some, the network is asked about all that follows,
        too."""
        run.step = step
        run.put(torch.where(run.masked, self._plan.finish(run).flatten(1), run.z))

    def state(self, run: Run) -> Tensor:
        """The whole text, also in a longer one."""
        whole = torch.cat([*self._left, run.z], 1)
        missing = self._length(run.model) - whole.shape[1]
        if not missing and not self._left:
            return run.shaped(whole)
        return functional.pad(whole, (0, missing), value=run.model.mask_id)

    def finish(self, run: Run) -> Tensor:
        """x Int64[b, *shape], or Int64[b, length]: each window was filled at its end."""
        return self.state(run)
