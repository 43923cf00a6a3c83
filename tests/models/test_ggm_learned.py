"""E8: the exact law of a learned chain on 27 states, for the paper's loss and both cross-entropies."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.exact import glauber
from ggm_lightning.exact.states import total_variation
from ggm_lightning.models.ggm import GGM
from tests.models.chain_law import LAW, STATES, N, V

R, HIDDEN, BATCH, STEPS = 4, 64, 1024, 4000


class Perceptron(nn.Module):
    """Two hidden layers on one-hot tokens, visited bits and sweep."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (N * (V + 1) + N + R, HIDDEN, HIDDEN)
        layers = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.SiLU())]
        self.inner, self.head = nn.Sequential(*layers), nn.Linear(HIDDEN, N * V)

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
        sweep = (t * R).round().long()
        known = [nn.functional.one_hot(z, V + 1).flatten(1), visited, nn.functional.one_hot(sweep, R)]
        return self.head(self.inner(torch.cat(known, 1).float())).reshape(-1, N, V)


def train(loss: str, steps: int, seed: int = 0) -> GGM:
    torch.manual_seed(seed)
    model = GGM(Perceptron(), V, (N,), loss=loss, num_sweeps=R, last_survival=0.02, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        x = STATES[torch.multinomial(LAW, BATCH, replacement=True, generator=generator)]
        optimizer.zero_grad()
        model.loss(x, step=step).backward()
        optimizer.step()
        schedule.step()
    return model


def learned(model: GGM, sampler: str = "heat_bath") -> float:
    with torch.no_grad():
        return total_variation(glauber.reverse(model, glauber.noise_law(model), sampler), LAW)


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "most"), [("bce", 0.04), ("ce_xt", 0.02), ("ce_x0", 0.02)])
@pytest.mark.parametrize("seed", [0])
def test_e8_learned_chains_have_the_law(loss: str, most: float, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    model = train(loss, STEPS, seed)
    errors = [learned(model, sampler) for sampler in ("heat_bath", "gated")]
    deviation = model._estimate(STATES, None, 50, 0, None)[1].mean()
    with capsys.disabled():
        print(
            f"\n{loss} seed {seed}: TV heat bath {errors[0]:.4f}, gated {errors[1]:.4f}, calibration {deviation:+.4f}"
        )
    assert errors[0] < most
    assert loss != "bce" or abs(deviation) < 0.05


def test_a_tenth_of_the_training_is_on_the_way() -> None:
    """The fast version: half-way in a tenth of the steps; the untrained chain is far off."""
    assert learned(train("ce_x0", STEPS // 10)) < 0.06
    assert learned(train("bce", 0)) > 0.4
