"""GenMD4 is exact: E8 to E13 and E15 by enumeration, through the public `terms`, `leave_one_out` and `reverse_law`.

The figures quoted come from independent numpy programs (shared with the specification).
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.core import vector_masking
from ggm_lightning.core.schedules import Polynomial
from ggm_lightning.exact import chains
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.networks import Equal, Masked, TimedMasked
from ggm_lightning.exact.states import masks, quadrature, total_variation
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.md4 import MD4

N, V = 3, 3
W = torch.tensor([0.5, 1.0, 2.5], dtype=torch.float64)


@pytest.fixture(scope="module")
def law() -> JointLaw:
    law = JointLaw.random(N, V, seed=5)
    assert law.entropy == pytest.approx(2.4193289, abs=1e-7)  # the one of the quoted figures
    return law


def genmd4(network: nn.Module, w: Tensor = W, n: int = N, **options: object) -> GenMD4:
    model = GenMD4(network, len(w), (n,), **options)
    model.raw_exponents = nn.Parameter(torch.log(torch.expm1(w)))
    return model


def log_q(model: GenMD4, x: Tensor, t: Tensor) -> Tensor:
    """log q(z_t | x) of every mask: Float64[masks, x]."""
    m = masks(model.num_sites)
    rows = x.expand(len(m), -1, -1).reshape(-1, model.num_sites)
    found = vector_masking.log_probability(m.repeat_interleave(len(x), 0), rows, t.expand(len(rows)), model.exponents())
    return found.reshape(len(m), len(x))


def terms(model: GenMD4 | MD4, x: Tensor, t: Tensor) -> Tensor:
    """terms(x, z, t) of every mask: Float64[masks, x]."""
    m = masks(model.num_sites)
    rows = x.expand(len(m), -1, -1).reshape(-1, model.num_sites)
    z = torch.where(m.repeat_interleave(len(x), 0), model.mask_id, rows)
    return model.terms(rows, z, t.expand(len(rows))).reshape(len(m), len(x))


def integral(model: GenMD4, x: Tensor) -> Tensor:
    """L of eq. (12) for each x: quadrature over [t1, 1], log-spaced from t1."""
    nodes, weights = np.polynomial.legendre.leggauss(14)
    edges = np.logspace(math.log10(model.first_time), 0, 31)
    total = torch.zeros(len(x), dtype=torch.float64)
    for start, end in itertools.pairwise(edges):
        for node, weight in zip(nodes, weights, strict=True):
            t = torch.tensor((start + end) / 2 + (end - start) / 2 * node, dtype=torch.float64)
            nats = (log_q(model, x, t).exp() * terms(model, x, t)).sum(0)
            total += (end - start) / 2 * weight * nats.detach()
    return total


def information(law: JointLaw, w: Tensor, t: float) -> Tensor:
    """i(x; Z_t) = E_{z|x} ln q(z|x)/q(z), for every x."""
    model = genmd4(TimedMasked(law, w), w)
    m, when = masks(law.num_sites), torch.tensor(t, dtype=torch.float64)
    q = log_q(model, law.x, when).exp().detach()  # [masks, x]
    z = torch.where(m[:, None], law.num_classes, law.x)
    same = (z[:, :, None] == z[:, None, :]).all(-1).double()  # [masks, x, x']
    marginal = torch.einsum("mxy,my,y->mx", same, q, law.p)
    return (q * (q / marginal).log()).sum(0)


def test_e8_the_integral_is_an_information_difference_for_every_x(law: JointLaw) -> None:
    found = integral(genmd4(TimedMasked(law, W)), law.x)
    expected = information(law, W, 1e-3) - information(law, W, 1.0)
    assert (found - expected).abs().max() < 1e-8
    deaf = integral(genmd4(Masked(law)), law.x)  # control: MD4's denoiser, which does not look at t
    assert (deaf - expected).abs().max() > 1e-2


@pytest.mark.parametrize(("first_time", "mean"), [(1e-3, 2.4171), (1e-5, 2.41929), (1e-8, 2.4193288)])
def test_e9_the_limit_is_minus_log_p(law: JointLaw, first_time: float, mean: float, monkeypatch: pytest.MonkeyPatch):
    if first_time < 1e-3:
        monkeypatch.setattr(vector_masking, "EPS", 0.0)
    found = integral(genmd4(TimedMasked(law, W), first_time=first_time), law.x)
    assert float((law.p * found).sum()) == pytest.approx(mean, abs=1e-4 if first_time == 1e-3 else 1e-5)
    deviation = {1e-3: 7e-2, 1e-5: 2e-3, 1e-8: 1e-4}[first_time]
    assert (found + law.log_p).abs().max() < 1.1 * deviation


def test_the_whole_bound_is_above_the_entropy(law: JointLaw) -> None:
    """L + reconstruction + prior with the best denoiser, in the mean: what `nelbo` estimates. For single x it may
    lie below -log p(x): test_bound_gap.py."""
    model = genmd4(TimedMasked(law, W))
    whole = integral(model, law.x) + model.reconstruction(law.x).detach() + model.prior_nats
    assert 0 < float((law.p * whole).sum()) - law.entropy < 0.05
    drawn = torch.stack([model.nelbo(law.x, num_samples=30, seed=seed) for seed in range(12)])
    stderr = drawn.std(0) / math.sqrt(12)
    assert ((drawn.mean(0) - whole).abs() < 5 * stderr).all()
    published = genmd4(TimedMasked(law, W), published_estimate=True, count_prior=False)
    ratio = published.nelbo(law.x, num_samples=50) - published.reconstruction(law.x)
    ours = model.nelbo(law.x, num_samples=50) - model.reconstruction(law.x) - model.prior_nats
    assert torch.allclose(ratio * 0.999, ours, rtol=1e-12)


def test_e10_the_extra_term_has_mean_zero_under_the_best_denoiser(law: JointLaw) -> None:
    network = TimedMasked(law, W)
    t = torch.tensor(0.3, dtype=torch.float64)
    m = masks(N)
    q = log_q(genmd4(network), law.x, t).exp().detach()
    z = torch.where(m[:, None], V, law.x)
    log_mu = torch.log_softmax(network(z.reshape(-1, N), t.expand(m.shape[0] * len(law.x))), -1)
    log_mu = log_mu.reshape(len(m), len(law.x), N, V)
    extra = ((W * log_mu.exp()).sum(-1) - W[law.x]) * m[:, None]
    pointwise = (q * extra.sum(-1)).sum(0)
    assert abs(float((law.p * pointwise).sum())) < 1e-10
    assert pointwise.abs().max() > 0.1  # control: it is not zero for each x


def test_e11_equal_exponents_are_md4_term_by_term(law: JointLaw) -> None:
    two = torch.full((V,), 2.0, dtype=torch.float64)
    model = genmd4(Masked(law), two)
    reference = MD4(Masked(law), V, (N,), schedule=Polynomial(2.0, vector_masking.EPS))
    for when in (0.01, 0.3, 0.99):
        t = torch.tensor(when, dtype=torch.float64)
        ours, theirs = terms(model, law.x, t).detach(), terms(reference, law.x, t)
        # MD4's weight has u(t) with eps at both ends, GenMD4's has eps at t = 1 only: compare per unit of weight
        weight = -reference.schedule.weight(t)
        assert torch.allclose(ours * when / 2, theirs / weight, rtol=1e-12, atol=1e-14)


def test_e12_every_contribution_is_nonnegative() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(1000, V, dtype=torch.float64, generator=generator)
    target = torch.randint(V, (1000,), generator=generator)
    from ggm_lightning.core.losses import rate_divergence

    assert (rate_divergence(logits, target, W) > -1e-12).all()
    exact = torch.full((V, V), -math.inf, dtype=torch.float64).fill_diagonal_(0.0)
    assert torch.equal(rate_divergence(exact, torch.arange(V), W), torch.zeros(V, dtype=torch.float64))


class Fixed(nn.Module):
    """Logits that are some fixed function of state and time, far from the best."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.randn((V + 1) ** N, N, V, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        index = (z * (V + 1) ** torch.arange(N)).sum(-1)
        return self.table[index] * (1 + t.double()[:, None, None])


