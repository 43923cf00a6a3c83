"""The estimator that draws the number of masked sites: its mean is MD4's bound, by enumeration; it is less noisy."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from ggm_lightning.core import counts, noise, schedules, times
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.networks import Masked
from ggm_lightning.exact.states import index, masks
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.md4 import MD4
from ggm_lightning.sampling.arguments import check_estimator

N, V = 4, 3
SCHEDULES = {
    "linear": schedules.Linear,
    "cosine": schedules.Cosine,
    "polynomial": lambda eps: schedules.Polynomial(3.0, eps),
}


class Perturbed(Masked):
    """Not the law's own posterior, and another one at each time: as any trained network is."""

    of_time = 0.0

    def forward(self, z: Tensor, t: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        logits = self.log_posterior[index(z, V + 1)].clamp(min=-9)
        return logits * (0.7 + self.of_time * t[:, None, None])


@pytest.fixture(scope="module")
def law() -> Perturbed:
    return Perturbed(JointLaw.random(N, V, seed=0))


def model_of(law: Perturbed, name: str, eps: float, of_time: float) -> MD4:
    law.of_time = of_time
    return MD4(law, V, (N,), schedule=SCHEDULES[name](eps))


def nodes() -> tuple[Tensor, Tensor]:
    x, w = np.polynomial.legendre.leggauss(30)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)


