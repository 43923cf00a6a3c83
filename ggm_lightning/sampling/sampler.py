"""What a sampler is: a class whose constructor takes its own options, and whose methods are the parts of one run.

sampling/loop.py calls them in order, on a copy of the sampler, so that a run may keep in attributes what it needs from
step to step:

    check(model) -> start(run) -> steps(run) -> move(run), once for each of them -> finish(run)

A sampler that reveals masked sites is a `Plan` (sampling/plan.py) and says only which.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ggm_lightning.core import times, watch
from ggm_lightning.sampling import arguments
from ggm_lightning.sampling.contract import Denoiser, Denoises
from ggm_lightning.sampling.request import Request

Step = tuple[float, float]  # (t, s): from the time t down to s


class Run:
    """One run of a sampler, as it stands.

    Attributes:
        model, request: of the run.
        z: Int64[b, n], the state.
        step: number of the step that is made, from 0.
        t, s: Float64[b], its times; t is what the network is told, and a sampler with times of its own sets it.
        denoiser: of samplers that ask for one.
        window: Bool[n], the masked sites that may be revealed now, see sampling/blocks.py; None: all of them.
        first_step: added to `step` where noise is drawn, so that each window has noise of its own.
    """

    denoiser: Denoiser

    def __init__(self, model: Denoises, request: Request) -> None:
        self.model, self.request = model, request
        self.z = torch.empty(0)
        self.step = 0
        self.window: Tensor | None = None
        self.first_step = 0
        self.t, self.s = request.times(1.0, 0.0)
        self._looked_at: tuple[Tensor, Tensor, Tensor] | None = None  # sites, times, logits

    def enter(self, step: int, when: Step) -> None:
        """The next step begins."""
        self.step, self._looked_at = step, None
        self.t, self.s = self.request.times(*when)

    # ------------------------------------------------------------------ the state

    @property
    def masked(self) -> Tensor:
        """Bool[b, n], those that may be revealed."""
        masked = self.z == self.model.mask_id
        return masked if self.window is None else masked & self.window

    @property
    def known(self) -> Tensor:
        """Bool[b, n], the sites of the clamp."""
        if self.request.clamp is None:
            return torch.zeros_like(self.z, dtype=torch.bool)
        return self.request.clamp[1].flatten(1)

    @property
    def free(self) -> Tensor:
        """Bool[b, n]: neither masked nor known, so that a plan may hide them again."""
        return (self.z != self.model.mask_id) & ~self.known

    def shaped(self, z: Tensor) -> Tensor:
        """Int64[m, *shape] of Int64[m, n]."""
        return z.reshape(len(z), *self.model.shape)

    def put(self, z: Tensor) -> None:
        """z is the state now, with what is known in its place."""
        self.z = self.request.clamped(self.shaped(z)).flatten(1)

    # ------------------------------------------------------------------ what it is asked

    def uniform(self, stream: str, num_sites: int | None = None, rows: Tensor | None = None) -> Tensor:
        """Uniforms in (0, 1) of this step, Float64[b, n], or Float64[m, num_sites] of the rows Int64[m]: a function of
        (seed, stream, step, row, site). No two purposes may share a stream; "value" is that of the values."""
        return self.request.uniform(num_sites or self.model.num_sites, rows)(stream, step=self.first_step + self.step)

    def reveal_probability(self) -> Tensor:
        """Float64[b, n]: (alpha_s - alpha_t) / (1 - alpha_t), of each masked site to be clean at s, as the reverse
        process has it; 1 where nothing is masked any more at t."""
        u_t, u_s = (self.model.schedule.masked_fraction(when) for when in (self.t, self.s))
        reveal = torch.where(u_t > 0, (u_t - u_s) / u_t, 1.0)
        return torch.where(self.masked, reveal[:, None], 0.0)

    def time_of_masked(self) -> Tensor:
        """Float64[b]: the time at which as many sites of a row are masked as now, in the mean."""
        share = (self.z == self.model.mask_id).double().mean(1)
        ends = self.model.schedule.masked_fraction(torch.tensor([0.0, 1.0], dtype=share.dtype, device=share.device))
        return self.model.schedule.inverse(share.clamp(ends[0], ends[1]))

    def logits(self, sites: Tensor) -> Tensor:
        """Logits Float[k, V] at the True ones of `sites` Bool[b, n], in row-major order, of the state at the times
        `t`: one network call, to which only rows with such a site are sent. What a step has asked for once is not asked
        again."""
        if self._looked_at is not None and self._looked_at[1] is self.t:
            asked, _, logits = self._looked_at
            if not bool((sites & ~asked).any()):
                return logits[sites[asked]]
        rows = torch.nonzero(sites.any(1))[:, 0]
        logits = self.logits_of_rows(rows, sites[rows])
        self._looked_at = sites, self.t, logits
        return logits

    def logits_of_rows(self, rows: Tensor, sites: Tensor) -> Tensor:
        """Logits Float[k, V] of the rows Int64[m] at `sites`, Bool[m, n] or Int64[m, j] (see Denoiser)."""
        watch.narrow(rows)
        z = self.shaped(self.z[rows])
        return self.denoiser(z, self.t[rows], self.request.labels(rows), sites, rows)


class Sampler(ABC):
    """One way through a model's reverse process; what may be chosen about it are its constructor's arguments.

    Attributes:
        name: by which messages and results call it: the family's short name, or that of the class.
        only_where_offered: whether it asks more of a model than sampling/contract.py says, and so fits only families
            that name it among their `samplers`.
        asks_denoiser: whether the model's `denoiser` is used, and so its options may be given.
        denoiser_options: those that this sampler settles.
        takes_num_steps: whether num_steps changes what is drawn.
        unit: what the bar counts, see `costs`.
    """

    name: str = ""
    only_where_offered = False
    asks_denoiser = False
    denoiser_options: Mapping[str, Any] = MappingProxyType({})
    takes_num_steps = True
    unit = "step"

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.name = cls.__name__

    def check(self, model: Denoises) -> None:
        """Raises ValueError where the sampler does not fit the model."""
        if not self.only_where_offered:
            return
        made = [make.func if isinstance(make, partial) else make for make in model.samplers.values()]
        own = tuple(kind for kind in made if isinstance(kind, type) and issubclass(kind, Sampler))
        if not any(kind.only_where_offered and isinstance(self, kind) for kind in own):
            raise ValueError(
                f"sampler '{self.name}' is made for families that offer it, and {type(model).__name__} does not; "
                f"{arguments.choice(model.samplers)}"
            )

    def start(self, run: Run) -> Tensor:
        """The state before the first step, Int64[b, *shape]: of the prior, with what is known in its place."""
        uniform = partial(run.request.uniform(run.model.num_sites), step=0)
        return run.request.clamped(run.model.prior_sample(run.request.num_samples, uniform))

    def steps(self, run: Run) -> Sequence[Step]:
        """The times of each step: `num_steps` on the request's grid."""
        grid = times.sampling_grid(run.request.num_steps, run.request.grid or times.GRIDS[0])
        return list(pairwise(grid))

    def costs(self, run: Run, num_steps: int) -> list[int]:
        """Of each step, for the bar."""
        return [1] * num_steps

    @abstractmethod
    def move(self, run: Run) -> None:
        """Makes one step: `run.put` sets the next state."""

    def state(self, run: Run) -> Tensor:
        """The state as the trace shows it, of x's shape."""
        return run.shaped(run.z)

    def finish(self, run: Run) -> Tensor:
        """x Int64[b, *shape] from the state after the last step."""
        return run.model.finish(run.shaped(run.z), run.request.label, run.uniform, run.request.sharpening)
