"""The bound given known sites, by enumeration: exact for exact networks, above -log p for others, and what has none."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from ggm_lightning.core import schedules
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.networks import Causal, Masked
from ggm_lightning.models.autoregressive import AutoregressiveModel
from ggm_lightning.models.base import Family
from ggm_lightning.models.markov import MarkovDiffusion
from ggm_lightning.models.md4 import MD4
from ggm_lightning.sampling import conditional
from ggm_lightning.sampling.plan import Plan, Sites
from tests.models import infilling_law

N, V = 4, 3
KNOWN = torch.tensor([True, False, False, False])
ASKED = torch.tensor([False, True, False, True])  # site 2 is neither


class SeesTime(Masked):
    """An inexact network that is told the time: its logits are scaled by 1 - t / 2."""

    def forward(self, z: Tensor, t: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        assert t is not None
        return super().forward(z) * (1 - t[:, None, None].double() / 2)


@pytest.fixture(scope="module")
def law() -> JointLaw:
    return JointLaw.random(N, V, seed=0)


def truth(law: JointLaw, known: Tensor, asked: Tensor) -> Tensor:
    """-log p(x_A | x_K), Float64[81], the other sites summed out."""

    def marginal(sites: Tensor) -> Tensor:
        same = (law.x[:, None, sites] == law.x[None, :, sites]).all(-1)
        return (same * law.p).sum(-1).log()

    return marginal(known) - marginal(known | asked)


def enumerated(model: Family, x: Tensor, known: Tensor, asked: Tensor) -> Tensor:
    """Eq. (1) as the mean over all states of what the code averages, Float64[b]."""
    sites = torch.nonzero(asked)[:, 0].tolist()
    total = torch.zeros(len(x), dtype=torch.float64)
    for size in range(1, len(sites) + 1):
        for some in combinations(sites, size):
            masked = ~(known | asked)
            masked[list(some)] = True
            nats = conditional.terms(model, model._plain_denoiser, x, asked.expand(x.shape), masked.expand(x.shape))
            total += nats / math.comb(len(sites), size) / len(sites)
    return total


@pytest.mark.parametrize("rest", ["asked", "neither"])
def test_with_the_exact_network_it_is_the_conditional_law(law: JointLaw, rest: str) -> None:
    """Whatever the schedule. Control: the same without the weight m / l."""
    asked = ~KNOWN if rest == "asked" else ASKED
    right = truth(law, KNOWN, asked)
    for schedule in (schedules.Linear(), schedules.Cosine(0.0)):
        model = MD4(Masked(law), V, (N,), schedule=schedule)
        assert (enumerated(model, law.x, KNOWN, asked) - right).abs().max() < 1e-10
    masked = (~KNOWN).expand(law.x.shape)
    whole = conditional.terms(model, model._plain_denoiser, law.x, asked.expand(law.x.shape), masked)
    assert (whole - right).abs().max() > 0.1


def test_absorbing_rates_have_the_same(law: JointLaw) -> None:
    model = MarkovDiffusion(Masked(law), V, (N,), process="absorbing")
    assert (enumerated(model, law.x, KNOWN, ASKED) - truth(law, KNOWN, ASKED)).abs().max() < 1e-10


def test_with_another_network_it_lies_above_in_the_mean(law: JointLaw) -> None:
    """A mean divergence of laws given x_K. Control: it is not the truth of any row."""
    model = MD4(SeesTime(law), V, (N,))
    gap = enumerated(model, law.x, KNOWN, ASKED) - truth(law, KNOWN, ASKED)
    assert float((law.p * gap).sum()) > 1e-2
    assert gap.abs().min() > 1e-6


class OneByOne(Plan):
    """Random order, one site after the other; the network is told the time by the share of masked sites."""

    one_site = True

    def choose(self, run: object) -> Sites:
        run.t = run.time_of_masked()  # type: ignore[attr-defined]
        score = torch.where(run.masked, run.uniform("site"), 2.0)  # type: ignore[attr-defined]
        return Sites(run.masked & (score == score.amin(1, keepdim=True)))  # type: ignore[attr-defined]


def test_it_bounds_the_law_of_what_is_filled_in_one_by_one(law: JointLaw) -> None:
    """The law of the fillings, drawn 20,000 times, of a network far from exact: the bound is above -log of it."""
    model = MD4(SeesTime(law), V, (N,))
    x = law.x[40]
    drawn = model.sample(20_000, N, sampler=OneByOne(), clamp=(x, KNOWN), seed=1).x
    kinds, count = drawn.unique(dim=0, return_counts=True)
    minus_log_q = -(count / len(drawn)).double().log()
    often = count > 100  # relative error below 10 %
    gap = enumerated(model, kinds, KNOWN, ~KNOWN) - minus_log_q
    error = (1 / count.double()).sqrt()
    assert (gap[often] > -4 * error[often]).all()
    assert float((gap * count).sum() / len(drawn)) > 0
    exact = enumerated(MD4(Masked(law), V, (N,)), kinds, KNOWN, ~KNOWN)
    assert ((exact - minus_log_q)[often] < -4 * error[often]).any()


def test_the_mean_of_the_estimate_is_the_enumerated_bound(law: JointLaw) -> None:
    model = MD4(SeesTime(law), V, (N,))
    x = law.x[[40]].expand(3_000, N)
    known, asked = KNOWN.expand(x.shape), ASKED.expand(x.shape)
    for more in (None, asked):
        found = conditional.bound(model, x, known, more, num_samples=2, seed=3)
        right = enumerated(model, x[:1], KNOWN, ~KNOWN if more is None else ASKED)
        stderr = float(found.std()) / len(x) ** 0.5
        assert abs(float(found.mean() - right)) < 4 * stderr
        assert float((right - found.mean() / 2).abs()) > 40 * stderr  # control


def test_a_row_alone_has_the_same_bound(law: JointLaw) -> None:
    model = MD4(SeesTime(law), V, (N,))
    x, row = law.x[[3, 40, 77]], torch.tensor([5, 0, 9])
    known = torch.tensor([[True, False, False, False], [False] * 4, [False, True, True, False]])
    together = conditional.bound(model, x, known, num_samples=3, seed=4, row=row)
    alone = [conditional.bound(model, x[[i]], known[[i]], num_samples=3, seed=4, row=row[[i]]) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together, conditional.bound(model, x, known, num_samples=3, seed=5, row=row))


@pytest.mark.slow
def test_a_latent_is_drawn_given_what_is_known() -> None:
    """SEQ: above the conditional law in the mean over the rows (it draws the latent without the answer)."""
    model = infilling_law.seq()
    x = torch.where(infilling_law.KNOWN, infilling_law.VALUES, infilling_law.CLEAN).unique(dim=0)
    nats = conditional.bound(model, x, infilling_law.KNOWN.expand(x.shape), num_samples=2)
    p = infilling_law.TARGET[infilling_law.cell(x)]
    assert float((p * (nats + p.log())).sum()) > 0.02
    assert conditional.lacking(infilling_law.fuji()) is None


def test_from_left_to_right_it_is_exact_and_for_beginnings_alone(law: JointLaw) -> None:
    model = AutoregressiveModel(Causal(law), V, (N,))
    begin = torch.tensor([True, True, False, False])
    for asked in (~begin, torch.tensor([False, False, True, False])):
        found = conditional.bound(model, law.x, begin.expand(law.x.shape), asked.expand(law.x.shape))
        assert (found - truth(law, begin, asked)).abs().max() < 1e-10
    assert (model.nelbo(law.x) - model.said_of_sites(law.x)[0].sum(1)).abs().max() < 1e-10
    with pytest.raises(ValueError, match="from a known beginning"):
        conditional.bound(model, law.x, (~begin).expand(law.x.shape))


@pytest.mark.parametrize(
    "model", [infilling_law.genmd4, infilling_law.ggm, infilling_law.markov, infilling_law.blackout]
)
def test_who_has_none(model: object) -> None:
    made = model()  # type: ignore[operator]
    assert "has no bound given known sites" in (conditional.lacking(made) or "")
    with pytest.raises(ValueError, match="has no bound given known sites"):
        conditional.bound(made, torch.zeros(2, N, dtype=torch.int64), KNOWN.expand(2, N))


def test_what_cannot_be_meant(law: JointLaw) -> None:
    model, x = MD4(Masked(law), V, (N,)), law.x[:2]
    with pytest.raises(ValueError, match="known as well"):
        conditional.bound(model, x, KNOWN.expand(x.shape), KNOWN.expand(x.shape))
    with pytest.raises(ValueError, match="row 0 asks for no site"):
        conditional.bound(model, x, torch.ones_like(x, dtype=torch.bool))