def every_state(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, z_t, t, masked sites) of all examples, times and masks with a masked site, in rows."""
    m = masks(N)[1:]
    shape = (len(t), len(m), len(x))
    rows = x.expand(*shape, N).reshape(-1, N)
    where = m[:, None].expand(*shape, N).reshape(-1, N)
    when = t[:, None, None].expand(shape).flatten()
    return rows, torch.where(where, V, rows), when, where.sum(-1)


def summed(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, len(x)).sum(0)


def bound_by_times(model: MD4, x: Tensor) -> Tensor:
    """Integral over t of E terms, Float64[len(x)]."""
    t, w = nodes()
    rows, zt, when, k = every_state(x, t)
    u = model.schedule.masked_fraction(when)
    w = w.repeat_interleave(len(rows) // len(t))
    return summed(w * u**k * (1 - u) ** (N - k) * model.terms(rows, zt, when), x)


def bound_by_counts(model: MD4, x: Tensor) -> Tensor:
    """Mean over l, the masks of l sites and u ~ Beta(l, N - l + 1) of count_terms: in t, over which u is smooth."""
    t, w = nodes()
    rows, zt, when, k = every_state(x, t)
    u = model.schedule.masked_fraction(when)
    w = w.repeat_interleave(len(rows) // len(t)) * -model.schedule.dalpha(when)
    choose = torch.tensor([math.comb(N - 1, size - 1) for size in range(1, N + 1)], dtype=torch.float64)[k - 1]
    density = N * choose * u ** (k - 1) * (1 - u) ** (N - k)
    sets = torch.tensor([math.comb(N, size) for size in range(1, N + 1)], dtype=torch.float64)[k - 1]
    return summed(w * density / N / sets * model.count_terms(rows, zt, u), x)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_mean_is_the_bound_for_any_schedule_and_a_network_that_sees_t(law: Perturbed, name: str) -> None:
    model = model_of(law, name, 1e-2, of_time=0.4)
    x = law.law.x[::11]
    assert (bound_by_counts(model, x) - bound_by_times(model, x)).abs().max() < 1e-10


def test_without_floors_and_times_it_is_a_sum_over_masks(law: Perturbed) -> None:
    """The form of arXiv 2502.09992. Controls: the weight n / (l + 1), and l = 0 among the counts."""
    model = model_of(law, "linear", 0.0, of_time=0.0)
    x = law.law.x[::11]
    half = torch.full((len(x),), 0.5, dtype=torch.float64)
    right = wrong = torch.zeros(len(x), dtype=torch.float64)
    for size in range(1, N + 1):
        for sites in combinations(range(N), size):
            mask = torch.zeros(N, dtype=torch.bool)
            mask[list(sites)] = True
            nats = model.count_terms(x, torch.where(mask, V, x), half) / math.comb(N, size)
            right, wrong = right + nats / N, wrong + nats / N * size / (size + 1)
    bound = bound_by_times(model, x)
    assert (right - bound).abs().max() < 1e-10
    assert (wrong - bound).abs().min() > 0.1
    assert (right * N / (N + 1) - bound).abs().min() > 0.1


def test_exactly_l_sites_are_masked_and_each_set_of_them_alike() -> None:
    """With the fraction Beta(l, n - l + 1), whatever the set: chi-square of the 6 sets, and its mean in each set."""
    rows = 20_000
    x = torch.zeros(rows, N, dtype=torch.int64)
    u = noise.uniform("eval mask", seed=3, step=0, row=torch.arange(rows), num_sites=N)
    zt, fraction = counts.corrupt(x, torch.full((rows,), 2), u, V)
    assert (zt == V).sum(-1).unique().tolist() == [2]
    key = ((zt == V) * 2 ** torch.arange(N)).sum(-1)
    found = torch.bincount(key)[key.unique()].double()
    assert len(found) == 6
    assert (found - rows / 6).square().sum() / (rows / 6) < 20.5  # 1e-3 of chi-square with 5 degrees of freedom
    stderr = math.sqrt(0.04 / (rows / 6))  # Beta(2, 3): mean 2/5, variance 6 / (5^2 * 6)
    for one in key.unique():
        assert abs(float(fraction[key == one].mean()) - 2 / 5) < 4 * stderr


def test_the_weight_is_0_where_the_schedule_does_not_go() -> None:
    fraction = torch.tensor([0.001, 0.01, 0.5, 0.99, 0.999], dtype=torch.float64)
    found = counts.weight(torch.tensor([1, 2, 3, 4, 5]), 5, fraction, 0.01, 0.99)
    assert found.tolist() == pytest.approx([0, 5 / 2, 5 / 3, 5 / 4, 0])


def test_counts_are_stratified_over_the_samples_of_a_row() -> None:
    rows = torch.arange(7)
    t = times.stratified_per_row(seed=1, row=rows, num_samples=2 * N)
    sizes = counts.stratified(t, N)
    assert all(sizes[:, row].bincount().tolist() == [0, *[2] * N] for row in rows)
    edges = torch.tensor([[0.0, 1 / N, 1 - 2**-53]], dtype=torch.float64)
    assert counts.stratified(edges, N).tolist() == [[1, 2, N]]


def test_noise_within_a_row_is_at_most_a_third_of_that_of_times(law: Perturbed) -> None:
    """4 states per row; the mean is the same. With 4,000 rows the ratio's relative standard error is below 5 %."""
    model = model_of(law, "linear", 1e-4, of_time=0.4)
    x = law.law.x[[40]].expand(4_000, N)
    found = {name: model.nelbo(x, num_samples=4, seed=2, estimator=name) for name in model.estimators}
    truth = bound_by_times(model, x[:1]) + model.reconstruction_nats + model.prior_nats
    for nats in found.values():
        assert abs(float(nats.mean() - truth)) < 4 * float(nats.std()) / math.sqrt(len(x))
    assert float(found["counts"].var() / found["times"].var()) < 0.3


def test_where_it_means_nothing_it_is_refused(law: Perturbed) -> None:
    refused = r"estimator is 'counts', .*: it has only times; counts needs masks"
    chain = MD4(law, V, (N,), num_timesteps=10)
    with pytest.raises(ValueError, match=refused):
        chain.nelbo(law.law.x[:2], estimator="counts")
    with pytest.raises(ValueError, match=refused):
        check_estimator(GenMD4(law, V, (N,)), "counts")
    with pytest.raises(ValueError, match="choose times or counts"):
        MD4(law, V, (N,)).nelbo(law.law.x[:2], estimator="count")
