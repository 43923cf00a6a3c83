"""A latent for each of two bits, at its place: bound and sampler by quadrature; with our own networks, too."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.core.schedules import Linear, Schedule
from ggm_lightning.exact.networks import Masked
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM
from ggm_lightning.models.md4 import MD4
from tests.models.latent_bits import ENTROPY, JOINT, PAIRS, STATES, LogSNR, P
from tests.models.latent_quadrature import half_intervals
from tests.models.small_lddm import B, N, V, small

CODES = {"useful": torch.tensor([-1.0, 1.0]).double(), "constant": torch.tensor([0.0, 0.0]).double()}
MASKS = torch.tensor(list(itertools.product((False, True), repeat=2)))


class AlignedCode(nn.Module):
    """Latent s is the number of bit s."""

    num_latents, latent_dim = 2, 1

    def __init__(self, code: Tensor) -> None:
        super().__init__()
        self.code = code

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        return self.code[x.flatten(1)][..., None]


class ExactAligned(nn.Module):
    """p(x^i | x_t, z_t) and E[z_0 | x_t, z_t] under P."""

    num_latents, latent_dim = 2, 1

    def __init__(self, code: Tensor, schedule: Schedule, bent: float = 0.0) -> None:
        super().__init__()
        self.code, self.schedule, self.bent = code, schedule, bent

    def posterior(self, z: Tensor, latent: Tensor, time: Tensor) -> Tensor:
        a, s = (f(time)[:, None, None] for f in (self.schedule.alpha, self.schedule.masked_fraction))
        far = (latent[..., 0][:, None] - a.sqrt() * self.code[PAIRS]) ** 2 / s
        clash = (z[:, None] != 2) & (z[:, None] != PAIRS)
        return (P.log() - 0.5 * far.sum(-1) - 1e4 * clash.sum(-1)).softmax(-1)

    def forward(
        self, z: Tensor, t: Tensor, label: Tensor | None = None, *, latent: Tensor, latent_time: Tensor
    ) -> tuple[Tensor, Tensor]:
        posterior = self.posterior(z, latent.double(), latent_time.double())
        one = (posterior @ (PAIRS == 1).double()).clamp(1e-12, 1 - 1e-12)
        logits = torch.stack([(1 - one).log(), one.log() + self.bent], -1)
        return logits, (posterior @ self.code[PAIRS])[..., None] + self.bent


class ExactAlignedLatent(ExactAligned):
    def forward(self, latent: Tensor, latent_time: Tensor, label: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(torch.full((len(latent), 2), 2), latent_time, latent=latent, latent_time=latent_time)[1]


def seq(code: Tensor, bent: float = 0.0) -> SeqLDDM:
    schedule = LogSNR(1.0, -6.0)
    networks = (ExactAligned(code, schedule, bent), AlignedCode(code), ExactAlignedLatent(code, schedule, bent))
    return SeqLDDM(*networks, 2, (2,), latent_schedule=schedule, max_snr=None, schedule=Linear(0.0))


def pairs_of_nodes() -> tuple[Tensor, Tensor]:
    """Nodes Float64[k, 2, 1] and weights of two independent normal numbers."""
    x, w = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(20))
    w = w / w.sum()
    return torch.cartesian_prod(x, x)[..., None], torch.outer(w, w).flatten()


def enumerated(model: SeqLDDM, term: str, t: Tensor, latent_at: Tensor) -> Tensor:
    """Float64[len(t), 4]: E over masks and both latents' noise."""
    nodes, weights = pairs_of_nodes()
    shape, out = (4, 4, len(nodes)), []
    for when, at in zip(t, latent_at, strict=True):
        w = model.schedule.masked_fraction(when)
        probability = torch.where(MASKS, w, 1 - w).prod(-1)
        x = PAIRS[:, None, None].expand(*shape, 2).reshape(-1, 2)
        hidden = MASKS[None, :, None].expand(*shape, 2).reshape(-1, 2)
        e = nodes.expand(4, 4, -1, 2, 1).reshape(-1, 2, 1)
        a, s = (f(at) for f in (model.latent_schedule.alpha, model.latent_schedule.masked_fraction))
        latent = a.sqrt() * model.encode(x) + s.sqrt() * e
        nats = getattr(model, term)(x, torch.where(hidden, 2, x), when.expand(len(x)), latent).double()
        out.append((probability[:, None] * weights * nats.reshape(shape)).sum((1, 2)))
    return torch.stack(out)


