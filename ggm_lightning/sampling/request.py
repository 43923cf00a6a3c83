"""What is asked of a sampler, checked once for all families, and what it gives back."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ggm_lightning.core import noise
from ggm_lightning.core.arguments import seed_number, shown, whole_number
from ggm_lightning.core.categorical import PLAIN, Sharpening
from ggm_lightning.sampling import arguments
from ggm_lightning.sampling.contract import Denoises, Shaped

Clamp = tuple[Tensor, Tensor]
TRACED = 256  # states kept of a long chain


@dataclass
class Samples:
    """What a sampler returns.

    Attributes:
        x: Int64[b, *shape].
        network_calls: forward passes of the network, whatever their number of rows.
        trace: the states from the prior to x, each Int64[b, *shape] on the CPU, or None; at most TRACED + 1 of them,
            evenly spaced.
        rows: rows sent to the network, summed over its calls. A call is sent only the rows that need it, so that this,
            and not network_calls x b, is what sampling costs.
        other_calls: forward passes of a model's further networks, by their names; empty where there are none.
    """

    x: Tensor
    network_calls: int
    trace: list[Tensor] | None = None
    rows: int = 0
    other_calls: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Request:
    """The arguments of `Family.sample`, checked: on the model's device, one row number and one clamp per sample.

    Attributes:
        num_samples, num_steps, seed, trace, progress, label: see Family.sample.
        clamp: (values Int64[b, *shape], known Bool[b, *shape]), values 0 where unknown; or None.
        sharpening: temperature, top_p and their like.
        grid: of the times.
        row: Int64[b].
        sampler: its name, for messages.
        options: what the model's `denoiser` was given, see its family.
        guidance: how far the label pulls, see sampling/guidance.py; 1 is the network's own law.
    """

    num_samples: int
    num_steps: int
    label: Tensor | None
    clamp: Clamp | None
    seed: int
    trace: bool
    grid: str | None
    row: Tensor
    progress: bool
    sharpening: Sharpening = PLAIN
    sampler: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    guidance: float = 1.0

    def uniform(self, num_sites: int, rows: Tensor | None = None) -> Callable[..., Tensor]:
        """noise.uniform(stream, step=...) of this seed and of these `rows` Int64[m] of the batch (None: all),
        Float64[m, num_sites]."""
        row = self.row if rows is None else self.row[rows]
        return partial(noise.uniform, seed=self.seed, row=row, num_sites=num_sites)

    def clamped(self, z: Tensor) -> Tensor:
        """z Int64[b, *shape], with what is known in its place."""
        return z if self.clamp is None else torch.where(self.clamp[1], self.clamp[0], z)

    def labels(self, rows: Tensor) -> Tensor | None:
        """Int64[m], the classes of these rows of the batch."""
        return None if self.label is None else self.label[rows]

    def times(self, *when: float) -> list[Tensor]:
        """Each time as Float64[b]."""
        device = self.row.device
        return [torch.full((self.num_samples,), t, dtype=torch.float64, device=device) for t in when]

    def bar(self, total: int, unit: str = "step") -> tqdm:
        """A bar with its time left where `progress` is set; drawn rarely where it lands in a file."""
        terminal = sys.stderr.isatty()
        often = {"mininterval": 0.1} if terminal else {"mininterval": 30.0, "delay": 30.0}  # nothing of a short chain
        return tqdm(None, "sampling", total, leave=False, unit=unit, disable=not self.progress, **often)


class Trace:
    """Keeps at most TRACED states out of `num_steps`, evenly spaced, and the last one; none if not asked for."""

    def __init__(self, request: Request, num_steps: int) -> None:
        self.states: list[Tensor] | None = [] if request.trace else None
        self._every = max(1, -(-num_steps // TRACED))
        self._last = num_steps

    def add(self, step: int, z: Tensor) -> None:
        """The state after `step` steps, 0 being the prior's."""
        if self.states is not None and (step % self._every == 0 or step == self._last):
            self.states.append(z.cpu())


def checked(
    model: Denoises,
    num_samples: int,
    num_steps: int,
    label: Any = None,
    clamp: Any = None,
    seed: int = 0,
    trace: bool = False,
    grid: str | None = None,
    row: Any = None,
    progress: bool = False,
    **further: Any,
) -> Request:
    """`further`: the last attributes of Request, checked before. Raises ValueError with one line: what, where, remedy.

    A `grid` of None becomes the family's first.
    """
    num_samples = whole_number("num_samples", num_samples, 1)
    num_steps = whole_number("num_steps", num_steps, 1)
    seed = seed_number(seed)
    return Request(
        num_samples,
        num_steps,
        _checked_label(label, num_samples, model),
        None if clamp is None else _checked_clamp(clamp, num_samples, model),
        seed,
        trace,
        _checked_grid(grid, model),
        arguments.rows(row, num_samples, model.device),
        progress,
        **further,
    )


def _checked_grid(grid: Any, model: Denoises) -> str | None:
    if not isinstance(grid, str | None):
        raise ValueError(f"grid is {shown(grid)}; give its name, or None for the family's first")
    if grid not in (None, *model.grids):
        known = arguments.choice(model.grids) if model.grids else "its process has its own times: leave grid out"
        raise ValueError(f"grid '{grid}' is unknown to {type(model).__name__}; {known}")
    if grid is None and model.grids:
        return model.grids[0]
    return grid


def _checked_label(label: Any, num_samples: int, model: Denoises) -> Tensor | None:
    known = getattr(model.network, "num_labels", None)
    if label is None and known and not model.label_dropout:
        raise ValueError(
            f"label is missing: the network was trained with a class for every example; give one of 0..{known - 1} for "
            f"each of the {num_samples} rows"
        )
    return arguments.labels(model, label, num_samples, look=True)


def _checked_clamp(clamp: Any, num_samples: int, model: Shaped) -> Clamp:
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
