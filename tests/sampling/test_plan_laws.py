"""Every plan has the law that is said of it: 40,000 rows of a network that is exact, within 4.5 standard errors of the
law by enumeration (tests/sampling/plan_laws.py). Each control is off by more than 45."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.exact.states import total_variation
from ggm_lightning.sampling.request import Samples
from tests.sampling import plan_laws as laws
from tests.sampling.plan_laws import HOLLOW, LAW, MU, NETWORK, NOTHING, ROWS, STATES, N, V, frequencies, md4, worst

STEPS = 8
LOOP = {"t_on": 0.6, "t_off": 0.2, "alpha_on": 0.8}
RULES = {"cap": 0.3, "rescale": 0.6, "rate": 4.0, "forward_backward": 1.0, "psi": 0.5, "loop": 0.3}


def drawn(sampler: str, num_steps: int = STEPS, network: nn.Module = NETWORK, **more: object) -> Samples:
    return md4(network).sample(ROWS, num_steps, sampler=sampler, grid="uniform", **more)


# ------------------------------------------------------------------ remasking


@pytest.mark.parametrize("rule", RULES)
def test_remasking(rule: str) -> None:
    """Of x and of the state on the way. Control: what is hidden is not made up for."""
    num_steps = 10 if rule == "loop" else STEPS  # a step of its grid falls on t_on and t_off
    steps = laws.remasking(rule, num_steps, RULES[rule])
    of_run = drawn("remasking", num_steps, rule=rule, eta=RULES[rule], trace=True, **(LOOP if rule == "loop" else {}))
    assert worst(frequencies(of_run.x), laws.stepwise(steps)) < 4.5
    late = num_steps - 2
    state = frequencies(of_run.trace[late], V + 1)
    assert worst(state, laws.state_law(steps[:late])) < 4.5
    assert worst(state, laws.state_law(steps[:late], compensate=False)) > 45


def error(rule: str, eta: float, num_steps: int) -> float:
    return total_variation(laws.stepwise(laws.remasking(rule, num_steps, eta)), LAW.p)


def test_the_rate_vanishes_with_the_steps_and_a_loop_has_a_floor() -> None:
    ancestral = [error("cap", 0.0, num_steps) for num_steps in (64, 256, 1024)]
    rate = [error("rate", 4.0, num_steps) for num_steps in (64, 256, 1024)]
    assert [round(tv, 4) for tv in ancestral[::2]] == [0.009, 0.0006]
    for coarse, fine in (*itertools.pairwise(rate), *itertools.pairwise(ancestral)):
        assert 3.7 < coarse / fine < 4.3
    assert [round(tv, 4) for tv in rate[1:]] == [0.0066, 0.0017]
    loop = [error("loop", 0.02, num_steps) for num_steps in (256, 1024)]
    assert loop[1] > 0.8 * loop[0]
    cap = [error("cap", 0.2, num_steps) for num_steps in (256, 1024)]
    assert [round(tv, 3) for tv in cap] == [0.034, 0.022]


def test_remasking_leaves_what_is_known_alone() -> None:
    """Site 1 is known. Control: it counts as free, is hidden and revealed anew."""
    known = torch.arange(N) == 1
    start = (torch.tensor([V, 2, V]) == STATES).all(-1).double()
    x = drawn("remasking", rule="cap", eta=0.8, clamp=(torch.tensor([0, 2, 0]), known)).x
    steps = laws.remasking("cap", STEPS, 0.8)
    assert worst(frequencies(x), laws.stepwise(steps, start, free=~known)) < 4.5
    assert worst(frequencies(x), laws.stepwise(steps, start)) > 45


# ------------------------------------------------------------------ order by how sure the network is


@pytest.mark.parametrize("score", laws.SCORES)
def test_one_at_a_time_is_exact_for_every_score(score: str) -> None:
    """Control: three at a time, each by itself."""
    assert (laws.ordered(score, k=1) - LAW.p).abs().max() < 1e-12
    one = drawn("ordered", score=score, k=1)
    assert (one.network_calls, one.rows) == (N, N * ROWS)
    assert worst(frequencies(one.x), LAW.p) < 4.5
    assert worst(frequencies(drawn("ordered", score=score, k=3).x), LAW.p) > 45


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"k": 2}, 2),
        ({"score": "margin", "k": 2}, 2),
        ({"score": "entropy", "gamma": 0.7}, 2.76),
        ({"gamma": 0.9}, 2.19),
    ],
)
def test_more_at_a_time(options: dict[str, object], rows: float) -> None:
    """Also with gamma, where the number of sites depends on the state. Control: all at once."""
    of_run = drawn("ordered", **options)
    expected = laws.ordered(**{"score": "confidence", **options})
    assert of_run.rows / ROWS == pytest.approx(rows, abs=0.01)
    assert worst(frequencies(of_run.x), expected) < 4.5
    assert total_variation(expected, LAW.p) > 0.05
    assert worst(frequencies(of_run.x), laws.ordered("confidence", k=3)) > 45


def test_order_by_drawn_values_is_biased() -> None:
    """It has the law that is said of it, .40 from p and of half its entropy. Control: it is called exact."""
    expected = laws.by_drawn_value()
    assert total_variation(expected, LAW.p) == pytest.approx(0.402, abs=5e-4)
    assert laws.entropy(expected.tolist()) == pytest.approx(1.207, abs=5e-4)
    assert pytest.approx(2.38, abs=5e-3) == LAW.entropy
    x = drawn("ordered", score="drawn", biased=True, k=1).x
    assert worst(frequencies(x), expected) < 4.5
    assert worst(frequencies(x), LAW.p) > 45


def test_given_a_known_site_the_order_is_exact_too() -> None:
    """Control: what is known is ignored."""
    known = torch.arange(N) == 1
    given = torch.where(LAW.x[:, 1] == 2, LAW.p, 0.0)
    x = drawn("ordered", k=1, clamp=(torch.tensor([0, 2, 0]), known)).x
    assert worst(frequencies(x), given / given.sum()) < 4.5
    assert worst(frequencies(x), LAW.p) > 45


# ------------------------------------------------------------------ plans that hold a plan


@pytest.mark.parametrize(("stride", "num_steps"), [(1, 1), (2, 1), (2, 3)])
def test_blocks(stride: int, num_steps: int) -> None:
    """Ancestral sampling in each window. Control: all sites at once, and what is exact where that is not."""
    steps = [(1 - t, 1 - s, 0.0) for t, s in laws.times(num_steps)]
    windows = [range(first, min(first + stride, N)) for first in range(0, N, stride)]
    found, expected = frequencies(drawn("blocks", num_steps, stride=stride).x), laws.in_windows(steps, windows)
    assert worst(found, expected) < 4.5
    assert worst(found, LAW.p if num_steps > 1 else laws.stepwise([(0.0, 1.0, 0.0)])) > (20 if num_steps > 1 else 45)
    if stride == 1:
        assert (expected - LAW.p).abs().max() < 1e-12


def test_the_corrector_keeps_the_law_and_leads_to_it() -> None:
    """From the independent sites of a single step. Control: no correction."""
    gibbs = laws.gibbs()
    assert (LAW.p @ gibbs - LAW.p).abs().max() < 1e-15
    independent = laws.stepwise([(0.0, 1.0, 0.0)])
    found = frequencies(drawn("corrected", 1, HOLLOW, corrections=3).x)
    assert worst(found, independent @ torch.matrix_power(gibbs, 3)) < 4.5
    assert worst(found, independent) > 45
    assert total_variation(independent @ torch.matrix_power(gibbs, 100), LAW.p) < 1e-3
    exact = drawn("corrected", 1, HOLLOW, corrections=3, inside="ordered", inside_options={"k": 1}).x
    assert worst(frequencies(exact), LAW.p) < 4.5


# ------------------------------------------------------------------ wrappers round the denoiser


def cut(p: list[float], inside: bool) -> list[float]:
    """The nucleus of mass .7: with the class that crosses it, or without."""
    kept, mass = [0.0] * V, 0.0
    for rank, v in enumerate(sorted(range(V), key=lambda v: -p[v])):
        if (rank == 0 or mass + p[v] <= 0.7) if inside else mass < 0.7:
            kept[v] = p[v]
        mass += p[v]
    return kept


def sharpened(mu: Tensor, rule: str) -> Tensor:
    """Float64[64, 3, 3]."""
    mu = mu.nan_to_num()
    if rule == "temperature":
        kept = mu**2
    elif rule == "mode":
        kept = (mu == mu.amax(-1, keepdim=True)).double()
    elif rule == "top_k":
        kept = torch.where(mu >= mu.sort(-1).values[..., 1:2], mu, 0.0)
    else:
        kept = torch.tensor([[cut(p, rule == "inside") for p in sites] for sites in mu.tolist()]).double()
    return kept / kept.sum(-1, keepdim=True).clamp(min=1e-300)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("temperature", {"temperature": 0.5}),
        ("mode", {"temperature": 0}),
        ("top_k", {"top_k": 2}),
        ("crossing", {"top_p": 0.7}),
        ("inside", {"top_p": 0.7, "nucleus": "inside"}),
    ],
)
def test_what_is_drawn_from(rule: str, options: dict[str, object]) -> None:
    """One site at a time, the surest by the network's own law. Control: the law itself."""
    expected = laws.ordered("confidence", k=1, mu=sharpened(MU, rule))
    x = drawn("ordered", k=1, **options).x
    assert float(expected.sum()) == pytest.approx(1.0)
    assert worst(frequencies(x), expected) < 4.5
    if rule != "top_k":
        assert worst(frequencies(x), LAW.p) > 45
    assert frequencies(x)[expected == 0].sum() == 0


