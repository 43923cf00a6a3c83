"""GGM is exact: E1 to E7, E9 and the controls C1 to C5 of the specification, by enumeration of 27 states.

Through the public `corrupt`, `pairs`, `terms`, `reverse_law` and `sample`; the quoted figures come from independent
numpy programs (shared with the specification).
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from ggm_lightning.core import noise
from ggm_lightning.exact import chains, glauber
from ggm_lightning.exact.states import product, total_variation
from ggm_lightning.models.ggm import GGM
from tests.models.chain_law import JOINT, LAW, SKEWED, STATES, N, V, exact, index

CHAINS = {
    "geometric": {"schedule": "geometric", "last_survival": 0.5**4},
    "geometric skewed": {"schedule": "geometric", "last_survival": 0.5**4, "noise_law": SKEWED},
    "linear": {},
    "linear skewed permuted": {"noise_law": SKEWED, "order": "permuted", "order_seed": 3},
    "linear R=16": {"last_survival": 1e-3, "num_sweeps": 16},
}


@pytest.fixture(params=CHAINS, ids=str)
def model(request: pytest.FixtureRequest) -> GGM:
    return exact(**CHAINS[request.param])


def times(model: GGM) -> range:
    return range(1, model.sweeps.num_steps + 1)


def at(t: int) -> tuple[Tensor, Tensor]:
    return torch.full((len(STATES),), t), torch.full((len(STATES),), t - 1)


def noise_probability(model: GGM, p: Tensor, t: int) -> Tensor:
    """P(Z != phi | X_t) for the visit t-1 -> t, by brute force over (X_{t-1}, Z); p is the law of X_{t-1}."""
    site, keep = int(model.sweeps.order[(t - 1) % N]), model.sweeps.keep[(t - 1) // N]
    replaced = torch.zeros(len(STATES), dtype=torch.float64)
    for v in range(V):
        x = STATES.clone()
        x[:, site] = v
        replaced.index_add_(0, index(x), p * (1 - keep) * model.log_pi.exp()[v])
    return replaced / (replaced + keep * p)


def test_permuted_order_is_not_the_raster() -> None:
    assert exact(**CHAINS["linear skewed permuted"]).sweeps.order.tolist() not in ([0, 1, 2], [2, 1, 0])


def test_e1_the_reduction(model: GGM) -> None:
    laws, pi = glauber.forward_laws(model, JOINT), model.log_pi.exp()
    for t in times(model):
        law = model.reverse_law(STATES, *at(t), sampler="gated")
        eta = noise_probability(model, laws[t - 1], t)
        keep, beta = model.sweeps.keep[(t - 1) // N], model.sweeps.beta[(t - 1) // N]
        own = STATES[:, law.site[0]]
        rhs = beta * pi[own] / keep * (1 / eta - 1)
        assert (law.log_p.exp().gather(1, own[:, None])[:, 0] - rhs).abs().max() <= 1e-14
        assert (law.eta - eta).abs().max() <= 1e-14
        assert (law.log_p.exp() - glauber.conditional(laws[t - 1], int(law.site[0]), JOINT)).abs().max() <= 1e-14


@pytest.mark.parametrize("sampler", ["heat_bath", "gated"])
def test_e2_exact_conditionals_give_back_the_law(model: GGM, sampler: str) -> None:
    assert (glauber.reverse(model, glauber.forward_laws(model, JOINT)[-1], sampler) - LAW).abs().max() <= 1e-14


def test_e3_closed_form_marginal(model: GGM) -> None:
    """The survivals that `corrupt` uses, against the chain step by step, between sweeps too."""
    eye, pi = torch.eye(V, dtype=torch.float64), model.log_pi.exp()
    for t, law in enumerate(glauber.forward_laws(model, JOINT)):
        a = model.sweeps.survival_at(torch.tensor([t]))[0, :, None]
        closed = sum(LAW[k] * product((a * eye[x] + (1 - a) * pi)[None], STATES)[0] for k, x in enumerate(STATES))
        assert (closed - law).abs().max() <= 1e-14


@pytest.mark.parametrize("t", [4, 12])
def test_e3_corrupt_draws_from_it(t: int) -> None:
    model = exact(noise_law=SKEWED, order="permuted", order_seed=3)
    b = 200_000
    uniform = partial(noise.uniform, seed=1, step=0, row=torch.arange(b), num_sites=N)
    x0 = STATES[torch.multinomial(LAW, b, replacement=True, generator=torch.Generator().manual_seed(0))]
    x_t = model.corrupt(x0, torch.full((b,), t), uniform)
    share = index(x_t).bincount(minlength=27) / b
    assert (
        total_variation(share, glauber.forward_laws(model, JOINT)[t]) < 0.006
    )  # the floor of 200,000 exact draws is .0033


def test_e4_starting_from_the_noise_law(model: GGM) -> None:
    start, last = glauber.noise_law(model), glauber.forward_laws(model, JOINT)[-1]
    a = model.sweeps.survival_at(torch.tensor([model.sweeps.num_steps]))
    bound = 1 - float((1 - a).prod())
    assert total_variation(last, start) <= bound
    assert total_variation(glauber.reverse(model, start, "heat_bath"), LAW) <= min(bound, 1e-7)


def test_e5_self_normalisation(model: GGM) -> None:
    for t in times(model):
        deviation = model._terms(STATES, STATES, at(t)[0], None)[1]
        assert deviation.abs().max() <= 1e-14
    wrong = exact("bare", noise_law=SKEWED)
    assert wrong._terms(STATES, STATES, at(5)[0], None)[1].abs().max() > 0.1


def test_e6_leave_one_out_form_is_the_same_law(model: GGM) -> None:
    options = {"noise_law": model.log_pi.exp().tolist(), "order": "raster"}
    direct, by_x0 = exact(**options), exact(loss="ce_x0", **options)
    for t in times(direct):
        one, other = (m.reverse_law(STATES, *at(t)).log_p.exp() for m in (direct, by_x0))
        assert (one - other).abs().max() <= 1e-14


def test_e7_samples_have_the_law() -> None:
    drawn = exact().sample(200_000, 1, seed=4)
    assert drawn.network_calls == 12
    assert total_variation(index(drawn.x).bincount(minlength=27) / 200_000, LAW) < 0.006  # floor .0033
    gated = exact().sample(200_000, 1, seed=5, sampler="gated").x
    assert total_variation(index(gated).bincount(minlength=27) / 200_000, LAW) < 0.006


def mean_bound(model: GGM) -> float:
    """Eq. (8) in the mean over x0 ~ P*, every state and time enumerated."""
    return float(LAW @ glauber.bound(model, JOINT))


@pytest.mark.parametrize("num_sweeps", [4, 8, 16])
def test_e9_the_mean_bound_has_no_gap(num_sweeps: int) -> None:
    model = exact(num_sweeps=num_sweeps)
    last, start = glauber.forward_laws(model, JOINT)[-1], glauber.noise_law(model)
    entropy = -float((LAW * LAW.log()).sum())
    expected = entropy + float((last * (last / start).log()).sum())
    assert expected == pytest.approx(2.283572, abs=1e-6)
    assert entropy == pytest.approx(2.283419, abs=1e-6)
    assert mean_bound(model) == pytest.approx(expected, abs=1e-6)


def test_e9_skewed_permuted_and_control() -> None:
    options = CHAINS["linear skewed permuted"]
    model = exact(**options)
    last, start = glauber.forward_laws(model, JOINT)[-1], glauber.noise_law(model)
    expected = -float((LAW * LAW.log()).sum()) + float((last * (last / start).log()).sum())
    assert mean_bound(model) == pytest.approx(expected, abs=1e-6)
    assert mean_bound(exact("late", **options)) > expected + 1e-3
    assert mean_bound(exact("blind", **options)) > expected + 1e-3


def test_nelbo_is_an_unbiased_estimate_of_the_bound() -> None:
    model = exact()
    x = STATES.repeat_interleave(400, 0)
    nats = model.nelbo(x, num_samples=12, seed=2).reshape(27, 400).mean(1)
    # standard error of the weighted mean: .006
    assert float((LAW * nats).sum()) == pytest.approx(2.283572, abs=0.024)
    assert float((LAW * exact("blind").nelbo(x, num_samples=12, seed=2).reshape(27, 400).mean(1)).sum()) > 2.33


@pytest.mark.parametrize(
    ("mistake", "expected", "options"),
    [
        ("late", 0.195, {}),
        ("blind", 0.082, {}),
        ("bare", 0.314, {"noise_law": SKEWED}),
        ("clean", 0.078, {}),
    ],
    ids=["C1", "C2", "C3", "C4"],
)
def test_controls_fail_by_the_quoted_amounts(mistake: str, expected: float, options: dict[str, object]) -> None:
    model = exact(mistake, **options)
    law = glauber.reverse(model, glauber.forward_laws(model, JOINT)[-1], "heat_bath")
    assert total_variation(law, LAW) == pytest.approx(expected, abs=1e-3)


GATED_SWEEPS = {1: 0.454, 2: 0.281, 4: 0.140, 8: 0.065, 16: 0.030, 32: 0.0145, 64: 0.0071, 128: 0.0035}


@pytest.mark.parametrize("num_sweeps", GATED_SWEEPS)
def test_whole_sweeps_gated_converge_and_heat_bath_does_not(num_sweeps: int) -> None:
    """The table of the specification's section 7, and C5."""
    model = exact(num_sweeps=num_sweeps, last_survival=1e-3)
    start = glauber.forward_laws(model, JOINT)[-1]
    error = total_variation(glauber.reverse(model, start, "parallel", size=N), LAW)
    assert error == pytest.approx(GATED_SWEEPS[num_sweeps], rel=0.15)
    control = total_variation(glauber.reverse(model, start, "parallel", size=N, gated=False), LAW)
    assert control >= 0.36


