"""Filling in with particles: the law by enumeration, what the weights do, and whose noise a particle has."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor

from ggm_lightning.cli import drawing
from ggm_lightning.cli.commands import _without_options
from ggm_lightning.core import noise
from ggm_lightning.core.births import WITH_PROBABILITIES, BirthLaw
from ggm_lightning.exact import chains, particles
from ggm_lightning.exact.states import floor, total_variation
from ggm_lightning.models.base import Family
from ggm_lightning.sampling.particles import Particles, systematic
from ggm_lightning.sampling.request import checked
from ggm_lightning.sampling.sampler import Run
from tests.models import infilling_law as models
from tests.models.infilling_law import GIVEN, TARGET
from tests.models.infilling_table import drawn_law, enumerated

STEPS, DRAWS = 20, 10_000
KERNELS = ["capped", "poisson", "posterior"]
SOME = ["capped", *(pytest.param(kernel, marks=pytest.mark.slow) for kernel in KERNELS[1:])]


def chain_of(kernel: str, num_steps: int = STEPS) -> particles.Chain:
    return particles.deaths(models.blackout(kernel == "posterior"), kernel, num_steps, GIVEN)


def distance(law: Tensor) -> float:
    return total_variation(law, TARGET)


@pytest.mark.parametrize("kernel", SOME)
def test_the_error_falls_with_the_particles_and_with_the_steps(kernel: str) -> None:
    """Enumerated: K = 1, 2 and the limit; the limit of a finer chain. With 50 steps of capped: .143, .098, .045."""
    few = [distance(law(chain_of(kernel))) for law in (particles.law_of_one, particles.law_of_two)]
    many = [distance(particles.law_of_many(chain_of(kernel, T))) for T in (10, STEPS)]
    assert few[0] > few[1] + 0.03
    assert few[1] > many[1] + 0.03
    assert many[1] < 0.7 * many[0]
    # control: the chain is the sampler's own, and without the weights two particles are no better than one
    one = particles.law_of_one(chain_of(kernel))
    own = enumerated(chains.deaths, models.blackout(kernel == "posterior"), sampler=kernel, num_steps=STEPS)
    assert (one - own).abs().max() < 1e-12
    assert (particles.law_of_two(chain_of(kernel), weighted=False) - one).abs().max() < 1e-12


@pytest.mark.parametrize("kernel", SOME)
def test_sample_draws_the_law_of_two_particles(kernel: str) -> None:
    """The total variation of 10,000 draws to their law is `floor` in the mean."""
    model = models.blackout(kernel == "posterior")
    drawn = drawn_law(model, STEPS, DRAWS, sampler=kernel, seed=1, particles=2)
    law = particles.law_of_two(chain_of(kernel))
    assert total_variation(drawn, law) < 2 * floor(law, DRAWS)
    for other in (particles.law_of_one, particles.law_of_many):  # control
        assert total_variation(drawn, other(chain_of(kernel))) > 3 * floor(law, DRAWS)


@pytest.mark.parametrize("process", ["uniform", pytest.param("absorbing", marks=pytest.mark.slow)])
def test_of_any_markov_process(process: str) -> None:
    model = models.markov(process)
    one, two = (law(particles.markov(model, 10, GIVEN)) for law in (particles.law_of_one, particles.law_of_two))
    assert (one - enumerated(chains.markov, model, num_steps=10)).abs().max() < 1e-12
    assert distance(two) < distance(one) - 0.03
    drawn = drawn_law(model, 10, DRAWS, seed=1, particles=2)
    assert total_variation(drawn, two) < 2 * floor(two, DRAWS)
    assert total_variation(drawn, one) > 3 * floor(two, DRAWS)  # control


@pytest.mark.slow
def test_many_particles_draw_the_law_of_the_limit() -> None:
    """5,000 draws of 64 particles: exact ones are .014 away in the mean."""
    drawn = drawn_law(models.blackout(), STEPS, 5_000, seed=1, particles=64)
    limit = particles.law_of_many(chain_of("capped"))
    assert total_variation(drawn, limit) < 2 * floor(limit, 5_000)
    assert total_variation(drawn, particles.law_of_one(chain_of("capped"))) > 4 * floor(limit, 5_000)  # control


# ------------------------------------------------------------------ weights and ancestors


@pytest.mark.parametrize("kernel", WITH_PROBABILITIES)
def test_the_probability_of_a_count_is_that_of_the_law(kernel: str) -> None:
    """`log_prob`, one count each, against `probs`, which enumeration trusts."""
    cap, pi = 6, torch.tensor([0.3, 1.0], dtype=torch.float64)
    zt = torch.tensor([[0, 2, 5, 6, 1], [0, 1, 3, 4, 6]])
    y = torch.rand(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * (cap - zt)
    log_posterior = torch.where(torch.arange(cap + 1) >= zt[..., None], torch.arange(cap + 1) * 0.3, -torch.inf)
    law = BirthLaw(zt, y, pi, cap, kernel, log_posterior.double().log_softmax(-1))
    for count in range(cap + 1):
        found = law.log_prob(torch.full_like(zt, count)).exp()
        assert (found - law.probs()[..., count]).abs().max() < 1e-10
    rows = torch.tensor([1, 1, 0])
    assert torch.equal(law.taken(rows).probs(), law.probs()[rows])


def test_a_particle_is_taken_as_often_as_it_weighs() -> None:
    """Over equally spaced u, K w_i times in the mean; never more than one off; never with weight 0."""
    w = torch.tensor([[0.0, 0.55, 0.05, 0.4, 0.0]], dtype=torch.float64)
    u = (torch.arange(1000, dtype=torch.float64)[:, None] + 0.5) / 1000
    taken = systematic((w.log() - 700).expand(1000, -1), u)
    counts = torch.nn.functional.one_hot(taken, 5).sum(1).double()
    assert (counts.mean(0) - 5 * w).abs().max() < 2e-3
    assert (counts - 5 * w).abs().max() < 1
    assert torch.equal(systematic(torch.zeros(1, 7, dtype=torch.float64), u[499:500])[0], torch.arange(7))


def test_the_particle_that_is_kept_is_any_of_them() -> None:
    """4,000 rows of 4: a share of .25 has a standard error of .007."""
    model, clamp = small("blackout")
    run = Run(model, checked(model, 4_000, 2, clamp=(clamp[0][0], clamp[1][0])))
    four = Particles(run, 4)
    run.z = torch.arange(4).repeat(4_000)[:, None].expand(-1, models.N)
    four.keep(run)
    shares = run.z[:, 0].bincount(minlength=4) / 4_000
    assert run.z.shape == (4_000, models.N)
    assert (shares - 0.25).abs().max() < 4 * 0.007
    assert run.request.num_samples == 4_000


# ------------------------------------------------------------------ noise, options


def small(family: str) -> tuple[Family, tuple[Tensor, Tensor]]:
    made = models.blackout() if family == "blackout" else models.markov()
    values = torch.tensor([[1, 0, 0, 2], [0, 0, 2, 1], [2, 1, 0, 0]])
    known = torch.tensor([[True, False, False, True], [True, True, False, False], [False, False, True, True]])
    return made, (values, known)


@pytest.mark.parametrize("family", ["blackout", "markov"])
def test_a_row_alone_is_the_row_in_its_batch(family: str) -> None:
    model, clamp = small(family)
    together = model.sample(3, 8, clamp=clamp, seed=5, particles=7, trace=True)
    for r in range(3):
        alone = model.sample(1, 8, clamp=(clamp[0][r], clamp[1][r]), seed=5, particles=7, row=[r])
        assert torch.equal(alone.x, together.x[r : r + 1])
    assert bool((together.x == clamp[0])[clamp[1]].all())
    assert {state.shape for state in together.trace} == {(3, 4)}
    assert together.network_calls == 8
    assert together.rows == 3 * 7 * together.network_calls


@pytest.mark.parametrize("family", ["blackout", "markov"])
def test_one_particle_is_the_sampler_without(family: str) -> None:
    model, clamp = small(family)
    plain = model.sample(3, 8, clamp=clamp, seed=5)
    assert torch.equal(plain.x, model.sample(3, 8, clamp=clamp, seed=5, particles=1).x)
    row = torch.arange(3).repeat(10)
    clamp = clamp[0][row], clamp[1][row]
    two = [model.sample(30, 8, clamp=clamp, seed=5, particles=particles).x for particles in (1, 2)]
    assert not torch.equal(*two)  # control


def test_copies_of_a_row_have_noise_of_their_own() -> None:
    row = torch.tensor([0, 1, 2**40])
    ids = noise.copies(row, 5).reshape(3, 5)
    assert torch.equal(ids[:, 0], row)
    assert len(ids.unique()) == 15
    assert torch.equal(ids[:, :3].flatten(), noise.copies(row, 3))
    u = noise.uniform("state", seed=0, step=0, row=noise.copies(torch.zeros(1, dtype=torch.int64), 2_000), num_sites=2)
    assert abs(float(u.mean()) - 0.5) < 4 * (1 / 12 / u.numel()) ** 0.5


def test_the_command_line_knows_the_option() -> None:
    rest, options = _without_options(["--ckpt_path", "x", "--particles", "4"])
    assert rest == ["--ckpt_path", "x"]
    assert drawing.typed(models.blackout(), None, options) == {"particles": 4}
    assert drawing.typed(models.markov(), "ancestral", options) == {"particles": 4}


def test_mistakes() -> None:
    model, clamp = small("blackout")
    for wrong in (0, 1.5):
        with pytest.raises(ValueError, match="particles"):
            model.sample(3, 8, clamp=clamp, particles=wrong)
    with pytest.raises(ValueError, match="no values are known"):
        model.sample(3, 8, particles=4)
    for kernel in ("stochastic", "rounded"):
        with pytest.raises(ValueError, match="no probability; take sampler capped or poisson"):
            model.sample(3, 8, clamp=clamp, sampler=kernel, particles=4)
    with pytest.raises(ValueError, match="has no particles; leave it out"):
        models.md4().sample(3, 8, clamp=clamp, particles=4)
    assert model.network_calls == 0


def test_rows_in_which_no_particle_fits_are_told() -> None:
    """A law that never is 2 at the first site, which is said to be 2."""
    model, clamp = small("markov")
    model.network.law = law = copy.copy(models.LAW)  # other tests share it
    law.p = torch.where(law.x[:, 0] == 2, 0.0, law.p)
    with pytest.warns(UserWarning, match="1 of 3 rows: at some step none of the 4 particles"):
        model.sample(3, 3, clamp=(torch.tensor([[2, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]), clamp[1]), particles=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small("markov")[0].sample(3, 3, clamp=clamp, particles=4)
