"""A schedule of one's own, alpha alone given, in every family that takes one: the bound by enumeration, both samplers.

`Late` is flat at both ends: before t = 1/4 nothing is masked, and weight and reveal probability are 0/0.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ggm_lightning import GenMD4
from ggm_lightning.core.schedules import Schedule
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.networks import Masked
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM
from ggm_lightning.models.md4 import MD4
from tests.core.test_own_schedules import Careful, Cubic, Late
from tests.models.every_family import N, small
from tests.models.latent_bits import ENTROPY, LogSNR, P, fuji, seq
from tests.models.test_lddm_exact import integral
from tests.models.test_md4_exact import continuous_bound, discrete_bound, expected_terms
from tests.sampling.test_first_hitting import Moody, frequencies, limit, worst

SITES, V, ROWS = 3, 2, 40_000
OWN = [Cubic(), Careful(), Late()]


class Pair(Schedule):
    """1 - t^2."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t * t


class Clean(Schedule):
    """ln SNR from 14 to -14, and nothing given but its sigmoid: what LogSNR(14, -14) writes out."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(14 - 28 * t)


def kind(schedule: Schedule) -> str:
    return type(schedule).__name__


@pytest.fixture(scope="module")
def law() -> JointLaw:
    return JointLaw.random(SITES, V, seed=3)


def md4(network: torch.nn.Module | JointLaw, schedule: Schedule, **more: object) -> MD4:
    network = Masked(network) if isinstance(network, JointLaw) else network
    return MD4(network, V, (SITES,), schedule=schedule, **more)


def bound_by_halves(model: MD4, x: Tensor) -> Tensor:
    """Gauss-Legendre between the kinks of Late, for all of them."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(40))
    total = torch.zeros(len(x), dtype=torch.float64)
    for a, b in itertools.pairwise([0.0, 0.25, 0.75, 1.0]):
        t = (a + b) / 2 + (b - a) / 2 * nodes
        total += ((b - a) / 2 * weights[:, None] * expected_terms(model, x, t)).sum(0)
    return total


@pytest.mark.parametrize("schedule", OWN, ids=kind)
def test_the_bound_is_minus_log_p_for_every_x(law: JointLaw, schedule: Schedule) -> None:
    """Control: another slope than alpha's, which the check refuses, misses it by its share."""
    model = md4(law, schedule)
    assert model.reconstruction_nats == model.prior_nats == 0
    assert (bound_by_halves(model, law.x) + law.log_p).abs().max() < 1e-10
    if kind(schedule) != "Late":
        assert (continuous_bound(model, law.x) + law.log_p).abs().max() < 1e-8
    slope = type(schedule).dalpha
    model.schedule = type("Wrong", (type(schedule),), {"dalpha": lambda self, t: 0.9 * slope(self, t)})()
    assert (bound_by_halves(model, law.x) + law.log_p).abs().max() > 1e-2


@pytest.mark.parametrize("schedule", OWN, ids=kind)
@pytest.mark.parametrize("num_timesteps", [None, 7])
def test_nelbo_estimates_the_enumerated_bound(law: JointLaw, schedule: Schedule, num_timesteps: int | None) -> None:
    """4,000 rows of each x, three times each: within 4 standard errors. In finite time Late's first step has 0/0."""
    model = md4(law, schedule, num_timesteps=num_timesteps)
    drawn = model.nelbo(law.x.repeat(4000, 1), num_samples=3).reshape(4000, len(law.x))
    exact = bound_by_halves(model, law.x) if num_timesteps is None else discrete_bound(model, law.x)
    stderr = drawn.std(0) / math.sqrt(4000)
    assert float((stderr / exact).max()) < 0.05
    assert bool(((drawn.mean(0) - exact).abs() < 4 * stderr).all())
    assert float((law.p * exact).sum()) > law.entropy - 1e-9


@pytest.mark.parametrize("schedule", OWN, ids=kind)
def test_first_hitting_has_the_law_of_infinitely_many_steps(schedule: Schedule) -> None:
    """By the bisected inverse, with a network that looks at the time. Within 4.5 standard errors; control: the times of
    another schedule."""
    model = md4(Moody(), schedule)
    expected = 2 * limit(model, 400) - limit(model, 200)
    drawn = frequencies(model.sample(ROWS, 1, sampler="first_hitting").x)
    assert worst(drawn, expected) < 4.5
    assert worst(drawn, limit(md4(Moody(), Pair()), 200)) > 9


@pytest.mark.parametrize("schedule", OWN, ids=kind)
def test_an_exact_denoiser_is_sampled_exactly(law: JointLaw, schedule: Schedule) -> None:
    drawn = md4(law, schedule).sample(ROWS, 1, sampler="first_hitting", seed=1)
    assert worst(frequencies(drawn.x), law.p) < 4.5
    assert worst(frequencies(drawn.x), law.p.flip(0)) > 45


