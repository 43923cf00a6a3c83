"""Training by core/fused.py and by the formulas of core/losses.py: the same losses, step by step, for every family."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.core import fused
from ggm_lightning.models import readout
from ggm_lightning.models.autoregressive import AutoregressiveModel
from ggm_lightning.models.base import Family
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM
from ggm_lightning.models.lddm_stages import Recipe
from ggm_lightning.models.markov import MarkovDiffusion
from ggm_lightning.models.md4 import MD4
from ggm_lightning.networks.hollow import HollowTransformer
from ggm_lightning.networks.transformer import Transformer
from tests.models import small_lddm

STEPS, N, V = 50, 5, 23


class Deaths(nn.Module):
    """One number per site."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(N, 11), nn.Tanh(), nn.Linear(11, N))

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.layers(z)


def transformer(**more: object) -> Transformer:
    network = Transformer(V, feature_dim=4, num_heads=2, num_layers=1, **more)
    nn.init.normal_(network.head.weight, std=0.3)  # it starts at zero, where much would not matter
    return network


def family(name: str) -> Family:
    torch.manual_seed(0)
    if name == "md4":
        return MD4(transformer(), V, (N,))
    if name == "md4_bias":
        network = transformer()
        network.head = nn.Linear(network.width, V)
        return MD4(network, V, (N,), num_timesteps=7)
    if name == "genmd4":
        return GenMD4(transformer(), V, (N,))
    if name == "ar":
        return AutoregressiveModel(transformer(time_features="none", causal=True), V, (N,))
    if name == "ggm":
        return GGM(transformer(visited_bits=True), V, (N,))
    if name.startswith("hollow"):
        network = HollowTransformer(V, feature_dim=4, num_heads=2, num_layers=1, num_merges=1)
        nn.init.normal_(network.head.weight, std=0.3)
        loss, noise_draws = name.removeprefix("hollow_").split(" of ")
        return GGM(network, V, (N,), loss=loss, order="random", noise_draws=int(noise_draws))
    if name == "blackout":
        return Blackout(Deaths(), V, (N,))
    if name == "blackout_scaled":
        return Blackout(Deaths(), V, (N,), output="scaled", loss="finite_time")
    if name == "markov":
        return MarkovDiffusion(transformer(), V, (N,))
    recipe = Recipe(stage1_steps=10, token_loss="elbo" if name == "fuji" else "plain")
    return small_lddm.small(FujiLDDM if name == "fuji" else SeqLDDM, recipe=recipe)


def losses_of(model: Family, switch: bool) -> list[float]:
    model.fused = switch
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x = torch.randint(model.num_classes, (13, N), generator=torch.Generator().manual_seed(1))
    found = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model.loss(x, step=step)
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


FAMILIES = ["md4", "md4_bias", "genmd4", "ar", "ggm", "hollow_ce_x0 of 1", "fuji", "seq", "blackout", "blackout_scaled"]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_curve(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    functions = ((fused, "masked_linear_cross_entropy"), (fused, "token_logits"), (readout, "softplus_loss"))
    for module, function in functions:
        whole = getattr(module, function)
        monkeypatch.setattr(module, function, lambda *a, f=whole, **k: calls.append(1) or f(*a, **k))
    model = family(name)
    plain = losses_of(copy.deepcopy(model), switch=False)
    assert not calls
    fast = losses_of(model, switch=True)
    assert len(calls) == STEPS
    assert all(math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6) for a, b in zip(plain, fast, strict=True))
    assert plain[0] != plain[-1]  # something was learnt


def test_control_weights_on_the_wrong_rows_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = family("md4")
    plain = losses_of(copy.deepcopy(model), switch=False)
    weight = MD4.weight
    monkeypatch.setattr(MD4, "weight", lambda self, t: weight(self, t).flip(0))
    wrong = losses_of(model, switch=True)
    assert max(abs(a / b - 1) for a, b in zip(plain, wrong, strict=True)) > 1e-3


@pytest.mark.parametrize("name", ["md4", "genmd4", "ar", "fuji"])
def test_the_bound_is_the_same_without_logits(name: str) -> None:
    model = family(name)
    x = torch.randint(model.num_classes, (3, N), generator=torch.Generator().manual_seed(2))
    bounds = []
    for switch in (False, True):
        model.fused = switch
        bounds.append(model.nelbo(x, num_samples=3))
    torch.testing.assert_close(*bounds, rtol=1e-6, atol=1e-6)


def test_few_classes_are_not_fused_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    network = transformer()
    assert not readout.takes_fused(network, None)
    assert readout.takes_fused(network, True)
    monkeypatch.setattr(fused, "MIN_CLASSES", V)
    assert readout.takes_fused(network, None)
    assert not readout.takes_fused(network, False)
    assert not readout.takes_fused(Deaths(), True)  # no linear head to fuse with
