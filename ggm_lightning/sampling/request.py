"""What is asked of a sampler, checked once for all families, and what it gives back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ggm_lightning.core import categorical, noise
from ggm_lightning.core.arguments import seed_number, shown, whole_number
from ggm_lightning.sampling import arguments

if TYPE_CHECKING:
    from ggm_lightning.models.base import Family

Clamp = tuple[Tensor, Tensor]
TRACED = 256  # states kept of a long chain

_T = TypeVar("_T")


@dataclass
class Samples:
    """What a sampler returns.

    Attributes:
        x: Int64[b, *shape].
        network_calls: forward passes of the network, each on the whole batch.
        trace: the states from the prior to x, each Int64[b, *shape] on the CPU, or None; at most TRACED + 1 of them,
            evenly spaced.
        latent_calls: forward passes of the network that denoises a latent alone (LDDM), usually far cheaper.
    """

    x: Tensor
    network_calls: int
    trace: list[Tensor] | None = None
    latent_calls: int = 0


@dataclass(frozen=True)
class Request:
    """The arguments of `Family.sample`, checked: on the model's device, one row number and one clamp per sample.

    Attributes:
        num_samples, num_steps, temperature, top_p, seed, trace, progress, label, latent_steps: see Family.sample.
        clamp: (values Int64[b, *shape], known Bool[b, *shape]), values 0 where unknown; or None.
        grid: None leaves the choice to the family.
        sampler: one of the family's `samplers`.
        row: Int64[b].
    """

    num_samples: int
    num_steps: int
    label: Tensor | None
    clamp: Clamp | None
    temperature: float
    top_p: float
    seed: int
    trace: bool
    grid: str | None
    sampler: str
    row: Tensor
    progress: bool
    latent_steps: int | None = None

    def uniform(self, num_sites: int) -> Callable[..., Tensor]:
        """noise.uniform(stream, step=...) of these rows and this seed, Float64[b, num_sites]."""
        return partial(noise.uniform, seed=self.seed, row=self.row, num_sites=num_sites)

    def clamped(self, z: Tensor) -> Tensor:
        """z, with what is known in its place."""
        return z if self.clamp is None else torch.where(self.clamp[1], self.clamp[0], z)

    def times(self, *when: float) -> list[Tensor]:
        """Each time as Float64[b]."""
        device = self.row.device
        return [torch.full((self.num_samples,), t, dtype=torch.float64, device=device) for t in when]

    def bar(self, steps: Iterable[_T] | None, total: int, unit: str = "step") -> tqdm:
        """The steps, with a bar and its time left where `progress` is set; drawn rarely where it lands in a file."""
        terminal = sys.stderr.isatty()
        often = {"mininterval": 0.1} if terminal else {"mininterval": 30.0, "delay": 30.0}  # nothing of a short chain
        return tqdm(steps, "sampling", total, leave=False, unit=unit, disable=not self.progress, **often)


class Trace:
    """Keeps at most TRACED states out of `num_steps`, evenly spaced, and the last one; none if not asked for."""

    def __init__(self, request: Request, num_steps: int) -> None:
        self.states: list[Tensor] | None = [] if request.trace else None
        self._every = -(-num_steps // TRACED)
        self._last = num_steps

    def add(self, step: int, z: Tensor) -> None:
        """The state after `step` steps, 0 being the prior's."""
        if self.states is not None and (step % self._every == 0 or step == self._last):
            self.states.append(z.cpu())


def checked(
    model: Family,
    num_samples: int,
    num_steps: int,
    label: Tensor | None,
    clamp: Clamp | None,
    temperature: float,
    top_p: float,
    seed: int,
    trace: bool,
    grid: str | None,
    sampler: str | None,
    row: Tensor | None,
    progress: bool,
    latent_steps: int | None = None,
) -> Request:
    """Raises ValueError with one line: what, where, remedy."""
    family = type(model).__name__
    num_samples = whole_number("num_samples", num_samples, 1)
    num_steps = whole_number("num_steps", num_steps, 1)
    if latent_steps is not None:
        latent_steps = whole_number("latent_steps", latent_steps, 1)
    seed = seed_number(seed)
    categorical.check_sharpening(temperature, top_p)
    for name, value in (("sampler", sampler), ("grid", grid)):
        if not isinstance(value, str | None):
            raise ValueError(f"{name} is {shown(value)}; give its name, or None for the family's first")
    if sampler is not None and sampler in model.refused_samplers:
        raise ValueError(f"sampler '{sampler}' is refused: {model.refused_samplers[sampler]}")
    if sampler not in (None, *model.samplers):
        raise ValueError(f"sampler '{sampler}' is unknown to {family}; {_choice(model.samplers)}")
    if grid not in (None, *model.grids):
        known = _choice(model.grids) if model.grids else "its process has its own times: leave grid out"
        raise ValueError(f"grid '{grid}' is unknown to {family}; {known}")
    chosen = model.samplers[0] if sampler is None else sampler
    if latent_steps is not None and chosen not in model.latent_samplers:
        which = f"take sampler {' or '.join(model.latent_samplers)}" if model.latent_samplers else "leave it out"
        raise ValueError(f"latent_steps is {latent_steps}, but {family}'s '{chosen}' has no steps of a latent; {which}")
    return Request(
        num_samples,
        num_steps,
        _checked_label(label, num_samples, model),
        None if clamp is None else _checked_clamp(clamp, num_samples, model),
        temperature,
        top_p,
        seed,
        trace,
        grid,
        chosen,
        arguments.rows(row, num_samples, model.device),
        progress,
        latent_steps,
    )


def _choice(names: tuple[str, ...]) -> str:
    return f"choose {' or '.join(names)}" if len(names) > 1 else f"it has only {names[0]}"


def _checked_label(label: Any, num_samples: int, model: Family) -> Tensor | None:
    known = getattr(model.network, "num_labels", None)
    if label is None and known and not model.label_dropout:
        raise ValueError(
            f"label is missing: the network was trained with a class for every example; give one of 0..{known - 1} for "
            f"each of the {num_samples} rows"
        )
    if label is not None and known == 0:
        raise ValueError(f"label is {shown(label)}, but the network takes no labels; leave it out")
    return arguments.labels(model, label, num_samples, look=True)


def _checked_clamp(clamp: Any, num_samples: int, model: Family) -> Clamp:
    shape = model.shape
    pair = "a pair (values, mask) of what is known and where (True)"
    if not isinstance(clamp, tuple | list) or len(clamp) != 2:
        raise ValueError(f"clamp is {shown(clamp)}; give {pair}")
    values = arguments.whole_numbers("clamp: values", clamp[0], model.device, f"values of shape {shape}")
    try:
        mask = torch.as_tensor(clamp[1]).to(model.device)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"clamp: the mask is {shown(clamp[1])}; give {pair}") from None
    for name, part in (("values", values), ("mask", mask)):
        if tuple(part.shape) not in (shape, (1, *shape), (num_samples, *shape)):
            raise ValueError(
                f"clamp: {name} have shape {tuple(part.shape)}; the model needs {shape} or {(num_samples, *shape)}"
            )
    if mask.dtype != torch.bool:
        raise ValueError(f"clamp: the mask is {mask.dtype}; it must be bool, True where the site is known")
    values, mask = (part.expand(num_samples, *shape) for part in (values, mask))
    known = values[mask]
    if known.numel() and (int(known.min()) < 0 or int(known.max()) >= model.num_classes):
        lowest, highest = int(known.min()), int(known.max())
        raise ValueError(f"clamp: known values lie in {lowest}..{highest}, not 0..{model.num_classes - 1}")
    return torch.where(mask, values, 0), mask
