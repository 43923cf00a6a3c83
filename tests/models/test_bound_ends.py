"""What a bound pays at the ends of its chain, beside the sum over its times: the prior, and what the last step leaves.

With every term in between set to 0 the bound is these constants alone; each is computed by hand, at ends that are rough
enough for it to matter. Control in each case: the bound is not 0.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binom, poisson
from torch import Tensor

from ggm_lightning.core.schedules import Linear
from ggm_lightning.models.base import Family
from tests.models.every_family import N, V, small

B = 3


@pytest.fixture
def x() -> Tensor:
    return torch.randint(V, (B, N), generator=torch.Generator().manual_seed(1))


def ends(model: Family, x: Tensor, monkeypatch: pytest.MonkeyPatch, *without: str) -> Tensor:
    """The bound of x with these methods returning zeros."""
    zeros = torch.zeros(B, dtype=torch.float64)
    for name in without:
        monkeypatch.setattr(model, name, lambda *given: zeros)
    nats = model.nelbo(x, num_samples=2)
    assert float(nats.detach().min()) > 1e-3
    return nats.detach()


@pytest.mark.parametrize("count_prior", [True, False])
def test_md4_pays_for_masks_at_0_and_for_what_is_clean_at_1(
    x: Tensor, count_prior: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small("md4", count_prior=count_prior)  # of floor .1
    expected = N * 0.1 * math.log(V) * (2 if count_prior else 1)
    assert ends(model, x, monkeypatch, "terms").tolist() == pytest.approx([expected] * B, rel=1e-12)


def test_genmd4_pays_for_what_is_masked_at_t1_and_clean_at_1(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("genmd4", first_time=0.2)
    w = model.exponents().detach()
    still_masked = (1 - 1e-4) * 0.2**w
    recon = -still_masked * torch.log(0.2**w / (0.2**w).sum())
    expected = recon[x].sum(1) + N * 1e-4 * math.log(V)
    torch.testing.assert_close(ends(model, x, monkeypatch, "terms"), expected, rtol=1e-12, atol=0)
    assert N * 1e-4 * math.log(V) > 1e-4  # the prior is seen at this tolerance


def test_ggm_pays_for_what_has_survived_all_sweeps(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("ggm", last_survival=0.3)
    zeros = torch.zeros(B, dtype=torch.float64)
    monkeypatch.setattr(model, "_terms", lambda *given: (zeros, zeros))
    pi, own = 1 / V, 0.3 + 0.7 / V
    site = own * math.log(own / pi) + (V - 1) * 0.7 * pi * math.log(0.7)
    assert ends(model, x, monkeypatch).tolist() == pytest.approx([N * site] * B, rel=1e-12)


def test_blackout_pays_for_what_has_not_died(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """KL(Binomial(x, e^-t_end) || Poisson(e^-t_end mean)) by scipy."""
    model = small("blackout", t_end=1.0, data_mean=2.5)
    p, k = math.exp(-1.0), range(V)
    nats = [
        sum(binom.pmf(j, v, p) * (binom.logpmf(j, v, p) - poisson.logpmf(j, 2.5 * p)) for j in k if j <= v)
        for v in range(V)
    ]
    expected = torch.tensor(nats, dtype=torch.float64)[x].sum(1)
    found = ends(model, x, monkeypatch, "terms", "reconstruction")
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_blackout_pays_for_its_last_step(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("blackout")
    monkeypatch.setattr(model, "reconstruction", lambda x, zt, label: x.double().sum(1) + 7)
    both = ends(model, x, monkeypatch, "terms") - model.prior(x)
    torch.testing.assert_close(both, x.double().sum(1) + 7, rtol=1e-12, atol=0)


@pytest.mark.parametrize("process", ["uniform", "absorbing", "gaussian"])
def test_any_process_pays_for_what_it_has_not_forgotten(
    x: Tensor, process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KL(q(x_1 | x) || the same for uniform data), from torch's matrix exponential."""
    model = small("markov", process=process, t_end=0.7)
    q = torch.linalg.matrix_exp(0.7 * model.process.L)[:, :V]
    nats = torch.xlogy(q, q / q.mean(1, keepdim=True)).sum(0)
    torch.testing.assert_close(ends(model, x, monkeypatch, "terms"), nats[x].sum(1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["fuji", "seq"])
def test_lddm_pays_for_both_its_parts(x: Tensor, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """KL(N(abar z_0, 1 - abar^2) || N(0, 1)) of the latent, and of the tokens what their floor of .1 leaves."""
    model = small(name, latent_schedule=Linear(0.2), max_snr=None)
    z0 = model.encode(x).detach().double()
    monkeypatch.setattr(model, "predict_latent", lambda *given: z0)
    latent = 0.5 * (0.2 * z0**2 - 0.2 - math.log(0.8)).sum((1, 2))
    found = ends(model, x, monkeypatch, "token_terms")
    torch.testing.assert_close(found, latent + 2 * N * 0.1 * math.log(V), rtol=1e-6, atol=0)
    assert float(latent.min()) > 1e-2
