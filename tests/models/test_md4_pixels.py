"""MD4 on pixels: the bound of an untrained pixel network is exactly that of 256 equal levels, 8 bits/dim."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ggm_lightning.exact.states import quadrature
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.md4 import MD4
from ggm_lightning.networks.unet import UNet
from ggm_lightning.networks.uvit import UViT

V, SHAPE = 256, (3, 6, 4)


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "unet":
        return UNet(V, feature_dim=64, num_layers=1, shape=SHAPE)
    return UViT(V, feature_dim=32, num_layers=1, num_dit_layers=1, dit_width=16, dit_heads=2, patch_size=2, shape=SHAPE)


@pytest.mark.parametrize("kind", ["unet", "uvit"])
def test_eight_bits_at_the_start(kind: str) -> None:
    model = MD4(network(kind), V, SHAPE)
    x = torch.randint(V, (3, *SHAPE), generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.02, 0.5, 0.97], dtype=torch.float64)
    u = torch.rand(3, model.num_sites, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    zt = model.corrupt(x, t, u)
    masked = (zt == V).flatten(1).sum(-1)
    # each masked pixel costs ln 256, whatever the network sees ...
    expected = -model.schedule.weight(t) * masked * math.log(V)
    assert torch.allclose(model.terms(x, zt, t).double(), expected, rtol=1e-5)
    # ... so that the whole bound is N ln 256: 8 bits per dimension
    nodes, weights = quadrature()
    rate = -model.schedule.weight(nodes) * model.schedule.masked_fraction(nodes) * model.num_sites * math.log(V)
    nats = float((weights * rate).sum()) + model.reconstruction_nats + model.prior_nats
    assert nats / (model.num_sites * math.log(2)) == pytest.approx(8.0, abs=1e-9)
    general = GenMD4(network(kind), V, SHAPE)
    assert torch.allclose(general.terms(x, zt, t).double(), masked / t * math.log(V), rtol=1e-5)


def test_a_step_of_training_leaves_the_uniform_law() -> None:
    """Control: the same figure is lost as soon as something is learnt."""
    model = MD4(network("unet"), V, SHAPE)
    x = torch.full((4, *SHAPE), 17)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    first = float(model.loss(x, step=0))
    for _ in range(3):
        optimizer.zero_grad()
        model.loss(x, step=0).backward()
        optimizer.step()
    assert float(model.loss(x, step=0)) < first - 0.05
