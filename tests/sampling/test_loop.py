"""The sampling loop on a family of its own: it knows the protocol (prior, reverse_law, finish) and nothing of masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from ggm_lightning.core.categorical import PLAIN, Sharpening
from ggm_lightning.sampling import naming
from ggm_lightning.sampling.loop import run
from ggm_lightning.sampling.request import TRACED, Samples, checked
from ggm_lightning.sampling.reverse import Reverse

B, SHAPE, V, STEPS = 3, (2, 5), 7, 4


class Counting:
    """Every step adds one to each site and records what it was asked."""

    samplers: ClassVar = {"counting": Reverse}
    refused_samplers: ClassVar = {"guessing": "it is wrong; use counting"}
    denoiser_options: ClassVar = {}
    grids, mask_id, schedule = ("cosine", "uniform"), None, None

    def __init__(self) -> None:
        self.device, self.shape, self.num_classes, self.num_sites = torch.device("cpu"), SHAPE, V, 10
        self.network_calls, self.rows_sent, self.network = 0, 0, object()
        self.other_calls: Counter[str] = Counter()
        self.times: list[tuple[float, float]] = []
        self.uniforms: list[Tensor] = []

    def prior_sample(self, num_samples: int, uniform: object = None) -> Tensor:
        return torch.zeros(num_samples, *SHAPE, dtype=torch.long)

    def moving(self, zt: Tensor) -> None:
        return None

    def reverse_law(
        self, zt: Tensor, t: Tensor, s: Tensor, label: Tensor | None, sharpening: Sharpening = PLAIN
    ) -> SimpleNamespace:
        self.network_calls += 1
        self.rows_sent += len(zt)
        self.times.append((float(t[0]), float(s[0])))

        def draw(uniform: Callable[[str], Tensor]) -> Tensor:
            self.uniforms.append(uniform("value"))
            return zt.flatten(1) + 1

        return SimpleNamespace(draw=draw)

    def finish(self, z: Tensor, label: Tensor | None, uniform: object, sharpening: Sharpening) -> Tensor:
        return z % V


def sample(model: Counting, num_steps: int = STEPS, sampler: object = None, **options: object) -> Samples:
    chosen = naming.chosen(model, sampler, {})[0]
    return run(model, checked(model, B, num_steps, **{"trace": True, "grid": "uniform", **options}), chosen)


def test_steps_times_trace_and_calls() -> None:
    model = Counting()
    drawn = sample(model)
    assert model.times == [(1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)]
    assert drawn.network_calls == STEPS
    assert drawn.rows == STEPS * B
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


def test_a_long_trace_is_thinned_and_ends_in_the_sample() -> None:
    drawn = sample(Counting(), num_steps=2 * TRACED + 1)
    assert [int(state[0, 0, 0]) for state in drawn.trace][:4] == [0, 3, 6, 9]
    assert len(drawn.trace) <= TRACED + 1
    assert torch.equal(drawn.trace[-1], drawn.x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps is 0; it must be at least 1"),
        ({"sampler": "other"}, "sampler 'other' is unknown to Counting; it has only counting"),
        ({"sampler": "guessing"}, "sampler 'guessing' is refused: it is wrong; use counting"),
        ({"grid": "linear"}, "grid 'linear' is unknown to Counting; choose cosine or uniform"),
        (
            {"clamp": (torch.full((3, 5), 0), torch.ones(SHAPE).bool())},
            r"values have shape \(3, 5\); the model needs",
        ),
        (
            {"clamp": (torch.full(SHAPE, 0), torch.ones(2, *SHAPE).bool())},
            r"mask have shape \(2, 2, 5\); the model",
        ),
        ({"clamp": (torch.full(SHAPE, 0), torch.ones(SHAPE))}, "the mask is torch.float32; it must be bool"),
        ({"clamp": (torch.full(SHAPE, V), torch.ones(SHAPE).bool())}, r"known values lie in 7\.\.7, not 0\.\.6"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(Counting(), **options)


def test_values_of_unknown_sites_do_not_matter() -> None:
    known = torch.zeros(SHAPE, dtype=torch.bool)
    drawn = sample(Counting(), clamp=(torch.full(SHAPE, V), known))
    assert torch.equal(drawn.x, sample(Counting()).x)
