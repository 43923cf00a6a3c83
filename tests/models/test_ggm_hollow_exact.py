"""GGM with order: random is exact, by enumeration of 27 states, all sets of visited sites and all orders."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from ggm_lightning.core.sweeps import Sweeps
from ggm_lightning.exact import glauber
from ggm_lightning.exact.glauber import weight_of
from ggm_lightning.exact.states import product, total_variation
from ggm_lightning.models import ggm_hollow
from ggm_lightning.models.ggm import GGM
from tests.models.chain_law import JOINT, LAW, SKEWED, STATES, N, V
from tests.models.hollow_chain import ORDERS, SUBSETS, HollowTable, exact, noisy_law, state_law, tabled

B = len(STATES)


def at_all_sites(model: GGM) -> Tensor:
    """The mean of the all-site loss over r, S, x0 and states, exactly."""
    total = torch.zeros((), dtype=torch.float64)
    num_sweeps = model.sweeps.num_sweeps
    for r in range(num_sweeps):
        for visited in SUBSETS:
            nats = _nats(model, r, visited)  # [27 x0, 27 states]
            p = torch.stack([state_law(model, x0, r, visited) for x0 in STATES])
            total = total + weight_of(visited) / num_sweeps * (LAW[:, None] * p * nats).sum()
    return total


def _nats(model: GGM, r: int, visited: Tensor) -> Tensor:
    x0, zt = STATES.repeat_interleave(B, 0), STATES.repeat(B, 1)
    sweep = torch.full((B * B,), r)
    answer = model.readout(zt, sweep.double() / model.sweeps.num_sweeps, None, visited=visited.expand(B * B, N))
    losses = ggm_hollow.site_losses(model, answer, x0, sweep, _no_uniform, None)
    return losses.mean(1).reshape(B, B)


def _no_uniform(stream: str) -> Tensor:
    raise AssertionError("nothing is drawn")


def at_one_site(model: GGM, loss: str) -> Tensor:
    """The paper's objective: r, an order and a place in it uniform, X_t drawn, then Z_t and the fresh token summed."""
    visits = list(itertools.product(range(model.sweeps.num_sweeps), ORDERS, range(N)))
    return sum(_one_visit(model, loss, r, order[:k], order[k]) for r, order, k in visits) / len(visits)


def _one_visit(model: GGM, loss: str, r: int, before: Tensor, site: Tensor) -> Tensor:
    """The mean over x0 and X_t of the loss at a site, where sweep r has visited the sites `before`."""
    chain, visited = model.sweeps, torch.zeros(N, dtype=torch.bool)
    visited[before] = True
    t = torch.full((B,), r / chain.num_sweeps, dtype=torch.float64)
    o = model.network(STATES, t, None, visited.expand(B, N))[:, site]
    p = torch.stack([state_law(model, x0, r, visited) for x0 in STATES])  # [27 x0, 27 states]
    own = STATES[:, site]
    if loss == "bce":
        s = o + chain.log_odds[r]
        signal = chain.keep[r] * softplus(-s.gather(1, own[:, None])[:, 0])
        nats = (signal + chain.beta[r] * softplus(s) @ model.log_pi.exp()).expand(B, B)
    else:
        nats = -torch.log_softmax(o + model.log_pi, -1)[:, own].T
    return (LAW[:, None] * p * nats).sum()


# ------------------------------------------------------------------ loss


@pytest.mark.parametrize("loss", ["bce", "ce_x0"])
def test_loss_and_gradient_of_all_sites_are_those_of_one(loss: str) -> None:
    model = tabled(loss=loss)
    table = model.network.table
    one, every = at_one_site(model, loss), at_all_sites(model)
    slopes = [torch.autograd.grad(part, table)[0] for part in (one, every)]
    torch.testing.assert_close(every, one, rtol=0, atol=1e-12)
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-15)
    assert slopes[0].abs().max() > 1e-4


def test_control_bits_of_rate_one_half_are_another_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tabled()
    one = at_one_site(model, "bce")
    monkeypatch.setattr("tests.models.test_ggm_hollow_exact.weight_of", lambda visited: 2.0**-N)
    assert abs(float((at_all_sites(model) - one).detach())) > 1e-4


def test_control_a_leaking_network_has_no_such_objective() -> None:
    model = tabled(leak=0.3)
    difference = at_all_sites(model) - at_one_site(model, "bce")
    assert abs(float(difference.detach())) > 1e-4