class Labelled(nn.Module):
    """With label 0 the law itself, without one (1) another."""

    num_labels = 1

    def forward(self, z: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return torch.where((label == 0)[:, None, None], NETWORK(z), torch.sin(NETWORK(z).clamp(min=-30)))


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_guidance(weight: float) -> None:
    """Of ordered, k = 1, the order being that of the guided law, too. Control: no guidance."""
    nobody = torch.sin(NETWORK(STATES).clamp(min=-30))
    mu = torch.softmax(nobody + weight * (NETWORK(STATES) - nobody), -1)
    model = md4(Labelled(), label_dropout=0.1)
    label = torch.zeros(ROWS, dtype=torch.int64)
    of_run = model.sample(ROWS, 1, label, sampler="blocks", stride=1, inside="ordered", guidance=weight)
    assert (of_run.network_calls, of_run.rows) == (N, 2 * N * ROWS)
    one_by_one = NOTHING
    for site in range(N):
        shown = nn.functional.one_hot(STATES, V + 1).double()
        here = (STATES[:, site] == V)[:, None]
        shown[:, site] = torch.where(here, nn.functional.pad(mu[:, site].nan_to_num(), (0, 1)), shown[:, site])
        one_by_one = one_by_one @ laws.kernel(shown)
    assert worst(frequencies(of_run.x), one_by_one[laws.CLEAN]) < 4.5
    assert worst(frequencies(of_run.x), LAW.p) > 45
