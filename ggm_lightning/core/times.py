"""Times: stratified over the global batch for training, over a row's own samples for bounds, and sampling grids.

Low-discrepancy times of VDM and MD4 (arXiv 2406.04329, Algorithm 1): one shared uniform u, t_b = (u + b/B) mod 1.
b runs over arange(B)/B: a floating arange(0, 1, 1/B) has B + 1 entries for B = 49, 98, 103, ...
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ggm_lightning.core import noise


def stratified(*, seed: int, step: int, row: Int64[Tensor, " b"], total: int) -> Float64[Tensor, " b"]:
    """t in [0, 1) of the rows `row` (0..total-1) of one global batch of `total` rows; spacing exactly 1/total.

    Ranks and accumulated micro-batches pass their own rows and the same seed, step and total.
    """
    u = noise.uniform("time", seed=seed, step=step, row=torch.zeros_like(row[:1]), num_sites=1)[0]
    return torch.remainder(u + row.double() / total, 1.0)  # integers would divide to float32


def of_step(draws: noise.StepNoise) -> Float64[Tensor, " b"]:
    """The stratified times of a training step."""
    return stratified(seed=draws.seed, step=draws.step, row=draws.row, total=draws.total)


def stratified_per_row(*, seed: int, row: Int64[Tensor, " b"], num_samples: int) -> Float64[Tensor, "m b"]:
    """num_samples times for each row, stratified within the row: a row's bound does not depend on its batch."""
    u = noise.uniform("time", seed=seed, step=0, row=row, num_sites=1)[:, 0]
    stratum = torch.arange(num_samples, device=row.device, dtype=torch.float64)[:, None]
    return torch.remainder(u + stratum / num_samples, 1.0)


def by_time(values: list[Float64[Tensor, " b"]], t: Float64[Tensor, "m b"]) -> Float64[Tensor, "b m"]:
    """What m states of each row came to, from the row's earliest time to its latest."""
    return torch.stack(values, 1).gather(1, t.T.argsort(1))


GRIDS = ("uniform", "cosine")


def sampling_grid(num_steps: int, kind: str = "uniform") -> list[float]:
    """num_steps + 1 decreasing times from 1 to exactly 0; 'cosine' maps t to cos(pi/2 (1 - t)) (section 4)."""
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; sampling needs at least one step")
    if kind not in GRIDS:
        raise ValueError(f"sampling grid '{kind}' is unknown; choose one of {', '.join(GRIDS)}")
    grid = [(num_steps - i) / num_steps for i in range(num_steps + 1)]
    if kind == "cosine":
        grid = [math.cos(math.pi / 2 * (1 - t)) for t in grid]
        grid[0], grid[-1] = 1.0, 0.0  # cos(pi/2) is 6e-17 in floating point; the last step must reach 0 itself
    return grid
