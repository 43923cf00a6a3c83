"""Small GGMs with order: random, for tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ggm_lightning.models.ggm import GGM
from ggm_lightning.networks.hollow import HollowTransformer

B, N, V = 3, 5, 7


def network(**options: object) -> HollowTransformer:
    torch.manual_seed(0)
    made = HollowTransformer(V, feature_dim=8, num_heads=2, num_layers=1, num_merges=1, **options)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def model(**options: object) -> GGM:
    return GGM(network(), V, (N,), **{"order": "random", "num_sweeps": 3, **options})


class Elementwise(nn.Module):
    """Equal rows give equal bits in any batch; hollow up to `leak`; without features and head."""

    def __init__(self, leak: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.leak, self.scale = leak, scale
        self.asked: list[tuple[Tensor, Tensor]] = []

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
        self.asked.append((z, visited))
        classes = torch.arange(V, dtype=torch.float64)
        own = (z * torch.tensor([1.0, 3.0, 5.0, 7.0, 11.0]) + visited).double()
        seen = own.sum(1, keepdim=True) - (1 - self.leak) * own
        return self.scale * (torch.sin(seen[..., None] + classes * 2.3) + t[:, None, None].double() * classes / V)
