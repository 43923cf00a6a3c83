"""core/glauber.py and core/sweeps.py by themselves: the clock, the reduction both ways, the kernels, the bound.

That they make an exact chain is shown in tests/models/test_ggm_exact.py, through the model.
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from ggm_lightning.core import categorical, glauber, noise, sweeps
from ggm_lightning.core.categorical import PLAIN, Sharpening
from ggm_lightning.core.sweeps import Sweeps

B, N, V, R = 4, 5, 7, 3


@pytest.fixture
def chain() -> Sweeps:
    return Sweeps(torch.tensor([3, 0, 4, 1, 2]), sweeps.survival(R, 0.02))


@pytest.fixture
def pi() -> Tensor:
    return torch.softmax(torch.randn(V, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), 0)


def laws(k: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(2 * torch.randn(k, V, dtype=torch.float64, generator=generator), -1)


# ------------------------------------------------------------------ sweeps


def test_visits_are_those_of_the_walk(chain: Sweeps) -> None:
    walked = torch.zeros(N, dtype=torch.long)
    for t in range(chain.num_steps + 1):
        assert torch.equal(chain.visits(torch.tensor([t]))[0], walked)
        assert torch.equal(chain.survival_at(torch.tensor([t]))[0], chain.survival[walked])
        if t < chain.num_steps:
            seen = walked > t // N
            assert torch.equal(chain.visited_in_sweep(torch.tensor([t]))[0], seen)
            site = chain.block_sites(torch.tensor([t]), 1)[0]
            assert int(site) == int(chain.order[t % N])
            walked[site[0]] += 1


def test_survival_is_the_product_of_the_keeps(chain: Sweeps) -> None:
    torch.testing.assert_close(chain.keep.cumprod(0), chain.survival[1:], rtol=1e-14, atol=0)
    torch.testing.assert_close(chain.keep + chain.beta, torch.ones(R).double(), rtol=1e-14, atol=0)
    torch.testing.assert_close(torch.sigmoid(chain.log_odds), chain.keep, rtol=1e-14, atol=0)
    assert chain.survival.tolist() == pytest.approx([1, 1 - 0.98 / 3, 1 - 2 * 0.98 / 3, 0.02], abs=1e-15)
    geometric = Sweeps(torch.arange(N), sweeps.survival(4, 0.5**4, "geometric"))
    assert geometric.keep.tolist() == pytest.approx([0.5] * 4, abs=1e-14)


def test_blocks_cut_every_sweep(chain: Sweeps) -> None:
    assert chain.grid(2) == [15, 14, 12, 10, 9, 7, 5, 4, 2, 0]
    assert chain.grid() == list(range(15, -1, -1))
    assert chain.grid(5, first_sweeps=1) == [5, 0]
    u = (torch.arange(9, dtype=torch.float64) + 0.5) / 9
    assert chain.block_start(u, 2).tolist() == [0, 2, 4, 5, 7, 9, 10, 12, 14]
    sites, valid = chain.block_sites(torch.tensor([5, 9]), 2)
    assert sites.tolist() == [[3, 0], [2, 2]]
    assert valid.tolist() == [[True, True], [True, False]]


def test_default_survival_keeps_the_prior_close() -> None:
    for n in (3, 64, 1024):
        a = sweeps.default_last_survival(n)
        assert 0 < 1 - (1 - a) ** n < 0.1


def test_orders() -> None:
    assert sweeps.site_order(5).tolist() == [0, 1, 2, 3, 4]
    one, same, other = (sweeps.site_order(31, "permuted", seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.sort().values.tolist() == list(range(31))


def test_users_errors(chain: Sweeps) -> None:
    with pytest.raises(ValueError, match="num_sweeps is 0; the chain needs at least one sweep"):
        sweeps.survival(0, 0.1)
    for last in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="it must lie strictly between 0 and 1"):
            sweeps.survival(4, last)
    with pytest.raises(ValueError, match="schedule 'cosine' is unknown; choose linear or geometric"):
        sweeps.survival(4, 0.1, "cosine")
    with pytest.raises(ValueError, match="order 'hilbert' is unknown; choose raster or permuted"):
        sweeps.site_order(4, "hilbert")
    with pytest.raises(ValueError, match="must name each site"):
        Sweeps(torch.tensor([0, 0, 1]), chain.survival)
    with pytest.raises(ValueError, match="must fall strictly from 1"):
        Sweeps(torch.arange(3), torch.tensor([1.0, 0.5, 0.5], dtype=torch.float64))
    with pytest.raises(ValueError, match="must fall strictly from 1"):
        Sweeps(torch.arange(3), torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    for given, words in (
        ([0.5, 0.5], "has 2 numbers"),
        ([0.5, 0.6, -0.1], "3 positive ones"),
        ("zipf", "choose uniform"),
    ):
        with pytest.raises(ValueError, match=words):
            glauber.noise_law(given, 3)


# ------------------------------------------------------------------ one common law


def test_draws_from_a_common_law_are_the_inverse_of_its_sum(pi: Tensor) -> None:
    u = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    rows = categorical.draw(pi.log().expand(500, V), u)
    assert torch.equal(categorical.draw_common(3 * pi, u), rows)
    assert int(categorical.draw_common(pi, torch.tensor([1 - 2.0**-53], dtype=torch.float64))) == V - 1
    assert categorical.draw_common(pi, u.reshape(20, 25)).shape == (20, 25)


def test_classes_of_probability_zero_are_never_drawn() -> None:
    p = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0], dtype=torch.float64)
    u = torch.tensor([1e-300, 0.25, 0.5, 0.75, 1 - 2.0**-53], dtype=torch.float64)
    assert categorical.draw_common(p, u).tolist() == [1, 1, 3, 3, 3]


# ------------------------------------------------------------------ pairs


def test_a_pair_changes_the_visited_sites_only(chain: Sweeps, pi: Tensor) -> None:
    b = 300
    uniform = partial(noise.uniform, seed=0, step=1, row=torch.arange(b), num_sites=N)
    x0 = torch.randint(V, (b, N), generator=torch.Generator().manual_seed(0))
    s = torch.arange(b) % chain.num_steps
    sites = chain.block_sites(s, 1)[0]
    pair = glauber.draw_pair(x0, chain, s // N, chain.visited_in_sweep(s), sites, pi, uniform)
    elsewhere = torch.ones(b, N, dtype=torch.bool).scatter(1, sites, False)
    assert torch.equal(pair.x_t[elsewhere], pair.x_next[elsewhere])
    assert torch.equal(pair.before[pair.signal], pair.observed[pair.signal])
    noisy = pair.before[~pair.signal], pair.observed[~pair.signal]
    assert (noisy[0] == noisy[1]).any()  # a fresh draw may be the old token and is called noise
    assert (noisy[0] != noisy[1]).any()
    alone = glauber.draw_pair(
        x0[7:8], chain, s[7:8] // N, chain.visited_in_sweep(s[7:8]), sites[7:8], pi,
        partial(noise.uniform, seed=0, step=1, row=torch.tensor([7]), num_sites=N),
    )  # fmt: skip
    assert torch.equal(alone.x_next[0], pair.x_next[7])


# ------------------------------------------------------------------ the reduction


def test_reduction_there_and_back(pi: Tensor) -> None:
    p, log_odds = laws(B), torch.tensor([-2.0, 0.0, 1.5, 4.0], dtype=torch.float64)
    s = glauber.signal_logit(p.log(), pi.log(), log_odds)
    torch.testing.assert_close(glauber.log_conditional(s, pi.log()).exp(), p, rtol=0, atol=1e-14)
    assert glauber.log_mass(s, pi.log(), log_odds).abs().max() < 1e-14
    assert glauber.log_mass(s + 0.3, pi.log(), log_odds).sub(0.3).abs().max() < 1e-14
    # Bayes' rule for the label, written out
    keep = torch.sigmoid(log_odds)[:, None]
    posterior = keep * p / (keep * p + (1 - keep) * pi)
    torch.testing.assert_close(torch.sigmoid(s), posterior, rtol=1e-13, atol=0)


def test_mixing_there_and_back(pi: Tensor) -> None:
    p0, a = laws(B), torch.tensor([1.0, 0.7, 0.2, 0.01], dtype=torch.float64)
    log_p = glauber.log_mixed(p0.log(), pi.log(), a)
    torch.testing.assert_close(log_p.exp(), a[:, None] * p0 + (1 - a[:, None]) * pi, rtol=1e-13, atol=0)
    torch.testing.assert_close(glauber.unmixed(log_p, pi.log(), a) / a[:, None], p0, rtol=0, atol=1e-13)


def test_sharpening_acts_on_the_data_law_and_keeps_the_noise_floor(pi: Tensor) -> None:
    p0, a = laws(B), torch.tensor([1.0, 0.7, 0.2, 0.05], dtype=torch.float64)
    log_p = glauber.log_mixed(p0.log(), pi.log(), a)
    assert glauber.sharpened(log_p, pi.log(), a, PLAIN) is log_p
    cold = glauber.sharpened(log_p, pi.log(), a, Sharpening(0.5, 0.8)).exp()
    expected = a[:, None] * categorical.probabilities(p0.log(), Sharpening(0.5, 0.8)) + (1 - a[:, None]) * pi
    torch.testing.assert_close(cold, expected, rtol=0, atol=1e-12)
    naive = categorical.probabilities(log_p, Sharpening(0.5, 0.8))
    assert (naive - expected).abs().max() > 0.1


def test_the_loss_is_the_likelihood_of_the_label() -> None:
    s = torch.tensor([-3.0, 0.2, 50.0, -50.0])
    signal = torch.tensor([True, False, True, True])
    expected = -torch.log(torch.where(signal, torch.sigmoid(s.double()), torch.sigmoid(-s.double())))
    torch.testing.assert_close(glauber.signal_cross_entropy(s, signal).double(), expected, rtol=1e-6, atol=1e-7)
    assert glauber.signal_cross_entropy(s.bfloat16(), signal).dtype == torch.float32


# ------------------------------------------------------------------ kernels


def test_gated_kernel_is_bayes_rule_for_the_visit(pi: Tensor) -> None:
    """q(v | x') ~ p(v) (keep 1[v = x'] + beta pi(x')): the posterior of X_t given X_{t+1} = x'."""
    p, keep = laws(V), 0.37
    x = torch.arange(V)[:, None]
    log_odds = torch.full((V,), math.log(keep / (1 - keep)), dtype=torch.float64)
    law = glauber.SiteLaw(x, torch.arange(V), torch.zeros(V).long(), p.log(), pi.log(), log_odds, True)
    posterior = p * (keep * torch.eye(V, dtype=torch.float64) + (1 - keep) * pi[:, None])
    torch.testing.assert_close(law.probs()[:, 0], posterior / posterior.sum(1, keepdim=True), rtol=0, atol=1e-15)
    law.gated = False
    torch.testing.assert_close(law.probs()[:, 0], p, rtol=0, atol=1e-15)


@pytest.mark.parametrize("gated", [True, False])
def test_draws_follow_the_law_and_leave_the_rest_alone(pi: Tensor, gated: bool) -> None:
    b = 40_000
    x = torch.tensor([[4, 1, 6]]).expand(b, 3)
    log_odds = torch.full((b,), 0.4, dtype=torch.float64)
    p = laws(1).expand(b, V)
    law = glauber.SiteLaw(x, torch.arange(b), torch.ones(b).long(), p.log(), pi.log(), log_odds, gated)
    drawn = law.draw(partial(noise.uniform, seed=0, step=0, row=torch.arange(b), num_sites=3))
    assert torch.equal(drawn[:, [0, 2]], x[:, [0, 2]])
    expected = law.probs()[0, 1]
    share = drawn[:, 1].bincount(minlength=V) / b
    assert ((share - expected).abs() < 4 * (expected * (1 - expected) / b).sqrt()).all()
    other = glauber.SiteLaw(x, law.row, law.site, p.log(), pi.log(), log_odds, not gated).probs()[0, 1]
    assert (share - other).abs().max() > 0.1


# ------------------------------------------------------------------ the bound


def test_a_step_of_the_bound_is_the_mean_divergence_over_the_own_token(pi: Tensor) -> None:
    """The closed form against the double sum over (X_{t+1,i}, X_{t,i}) of the kernel's definition."""
    eye = torch.eye(V, dtype=torch.float64)
    for a, keep in ((1.0, 0.6), (0.7, 0.3), (0.01, 0.9)):
        p = laws(V, seed=int(100 * a))
        for x0 in range(V):
            m = a * eye[x0] + (1 - a) * pi
            q = keep * m + (1 - keep) * pi
            posterior = m * (keep * eye + (1 - keep) * pi[:, None])
            posterior = posterior / posterior.sum(1, keepdim=True)  # [own token, v]
            law = glauber.SiteLaw(
                torch.arange(V)[:, None], torch.arange(V), torch.zeros(V).long(), p[x0].expand(V, V).log(), pi.log(),
                torch.full((V,), math.log(keep / (1 - keep)), dtype=torch.float64), True,
            )  # fmt: skip
            kernel = law.probs()[:, 0]
            expected = (q[:, None] * posterior * (posterior.clamp(min=1e-300) / kernel).log()).sum()
            closed = glauber.step_nats(
                p[x0 : x0 + 1].log(),
                torch.tensor([x0]),
                pi.log(),
                torch.tensor([a], dtype=torch.float64),
                torch.tensor([keep], dtype=torch.float64),
            )
            assert float(closed) == pytest.approx(float(expected), abs=1e-13)
            assert float(closed) > 0


def test_prior_term_is_the_divergence_from_the_noise_law(pi: Tensor) -> None:
    eye = torch.eye(V, dtype=torch.float64)
    x0, a = torch.tensor([[2, 6]]), torch.tensor([[0.02, 0.3]], dtype=torch.float64)
    q = a[0, :, None] * eye[x0[0]] + (1 - a[0, :, None]) * pi
    assert float(glauber.prior_nats(x0, pi.log(), a)) == pytest.approx(float((q * (q / pi).log()).sum()), abs=1e-15)
