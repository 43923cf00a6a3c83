"""First-hitting sampling has the law of the continuous process, whatever the network says at whatever time."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.core import noise, schedules
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.networks import Masked, TimedMasked
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.markov import MarkovDiffusion
from ggm_lightning.models.md4 import MD4
from ggm_lightning.sampling import first_hitting

N, V, ROWS = 3, 2, 40_000


class Moody(nn.Module):
    """Logits that depend on the state and on the time: no law has this denoiser, every sampler must follow it."""

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        seen = (z * torch.tensor([1.0, 2.0, 4.0])).sum(-1)[:, None]
        return torch.stack([seen * t[:, None].expand(-1, N), torch.full((len(z), N), 2.0)], -1)


def model(network: nn.Module, **more: object) -> MD4:
    return MD4(network, V, (N,), **more)


def frequencies(drawn: Tensor) -> Tensor:
    index = (drawn * torch.tensor([4, 2, 1])).sum(-1)
    return torch.bincount(index, minlength=V**N) / len(drawn)


def limit(md4: MD4, num_steps: int) -> Tensor:
    """The law of x after num_steps of reverse_law on a grid even in u(t), by enumeration: Float64[V^N]."""
    states = torch.tensor(list(itertools.product(range(V + 1), repeat=N)))
    law = (states == V).all(-1).double()
    grid = md4.schedule.inverse(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64))
    for t, s in itertools.pairwise(grid):
        sites = md4.reverse_law(states, t.expand(len(states)), s.expand(len(states))).probs()
        step = torch.ones(len(states), len(states), dtype=torch.float64)
        for n in range(N):
            step *= sites[:, n, states[:, n]]
        law = law @ step
    return law[(states < V).all(-1)] / law[(states < V).all(-1)].sum()


def worst(found: Tensor, expected: Tensor) -> float:
    """Largest deviation in standard errors."""
    return float(((found - expected) / (expected * (1 - expected) / ROWS).sqrt()).abs().max())


@pytest.mark.parametrize("kind", [schedules.Linear, pytest.param(schedules.Cosine, marks=pytest.mark.slow)])
def test_the_law_is_that_of_infinitely_many_steps(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 4.5 standard errors of 40,000 rows. Control: the time of one site instead of the first of n."""
    md4 = model(Moody(), schedule=kind(eps=0.0))
    expected = 2 * limit(md4, 1000) - limit(md4, 500)  # the grid's error falls as 1 / num_steps
    assert (expected - limit(md4, 2000)).abs().max() < 5e-4
    drawn = md4.sample(ROWS, 1, sampler="first_hitting")
    assert drawn.network_calls == N
    assert worst(frequencies(drawn.x), expected) < 4.5
    monkeypatch.setattr(first_hitting, "next_masked_fraction", lambda u, n, uniform: u * uniform)
    assert worst(frequencies(md4.sample(ROWS, 1, sampler="first_hitting").x), expected) > 45


def absorbing(network: nn.Module, t_end: float, **more: object) -> MarkovDiffusion:
    return MarkovDiffusion(network, V, (N,), "absorbing", t_end=t_end, power=1.5, **more)


def limit_of_absorption(markov: MarkovDiffusion, num_steps: int) -> Tensor:
    """As `limit`, from the process's own x_1, in which a few sites are not masked."""
    states = torch.tensor(list(itertools.product(range(V + 1), repeat=N)))
    law = markov.prior_law[states].prod(-1)
    u = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    grid = markov.schedule.inverse(u * markov.schedule.masked_fraction(torch.ones(1, dtype=torch.float64)))
    for t, s in itertools.pairwise(grid):
        sites = markov.reverse_law(states, t.expand(len(states)), s.expand(len(states))).probs()
        step = torch.ones(len(states), len(states), dtype=torch.float64)
        for n in range(N):
            step *= sites[:, n, states[:, n]]
        law = law @ step
    return law[(states < V).all(-1)]


