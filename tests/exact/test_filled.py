"""What samplers fill in beside the model's own conditional law, with exact networks: both are known."""

from __future__ import annotations

import pytest
import torch

from ggm_lightning.core.schedules import Linear
from ggm_lightning.exact import JointLaw, filled, glauber
from ggm_lightning.exact.networks import Causal, HollowMasked
from ggm_lightning.exact.states import total_variation
from ggm_lightning.models.autoregressive import AutoregressiveModel
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.md4 import MD4

V, N = 3, 4
LAW = JointLaw.random(N, V, seed=0)
ROW = torch.tensor([1, 0, 0, 2])


def conditional(sites: list[int]) -> torch.Tensor:
    known = torch.ones(N, dtype=torch.bool)
    known[sites] = False
    law = LAW.given((ROW, known))
    return law[((LAW.x == ROW) | ~known).all(-1)]


def ggm(**options: object) -> GGM:
    return glauber.with_network(LAW, glauber.Hidden(LAW), **{"block_size": N, "num_sweeps": 8, **options})


def test_the_reference_is_the_conditional_law() -> None:
    """Exactly, of masks and from left to right; GGM's sweep 0 has a little noise. Control: other sites."""
    two = conditional([1, 2])
    masked, causal = MD4(HollowMasked(LAW), V, (N,), Linear(0.0)), AutoregressiveModel(Causal(LAW), V, (N,))
    assert total_variation(filled.reference(masked, ROW, [1, 2]), two) < 1e-12
    assert total_variation(filled.reference(causal, ROW, [2, 3]), conditional([2, 3])) < 1e-6
    assert total_variation(filled.reference(ggm(), ROW, [1, 2]), two) < 0.15
    assert total_variation(two, conditional([0, 3])) > 0.2
    masked.schedule = None
    assert filled.reference(masked, ROW, [1, 2]) is None  # of other families the network says no such law


@pytest.mark.filterwarnings("ignore:sampler 'parallel'")
def test_hide_block_shows_and_exact_samplers_do_not() -> None:
    blocks = ggm(hide="block")
    blocks.samplers = {"parallel": blocks.samplers["parallel"]}
    found, own = filled.measured(blocks, ROW, [1, 2], 1_000, 8)
    assert own
    assert found[0].distance > 0.15
    assert found[0].verdict == "an error of the sampler"
    masked = MD4(HollowMasked(LAW), V, (N,), Linear(0.0))
    masked.samplers = {name: masked.samplers[name] for name in ("first_hitting", "ordered")}
    found, own = filled.measured(masked, ROW, [1, 2], 2_000, 16)
    assert own
    assert {one.verdict for one in found} == {"as exact draws"}
    assert found[0].floor < 0.05


def test_how_many_sites() -> None:
    assert [filled.number_of_sites(V, 9, 4_000) for V in (3, 10, 64, 5_000)] == [3, 2, 1, 0]
