"""The sampling loop on a family of its own: it knows the protocol (prior, reverse_law, finish) and nothing of masks."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ggm_lightning.sampling.loop import run

B, SHAPE, V, STEPS = 3, (2, 5), 7, 4


class Counting:
    """Every step adds one to each site and records what it was asked."""

    def __init__(self) -> None:
        self.device, self.shape, self.num_classes, self.num_sites = torch.device("cpu"), SHAPE, V, 10
        self.network_calls = 0
        self.times: list[tuple[float, float]] = []
        self.uniforms: list[Tensor] = []

    def prior_sample(self, num_samples: int) -> Tensor:
        return torch.zeros(num_samples, *SHAPE, dtype=torch.long)

    def reverse_law(
        self, zt: Tensor, t: Tensor, s: Tensor, label: Tensor | None, temperature: float, top_p: float
    ) -> SimpleNamespace:
        self.network_calls += 1
        self.times.append((float(t[0]), float(s[0])))

        def draw(uniform: Callable[[str], Tensor]) -> Tensor:
            self.uniforms.append(uniform("value"))
            return zt.flatten(1) + 1

        return SimpleNamespace(draw=draw)

    def finish(self, z: Tensor, label: Tensor | None, uniform: object, temperature: float, top_p: float) -> Tensor:
        return z % V


def sample(model: Counting, **options: object) -> object:
    arguments = {
        "label": None, "clamp": None, "temperature": 1.0, "top_p": 1.0, "seed": 0, "trace": True, "grid": "uniform",
        "row": None, "progress": False,
    }  # fmt: skip
    return run(model, B, STEPS, **{**arguments, **options})


def test_steps_times_trace_and_calls() -> None:
    model = Counting()
    drawn = sample(model)
    assert model.times == [(1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)]
    assert drawn.network_calls == STEPS
    assert [int(state[0, 0, 0]) for state in drawn.trace] == [0, 1, 2, 3, 4]
    assert drawn.x.shape == (B, *SHAPE)
    assert sample(Counting(), trace=False).trace is None


def test_each_step_and_row_has_its_own_uniforms() -> None:
    model = Counting()
    sample(model)
    stacked = torch.stack(model.uniforms)
    assert len(stacked.flatten().unique()) == stacked.numel()
    other = Counting()
    sample(other, row=torch.tensor([2, 0, 1]))
    assert torch.equal(torch.stack(other.uniforms)[:, 0], stacked[:, 2])


def test_clamped_sites_keep_their_values_throughout() -> None:
    values, mask = torch.full(SHAPE, 6), torch.zeros(SHAPE, dtype=torch.bool)
    mask[1, 2:] = True
    drawn = sample(Counting(), clamp=(values, mask))
    for state in drawn.trace:
        assert (state[:, 1, 2:] == 6).all()
    assert (drawn.x[:, 0] == STEPS).all()


def test_a_wrong_number_of_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row has shape \(2,\); one number per sample is needed, \[3\]"):
        sample(Counting(), row=torch.arange(2))