def bound(model: SeqLDDM) -> Tensor:
    t, w = half_intervals(6)
    nats = enumerated(model, "terms", t, torch.zeros_like(t)) + enumerated(model, "latent_terms", t, t)
    return (w[:, None] * nats).sum(0) + model.prior_nats(PAIRS)


@pytest.mark.parametrize("code", CODES)
def test_token_term_plus_latent_term_is_the_entropy(code: str) -> None:
    """Of exact networks, also with an aligned latent, useful or constant. Control: bent ones are above."""
    assert float((P * bound(seq(CODES[code]))).sum()) == pytest.approx(ENTROPY, abs=2e-4)
    assert float((P * bound(seq(CODES[code], bent=0.3))).sum()) > ENTROPY + 0.01


def test_a_constant_aligned_latent_is_md4() -> None:
    """Laws of both steps and the terms to 1e-9. Control: with a useful one they are others."""
    md4 = MD4(Masked(JOINT), 2, (2,), schedule=Linear(0.0))
    t, s = torch.full((9,), 0.7).double(), torch.full((9,), 0.3).double()
    e = torch.linspace(-1, 1, 18).double().reshape(9, 2, 1)
    gaps = {}
    for name, code in CODES.items():
        model = seq(code)
        ours = model.reverse_law(STATES, t, s, denoiser=model.given(e)).probs()
        gaps[name] = float((ours - md4.reverse_law(STATES, t, s).probs()).abs().max())
        x, masked = torch.zeros(9, 2).long(), torch.full((9, 2), 2)
        gap = model.token_terms(x, masked, t, e) - md4.terms(x, masked, t)
        gaps[name] = max(gaps[name], float(gap.abs().max()))
    assert gaps["constant"] < 1e-9
    assert gaps["useful"] > 1e-2


def test_nelbo_and_its_parts_are_the_enumerated_ones() -> None:
    """1,000 rows of each x: within 4 standard errors, the whole and the tokens' part."""
    model = seq(CODES["useful"])
    drawn = model.nelbo(PAIRS.repeat(1000, 1), num_samples=2)
    tokens, latent = (part.reshape(1000, 4) for part in model.parts_of_bound)
    torch.testing.assert_close(tokens + latent, drawn.reshape(1000, 4), rtol=0, atol=1e-9)
    t, w = half_intervals(6)
    exact = (w[:, None] * enumerated(model, "terms", t, torch.zeros_like(t))).sum(0)
    for found, expected in ((tokens, exact), (drawn.reshape(1000, 4), bound(model))):
        error = found.std(0) / math.sqrt(1000)
        assert ((found.mean(0) - expected).abs() < 4 * error + 1e-4).all()
    assert (latent.mean(0) > 0.1).all()
    assert (tokens.mean(0) + 0.1 < drawn.reshape(1000, 4).mean(0)).all()  # control: the parts are not the whole


@pytest.mark.parametrize("family", [FujiLDDM, SeqLDDM])
def test_both_network_paths_and_rows_of_our_own_networks(family: type) -> None:
    """Losses, bounds and samples without the fast path; a row alone as in its batch."""

    class Whole(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.num_latents, self.latent_dim = inner, inner.num_latents, inner.latent_dim

        def forward(self, z, t, label=None, latent=None, latent_time=None):
            return self.inner(z, t, label, latent, latent_time)

    x = torch.randint(V, (B, N), generator=torch.Generator().manual_seed(1))
    fast, slow = small(family, aligned=True).double(), small(family, aligned=True).double()
    slow.network = Whole(slow.network)
    torch.testing.assert_close(fast.loss(x, step=3), slow.loss(x, step=3), rtol=1e-12, atol=1e-12)
    whole, row = fast.nelbo(x, seed=2), torch.arange(B)
    torch.testing.assert_close(whole, slow.nelbo(x, seed=2), rtol=1e-12, atol=1e-12)
    assert torch.equal(fast.sample(2, 4).x, slow.sample(2, 4).x)
    alone = torch.cat([fast.nelbo(x[i : i + 1], seed=2, row=row[i : i + 1]) for i in range(B)])
    torch.testing.assert_close(alone, whole, rtol=1e-12, atol=1e-12)
    assert (whole - small(family).double().nelbo(x, seed=2)).abs().max() > 1e-2  # control: another encoder
