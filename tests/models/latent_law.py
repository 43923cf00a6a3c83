"""Enumerable laws with a latent: exact denoisers as networks, exact bounds and samplers' laws by quadrature."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn

from ggm_lightning.core.schedules import Schedule
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM

PAIRS = torch.tensor(list(itertools.product((0, 1), repeat=2)))  # clean states of two bits
STATES = torch.tensor(list(itertools.product((0, 1, 2), repeat=2)))  # with the mask 2
P = torch.tensor([0.45, 0.05, 0.10, 0.40], dtype=torch.float64)
ENTROPY = float(-(P * P.log()).sum())
ENCODERS = {
    "injective": torch.tensor([-1.5, -0.5, 0.5, 1.5], dtype=torch.float64),
    "lossy": torch.tensor([-1.0, 0.0, 0.0, 1.0], dtype=torch.float64),
    "constant": torch.zeros(4, dtype=torch.float64),
}
_centred = ENCODERS["injective"] - (P * ENCODERS["injective"]).sum()
UNIT = _centred / (P * _centred**2).sum().sqrt()
NODES, WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(96))
WEIGHTS = WEIGHTS / WEIGHTS.sum()
GRID = torch.linspace(-7, 7, 351, dtype=torch.float64)  # the narrowest step has a deviation of .075
DZ = float(GRID[1] - GRID[0])


class LogSNR(Schedule):
    """ln SNR linear in t: `high` at t = first, `low` at t = 1."""

    floor = 0.1

    def __init__(self, high: float = 4.0, low: float = -8.0, first: float = 0.0) -> None:
        self.high, self.slope, self.first = high, (high - low) / max(1 - first, 1e-300), first
        self.low = low

    def log_snr(self, t: Tensor) -> Tensor:
        return self.low + self.slope * (1 - t)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(self.log_snr(t))

    def masked_fraction(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-self.log_snr(t))

    def dalpha(self, t: Tensor) -> Tensor:
        return -self.slope * self.alpha(t) * self.masked_fraction(t)

    def inverse(self, u: Tensor) -> Tensor:
        return 1 - (torch.special.logit(1 - u) - self.low) / self.slope


class Code(nn.Module):
    """The encoder: row i of `clean` has the one number code[i]."""

    num_latents, latent_dim = 1, 1

    def __init__(self, clean: Tensor, code: Tensor) -> None:
        super().__init__()
        self.clean, self.code = clean, code

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        row = (x.flatten(1)[:, None] == self.clean).all(-1).int().argmax(-1)
        return self.code[row].reshape(-1, 1, 1)


class Exact(nn.Module):
    """p(x^i | x_t, z_t) and E[z_0 | x_t, z_t], bent by `eps` with coefficients that are a function of (state, t)."""

    num_latents, latent_dim = 1, 1

    def __init__(
        self, p: Tensor, clean: Tensor, code: Tensor, schedule: Schedule, eps: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__()
        self.p, self.clean, self.code, self.schedule, self.eps, self.seed = p, clean, code, schedule, eps, seed

    def posterior(self, z: Tensor, latent: Tensor, latent_time: Tensor) -> Tensor:
        a, s = (f(latent_time)[:, None] for f in (self.schedule.alpha, self.schedule.masked_fraction))
        logw = self.p.log() - 0.5 * (latent.flatten(1) - a.sqrt() * self.code) ** 2 / s
        visible = z[:, None] != 2
        return (logw - 1e4 * (visible & (z[:, None] != self.clean)).sum(-1)).softmax(-1)

    def bend(self, state: Tensor, k: Tensor, count: int, part: int) -> Tensor:
        """Standard normal coefficients Float64[b, count], equal for equal (state, k)."""
        key, which = torch.unique(state * 100_000 + k, return_inverse=True)
        rows = [np.random.default_rng([self.seed, part, int(i)]).normal(size=count) for i in key]
        return torch.from_numpy(np.stack(rows))[which]

    def forward(
        self, z: Tensor, t: Tensor, label: Tensor | None = None, *, latent: Tensor, latent_time: Tensor
    ) -> tuple[Tensor, Tensor]:
        posterior = self.posterior(z, latent.double(), latent_time.double())
        one = (posterior @ (self.clean == 1).double()).clamp(1e-12, 1 - 1e-12)
        logits, z0 = torch.stack([(1 - one).log(), one.log()], -1), posterior @ self.code
        if self.eps:
            state, k, y = (z * torch.tensor([3, 1])).sum(-1), (t * 1000).round().long(), latent.flatten(1)
            c = self.bend(state, k, 6, 0)
            logits[..., 1] += self.eps * (c[:, :2] + c[:, 2:4] * torch.sin(1.7 * y + c[:, 4:]))
            d = self.bend(state, k, 3, 1)
            z0 = z0 + 0.5 * self.eps * (d[:, 0] + d[:, 1] * torch.sin(1.3 * y[:, 0] + d[:, 2]))
        return logits, z0.reshape(-1, 1, 1)


class ExactLatent(Exact):
    """The latent's own denoiser, without tokens."""

    def forward(self, latent: Tensor, latent_time: Tensor, label: Tensor | None = None) -> Tensor:  # type: ignore[override]
        masked = torch.full((len(latent), self.clean.shape[1]), 2)
        return super().forward(masked, latent_time, None, latent=latent, latent_time=latent_time)[1]


