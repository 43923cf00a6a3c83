"""Seeded faults of what is drawn of the bound and of the loss, and of what is no number at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ggm_lightning.core.schedules import Linear
from ggm_lightning.exact import Disproved, prove
from ggm_lightning.exact.networks import Equal
from ggm_lightning.models.base import Family
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.md4 import MD4
from tests.exact.test_faults import LAW, N, V, md4


class WrongSignOfCounts(MD4):
    """Of the other estimator alone."""

    def count_terms(self, *args: Any, **more: Any) -> Tensor:
        return -super().count_terms(*args, **more)


class ErrorOfSites(MD4):
    """The states are handed on per site."""

    def nelbo(self, *args: Any, states: list[Tensor] | None = None, **more: Any) -> Tensor:
        found = super().nelbo(*args, states=states, **more)
        if states is not None:
            states[-1] = states[-1] / self.num_sites
        return found


class NoNumber(MD4):
    """A weight that is 0 / 0, as of a schedule whose alpha ends there."""

    def weight(self, t: Tensor) -> Tensor:
        return super().weight(t) * torch.nan


class NoNumberOfOne(MD4):
    """The bound of a single x, and the terms of a single state."""

    def nelbo(self, x: Tensor, *args: Any, **more: Any) -> Tensor:
        return torch.where((x == 2).all(1), torch.nan, super().nelbo(x, *args, **more))

    def count_terms(self, x: Tensor, *args: Any, **more: Any) -> Tensor:
        return torch.where((x == 2).all(1), torch.nan, super().count_terms(x, *args, **more))


@pytest.mark.parametrize(
    ("wrong", "failed"),
    [
        (WrongSignOfCounts, ["estimator counts"]),
        (ErrorOfSites, ["error", "error counts"]),
    ],
)
def test_both_estimators_and_their_errors_are_looked_at(wrong: type[MD4], failed: list[str]) -> None:
    only = ("estimator", "error")
    right = prove(md4(schedule=Linear(0.0)), LAW, only=only, num_samples=5_000)
    assert [check.name for check in right] == ["estimator", "estimator counts", "error", "error counts"]
    assert 0.5 < right["error"].deviation <= 1.15
    with pytest.raises(Disproved) as found:
        prove(md4(wrong, schedule=Linear(0.0)), LAW, only=only, num_samples=5_000)
    assert [check.name for check in found.value.proof.failed] == failed


def of_loss(kind: type[Family], factor: float) -> Family:
    """A family whose training loss, and nothing else, is `factor` times what it should be."""

    class Wrong(kind):  # type: ignore[misc, valid-type]
        def training_loss(self, *args: Any, **more: Any) -> Tensor:
            return factor * super().training_loss(*args, **more)

    return Wrong(Equal(V), V, (N,))


@pytest.mark.parametrize(
    ("kind", "factor", "failed"),
    [
        (MD4, -1, ["loss", "loss rises"]),
        (MD4, 2, ["loss"]),
        pytest.param(GenMD4, 0.5, ["loss"], marks=pytest.mark.slow),
        (GGM, -1, ["loss rises"]),  # in nats of a classification: its unit is not known, its lowest point is
        pytest.param(Blackout, -1, ["loss rises"], marks=pytest.mark.slow),
    ],
)
def test_a_wrong_training_loss_is_found(kind: type[Family], factor: float, failed: list[str]) -> None:
    assert prove(of_loss(kind, 1), LAW, only=("loss",), num_samples=1_000).passed
    proof = prove(of_loss(kind, factor), LAW, True, ("loss",), num_samples=1_000)
    assert [check.name for check in proof.failed] == failed
    if factor == 2:
        assert "it is 2" in proof["loss"].often or "it is 1.9" in proof["loss"].often


@pytest.mark.parametrize("wrong", [NoNumber, NoNumberOfOne])
def test_what_is_no_number_fails(wrong: type[MD4]) -> None:
    """Of all x, and of one: no comparison with NaN is true, and a largest deviation would miss it."""
    only = ("terms", "bound", "equal", "estimator")
    assert prove(md4(num_timesteps=4), LAW, only=only, num_samples=1_000).passed
    proof = prove(md4(wrong, num_timesteps=4), LAW, True, only, num_samples=1_000)
    assert {"bound", "equal", "estimator"} <= {check.name for check in proof.failed}
    assert proof["terms"].passed == (wrong is NoNumberOfOne)
