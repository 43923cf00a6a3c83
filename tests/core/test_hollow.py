"""core/hollow.py: the law of the visits, the label summed out, drawn labels and classes; by exact sums."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from ggm_lightning.core import hollow

PI = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
V = 3


@pytest.mark.parametrize("n", [1, 2, 5, 11])
def test_all_sites_weigh_what_the_visits_of_a_random_order_weigh(n: int) -> None:
    """Eq. (9) in fractions: |S| uniform on 0..n gives every visit (S', i) the weight that it has in the chain."""
    for k in range(n):  # k' = |S'|
        of_a_set = [Fraction(1, (n + 1) * math.comb(n, size)) for size in (k, k + 1)]  # S' itself, and S' with i
        all_sites = sum(of_a_set) / n
        chain = Fraction(1, n) * Fraction(1, math.comb(n, k)) * Fraction(1, n - k)  # k, S' given k, i of the rest
        assert all_sites == chain


def test_visits_have_their_law() -> None:
    """The midpoint rule on 40 rates, every row with all 2^n bits in turn: P(r, S) = 1/R 1/((n+1) C(n, |S|))."""
    n, num_sweeps, rates = 3, 2, 40
    u = (torch.arange(num_sweeps * rates, dtype=torch.float64) + 0.5) / (num_sweeps * rates)
    grid = (torch.arange(20, dtype=torch.float64) + 0.5) / 20
    bits = torch.tensor(list(itertools.product(grid.tolist(), repeat=n)), dtype=torch.float64)
    r, visited = hollow.draw_visits(u.repeat_interleave(len(bits)), num_sweeps, bits.repeat(len(u), 1))
    code = r * 8 + (visited * torch.tensor([4, 2, 1])).sum(1)
    found = code.bincount(minlength=16).double() / len(code)
    sizes = [bin(s).count("1") for s in range(8)]
    expected = [1 / num_sweeps / (n + 1) / math.comb(n, size) for size in sizes]
    torch.testing.assert_close(found, torch.tensor(expected * 2, dtype=torch.float64), rtol=0, atol=2e-3)
    assert (found - 1 / 16).abs().max() > 0.03  # control: bits of rate 1/2


def test_first_in_order() -> None:
    order = torch.tensor([[2, 0, 1], [1, 2, 0]])
    assert hollow.first_in_order(order, torch.tensor([2, 1])).tolist() == [[True, False, True], [False, True, False]]


# ------------------------------------------------------------------ the label


def enumerated_label(s: Tensor, x0: int, a: float, keep: float) -> Tensor:
    """The paper's loss, over (X_t, Z, fresh token) one by one."""
    total = s.new_zeros(())
    for x in range(V):
        before = a * (x == x0) + (1 - a) * PI[x]
        total = total + before * keep * softplus(-s[x])
        for fresh in range(V):
            total = total + before * (1 - keep) * PI[fresh] * softplus(s[fresh])
    return total


def test_the_summed_label_is_the_mean_of_the_literal_loss() -> None:
    torch.manual_seed(0)
    s = torch.randn(2, V, dtype=torch.float64, requires_grad=True)
    a, keep, x0 = torch.tensor([0.55, 1.0]).double(), torch.tensor([0.2, 0.7]).double(), torch.tensor([2, 0])
    found = hollow.label_nats(s, PI, s.gather(1, x0[:, None])[:, 0], a, keep)
    expected = torch.stack([enumerated_label(s[k], int(x0[k]), float(a[k]), float(keep[k])) for k in range(2)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    slopes = [torch.autograd.grad(part.sum(), s, retain_graph=True)[0] for part in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-14)
    swapped = hollow.label_nats(s, PI, s.gather(1, x0.flip(0)[:, None])[:, 0], a, keep)
    assert (swapped - expected).abs().max() > 1e-2  # control


def test_an_excluded_class_costs_nothing_where_noise_has_not_been() -> None:
    """s = -inf: infinite where noise may have put the class (a < 1), and only there."""
    s = torch.tensor([[-math.inf, 0.3, 0.1]] * 2, dtype=torch.float64, requires_grad=True)
    a, keep = torch.tensor([1.0, 0.5]).double(), torch.tensor([0.4, 0.4]).double()
    nats = hollow.label_nats(s, PI, s[:, 1], a, keep)
    assert nats[0].isfinite()
    assert nats[1] == math.inf
    (slope,) = torch.autograd.grad(nats[0], s)
    assert slope.isfinite().all()


def test_drawn_labels_have_the_literal_law() -> None:
    """All probabilities are tenths and every uniform runs through ten midpoints: 10,000 rows are the law itself."""
    grid = (torch.arange(10, dtype=torch.float64) + 0.5) / 10
    rows = torch.tensor(list(itertools.product(grid.tolist(), repeat=4)), dtype=torch.float64)
    streams = ("own keep", "own noise", "change", "fresh")
    columns = {stream: rows[:, j : j + 1] for j, stream in enumerate(streams)}
    b = len(rows)
    a, keep = torch.full((b,), 0.6, dtype=torch.float64), torch.full((b,), 0.7, dtype=torch.float64)
    observed, signal = hollow.draw_labels(torch.full((b, 1), 2), a, keep, PI, lambda stream: columns[stream])
    found = (observed[:, 0] * 2 + signal[:, 0]).bincount(minlength=2 * V).double() / b
    data = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    expected = torch.stack([0.3 * PI, 0.7 * (0.6 * data + 0.4 * PI)], 1).flatten()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


# ------------------------------------------------------------------ drawn classes


@pytest.mark.parametrize("k", [1, 2, 5])
def test_means_over_drawn_classes_are_unbiased(k: int) -> None:
    """Loss and gradient: each stratum's uniform runs through midpoints on which pi's tenths fall."""
    torch.manual_seed(1)
    s = torch.randn(1, V, dtype=torch.float64, requires_grad=True)
    a, keep, x0 = torch.tensor([0.55]).double(), torch.tensor([0.4]).double(), 1
    exact = hollow.label_nats(s, PI, s[:, x0], a, keep).sum()
    weight, total = torch.full((k,), 1 / k, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    values = []
    for u in (torch.arange(10, dtype=torch.float64) + 0.5) / 10:
        classes = hollow.draw_classes(PI, u.expand(k))
        values.append(hollow.label_nats(s[:, classes], weight, s[:, x0], a, keep).sum())
        total = total + values[-1] / 10
    torch.testing.assert_close(total, exact, rtol=0, atol=1e-13)
    slopes = [torch.autograd.grad(part, s, retain_graph=True)[0] for part in (total, exact)]
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-13)
    if k < 5:  # control: a single draw is off
        assert max(abs(float((value - exact).detach())) for value in values) > 1e-2


def test_strata_hold_their_share_of_the_mass() -> None:
    u = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = hollow.draw_classes(PI, u).bincount(minlength=V)
    assert (counts - 1000 * PI).abs().max() <= 1
