"""Blackout against the numbers of the official code: network input, losses with gradients, both published samplers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.core import death
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.trained import Optimizer

CASES = {"cifar": (15.0, 255), "mnist": (10.0, 1)}


class Recorded(nn.Module):
    """A network that returns what was recorded and keeps what it was given."""

    def __init__(self, raw: Tensor) -> None:
        super().__init__()
        self.raw = nn.Parameter(raw)

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        self.z, self.t = z, t
        return self.raw


@pytest.fixture(scope="module")
def arrays(oracles: Path) -> np.lib.npyio.NpzFile:
    return np.load(oracles / "blackout_oracle.npz")


def model_of(raw: np.ndarray, name: str, **kwargs: object) -> Blackout:
    t_end, cap = CASES[name]
    return Blackout(Recorded(torch.from_numpy(raw)), cap + 1, tuple(raw.shape[1:]), t_end=t_end, **kwargs)


def roundings(model: Blackout, x: Tensor, zt: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """How far two float32 computations of w (y - m ln y) and of its gradient w sigma(o) (1 - m/y) may lie apart:
    (of an image's mean, of the gradient), float64.

    Both are differences of two parts that may cancel, so that the parts' size counts: each is a handful of roundings of
    2^-24, and 16 of them are allowed on y + m |ln y| and on 1 + m/y. (A relative tolerance would depend on how close m
    and y happen to come to each other in the recorded set.)
    """
    raw = model.network.raw.detach().double()
    y, sigma, m = nn.functional.softplus(raw), torch.sigmoid(raw), (x - zt).double()
    weight = death.finite_time_weight(t, s)
    if model.objective == "instantaneous":
        weight = model.num_timesteps * death.instantaneous_weight(t, s)
    allowed = 16 * 2.0**-24 * weight[:, None, None, None]
    of_loss = allowed * (y + m * y.log().abs())
    return of_loss.mean((1, 2, 3)), allowed * sigma * (1 + m / y) / raw.numel()


@pytest.mark.parametrize(("name", "kind"), [("cifar", "inst"), ("cifar", "fin"), ("mnist", "inst")])
def test_loss_and_gradient(arrays: np.lib.npyio.NpzFile, name: str, kind: str) -> None:
    """On the official times (from a bisection), so that nothing but the formulas is compared."""
    loss = {"inst": "instantaneous", "fin": "finite_time"}[kind]
    model = model_of(arrays[f"{name}_{kind}_loss_raw"], name, loss=loss, official=True)
    times = torch.cat([torch.zeros(1).double(), torch.from_numpy(arrays[f"{name}_obs_times"])])
    k = torch.from_numpy(arrays[f"{name}_noise_tidx"])
    t, s = times[k + 1], times[k]
    netin = torch.from_numpy(arrays[f"{name}_noise_netin"])
    zt = torch.round(netin + model.cap / 2 * torch.exp(-t)[:, None, None, None]).long()
    x = zt + torch.from_numpy(arrays[f"{name}_noise_target"]).long()
    per_image = model.training_terms(x, zt, t, s)
    value = per_image.mean()
    value.backward()
    assert torch.equal(model.network.z, netin)
    assert (model.network.t - k).abs().max() < 1e-3  # the bisection again
    off_loss, off_gradient = roundings(model, x, zt, t, s)
    official = torch.from_numpy(arrays[f"{name}_{kind}_loss_perpixel"]).mean((1, 2, 3))
    assert bool(((per_image.detach() - official).abs() <= off_loss).all())
    assert abs(float(value.detach()) - float(arrays[f"{name}_{kind}_loss"])) <= float(off_loss.mean())
    gradient = torch.from_numpy(arrays[f"{name}_{kind}_loss_grad_raw"]).double()
    assert bool(((model.network.raw.grad.double() - gradient).abs() <= off_gradient).all())
    wrong = model.training_terms(x, zt, t, torch.zeros_like(s)).detach()  # control: no observation time before this one
    assert bool(((wrong - official).abs() > 1000 * off_loss).any())
    assert bool(((gradient * (wrong / official)[:, None, None, None] - gradient).abs() > 10 * off_gradient).any())


def test_the_scale_of_the_finite_time_loss_is_the_switch(arrays: np.lib.npyio.NpzFile) -> None:
    raw = arrays["cifar_fin_loss_raw"]
    x = torch.randint(0, 256, raw.shape, generator=torch.Generator().manual_seed(0))
    official, ours = (model_of(raw, "cifar", loss="finite_time", official=o).loss(x, step=0) for o in (True, False))
    assert float(ours / official) == pytest.approx(1000, rel=1e-9)


class Dense(nn.Module):
    """The stub of the recorded training: a 1x1 convolution plus 0.001 k."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        assert (t - t.round()).abs().max() < 1e-3  # the observation times are from a bisection
        raw = torch.einsum("oc,bchw->bohw", self.weight, z) + self.bias[:, None, None]
        return raw + 0.001 * t.round()[:, None, None, None]


@pytest.mark.parametrize(("lr", "follows"), [(2e-4, True), (2.2e-4, False)])
def test_five_steps_of_training(arrays: np.lib.npyio.NpzFile, lr: float, follows: bool) -> None:
    """Loss, gradient and Adam together, from the official images and noise; the wrong learning rate is the control."""

    def get(key: str) -> Tensor:
        return torch.from_numpy(arrays[f"cifar_train5_{key}"])

    network = Dense(get("w")[0], get("b")[0])
    model = Blackout(network, 256, (3, 4, 4), official=True, optimizer=Optimizer(lr=lr, decay="constant"))
    o = model.optimizer
    adam = torch.optim.AdamW(model.parameter_groups(), o.lr, o.betas, o.eps, o.weight_decay)
    times = torch.cat([torch.zeros(1).double(), torch.from_numpy(arrays["cifar_obs_times"])])
    for j, (image, netin, k) in enumerate(zip(get("img"), get("netin"), get("tidx"), strict=True)):
        t = times[k + 1]
        zt = torch.round(netin + 127.5 * torch.exp(-t)[:, None, None, None]).long()
        x = torch.round(255 * image).long().permute(0, 3, 1, 2)
        loss = model.training_terms(x, zt, t, times[k]).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        assert not follows or float(loss.detach()) == pytest.approx(float(get("losses")[j]), rel=1e-6)
        gaps = [network.weight.detach() - get("w")[j + 1], network.bias.detach() - get("b")[j + 1]]
        gap = max(float(part.abs().max()) for part in gaps)
        # a handful of roundings of numbers up to 1 in each step
        assert (gap < 16 * 2.0**-24) == follows, gap


@pytest.mark.parametrize("name", CASES)
def test_own_times_have_whole_indices(name: str) -> None:
    model = model_of(np.zeros((1000, 1), np.float32), name)
    zt = torch.zeros(1000, 1).long()
    model.answer(zt, model.grid[1:], None)
    assert torch.equal(model.network.t, torch.arange(1000).float())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("short", "sampler"), [("bb", "rounded"), ("tl", "poisson")])