def gradients(model: GenMD4, x: Tensor, t: Tensor) -> dict[str, Tensor]:
    """Of E[(l1 + l2)/2] in the raw exponents: by leave-one-out summed over both masks, and its pathwise part alone."""
    m = masks(N)
    z = torch.where(m, V, x)
    q = log_q(model, x[None], t)[:, 0].exp().detach()
    first, second = (torch.tensor(pair) for pair in zip(*itertools.product(range(len(m)), repeat=2), strict=True))
    rows, when = x.expand(len(first), -1), t.expand(len(first))
    _, terms, surrogate = model.leave_one_out(rows, z[first], z[second], when)
    l1, l2 = terms.chunk(2)
    weight = q[first] * q[second]
    found = {}
    for name, value in (("unbiased", (l1 + l2) / 2 + surrogate), ("pathwise", (l1 + l2) / 2)):
        (found[name],) = torch.autograd.grad((weight * value).sum(), model.raw_exponents, retain_graph=True)
    return found


@pytest.mark.parametrize("when", [0.05, 0.6])
def test_e13_leave_one_out_is_unbiased_and_the_pathwise_gradient_is_not(when: float) -> None:
    x, t = torch.tensor([2, 0, 1]), torch.tensor(when, dtype=torch.float64)
    model = genmd4(Fixed())
    found = gradients(model, x, t)
    h = 1e-5
    for v in range(V):
        ends = []
        for sign in (1, -1):
            moved = genmd4(Fixed())
            moved.raw_exponents.data[v] += sign * h
            q = log_q(moved, x[None], t)[:, 0].exp()
            ends.append(float((q * terms(moved, x[None], t)[:, 0]).sum().detach()))
        exact = (ends[0] - ends[1]) / (2 * h)
        assert float(found["unbiased"][v]) == pytest.approx(exact, abs=1e-7)
        assert abs(float(found["pathwise"][v]) - exact) > 1e-2  # control


