"""What samplers fill in beside the model's own conditional law, with exact networks: both are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.core.schedules import Linear
from ggm_lightning.exact import JointLaw, chains, filled, glauber
from ggm_lightning.exact.filled_chains import Chains, of_visits
from ggm_lightning.exact.networks import Causal, HollowMasked
from ggm_lightning.exact.states import total_variation
from ggm_lightning.models.autoregressive import AutoregressiveModel
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.md4 import MD4
from ggm_lightning.sampling.plan import Ancestral
from ggm_lightning.sampling.sampler import Run, Sampler

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


class Moody(nn.Module):
    """Random weights, and what it says of a state moves with the time that it is told: a trained network's way."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        weights = torch.randn(2, N, N, V + 1, V, generator=generator, dtype=torch.float64)
        self.weights, self.strength = nn.Parameter(weights, requires_grad=False), strength

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
        one_hot = nn.functional.one_hot(z, V + 1).double()
        still, moving = torch.einsum("bnv,knmvw->kbmw", one_hot, self.weights)
        return still + self.strength * t[:, None, None] * moving


class Forgets(Ancestral):
    """The network is not shown what is known."""

    def move(self, run: Run) -> None:
        z = run.z
        run.z = torch.where(run.known, (z + 1) % V, z)
        super().move(run)


def moody(strength: float, **samplers: type[Sampler]) -> MD4:
    model = MD4(Moody(strength), V, (N,))
    model.samplers = {**{name: MD4.samplers[name] for name in ("ancestral", "first_hitting", "remasking")}, **samplers}
    return model


def test_a_network_that_moves_with_the_time_makes_no_error_of_a_sampler() -> None:
    """Its samplers are far from the chain rule, and from each other, each as its own times have it."""
    model = moody(2.0, forgets=Forgets)
    found, _ = filled.measured(model, ROW, [1, 2], 3_000, 16)
    ancestral, hitting, remasking, forgets = found
    assert ancestral.distance > ancestral.floor + 10 * ancestral.error
    assert hitting.distance > hitting.floor + 10 * hitting.error
    assert ancestral.verdict.startswith("no error: 0.0")
    assert hitting.verdict.startswith("no error: 0.0")
    assert remasking.verdict.startswith(
        "not judged: the network's answer moves with t and the order of sites by up to "
    )
    assert forgets.verdict.startswith("an error of the sampler: ")  # control
    assert forgets.own is not None
    assert forgets.own > 0.05


def test_ggm_s_kernels_are_judged_by_the_chain_of_their_visits() -> None:
    """Few sweeps do not reach what the heat bath would keep: no error of the sampler."""
    model = GGM(Moody(4.0), V, (N,), num_sweeps=1, block_size=N)
    heat_bath, gated, parallel = filled.measured(model, ROW, [1, 2], 6_000, 8)[0]
    for one in (heat_bath, gated):
        assert one.distance > one.floor + 10 * one.error
        assert one.verdict.startswith("no error: 0.0")
    assert parallel.moves == pytest.approx(gated.distance, abs=0.02)
    known = torch.ones(N, dtype=torch.bool)
    known[[1, 2]] = False
    model = GGM(Moody(4.0), V, (N,), num_sweeps=3, block_size=N)
    laws = [of_visits(model, ROW, [1, 2], kernel) for kernel in ("heat_bath", "gated")]
    for kernel, law in zip(("heat_bath", "gated"), laws, strict=True):
        whole = chains.sweeps(model, kernel, 1, (ROW, known))[((LAW.x == ROW) | ~known).all(-1)]
        assert torch.allclose(law, whole, atol=1e-12)
    assert total_variation(*laws) > 0.01  # control


def test_how_far_a_network_moves() -> None:
    model = MD4(HollowMasked(LAW), V, (N,), Linear(0.0))
    assert Chains(model, ROW, [1, 2]).moves() < 1e-9
    assert Chains(moody(0.0), ROW, [1]).moves() < 1e-9
    assert Chains(moody(2.0), ROW, [1]).moves() > 0.1  # control


@pytest.mark.parametrize("sites", [[1, 2], [3], [0, 1, 3]])
def test_the_samplers_own_laws(sites: list[int]) -> None:
    """With an exact network first_hitting has the conditional law and ancestral comes near it; with any network the
    chain is that of exact/chains.py, which has all sites."""
    exact = MD4(HollowMasked(LAW), V, (N,), Linear(0.0))
    own, target = Chains(exact, ROW, sites), conditional(sites)
    assert total_variation(own.first_hitting(), target) < 1e-9
    coarse, fine = (total_variation(own.ancestral(steps), target) for steps in (4, 256))
    assert fine < 0.01
    assert len(sites) == 1 or coarse > 4 * fine
    model = moody(2.0)
    known = torch.ones(N, dtype=torch.bool)
    known[sites] = False
    whole = chains.masked(model, 5, known=(ROW, known))
    mine = Chains(model, ROW, sites).ancestral(5)
    assert torch.allclose(mine, whole[((LAW.x == ROW) | ~known).all(-1)], atol=1e-12)