@pytest.mark.parametrize(("parametrisation", "t_end"), [("prior", 4.0), ("posterior", 0.5)])
@pytest.mark.slow
def test_the_law_of_absorbing_rates_is_that_of_infinitely_many_steps(
    parametrisation: str, t_end: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the sites of x_1 a share e^-t_end is not masked: .02 and .61. Within 4.5 standard errors of 40,000 rows;
    controls: the time of one site, or an x_1 that is all masked."""
    markov = absorbing(Moody(), t_end=t_end, parametrisation=parametrisation)
    expected = 2 * limit_of_absorption(markov, 400) - limit_of_absorption(markov, 200)
    assert float(expected.sum()) == pytest.approx(1, abs=1e-9)
    assert (expected - limit_of_absorption(markov, 800)).abs().max() < 1e-3
    drawn = markov.sample(ROWS, 1, sampler="first_hitting")
    assert drawn.network_calls == N
    assert drawn.rows == pytest.approx((1 - math.exp(-t_end)) * N * ROWS, rel=0.02)
    assert worst(frequencies(drawn.x), expected) < 4.5
    if t_end > 1:
        monkeypatch.setattr(first_hitting, "next_masked_fraction", lambda u, n, uniform: u * uniform)
    else:
        monkeypatch.setattr(markov, "prior_sample", lambda count, uniform=None: torch.full((count, N), V))
    assert worst(frequencies(markov.sample(ROWS, 1, sampler="first_hitting").x), expected) > 45


def test_absorption_is_the_process() -> None:
    """u(t) against the transition matrix, its inverse, and the step's probability of being revealed."""
    markov = absorbing(Moody(), t_end=3.0)
    t = torch.tensor([1e-6, 0.2, 0.7, 1.0], dtype=torch.float64)
    u = markov.schedule.masked_fraction(t)
    assert (u - markov.process.transition(markov.tau(t))[:, V, 0]).abs().max() < 1e-14
    assert (u + markov.schedule.alpha(t) - 1).abs().max() < 1e-15
    assert (markov.schedule.inverse(u) - t).abs().max() < 1e-14
    assert markov.schedule.inverse(torch.ones(1, dtype=torch.float64)).tolist() == [1.0]
    masked = torch.full((1, N), V)
    law = markov.reverse_law(masked, t[2:3], t[1:2]).probs()
    assert float((1 - law[..., V] - (u[2] - u[1]) / u[2]).abs().max()) < 1e-12


def test_where_it_is_not_exact_it_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"sampler 'first_hitting' is refused: each class is masked at times of its own"
    ):
        GenMD4(Moody(), V, (N,)).sample(1, 3, sampler="first_hitting")
    with pytest.raises(
        ValueError, match="sampler 'first_hitting' is unknown to MarkovDiffusion; it has only ancestral"
    ):
        MarkovDiffusion(Moody(), V, (N,)).sample(1, 3, sampler="first_hitting")
    with pytest.raises(ValueError, match=r"sampler 'FirstHitting' reveals masked sites, but GenMD4 has no mask"):
        GenMD4(Moody(), V, (N,)).sample(1, 3, sampler=first_hitting.FirstHitting())


def test_genmd4_would_miss_the_law() -> None:
    """Why it is refused: with exponents of one's own for each class, first hitting at any common schedule is far from
    p, although the denoiser is exact."""
    law = JointLaw.random(N, V, seed=3)
    drawn = model(
        TimedMasked(law, torch.tensor([0.5, 3.0], dtype=torch.float64)), schedule=schedules.Linear(eps=0.0)
    ).sample(ROWS, 1, sampler="first_hitting", seed=1)
    assert worst(frequencies(drawn.x), law.p) > 45


def test_an_exact_denoiser_gives_the_law_itself() -> None:
    law = JointLaw.random(N, V, seed=3)
    drawn = model(Masked(law), schedule=schedules.Linear(eps=0.0)).sample(ROWS, 1, sampler="first_hitting", seed=1)
    assert worst(frequencies(drawn.x), law.p) < 4.5
    drawn = absorbing(Masked(law), t_end=40.0).sample(ROWS, 1, sampler="first_hitting", seed=1)
    assert worst(frequencies(drawn.x), law.p) < 4.5


FLOOR = 0.3


def law_with_a_floor(law: JointLaw, left_share: float) -> Tensor:
    """Of x where each site is left masked at t = 0 by itself with this probability and then filled given the others,
    all at once: Float64[V^N], by enumeration of what is left."""
    total = torch.zeros(V**N, dtype=torch.float64)
    for left in itertools.product((False, True), repeat=N):
        mask = torch.tensor(left)
        share = left_share ** int(mask.sum()) * (1 - left_share) ** int((~mask).sum())
        filled = Masked(law)(torch.where(mask, V, law.x)).exp().gather(2, law.x[..., None])[..., 0]  # [x, n]
        same = (law.x[:, None] == law.x[None])[..., ~mask].all(-1).double()  # x' that look like x where not left
        total += share * (same @ law.p) * torch.where(mask, filled, 1.0).prod(-1)
    return total


