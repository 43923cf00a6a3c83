"""What a sampler asks of a model, and nothing else: the protocols between sampling/ and the families.

A sampler asks for two things. `reverse_law(zt, t, s)` is one step of the reverse process. `denoiser(request)` is the
network as a function of a state; whatever a family draws beside its tokens (the latent of LDDM) it draws there, once.
Where the noise is absorbing there are `mask_id` and `schedule` besides, from which a plan knows the probability of each
site to leave the mask; without them no sites can be revealed, and the family has samplers of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ggm_lightning.core.categorical import Sharpening


class Denoiser(Protocol):
    """The law of the clean tokens, as the network has it."""

    def __call__(self, zt: Tensor, t: Tensor, label: Tensor | None, sites: Tensor, rows: Tensor) -> Tensor:
        """Logits Float[k, V] at `sites`, in row-major order; one call of the network, on the given rows alone.

        Args:
            zt: Int64[m, *shape], states.
            t: Float64[m], the time of each.
            label: Int64[m], or None.
            sites: the True ones of Bool[m, n]; or Int64[m, j], where all rows have as many.
            rows: Int64[m], which rows of the request's batch these are, 0..b-1.
        """


class MaskSchedule(Protocol):
    """alpha(t), the probability that a site is clean at time t; all times Float64."""

    def alpha(self, t: Tensor) -> Tensor: ...

    def masked_fraction(self, t: Tensor) -> Tensor:
        """u(t) = 1 - alpha(t)."""

    def inverse(self, u: Tensor) -> Tensor:
        """The time at which the masked fraction is u."""


class Shaped(Protocol):
    """What arguments are compared with."""

    num_classes: int
    shape: tuple[int, ...]
    network: nn.Module

    @property
    def device(self) -> torch.device: ...


class Denoises(Shaped, Protocol):
    """A model, as samplers see it."""

    num_sites: int
    label_dropout: float
    network_calls: int  # so far, as rows_sent and other_calls
    rows_sent: int
    other_calls: Counter[str]

    @property
    def samplers(self) -> Mapping[str, Callable[..., Any]]:
        """Short name -> what makes the sampler, a class or a partial of one; the default first."""

    @property
    def refused_samplers(self) -> Mapping[str, str]:
        """Names one might try, and why they are refused."""

    @property
    def grids(self) -> tuple[str, ...]:
        """Of the times, the default first; () where there is only one."""

    @property
    def denoiser_options(self) -> Mapping[str, Callable[[str, Any], Any]]:
        """What `denoiser` takes: name -> check(name, value), which raises ValueError or returns the value."""

    @property
    def mask_id(self) -> Any:
        """The state of a masked site, an int; None where the noise is not absorbing."""

    @property
    def schedule(self) -> Any:
        """A MaskSchedule where one schedule masks all classes, else None."""

    def denoiser(self, request: Any) -> Denoiser: ...

    def prior_sample(self, num_samples: int, uniform: Callable[[str], Tensor] | None = None) -> Tensor:
        """The state at t = 1, Int64[b, *shape]; `uniform(stream)` gives Float64[b, n] where it is drawn."""

    def moving(self, zt: Tensor) -> Tensor | None:
        """Bool[b], the rows that a reverse step may still change; None: all of them."""

    def reverse_law(
        self, zt: Tensor, t: Tensor, s: Tensor, label: Tensor | None = None, sharpening: Sharpening = ...
    ) -> Any: ...

    def finish(
        self,
        z: Tensor,
        label: Tensor | None,
        uniform: Callable[[str], Tensor] | None,
        sharpening: Sharpening = ...,
        denoiser: Denoiser | None = None,
    ) -> Tensor:
        """From the state at t = 0 to x."""