def fuji(
    latent_schedule: Schedule,
    code: Tensor = UNIT,
    eps: float = 0.0,
    seed: int = 0,
    p: Tensor = P,
    clean: Tensor = PAIRS,
    **more,
) -> FujiLDDM:
    return FujiLDDM(
        Exact(p, clean, code, latent_schedule, eps, seed),
        Code(clean, code),
        2,
        (clean.shape[1],),
        latent_schedule=latent_schedule,
        max_snr=None,
        **more,
    )


def seq(
    latent_schedule: Schedule,
    code: Tensor = UNIT,
    eps: float = 0.0,
    seed: int = 0,
    p: Tensor = P,
    clean: Tensor = PAIRS,
    **more,
) -> SeqLDDM:
    return SeqLDDM(
        Exact(p, clean, code, latent_schedule, eps, seed),
        Code(clean, code),
        ExactLatent(p, clean, code, latent_schedule, eps, seed + 50),
        2,
        (clean.shape[1],),
        latent_schedule=latent_schedule,
        max_snr=None,
        **more,
    )


def enumerated(model: FujiLDDM | SeqLDDM, term: str, t: Tensor, latent_at: Tensor | None = None) -> Tensor:
    """E over x_t and z_t of the model's `term` at each time: Float64[len(t), 4], by masks and Gauss-Hermite nodes."""
    masks = torch.tensor(list(itertools.product((False, True), repeat=2)))
    out = []
    for when, at in zip(t, t if latent_at is None else latent_at, strict=True):
        w = model.schedule.masked_fraction(when)
        probability = torch.where(masks, w, 1 - w).prod(-1)
        shape = (4, 4, len(NODES))  # x, mask, node
        x = PAIRS[:, None, None].expand(*shape, 2).reshape(-1, 2)
        hidden = masks[None, :, None].expand(*shape, 2).reshape(-1, 2)
        e = NODES.expand(shape).reshape(-1, 1, 1)
        times = at.expand(len(x))
        z0 = model.encode(x)
        a, s = (
            f(model.clock.time(times))[:, None, None]
            for f in (model.latent_schedule.alpha, model.latent_schedule.masked_fraction)
        )
        nats = getattr(model, term)(x, torch.where(hidden, 2, x), when.expand(len(x)), a.sqrt() * z0 + s.sqrt() * e)
        nats = torch.where((probability > 0)[None, :, None], nats.double().reshape(shape), 0.0)
        out.append((probability[:, None] * WEIGHTS * nats).sum((1, 2)))
    return torch.stack(out)


def levels(count: int | None) -> Tensor:
    return torch.arange(1, (count or 0) + 1, dtype=torch.float64) / (count or 1)


def normal(x: Tensor, mean: Tensor, std: Tensor | float) -> Tensor:
    return torch.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))


def token_moves(per_site: Tensor) -> Tensor:
    """P(state -> state'), Float64[..., 9], of two independent sites Float64[..., 2, 3]."""
    return (per_site[..., 0, :, None] * per_site[..., 1, None, :]).flatten(-2)


def law_of_fuji(model: FujiLDDM) -> Tensor:
    """p_theta(x), Float64[4], of sampler "ddpm" with num_timesteps steps: the joint density on 9 states x GRID."""
    steps, count = model.num_timesteps, len(GRID)
    density = torch.zeros(9, count, dtype=torch.float64)
    density[-1] = normal(GRID, torch.zeros(1), 1.0)
    for k in range(steps, 0, -1):
        after = torch.zeros_like(density)
        for state in density.amax(1).gt(1e-300).nonzero()[:, 0]:
            when = torch.full((2, count), k / steps, dtype=torch.float64)
            when[1] = (k - 1) / steps
            zt = STATES[state].expand(count, 2)
            law = model.joint_law(zt, when[0], when[1], latent=GRID.reshape(-1, 1, 1), sampler="ddpm")
            moved = token_moves(law.tokens.probs()).T * density[state]  # [state', z_t]
            if k > 1:
                moved = moved @ (normal(GRID[:, None], law.latent.mean[:, 0, 0], law.latent.std) * DZ).T
            after += moved
        density = after
    return _clean(density.sum(1) * DZ)


def law_of_seq(model: SeqLDDM) -> Tensor:
    """p_theta(x), Float64[4], of sampler "ddpm" with num_latent_timesteps and num_timesteps steps."""
    count, steps = len(GRID), model.num_latent_timesteps
    density = normal(GRID, torch.zeros(1), 1.0)
    latent = GRID.reshape(-1, 1, 1)
    for k in range(steps, 0, -1):
        when = torch.tensor([[k / steps], [(k - 1) / steps]], dtype=torch.float64).expand(2, count)
        law = model.latent_law(latent, when[0], when[1], None)
        density = normal(GRID[:, None], law.mean[:, 0, 0], law.std) * DZ @ density
    tokens = torch.zeros(9, count, dtype=torch.float64)
    tokens[-1] = density
    steps = model.num_timesteps
    for k in range(steps, 0, -1):
        after = torch.zeros_like(tokens)
        for state in range(9):
            when = torch.tensor([[k / steps], [(k - 1) / steps]], dtype=torch.float64).expand(2, count)
            law = model.reverse_law(STATES[state].expand(count, 2), when[0], when[1], denoiser=model.given(latent))
            after += token_moves(law.probs()).T * tokens[state]
        tokens = after
    return _clean(tokens.sum(1) * DZ)


def _clean(law: Tensor) -> Tensor:
    return law[PAIRS[:, 0] * 3 + PAIRS[:, 1]]