def test_a_drawn_label_has_the_summed_ones_loss_and_gradient_in_expectation() -> None:
    """Exactly: all probabilities are tenths, and each of the four uniforms runs through ten midpoints."""
    grid = (torch.arange(10, dtype=torch.float64) + 0.5) / 10
    uniforms = torch.cartesian_prod(*[grid] * 4).repeat_interleave(B, 0)
    streams = dict(zip(("own keep", "own noise", "change", "fresh"), uniforms.T, strict=True))
    x0, zt = STATES.repeat(10**4, 1), STATES.flip(0).repeat(10**4, 1)
    sweep, visited = torch.ones(len(x0), dtype=torch.long), SUBSETS[5].expand(len(x0), N)

    def uniform(stream: str) -> Tensor:
        return streams[stream][:, None].expand(-1, N)  # the loss adds up sites: they may share theirs

    found = []
    for loss in ("bce", "bce_sampled"):
        model = tabled(loss=loss)
        model._sweeps = Sweeps(torch.arange(N), torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64))
        answer = model.readout(zt, sweep / 2, None, visited=visited)
        nats = ggm_hollow.site_losses(model, answer, x0, sweep, uniform, None).reshape(-1, B, N)
        (slope,) = torch.autograd.grad(nats.mean(), model.network.table)
        found.append((nats.detach(), slope))
    (summed, expected), (drawn, slope) = found
    torch.testing.assert_close(drawn.mean(0), summed.mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-14)
    assert drawn.std(0).min() > 0.1
    assert summed.std(0).max() < 1e-12


def test_the_exact_network_is_the_minimum_of_every_loss() -> None:
    for loss in ("bce", "ce_x0", "bound"):
        model = exact(loss=loss, num_sweeps=2, noise_law=SKEWED)
        best = float(at_all_sites(model))
        for sign in (1, -1):
            model.network.tilt = sign * torch.tensor([0.0, 0.1, -0.1], dtype=torch.float64)
            assert float(at_all_sites(model)) > best + 1e-4


# ------------------------------------------------------------------ bound


def bound(model: GGM) -> Tensor:
    """The bound of each of the 27 examples, by exact sums over r, S and the state: Float64[27]."""
    return glauber.bound_over_orders(model, JOINT)


def prior(model: GGM) -> Tensor:
    from ggm_lightning.core import glauber

    last = model.sweeps.survival[-1].expand(B, N)
    return glauber.prior_nats(STATES, model.log_pi, last)


def bound_of_order(model: GGM, order: Tensor) -> Tensor:
    """The same network in the chain of one fixed order: GGM's own terms, one hidden site at a time."""
    chain = model.sweeps
    fixed = GGM(
        model.network,
        V,
        (N,),
        loss="ce_x0" if model.objective in ("ce_x0", "bound") else "bce",
        num_sweeps=chain.num_sweeps,
        last_survival=float(chain.survival[-1]),
        noise_law=model.log_pi.exp().tolist(),
    )
    fixed._sweeps = Sweeps(order, chain.survival)
    total = torch.zeros(B, dtype=torch.float64)
    for t in range(1, chain.num_steps + 1):
        r = (t - 1) // N
        visited = fixed.sweeps.rank < (t - 1) % N
        x0, zt = STATES.repeat_interleave(B, 0), STATES.repeat(B, 1)
        nats = fixed.terms(x0, zt, torch.full((B * B,), t)).reshape(B, B).detach()
        p = torch.stack([state_law(model, x, r, visited) for x in STATES])
        total += (p * nats).sum(1) / chain.num_steps
    return total + prior(model)


@pytest.mark.parametrize("loss", ["bce", "ce_x0", "bound"])
def test_the_bound_is_the_mean_over_orders_and_above_the_mixture(loss: str) -> None:
    model = tabled(loss=loss)
    found = bound(model)
    of_orders = torch.stack([bound_of_order(model, order) for order in ORDERS])
    torch.testing.assert_close(found, of_orders.mean(0), rtol=0, atol=1e-11)
    assert of_orders.std(0).min() > 1e-3  # the orders differ
    law = glauber.reverse_over_orders(model, glauber.noise_law(model), "gated").detach()
    assert float(law.sum()) == pytest.approx(1, abs=1e-12)
    assert (found + law.log()).min() > 1e-2


def test_the_exact_network_has_the_entropy_as_its_bound() -> None:
    """H(P*) + KL(P_T || pi^n), 2.283572 in the specification, for every order."""
    model = exact(num_sweeps=4)
    p = noisy_law(model)
    expected = -(LAW * LAW.log()).sum() + (p * (p.log() - glauber.noise_law(model).log())).sum()
    assert float((LAW * bound(model)).sum()) == pytest.approx(float(expected), abs=1e-10)
    assert float(expected) == pytest.approx(2.283572, abs=1e-6)