def test_every_recorded_step_of_the_samplers(arrays: np.lib.npyio.NpzFile, name: str, short: str, sampler: str) -> None:
    def get(key: str) -> np.ndarray:
        return arrays[f"{name}_{short}_{key}"]

    for j in range(len(get("i"))):
        model = model_of(get("raw")[j], name)
        t, s = (torch.full((2,), float(get(key)[j]), dtype=torch.float64) for key in ("t", "s"))
        before = torch.from_numpy(get("state_before")[j]).long()
        law = model.reverse_law(before, t, s, sampler=sampler)
        # counts up to 255, of which each side rounds once or twice
        np.testing.assert_allclose(model.network.z.numpy(), get("netin")[j], rtol=0, atol=2 * 2.0**-24 * 256)
        np.testing.assert_allclose(law.y.detach().reshape(before.shape), get("y")[j], rtol=1e-6)
        if short == "bb":
            trials = torch.minimum(law._trials()[0], law.cap - law.zt).reshape(before.shape)
            assert np.array_equal(trials.numpy(), get("N")[j])
            assert float(law.pi[0]) == pytest.approx(float(get("p")[j]), rel=1e-12)
        else:
            rate = (law.pi[:, None] * law.y).detach().reshape(before.shape)
            np.testing.assert_allclose(rate, get("lam")[j], rtol=1e-6)
        # what was drawn is possible, and leads to the recorded state when stopped at the cap
        after = torch.from_numpy(get("state_after")[j]).long()
        assert torch.equal((before + torch.from_numpy(get("draw")[j]).long()).clamp(max=law.cap), after)
        assert bool((law.probs().gather(-1, after.flatten(1)[..., None]) > 0).all())
