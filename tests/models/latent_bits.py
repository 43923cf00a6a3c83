"""Two bits with a latent of one number: exact networks, and ones bent by numbers of their state."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ggm_lightning.core.schedules import Schedule
from ggm_lightning.exact import latent as kit
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.states import all_states
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM

P = torch.tensor([0.45, 0.05, 0.10, 0.40], dtype=torch.float64)
JOINT = JointLaw(P.reshape(2, 2))
PAIRS, ENTROPY = JOINT.x, JOINT.entropy  # clean states of two bits
STATES = all_states(3, 2)  # with the mask 2
ENCODERS = {
    "injective": torch.tensor([-1.5, -0.5, 0.5, 1.5], dtype=torch.float64),
    "lossy": torch.tensor([-1.0, 0.0, 0.0, 1.0], dtype=torch.float64),
    "constant": torch.zeros(4, dtype=torch.float64),
}
_centred = ENCODERS["injective"] - (P * ENCODERS["injective"]).sum()
UNIT = _centred / (P * _centred**2).sum().sqrt()
EQUAL_BITS = JointLaw(torch.eye(2, dtype=torch.float64) / 2)
OF_EQUAL_BITS = torch.tensor([-1.0, 0.0, 0.0, 1.0], dtype=torch.float64)  # code of 00 and of 11


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


class Bends(nn.Module):
    """Coefficients that are a function of (state, t)."""

    eps, seed = 0.0, 0

    def bend(self, state: Tensor, k: Tensor, count: int, part: int) -> Tensor:
        """Standard normal coefficients Float64[b, count], equal for equal (state, k)."""
        key, which = torch.unique(state * 100_000 + k, return_inverse=True)
        rows = [np.random.default_rng([self.seed, part, int(i)]).normal(size=count) for i in key]
        return torch.from_numpy(np.stack(rows))[which]

    def bent(self, z: Tensor, t: Tensor, latent: Tensor, logits: Tensor, z0: Tensor) -> tuple[Tensor, Tensor]:
        if not self.eps:
            return logits, z0
        state, k, y = (z * torch.tensor([3, 1])).sum(-1), (t * 1000).round().long(), latent.flatten(1)
        c, d = self.bend(state, k, 6, 0), self.bend(state, k, 3, 1)
        logits[..., 1] += self.eps * (c[:, :2] + c[:, 2:4] * torch.sin(1.7 * y + c[:, 4:]))
        bend = 0.5 * self.eps * (d[:, 0] + d[:, 1] * torch.sin(1.3 * y[:, 0] + d[:, 2]))
        return logits, z0 + bend.reshape(-1, 1, 1)


class Bent(kit.Joint, Bends):
    def forward(
        self, z: Tensor, t: Tensor, label: Tensor | None = None, *, latent: Tensor, latent_time: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.bent(z, t, latent, *super().forward(z, t, label, latent=latent, latent_time=latent_time))


class BentLatent(kit.Latent, Bends):
    def forward(self, latent: Tensor, latent_time: Tensor, label: Tensor | None = None) -> Tensor:
        z0 = super().forward(latent, latent_time, label)
        masked = torch.full((len(latent), 2), 2)
        return self.bent(masked, latent_time, latent, torch.zeros(len(latent), 2, 2).double(), z0)[1]


def _bent(network: kit.Joint, eps: float, seed: int) -> kit.Joint:
    network.eps, network.seed = eps, seed
    return network


def fuji(
    latent_schedule: Schedule, code: Tensor = UNIT, eps: float = 0.0, seed: int = 0, law: JointLaw = JOINT, **more
) -> FujiLDDM:
    network = _bent(Bent(law, code, latent_schedule), eps, seed)
    options = {"latent_schedule": latent_schedule, "max_snr": None, **more}
    return FujiLDDM(network, kit.Code(law.x, code), 2, (2,), **options)


def seq(
    latent_schedule: Schedule, code: Tensor = UNIT, eps: float = 0.0, seed: int = 0, law: JointLaw = JOINT, **more
) -> SeqLDDM:
    network = _bent(Bent(law, code, latent_schedule), eps, seed)
    own = _bent(BentLatent(law, code, latent_schedule), eps, seed + 50)
    options = {"latent_schedule": latent_schedule, "max_snr": None, **more}
    return SeqLDDM(network, kit.Code(law.x, code), own, 2, (2,), **options)


def law_of_fuji(model: FujiLDDM) -> Tensor:
    """p_theta(x), Float64[4], of sampler "ddpm" with num_timesteps steps."""
    return kit.law_of_ddpm(model, model.num_timesteps, "uniform")


def law_of_seq(model: SeqLDDM) -> Tensor:
    """p_theta(x), Float64[4], of sampler "ddpm" with num_latent_timesteps and num_timesteps steps."""
    return kit.law_of_latent_first(model, "ddpm", model.num_timesteps, model.num_latent_timesteps, "uniform")


def enumerated(model: FujiLDDM | SeqLDDM, term: str, t: Tensor, latent_at: Tensor | None = None) -> Tensor:
    """E over x_t and z_t of the model's `term` at each time: Float64[len(t), 4]."""
    return kit.mean_of(getattr(model, term), model, JOINT, t, latent_at)