def test_nelbo_estimates_that_bound() -> None:
    model = tabled()
    x = STATES[torch.arange(4000) % B]
    nats = model.nelbo(x, num_samples=4, seed=1)
    per_state = nats.reshape(-1)[: 4000 // B * B].reshape(-1, B)
    stderr = per_state.std(0) / math.sqrt(len(per_state))
    assert ((per_state.mean(0) - bound(model)).abs() < 4.5 * stderr).all()
    assert stderr.max() < 0.1
    assert model.network_calls >= 4


# ------------------------------------------------------------------ sampler


@pytest.mark.parametrize("sampler", ["heat_bath", "gated"])
@pytest.mark.parametrize("options", [{}, {"noise_law": SKEWED, "loss": "ce_x0", "num_sweeps": 3}], ids=str)
def test_one_site_at_a_time_is_exact(sampler: str, options: dict) -> None:
    model = exact(**options)
    assert (glauber.reverse_over_orders(model, noisy_law(model), sampler) - LAW).abs().max() < 1e-13
    assert total_variation(glauber.reverse_over_orders(model, glauber.noise_law(model), sampler), LAW) < 1e-3


def test_blocks_converge_with_sweeps_and_with_blocks() -> None:
    """Gated: the error falls with R, and is smaller with blocks of two than with whole sweeps."""
    whole = [
        total_variation(
            glauber.reverse_over_orders(exact(num_sweeps=r), noisy_law(exact(num_sweeps=r)), "parallel", 3), LAW
        )
        for r in (2, 8)
    ]
    two = [
        total_variation(
            glauber.reverse_over_orders(exact(num_sweeps=r), noisy_law(exact(num_sweeps=r)), "parallel", 2), LAW
        )
        for r in (2, 8)
    ]
    assert whole[1] < whole[0] / 2.5
    assert two[1] < two[0] / 2.5
    assert two[0] < whole[0]
    assert two[1] < whole[1]
    assert 0.05 < whole[1] < 0.08  # the specification's whole sweeps: .065 at R = 8


def test_control_the_other_bits_give_another_law() -> None:
    """An order that is not the one the visited bits say."""
    model = exact()
    right = model.reverse_law

    def wrong(zt: Tensor, t: Tensor, s: Tensor, *args: object, order: Tensor, **kwargs: object) -> object:
        if int(s[0]) % N == 1:  # the same site in the middle, with the other neighbour visited
            order = order.flip(1)
        return right(zt, t, s, *args, order=order, **kwargs)

    model.reverse_law = wrong
    assert (glauber.reverse_over_orders(model, noisy_law(model), "gated") - LAW).abs().max() > 1e-3


def gibbs(model: GGM, size: int) -> Tensor:
    """Float64[27, 27]: one call of the corrector, mean over all sets of `size` sites."""
    chosen = [torch.tensor(sites) for sites in itertools.combinations(range(N), size)]
    return sum(product(model.gibbs_law(STATES, sites.expand(B, size)).probs(), STATES) for sites in chosen) / len(
        chosen
    )


@pytest.mark.parametrize("loss", ["bce", "ce_x0"])
def test_the_corrector_keeps_the_law_and_leads_to_it(loss: str) -> None:
    """One site at a time: LAW is stationary, and reached. Two at a time: another law, but no far one."""
    model = exact(loss=loss, noise_law=SKEWED)
    one, two = gibbs(model, 1), gibbs(model, 2)
    assert (LAW @ one - LAW).abs().max() < 1e-14
    reached = glauber.noise_law(model)
    for _ in range(400):
        reached = reached @ one
    assert total_variation(reached, LAW) < 1e-6
    assert 1e-3 < total_variation(LAW @ two, LAW) < 0.25


def test_control_a_corrector_at_a_noisy_level_does_not_keep_the_law() -> None:
    model = exact()
    r, visited = torch.ones(B, dtype=torch.long), torch.zeros(B, N, dtype=torch.bool)
    laws = [ggm_hollow.block_law(model, STATES, r, visited, torch.tensor([[i]] * B), gated=False) for i in range(N)]
    kernel = sum(product(law.probs(), STATES) for law in laws) / N
    assert total_variation(LAW @ kernel, LAW) > 1e-2


def test_sample_draws_from_that_law() -> None:
    """20,000 samples, whole sweeps and blocks of two: total variation from the enumerated law near its floor."""
    model = tabled(num_sweeps=2)
    for num_steps, size in ((2, 3), (4, 2), (6, 1)):
        law = glauber.reverse_over_orders(model, glauber.noise_law(model), "parallel", size).detach()
        drawn = model.sample(20_000, num_steps, sampler="parallel", seed=2)
        assert drawn.network_calls == num_steps
        share = (drawn.x * torch.tensor([9, 3, 1])).sum(1).bincount(minlength=B) / 20_000
        floor = 0.5 * float((2 / math.pi * law * (1 - law) / 20_000).sqrt().sum())
        assert total_variation(share, law) < 1.5 * floor
        assert total_variation(share, LAW) > 10 * floor


def test_the_table_is_hollow() -> None:
    """What these tests rest on."""
    network = HollowTable(2)
    t, visited = torch.full((B,), 0.5, dtype=torch.float64), torch.zeros(B, N, dtype=torch.bool)
    base = network(STATES, t, None, visited)
    for i in range(N):
        z, bits = STATES.clone(), visited.clone()
        z[:, i], bits[:, i] = (z[:, i] + 1) % V, True
        moved = (network(z, t, None, bits) - base).abs().amax((0, 2))
        assert moved[i] == 0
        assert (moved > 0).sum() == N - 1
