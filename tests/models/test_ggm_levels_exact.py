"""GGM told each site's survival level, by enumeration of 27 states: one network, any number of sweeps, and infilling
without an error of its own."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.exact import glauber
from ggm_lightning.exact.glauber import reverse_over_orders, weight_of
from ggm_lightning.exact.states import product, total_variation
from ggm_lightning.models import ggm_hollow, ggm_levels, ggm_options
from ggm_lightning.models.ggm import GGM
from tests.models.chain_law import LAW, SKEWED, STATES, N, V, index
from tests.models.hollow_chain import SUBSETS, exact, exact_levels, noisy_law
from tests.models.test_ggm_hollow_exact import bound, gibbs

B = len(STATES)
TILT = 0.8 * torch.randn(N, V, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def tilted(model: GGM) -> GGM:
    """No longer exact, but hollow still."""
    with torch.no_grad():
        model.network.tilt.copy_(TILT)
    return model


# ------------------------------------------------------------------ loss


@pytest.mark.parametrize("loss", ggm_options.ALL_SITES_LOSSES)
def test_without_known_tokens_the_loss_is_that_of_the_bits(loss: str) -> None:
    """Step by step: levels say what sweep and bits said."""
    options = {"loss": loss, "num_sweeps": 3, "noise_law": SKEWED, "seed": 2}
    levels, bits = exact_levels(known_rows=0.0, **options), exact(**options)
    for step in range(3):
        found, expected = (model.loss(STATES, step=step).detach().double() for model in (levels, bits))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # the network with bits has float32's time
    with levels.at_sweeps(2):
        other = levels.loss(STATES, step=2)  # train_sweeps decides, wherever it is called
    assert other == levels.loss(STATES, step=2)


def with_known(model: GGM, law: Tensor = LAW) -> float:
    """The mean loss over r, S, the known sites K, x0 of this law, states and sites, exactly."""
    clean, pi = nn.functional.one_hot(STATES, V).double(), model.log_pi.exp()
    x0, zt = STATES.repeat_interleave(B, 0), STATES.repeat(B, 1)
    total, num_sweeps = 0.0, model.sweeps.num_sweeps
    for r, visited, known in itertools.product(range(num_sweeps), SUBSETS, SUBSETS):
        sweep, bits, given = torch.full((B * B,), r), visited.expand(B * B, N), known.expand(B * B, N)
        level = torch.where(known, 1.0, model.sweeps.survival[r + visited.long()])[:, None]
        p = torch.stack(
            [product((level * row + (1 - level) * pi)[None], STATES)[0] for row in clean]
        )  # [27 x0, 27 states]
        answer = model.readout(zt, **ggm_levels.inputs(model, sweep, bits, given), label=None)
        nats = ggm_hollow.site_losses(model, answer, x0, sweep, lambda stream: None, None).detach()
        weight = weight_of(visited) * weight_of(known) / num_sweeps * (law[:, None] * p).flatten()
        total += float(weight @ nats.double().mean(1))
    return total


def test_the_loss_with_known_tokens_is_the_mean_over_them() -> None:
    """12 steps of 1,000 rows, all of them with known tokens: within 4.5 standard errors of the enumerated mean."""
    counts = (LAW * 1000).round().long()
    rows, model = STATES.repeat_interleave(counts, 0), tilted(exact_levels(loss="ce_x0", num_sweeps=1, known_rows=1.0))
    expected = with_known(model, counts / counts.sum())
    found = torch.stack([model.loss(rows, step=step).detach() for step in range(12)])
    stderr = float(found.std()) / 12**0.5
    assert abs(float(found.mean()) - expected) < 4.5 * stderr < 0.03
    none = tilted(exact_levels(loss="ce_x0", num_sweeps=1, known_rows=0.0))
    assert abs(float(none.loss(rows, step=0)) - expected) > 0.1  # control


@pytest.mark.slow
def test_known_tokens_do_not_move_the_optimum() -> None:
    """The exact network is the minimum at every set of known sites: tilts cost, whichever way."""
    for loss in ("bce", "ce_x0", "bound"):
        model = exact_levels(loss=loss, num_sweeps=1)
        best = with_known(model)
        for sign in (1, -1):
            with torch.no_grad():
                model.network.tilt.copy_(sign * torch.tensor([0.0, 0.1, -0.1]))
            assert with_known(model) > best + 1e-5


# ------------------------------------------------------------------ bound


def test_one_network_has_the_bounds_of_every_number_of_sweeps() -> None:
    """Those of the same network told (sweep, bit), which belongs to one number; control: these differ."""
    model, found = tilted(exact_levels(loss="ce_x0", num_sweeps=4, noise_law=SKEWED)), []
    for num_sweeps in (1, 2):
        own = exact(loss="ce_x0", num_sweeps=num_sweeps, noise_law=SKEWED)
        own.network.tilt = TILT
        with model.at_sweeps(num_sweeps):
            found.append(bound(model))
        torch.testing.assert_close(found[-1], bound(own), rtol=0, atol=1e-11)
    assert (found[0] - found[1]).abs().max() > 1e-2
    assert model.sweeps.num_sweeps == 4


def test_the_exact_network_has_the_entropy_as_its_bound() -> None:
    model = exact_levels(num_sweeps=2)
    with model.at_sweeps(3):
        found, p = float((LAW * bound(model)).sum()), noisy_law(model)
    expected = -(LAW * LAW.log()).sum() + (p * (p.log() - glauber.noise_law(model).log())).sum()
    assert found == pytest.approx(float(expected), abs=1e-10)


def test_a_wrong_network_stays_above_its_own_law_at_any_number_of_sweeps() -> None:
    model = tilted(exact_levels(loss="ce_x0", num_sweeps=3))
    for num_sweeps in (1, 2):
        with model.at_sweeps(num_sweeps):
            law = reverse_over_orders(model, glauber.noise_law(model), "gated").detach()
            assert float(law.sum()) == pytest.approx(1, abs=1e-12)
            assert (bound(model) + law.log()).min() > 0
        assert total_variation(law, LAW) > 0.05


# ------------------------------------------------------------------ samplers


def test_samplers_have_the_laws_of_a_network_for_that_number_of_sweeps() -> None:
    model, own = exact_levels(num_sweeps=2), exact(num_sweeps=3)
    with model.at_sweeps(3):
        for sampler in ("heat_bath", "gated"):
            assert (reverse_over_orders(model, noisy_law(model), sampler) - LAW).abs().max() < 1e-13
        blocks = reverse_over_orders(model, noisy_law(model), "parallel", 2).detach()
    torch.testing.assert_close(blocks, reverse_over_orders(own, noisy_law(own), "parallel", 2), rtol=0, atol=1e-13)
    assert total_variation(blocks, LAW) > 1e-3


def test_the_corrector_keeps_the_law() -> None:
    assert (LAW @ gibbs(exact_levels(noise_law=SKEWED), 1) - LAW).abs().max() < 1e-14


def test_control_levels_of_the_wrong_sweep_give_another_law(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ggm_levels.inputs
    monkeypatch.setattr(ggm_levels, "inputs", lambda model, r, *given: right(model, (r - 1).clamp(min=0), *given))
    model = exact_levels(num_sweeps=3)
    assert total_variation(reverse_over_orders(model, noisy_law(model), "gated"), LAW) > 1e-2


def test_sample_draws_from_the_law_of_the_sweeps_that_are_asked_for() -> None:
    """20,000 samples in three whole sweeps."""
    model = tilted(exact_levels(num_sweeps=1))
    with model.at_sweeps(3):
        law = reverse_over_orders(model, glauber.noise_law(model), "parallel", 3).detach()
    drawn = model.sample(20_000, 3, sampler="parallel", seed=2, num_sweeps=3)
    assert drawn.network_calls == 3
    share = index(drawn.x).bincount(minlength=B) / 20_000
    assert total_variation(share, law) < 0.016  # the floor is .011
    assert (
        total_variation(share, reverse_over_orders(model, glauber.noise_law(model), "parallel", 3).detach()) > 0.1
    )  # one sweep


# ------------------------------------------------------------------ infilling


def conditional(site: int, value: int) -> Tensor:
    target = LAW * (STATES[:, site] == value)
    return target / target.sum()


def starting(model: GGM, target: Tensor, site: int, noisy: bool) -> Tensor:
    """The law of the state in which infilling begins, x_site known: pi, or with `noisy` what the data have become."""
    survival = torch.full((N,), float(model.sweeps.survival[-1]) if noisy else 0.0, dtype=torch.float64)
    survival[site] = 1.0
    clean, pi = nn.functional.one_hot(STATES, V).double(), model.log_pi.exp()
    laws = [product((survival[:, None] * row + (1 - survival[:, None]) * pi)[None], STATES)[0] for row in clean]
    return sum(p * law for p, law in zip(target, laws, strict=True))


def infilled(model: GGM, p: Tensor, site: int, sampler: str) -> Tensor:
    """Down through all sweeps, one unknown site at a time in all orders, without ReDeNoise."""
    known = torch.zeros(B, N, dtype=torch.bool)
    known[:, site] = True
    others = [i for i in range(N) if i != site]
    orders = [torch.tensor([*order, site]) for order in itertools.permutations(others)]
    for r in reversed(range(model.sweeps.num_sweeps)):
        after = torch.zeros_like(p)
        for order in orders:
            q = p
            for k in reversed(range(N - 1)):
                s = torch.full((B,), r * N + k)
                law = model.reverse_law(STATES, s + 1, s, sampler=sampler, order=order.expand(B, N), known=known)
                q = q @ product(law.probs(), STATES)
            after = after + q / len(orders)
        p = after
    return p.detach()


@pytest.mark.parametrize(("sampler", "site", "value"), [("heat_bath", 0, 0), ("gated", 2, 1)])
def test_infilling_is_exact(sampler: str, site: int, value: int) -> None:
    """At any number of sweeps. Control: the same chain told (sweep, bit), for which known tokens are noisy ones from
    the second sweep on."""
    target, levels = conditional(site, value), exact_levels(num_sweeps=4, last_survival=1e-3)
    for num_sweeps in (1, 2, 3):
        bits = exact(num_sweeps=num_sweeps, last_survival=1e-3)
        with levels.at_sweeps(num_sweeps):
            start, prior = (starting(levels, target, site, noisy) for noisy in (True, False))
            assert total_variation(infilled(levels, start, site, sampler), target) < 1e-12
            assert total_variation(infilled(levels, prior, site, sampler), target) < 1e-3  # a_R, where the chain ends
        assert num_sweeps == 1 or total_variation(infilled(bits, start, site, sampler), target) > 5e-3


def test_sample_infills_by_that_law() -> None:
    """20,000 draws in two exact sweeps without a round of ReDeNoise."""
    model = exact_levels(num_sweeps=2, last_survival=1e-3, redenoise=0)
    drawn = model.sample(20_000, 1, clamp=(torch.tensor([2, 0, 0]), torch.tensor([True, False, False])), seed=3)
    assert drawn.network_calls == 2 * 2
    share = index(drawn.x).bincount(minlength=B) / 20_000
    assert total_variation(share, conditional(0, 2)) < 0.01  # the floor is .006; told (sweep, bit) .030
