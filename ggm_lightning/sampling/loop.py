"""One loop for every family: prior -> (network -> reverse step) x num_steps -> finish.

Samples are a function of (seed, row): step i draws from noise.uniform(stream, seed, step=i, row).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from ggm_lightning.core import noise, times

if TYPE_CHECKING:
    from ggm_lightning.models.base import Family

Clamp = tuple[Tensor, Tensor]


@dataclass
class Samples:
    """What a sampler returns.

    Attributes:
        x: Int64[b, *shape].
        network_calls: forward passes of the network, each on the whole batch.
        trace: the states from the prior to x, each Int64[b, *shape] on the CPU, or None.
    """

    x: Tensor
    network_calls: int
    trace: list[Tensor] | None = None


def checked_rows(row: Tensor | None, num_samples: int, device: torch.device) -> Tensor:
    row = torch.arange(num_samples, device=device) if row is None else row.to(device)
    if row.shape != (num_samples,):
        raise ValueError(f"row has shape {tuple(row.shape)}; one number per sample is needed, [{num_samples}]")
    return row


def checked_clamp(clamp: Clamp, shape: tuple[int, ...], num_classes: int, device: torch.device) -> Clamp:
    values, mask = (part.to(device) for part in clamp)
    for name, part in (("values", values), ("mask", mask)):
        if tuple(part.shape[-len(shape) :]) != shape:
            raise ValueError(f"clamp: {name} have shape {tuple(part.shape)}; the model needs [b, *{shape}] or {shape}")
    if mask.dtype != torch.bool:
        raise ValueError(f"clamp: the mask is {mask.dtype}; it must be bool, True where the site is known")
    known = values[mask.expand_as(values)] if values.dim() >= mask.dim() else values.expand_as(mask)[mask]
    if known.numel() and (int(known.min()) < 0 or int(known.max()) >= num_classes):
        raise ValueError(f"clamp: known values lie in {int(known.min())}..{int(known.max())}, not 0..{num_classes - 1}")
    return values, mask


def run(
    model: Family,
    num_samples: int,
    num_steps: int,
    label: Tensor | None,
    clamp: Clamp | None,
    temperature: float,
    top_p: float,
    seed: int,
    trace: bool,
    grid: str,
    row: Tensor | None,
    progress: bool,
) -> Samples:
    """See Family.sample for the arguments."""
    device = model.device
    row = checked_rows(row, num_samples, device)
    before = model.network_calls
    z = model.prior_sample(num_samples)
    if clamp is not None:
        clamp = checked_clamp(clamp, model.shape, model.num_classes, device)
        z = torch.where(clamp[1], clamp[0], z)
    states = [z.cpu()] if trace else None
    steps = list(pairwise(times.sampling_grid(num_steps, grid)))
    for i, (t, s) in enumerate(tqdm(steps, desc="sampling", unit="step", disable=not progress, leave=False)):
        when = torch.tensor([t, s], dtype=torch.float64, device=device)[:, None].expand(2, num_samples)
        law = model.reverse_law(z, when[0], when[1], label, temperature, top_p)
        uniform = partial(noise.uniform, seed=seed, step=i, row=row, num_sites=model.num_sites)
        z = law.draw(uniform).reshape(z.shape)
        if clamp is not None:
            z = torch.where(clamp[1], clamp[0], z)
        if states is not None:
            states.append(z.cpu())
    uniform = partial(noise.uniform, seed=seed, step=num_steps, row=row, num_sites=model.num_sites)
    x = model.finish(z, label, uniform, temperature, top_p)
    if states is not None:
        states[-1] = x.cpu()
    return Samples(x, model.network_calls - before, states)
