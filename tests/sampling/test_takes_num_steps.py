"""What samplers say of num_steps, on which sweeps rely: one that does not take it draws the same with any number."""

from __future__ import annotations

import pytest
import torch

from ggm_lightning.sampling import naming
from tests.models.every_family import FAMILIES, LABELS

OPTIONS: list[dict[str, float]] = [{}, {"k": 2}, {"gamma": 0.1}]


@pytest.mark.parametrize("family", ["md4", "ar", "ggm", "ggm, all sites"])
def test_samples_of_few_and_many_steps(family: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]()
    for weight in model.parameters():  # as they are made, the logits are all 0
        weight.data += 0.3 * torch.randn_like(weight)
    label = torch.arange(6) % LABELS
    said = {}
    for name in model.samplers:
        if name == "corrected":  # for hollow networks
            continue
        for options in OPTIONS if name == "ordered" else OPTIONS[:1]:
            made, _ = naming.chosen(model, name, options)
            drawn = [model.sample(6, steps, label=label, sampler=name, seed=3, **options).x for steps in (9, 30)]
            said[name, tuple(options)] = made.takes_num_steps
            if not made.takes_num_steps:
                assert torch.equal(*drawn), (name, options)
            elif name in ("ancestral", "parallel"):
                assert not torch.equal(*drawn), (name, options)  # control
    if ("ordered", ("k",)) in said:
        assert said["ordered", ()]
        assert not said["ordered", ("k",)]
        assert not said["ordered", ("gamma",)]