def test_smaller_blocks_are_closer() -> None:
    model = exact(num_sweeps=8, last_survival=1e-3)
    start = glauber.forward_laws(model, JOINT)[-1]
    errors = [total_variation(glauber.reverse(model, start, "parallel", size), LAW) for size in (1, 2, 3)]
    assert errors[0] <= 1e-14
    assert 1e-3 < errors[1] < 0.8 * errors[2]


def test_a_hidden_block_uses_what_is_left() -> None:
    """hide: block in one call: the product of p(x_i | X outside the block); with all hidden, independent sites."""
    model = exact(num_sweeps=4, hide="block")
    law = model.reverse_law(STATES, *torch.tensor([[12] * 27, [9] * 27]), sampler="parallel")
    assert model.network_calls == 1
    assert (law.log_p.reshape(27, N, V) - law.log_p.reshape(27, N, V)[0]).abs().max() < 1e-14
    two = model.reverse_law(STATES, *torch.tensor([[12] * 27, [10] * 27]), sampler="parallel")
    laws = glauber.forward_laws(model, JOINT)
    joint = laws[10]  # before visits 10 and 11 of sites 1 and 2
    marginal = joint.reshape(V, V, V).sum(2) / joint.reshape(V, V, V).sum((1, 2))[:, None]
    torch.testing.assert_close(two.log_p.reshape(27, 2, V)[:, 0].exp(), marginal[STATES[:, 0]], rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------ training pairs

PAIRS = 200_000


def enumerated_pairs(model: GGM) -> Tensor:
    """P(t, X_{t+1}, signal) of the chain, t uniform: Float64[T, 27, 2]."""
    out = []
    for t, p in enumerate(glauber.forward_laws(model, JOINT)[:-1]):
        site, keep = int(model.sweeps.order[t % N]), model.sweeps.keep[t // N]
        replaced = torch.zeros(27, dtype=torch.float64)
        for v in range(V):
            x = STATES.clone()
            x[:, site] = v
            replaced.index_add_(0, index(x), p * (1 - keep) * model.log_pi.exp()[v])
        out.append(torch.stack([replaced, keep * p], 1))
    return torch.stack(out) / len(out)


def drawn_pairs(model: GGM) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x0 = STATES[torch.multinomial(LAW, PAIRS, replacement=True, generator=generator)]
    uniform = partial(noise.uniform, seed=7, step=0, row=torch.arange(PAIRS), num_sites=N)
    u = torch.rand(PAIRS, dtype=torch.float64, generator=generator)
    pair, r, visited, valid = model.pairs(x0, u, 1, uniform)
    assert valid.all()
    t = r * N + visited.sum(1)
    assert torch.equal(model.sweeps.order[t % N], pair.sites[:, 0])
    cell = (t * 27 + index(pair.x_next)) * 2 + pair.signal[:, 0]
    return (cell.bincount(minlength=model.sweeps.num_steps * 54) / PAIRS).reshape(-1, 27, 2)


def floor(p: Tensor) -> float:
    """Mean total variation between p and 200,000 exact draws from it."""
    generator = torch.Generator().manual_seed(1)
    tries = [torch.multinomial(p.flatten(), PAIRS, replacement=True, generator=generator) for _ in range(5)]
    return sum(total_variation(d.bincount(minlength=p.numel()) / PAIRS, p.flatten()) for d in tries) / 5


@pytest.mark.parametrize("name", ["linear", "linear skewed permuted"])
def test_training_pairs_have_the_joint_law_of_the_chain(name: str) -> None:
    model = exact(**CHAINS[name])
    expected, drawn = enumerated_pairs(model), drawn_pairs(model)
    assert total_variation(drawn, expected) < 1.5 * floor(expected)
    assert total_variation(drawn.sum(0), expected.sum(0)) < 1.5 * floor(expected.sum(0))
    blind = exact(**CHAINS[name])
    blind.sweeps.visited_in_sweep = lambda s, num_visits=0: torch.zeros(len(s), N, dtype=torch.bool)
    with pytest.raises(AssertionError):
        drawn_pairs(blind)


def test_pairs_of_blocks() -> None:
    """hide: own shows the other members as visited; hide: block moves them all and marks what lies behind the sweep."""
    uniform = partial(noise.uniform, seed=7, step=0, row=torch.arange(600), num_sites=N)
    x0, u = STATES[torch.arange(600) % 27], torch.rand(600, dtype=torch.float64)
    own, r, visited, valid = exact(hide="own").pairs(x0, u, 2, uniform)
    assert valid.all()
    assert own.sites.shape == (600, 1)
    assert {(i, tuple(bits)) for i, bits in zip(own.sites[:, 0].tolist(), visited.int().tolist(), strict=True)} == {
        (0, (0, 1, 0)),
        (1, (1, 0, 0)),
        (2, (1, 1, 0)),
    }
    block, r, visited, valid = exact(hide="block").pairs(x0, u, 2, uniform)
    assert {(tuple(i), tuple(bits)) for i, bits in zip(block.sites.tolist(), valid.tolist(), strict=True)} == {
        ((0, 1), (True, True)),
        ((2, 2), (True, False)),
    }
    assert torch.equal(visited, (torch.arange(3) < block.sites[:, :1]))
    assert set(r.tolist()) == set(range(4))


# ------------------------------------------------------------------ infilling


def clamped_law(num_sweeps: int, site: int, value: int, rounds: int) -> float:
    """TV to the exact conditional of the sampler's law when one site is known, by enumeration through reverse_law."""
    model = exact(num_sweeps=num_sweeps, last_survival=1e-3, redenoise=rounds)
    known = torch.full((N,), value), torch.arange(N) == site
    return total_variation(chains.sweeps(model, "heat_bath", known=known), JOINT.given(known))


@pytest.mark.parametrize(
    ("num_sweeps", "site", "clamp", "redenoise"),
    [(8, 1, 0.110, 0.091), (8, 0, 0.190, 0.160), (32, 1, 0.030, 0.0277), (32, 0, 0.067, 0.048)],
)
def test_infilling_error_is_the_specifications(num_sweeps: int, site: int, clamp: float, redenoise: float) -> None:
    assert clamped_law(num_sweeps, site, 2, rounds=0) == pytest.approx(clamp, abs=1e-3)
    assert clamped_law(num_sweeps, site, 2, rounds=4) == pytest.approx(redenoise, abs=1e-3)


def test_infilling_draws_from_that_law() -> None:
    model = exact(num_sweeps=32, last_survival=1e-3, redenoise=4)
    known = torch.tensor([False, True, False])
    drawn = model.sample(40_000, 1, clamp=(torch.tensor([0, 2, 0]), known), seed=3)
    assert drawn.network_calls == (32 + 4) * 2
    assert (drawn.x[:, 1] == 2).all()
    target = LAW * (STATES[:, 1] == 2)
    share = index(drawn.x).bincount(minlength=27) / 40_000
    assert total_variation(share, target / target.sum()) == pytest.approx(0.0277, abs=0.006)
    assert total_variation(share, LAW) > 0.3