def test_what_is_masked_below_the_schedules_floor_is_left_to_the_end_and_filled_at_once() -> None:
    """At an exact denoiser one site after the other has the law P, and filling many at once another: here the floor is
    so high that the two are told apart. Within 4.5 standard errors of 40,000 rows; control: P, without a floor."""
    law = JointLaw.random(N, V, seed=3)
    schedule = schedules.Linear(FLOOR)
    expected = law_with_a_floor(law, FLOOR / (1 - FLOOR))
    assert float(expected.sum()) == pytest.approx(1, abs=1e-12)
    assert (law_with_a_floor(law, 0.0) - law.p).abs().max() < 1e-12
    drawn = model(Masked(law), schedule=schedule).sample(ROWS, 1, sampler="first_hitting", seed=1).x
    assert worst(frequencies(drawn), expected) < 4.5
    assert worst(frequencies(drawn), law.p) > 45


@pytest.mark.parametrize("kind", [schedules.Linear, schedules.Cosine])
def test_sites_whose_own_time_is_below_the_floor_are_the_ones_left(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row from the same uniforms: the k-th site's u is that of the one before times U^(1 / sites still masked).
    Control: without a floor none would be left."""
    rows, seed = 200, 6
    md4 = model(Moody(), schedule=kind(FLOOR))
    left: list[Tensor] = []
    finish = md4.finish
    monkeypatch.setattr(md4, "finish", lambda z, *rest: (left.append((z == V).sum(-1)), finish(z, *rest))[1])
    md4.sample(rows, 1, sampler="first_hitting", seed=seed)
    u = torch.full((rows,), 1 - FLOOR, dtype=torch.float64)
    expected = torch.zeros(rows, dtype=torch.long)
    for k in range(N):
        own = noise.uniform("time", seed=seed, step=k, row=torch.arange(rows), num_sites=1)[:, 0]
        u = u * own ** (1 / (N - k))
        expected += u <= FLOOR
    assert torch.equal(left[0], expected)
    assert sorted(expected.unique().tolist()) == [0, 1, 2, 3]


def test_one_site_at_a_time_and_what_is_known_stays() -> None:
    md4 = model(Moody())
    known = torch.tensor([[False, True, False]])
    drawn = md4.sample(7, 1, sampler="first_hitting", clamp=(torch.tensor([[0, 1, 0]]), known), trace=True)
    assert drawn.network_calls <= 3  # two unknown sites, and those still masked at t = 0
    assert (drawn.x[:, 1] == 1).all()
    counts = [int((state == V).sum(-1).max()) for state in drawn.trace]
    assert counts == [2, 1, 0]
    assert torch.equal(drawn.trace[-1], drawn.x)


def test_a_row_alone_is_the_row_in_a_batch() -> None:
    md4 = model(Moody())
    together = md4.sample(5, 1, sampler="first_hitting", seed=4).x
    alone = md4.sample(1, 1, sampler="first_hitting", seed=4, row=torch.tensor([3])).x
    assert torch.equal(alone[0], together[3])


class Labelled(Moody):
    """Logits that depend on the label, too."""

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        assert label is not None
        return super().forward(z, t) + (label[:, None, None] - 1) * torch.tensor([3.0, -3.0])


def test_rows_that_finish_at_different_times_keep_their_own_times_and_labels() -> None:
    """Row by row the same as alone, where rows have three, two, one and no unknown sites and labels of their own."""
    md4 = model(Labelled())
    known = torch.tensor([[i >= 3 - k for i in range(N)] for k in (1, 3, 0, 2)]).repeat(16, 1)
    values = torch.arange(64 * N).reshape(64, N) % V
    label = torch.arange(64) * 7 % 3
    together = md4.sample(64, 1, sampler="first_hitting", label=label, clamp=(values, known)).x
    for i in range(64):
        one = slice(i, i + 1)
        row = torch.tensor([i])
        clamp = (values[one], known[one])
        alone = md4.sample(1, 1, sampler="first_hitting", label=label[one], clamp=clamp, row=row).x
        assert torch.equal(alone[0], together[i])


def test_every_masked_site_is_chosen_alike() -> None:
    masked = torch.tensor([[True, False, True, True, False]]).expand(30_000, 5)
    u = (torch.arange(30_000, dtype=torch.float64) + 0.5) / 30_000
    assert torch.bincount(first_hitting.chosen(masked, u), minlength=5).tolist() == [10_000, 0, 10_000, 10_000, 0]
