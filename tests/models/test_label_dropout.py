"""Labels are dropped at the rate that was asked for, in every family (classifier-free guidance)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ggm_lightning.core import noise
from ggm_lightning.models.base import Family
from tests.models.every_family import FAMILIES, LABELS, N, V, small

ROWS = 997


def labels_seen(model: Family, label: Tensor | None, step: int) -> list[Tensor]:
    """What each of the model's networks was given as label in one training step."""
    asked: list[Tensor] = []
    for module in model.modules():
        if module.__class__.__name__ == "Conditioning" and module.label_table is not None:
            module.label_table.register_forward_pre_hook(lambda table, given: asked.append(given[0]))
    x = torch.randint(V, (ROWS, N), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.loss(x, label, step=step)
    # the calls of two rows look at whether a network is causal
    return [given for given in asked if len(given) >= ROWS]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_exactly_the_rows_below_the_rate_lose_their_label(name: str, rate: float) -> None:
    label = torch.arange(ROWS) % LABELS
    u = noise.uniform("label", seed=0, step=4, row=torch.arange(ROWS), num_sites=1)[:, 0]
    dropped = u < rate
    expected = torch.where(dropped, LABELS, label)
    seen = labels_seen(small(name, label_dropout=rate), label, 4)
    # the latent's network is told, too; a hollow network is asked twice more, whether it is hollow
    assert len(seen) == {"seq": 2, "diladd": 2, "ggm, all sites": 3}.get(name, 1)
    for given in seen:  # GenMD4 asks for two states of each row
        assert torch.equal(given, expected.repeat(len(given) // ROWS))
    # the share itself, within 4 standard errors; 0 and 1 exactly. Control: the other way round
    error = 4 * (rate * (1 - rate) / ROWS) ** 0.5
    assert abs(float(dropped.double().mean()) - rate) <= error
    assert abs(float((~dropped).double().mean()) - rate) > 10 * error


def test_without_labels_every_row_is_of_the_null_class() -> None:
    (given,) = labels_seen(small("md4", label_dropout=0.1), None, 4)
    assert given.unique().tolist() == [LABELS]
