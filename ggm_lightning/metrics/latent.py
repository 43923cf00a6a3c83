"""Whether a latent is of use: its spread before normalisation, and what the token loss gains from it.

The bound cannot say: with optimal denoisers token term + latent term = H(x) for every encoder, a constant one included
(arXiv 2510.18114; identity derived here).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class LatentUse(Metric):
    """Collects raw latents, and per example the token loss with another example's latent minus that with its own.

    Args:
        num_coordinates: S d.
    """

    full_state_update = False
    total: Tensor
    total_of_squares: Tensor
    rows: Tensor
    gain: Tensor
    pairs: Tensor

    def __init__(self, num_coordinates: int) -> None:
        super().__init__()
        zeros = torch.zeros(num_coordinates, dtype=torch.float64)
        for name in ("total", "total_of_squares"):
            self.add_state(name, zeros.clone(), dist_reduce_fx="sum")
        for name in ("rows", "gain", "pairs"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, raw: Tensor, gain: Tensor) -> None:
        """raw: Float[b, S, d]. gain: Float[k], nats per example."""
        raw = raw.detach().double().flatten(1)
        self.total += raw.sum(0)
        self.total_of_squares += raw.square().sum(0)
        self.rows += raw.shape[0]
        self.gain += gain.detach().double().sum()
        self.pairs += gain.numel()

    def compute(self) -> dict[str, Tensor]:
        """latent_std (mean over the coordinates of the deviation over the examples), latent_mi (nats per example)."""
        mean = self.total / self.rows
        variance = (self.total_of_squares / self.rows - mean.square()).clamp(min=0)
        return {"latent_std": variance.sqrt().mean(), "latent_mi": self.gain / self.pairs}
