"""The loop of chains that move a few sites at a time (GGM): along a path of chain times, down by the reverse kernel, up
by noise (ReDeNoise), with known sites left out.

Samples are a function of (seed, row): step i of the path draws from noise.uniform(stream, seed, step=i, row).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from ggm_lightning.core import noise
from ggm_lightning.core.glauber import SiteLaw
from ggm_lightning.core.sweeps import Sweeps
from ggm_lightning.sampling.loop import Clamp, Samples, checked_clamp, checked_rows

if TYPE_CHECKING:
    from ggm_lightning.models.ggm import GGM

TRACED = 256  # states kept of a long chain


def visits_at_once(
    sampler: str | None, num_steps: int, samplers: tuple[str, ...], sweeps: Sweeps, block_size: int
) -> int:
    """Sites per step: 1, or for "parallel" what cuts a sweep into num_steps // R blocks, at most `block_size`."""
    if sampler == "parallel_heat_bath":
        raise ValueError(
            "sampler 'parallel_heat_bath' is refused: sites drawn at once, each ignoring its present token, never "
            "reach the model's law (27-state example: total variation over .36 at any number of sweeps); use 'parallel'"
        )
    if sampler not in (None, *samplers):
        raise ValueError(f"sampler '{sampler}' is unknown to this model; choose {' or '.join(samplers)}")
    if sampler != "parallel":
        return 1
    n, num_sweeps = sweeps.num_sites, sweeps.num_sweeps
    if num_steps < num_sweeps:
        raise ValueError(f"num_steps is {num_steps}; sampler 'parallel' needs one for each of the {num_sweeps} sweeps")
    size = -(-n // min(num_steps // num_sweeps, n))
    if size > block_size:
        raise ValueError(
            f"num_steps {num_steps} means blocks of {size} sites, but the model was trained with block_size "
            f"{block_size}; give at least {num_sweeps * sweeps.num_blocks(block_size)}"
        )
    return size


def run(
    model: GGM,
    path: list[int],
    calls_per_site: bool,
    law: Callable[[Tensor, Tensor, Tensor, Tensor | None], SiteLaw],
    num_samples: int,
    clamp: Clamp | None,
    seed: int,
    trace: bool,
    row: Tensor | None,
    progress: bool,
) -> Samples:
    """From X_T along `path` to 0.

    Args:
        model: the prior, `corrupt` and the order of the sites.
        path: chain times T, ..., 0, perhaps up and down again.
        calls_per_site: a step down costs a network call per site that moves; else one.
        law: of X_s given X_t, from (X_t, t, s, known).
        num_samples, clamp, seed, trace, row, progress: see Family.sample. A step whose sites are known in all rows is
            skipped. A trace keeps at most TRACED states, evenly spaced.
    """
    device, n = model.device, model.num_sites
    row = checked_rows(row, num_samples, device)
    before = model.network_calls
    values, known = checked_clamp(clamp, model.shape, model.num_classes, device) if clamp else (None, None)

    def clamped(z: Tensor) -> Tensor:
        return z if values is None or known is None else torch.where(known, values, z)

    order = model.sweeps.order.tolist()
    free = [True] * n if known is None else (~known.reshape(-1, n).all(0)).tolist()

    def cost(t: int, s: int) -> int:
        """Network calls of a step."""
        moves = s < t and any(free[i] for i in order[s % n : s % n + t - s])
        return (t - s if calls_per_site else 1) if moves else 0

    costs = [cost(t, s) for t, s in pairwise(path)]
    every = -(-len(costs) // TRACED)
    uniform = partial(noise.uniform, seed=seed, row=row, num_sites=n)
    z = clamped(model.prior_sample(num_samples, partial(uniform, step=0)))
    states = [z.cpu()] if trace else None
    bar = tqdm(total=sum(costs), desc="sampling", unit="call", disable=not progress, leave=False)
    with bar:
        for i, (t, s) in enumerate(pairwise(path)):
            when = torch.tensor([t, s], device=device)[:, None].expand(2, num_samples)
            if s > t:
                z = clamped(model.corrupt(z, when[1], partial(uniform, step=i)))
            elif costs[i]:
                z = clamped(law(z, when[0], when[1], known).draw(partial(uniform, step=i)).reshape(z.shape))
            bar.update(costs[i])
            if states is not None and ((i + 1) % every == 0 or i + 1 == len(costs)):
                states.append(z.cpu())
    return Samples(z, model.network_calls - before, states)