@pytest.mark.parametrize("schedule", OWN, ids=kind)
def test_ancestral_has_the_law_of_its_steps(law: JointLaw, schedule: Schedule) -> None:
    """Five steps, enumerated; Late has steps in which nothing is masked or all stays masked. Control: law of 400."""
    model = md4(law, schedule)
    states = torch.tensor(list(itertools.product(range(V + 1), repeat=SITES)))

    def after(num_steps: int) -> Tensor:
        p = (states == V).all(-1).double()
        grid = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
        for t, s in itertools.pairwise(grid):
            sites = model.reverse_law(states, t.expand(len(states)), s.expand(len(states))).probs()
            assert not sites.isnan().any()
            p = p @ torch.stack([sites[:, n, states[:, n]] for n in range(SITES)]).prod(0)
        assert float(p[(states < V).all(-1)].sum()) == pytest.approx(1, abs=1e-12)
        return p[(states < V).all(-1)]

    drawn = frequencies(model.sample(ROWS, 5, grid="uniform", seed=2).x)
    assert worst(drawn, after(5)) < 4.5
    assert worst(drawn, after(400)) > 9


@pytest.mark.slow  # extend/test_schedule_and_rates.py has a quick one
def test_lddm_takes_it_for_both_its_clocks() -> None:
    """Token and latent term add up to H(x), for the tokens' clock and the latent's; control: a bent denoiser."""
    for family in (fuji, seq):
        model = family(Clean(), schedule=Cubic())
        assert float((P * integral(model)).sum()) == pytest.approx(ENTROPY, abs=1e-5)
        bent = family(Clean(), eps=0.3, schedule=Cubic())
        assert float((P * integral(bent)).sum()) > ENTROPY + 1e-3


@pytest.mark.parametrize("family", [fuji, seq])
def test_a_latents_weights_and_times_follow_from_alpha_too(family: type[FujiLDDM] | type[SeqLDDM]) -> None:
    """The same numbers as with every formula given, to what is lost of u = 8e-7 (ten digits are left)."""
    own, full = family(Clean()), family(LogSNR(14.0, -14.0))
    t = torch.linspace(0.01, 0.99, 37, dtype=torch.float64)
    torch.testing.assert_close(own.clock.weight(t), full.clock.weight(t), rtol=1e-8, atol=0)
    for mine, theirs in zip(own.clock.importance(t), full.clock.importance(t), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=0)
    x = torch.tensor([[0, 1], [1, 1]])
    torch.testing.assert_close(own.nelbo(x, num_samples=4), full.nelbo(x, num_samples=4), rtol=1e-6, atol=0)
    other = family(LogSNR(12.0, -14.0)).clock.weight(t)
    assert float((other / full.clock.weight(t) - 1).abs().max()) > 0.1


@pytest.mark.parametrize("name", ["md4", "fuji", "seq"])
@pytest.mark.parametrize("schedule", [Cubic(), Late()], ids=kind)
@pytest.mark.parametrize("fused", [False, True])
def test_training_has_finite_gradients(name: str, schedule: Schedule, fused: bool) -> None:
    """A third of the rows of Late has nothing masked: a weight of NaN there would reach every parameter."""
    model = small(name)
    model.schedule, model.fused = schedule, fused
    x = torch.randint(7, (11, N), generator=torch.Generator().manual_seed(0))
    losses = []
    for step in range(3):
        loss = model.loss(x, step=step)
        loss.backward()
        losses.append(float(loss.detach()))
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(bool(torch.isfinite(g).all()) for g in gradients)
    assert sum(float(g.abs().sum()) for g in gradients) > 0
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)


class Rising(Schedule):
    def alpha(self, t: Tensor) -> Tensor:
        return t


REFUSING = {
    "md4": ("schedule", lambda: md4(Moody(), Rising())),
    "fuji": ("schedule", lambda: fuji(LogSNR(), schedule=Rising())),
    "seq": ("schedule", lambda: seq(LogSNR(), schedule=Rising())),
    "fuji's latent": ("latent_schedule", lambda: fuji(Rising())),
    "seq's latent": ("latent_schedule", lambda: seq(Rising())),
}


@pytest.mark.parametrize("name", REFUSING)
def test_a_model_refuses_what_is_no_schedule(name: str) -> None:
    which, make = REFUSING[name]
    with pytest.raises(ValueError, match=rf"^{which} Rising: alpha rises") as caught:
        make()
    assert "\n" not in str(caught.value)


def test_genmd4_learns_its_own() -> None:
    with pytest.raises(TypeError, match="schedule"):
        GenMD4(torch.nn.Identity(), 7, (N,), schedule=Cubic())
