"""What `lightning evaluate` says of a model whose answer is known, by each estimator, and of its own error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ggm_lightning.cli.evaluate import Settings, nats_of_rows
from ggm_lightning.data.rows import Rows
from ggm_lightning.models.md4 import MD4
from tests.cli.test_evaluate import independent

N, V = 5, 7
LAW = torch.from_numpy(np.random.default_rng(3).dirichlet(np.ones(V), N)).float()
X = torch.stack(
    [torch.multinomial(LAW[i], 1000, True, generator=torch.Generator().manual_seed(i)) for i in range(N)], 1
)
TRUE = -torch.stack([LAW[i, X[:, i]].double().log() for i in range(N)]).sum(0)


@pytest.fixture(scope="module")
def model() -> MD4:
    return independent(LAW)


def errors(model: MD4, estimator: str) -> Tensor:
    return nats_of_rows(model, Rows(X.numpy()), Settings("val", 4, 0, 1000, None, estimator)) - TRUE


def test_masks_of_a_drawn_size_have_the_same_mean_and_less_noise(model: MD4) -> None:
    found = {estimator: errors(model, estimator) for estimator in model.estimators}
    for error in found.values():
        assert abs(float(error.mean())) < 4 * float(error.std() / math.sqrt(len(X))) + 1e-3
    assert float(found["counts"].var()) < float(found["times"].var()) / 3