def output_law(model: GenMD4, num_steps: int) -> Tensor:
    """Float64[V^N]: the law of x after num_steps uniform steps from all masks."""
    return chains.masked(model, num_steps, "uniform")


@pytest.mark.parametrize(("num_steps", "quoted"), [(20, 0.0198), (400, 0.0010)])
def test_e15_the_samplers_law_approaches_the_data(law: JointLaw, num_steps: int, quoted: float) -> None:
    found = output_law(genmd4(TimedMasked(law, W)), num_steps)
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-12)  # nothing is left masked
    assert total_variation(found, law.p) == pytest.approx(quoted, rel=0.03)


def test_the_sampler_draws_from_that_law(law: JointLaw) -> None:
    """40,000 samples of 5 steps against the transition matrix; and the network is asked once per step."""
    model = genmd4(TimedMasked(law, W))
    drawn = model.sample(40_000, 5, grid="uniform", seed=3)
    expected = output_law(model, 5)
    index = (drawn.x * V ** torch.arange(N - 1, -1, -1)).sum(-1)
    counts = torch.bincount(index, minlength=V**N).double()
    chi2 = ((counts - 40_000 * expected) ** 2 / (40_000 * expected)).sum()
    assert float(chi2) < V**N - 1 + 5 * math.sqrt(2 * (V**N - 1))
    assert drawn.network_calls == 5


def test_uniform_predictor_and_equal_exponents_give_n_ln_v() -> None:
    model = genmd4(Equal(V), torch.ones(V, dtype=torch.float64))
    x = torch.zeros(1, N, dtype=torch.int64)
    whole = integral(model, x) + model.reconstruction(x).detach() + model.prior_nats
    assert float(whole[0]) == pytest.approx(N * math.log(V), rel=1e-9)
    assert quadrature()[1].sum() == pytest.approx(1.0)
