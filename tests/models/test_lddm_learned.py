"""T7: learned LDDMs on four equal tokens, with and without the recipe. T8: the sawtooth's line to beat."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ggm_lightning.core.schedules import Linear
from ggm_lightning.data.toy.synthetic import Sawtooth
from ggm_lightning.models.lddm import SeqLDDM
from ggm_lightning.models.lddm_stages import Recipe
from ggm_lightning.models.md4 import MD4

N, V, D, STEPS, BATCH = 4, 4, 2, 2500, 256  # x = (c, c, c, c), c uniform


def perceptron(inputs: int, outputs: int, width: int = 128) -> nn.Sequential:
    sizes = (inputs, width, width)
    hidden = [layer for i, o in itertools.pairwise(sizes) for layer in (nn.Linear(i, o), nn.SiLU())]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


def waves(t: Tensor) -> Tensor:
    return torch.cat([t[:, None], *(f(math.pi * k * t[:, None]) for k in (1, 2, 4) for f in (torch.sin, torch.cos))], 1)


class Encoder(nn.Module):
    num_latents, latent_dim = 1, D

    def __init__(self, normalise: str) -> None:
        super().__init__()
        self.inner, self.normalise = perceptron(N * V, D), normalise
        self.register_buffer("mean", torch.zeros(1, D))
        self.register_buffer("std", torch.zeros(1, D))

    def raw(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        shown = F.one_hot(x, V).float()
        if hidden is not None:
            shown = shown * ~hidden[..., None]
        return self.inner(shown.flatten(1)).reshape(-1, 1, D)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        raw = self.raw(x, hidden)
        if self.normalise == "none":
            return raw
        mean, std = (self.mean, self.std) if self.std.any() else (raw.mean(0), raw.std(0))
        return (raw - mean) / (std + 1e-4)


class Joint(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron(N * (V + 1) + D + 14, N * V)

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, *, latent: Tensor, latent_time: Tensor):
        known = [F.one_hot(z, V + 1).float().flatten(1), latent.flatten(1), waves(t), waves(latent_time)]
        return self.inner(torch.cat(known, 1)).reshape(-1, N, V), torch.zeros_like(latent)


class OfLatent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron(D + 7, D)

    def forward(self, latent: Tensor, latent_time: Tensor, label: Tensor | None = None) -> Tensor:
        return self.inner(torch.cat([latent.flatten(1), waves(latent_time)], 1)).reshape(-1, 1, D)


class EndToEnd(SeqLDDM):
    """No recipe: tokens see the latent without noise, and the latent's loss reaches the encoder from the start."""

    def learning(self, step: int) -> tuple[bool, bool]:
        return True, True


def train(family: type[SeqLDDM], normalise: str, steps: int, seed: int = 0) -> SeqLDDM:
    torch.manual_seed(seed)
    staged = family is SeqLDDM
    # seen through noise, codes move apart; of seven seeds without it one left two codes together (valid .93, TV .12)
    seen = {"stage1_latent": "all_levels"}
    recipe = Recipe(stage1_steps=steps // 2 if staged else 1, token_loss="plain", p_r=0.0, p_cfg=0.0, **seen)
    parts = (Joint(), Encoder(normalise), OfLatent(), V, (N,))
    model = family(*parts, recipe=recipe, max_snr=64.0 if staged else None, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        if staged and step == steps // 2:
            model.freeze_encoder([torch.arange(V)[:, None].expand(V, N)])
        x = torch.randint(V, (BATCH, 1), generator=generator).expand(BATCH, N)
        optimizer.zero_grad()
        model.loss(x, step=step).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def judged(model: SeqLDDM, count: int = 20_000) -> tuple[float, float, float]:
    """(share of valid samples of one token step, total variation of their c, mean deviation of the raw latent)."""
    x = model.sample(count, 1, latent_steps=32).x
    valid = (x == x[:, :1]).all(1)
    share = x[valid, 0].bincount(minlength=V) / max(1, int(valid.sum()))
    with torch.no_grad():
        raw = model.encoder.raw(torch.arange(V)[:, None].expand(V, N))
    return float(valid.double().mean()), 0.5 * float((share - 1 / V).abs().sum()), float(raw.std(0).mean())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_t7_two_stages_with_a_normalised_latent(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    valid, distance, _ = judged(train(SeqLDDM, "coordinate", STEPS, seed))
    with capsys.disabled():
        print(f"\ntwo stages, seed {seed}: valid {valid:.3f}, TV {distance:.3f}")
    assert valid >= 0.95
    assert distance <= 0.06


@pytest.mark.slow
def test_t7_control_end_to_end_collapses(capsys: pytest.CaptureFixture[str]) -> None:
    valid, _, spread = judged(train(EndToEnd, "none", STEPS))
    with capsys.disabled():
        print(f"\nend to end: valid {valid:.3f}, latent std {spread:.3f}")
    assert spread < 0.1
    assert valid < 0.8


def test_a_tenth_of_the_training_is_on_the_way() -> None:
    """The fast version; masked diffusion with exact conditionals has .016 valid in one step."""
    valid, distance, _ = judged(train(SeqLDDM, "coordinate", STEPS // 10), 4000)
    assert valid > 0.4
    assert distance < 0.4


class ExactSawtooth(nn.Module):
    """p(x_i | visible bits) by summing over the phase."""

    def __init__(self, source: Sawtooth, phases: int = 512) -> None:
        super().__init__()
        p = source.probabilities((torch.arange(phases, dtype=torch.float64) + 0.5) / (phases * source.saws)).float()
        self.p, self.one, self.zero = p, p.log().T.contiguous(), torch.log1p(-p).T.contiguous()

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        posterior = ((z == 1).float() @ self.one + (z == 0).float() @ self.zero).softmax(-1)
        p = posterior @ self.p
        return torch.stack([torch.log1p(-p), p.log()], -1)


def sawtooth_nats(num_steps: int, count: int = 2048) -> float:
    source = Sawtooth()
    model = MD4(ExactSawtooth(source), 2, (source.length,), schedule=Linear(0.0))
    return -float(source.log_likelihood(model.sample(count, num_steps, grid="uniform").x).mean())


@pytest.mark.parametrize(
    ("num_steps", "nats"), [(1, 112.0), (2, 89.7), (4, 77.6), pytest.param(8, 72.4, marks=pytest.mark.slow)]
)
def test_t8_masked_diffusion_with_exact_conditionals(num_steps: int, nats: float) -> None:
    assert sawtooth_nats(num_steps, 8192) == pytest.approx(nats, abs=0.3)  # standard error below .1


@pytest.mark.slow
@pytest.mark.parametrize(("num_steps", "nats"), [(16, 69.9), (32, 68.8), (128, 68.0)])
def test_t8_many_steps(num_steps: int, nats: float) -> None:
    assert sawtooth_nats(num_steps) == pytest.approx(nats, abs=0.3)


def test_t8_entropy() -> None:
    mean, stderr = Sawtooth().entropy_estimate(seed=3)
    assert mean == pytest.approx(67.90, abs=0.1 + 2 * stderr)
    assert np.isfinite(stderr)
