"""LDDM: latent discrete diffusion, arXiv 2510.18114 (v1; later "Latent-Augmented Discrete Diffusion"). Two families:

FUJI, tokens and latent denoised together, and SEQ, the latent first. Read models/lddm_base.py along with this file.

    forward   x_t: each token masked with probability w(t);  z_t = abar_t z_0 + sbar_t e, z_0 = encoder(x)        (1)
    FUJI      p(x_s, z_s | x_t, z_t) = prod_i p(x_s^i | x_t, z_t) N(z_s; ...), both from one call of one network  (2)
    SEQ       p(z) by a denoiser of its own, then p(x_s | x_t, z_1) by the joint network                          (3)

The bounds are derived here: the abstract names only the models, and the released code lacks the prior. The path ends at
z_1, the cleanest level, and never generates z_0 (whose law given x is a Dirac). With levels 1..T, w_0 = 0, w_T = 1:

    FUJI      -log p(x) <= KL(q(z_T | x) || N(0, I)) + sum_{k=2}^T E (SNR_{k-1} - SNR_k)/2 |z_0 - h(x_k, z_k)|^2
                           + sum_{k=1}^T E (w_k - w_{k-1})/w_k sum_{i masked in x_k} -log p(x^i | x_k, z_k)       (4)
    limit     ... + integral -SNR'(t)/2 E |z_0 - h|^2 dt + integral w'(t)/w(t) E sum_masked -log p dt             (5)
    SEQ       the same with h(z_k) of the latent alone and p(x^i | x_k, z_1): all latent levels come first        (6)

With optimal denoisers the sum of both terms is H(x) for every encoder and clock: the bound cannot tell a useful latent
from a constant one. Hence the recipe in two stages (models/lddm_stages.py) and the metric val/latent_mi.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ggm_lightning.core import gaussian, times
from ggm_lightning.core.categorical import PLAIN, Sharpening
from ggm_lightning.core.gaussian import GaussianLaw, LatentClock
from ggm_lightning.core.masking import MaskedLaw
from ggm_lightning.models import contract
from ggm_lightning.models import lddm_stages as stages
from ggm_lightning.models.lddm_base import LatentFamily
from ggm_lightning.models.lddm_stages import TrainingTimes
from ggm_lightning.sampling import arguments
from ggm_lightning.sampling import latent as latent_first
from ggm_lightning.sampling.contract import Denoiser
from ggm_lightning.sampling.naming import Maker
from ggm_lightning.sampling.plans import GIVEN_LATENT
from ggm_lightning.sampling.request import Request, Samples
from ggm_lightning.sampling.sampler import Sampler

_TOGETHER = {kind: partial(latent_first.Together, kind) for kind in gaussian.STEPS}
_AFTER_LATENT = {kind: partial(latent_first.AfterLatent, kind) for kind in gaussian.STEPS}
_ON_ONE_CLOCK = "it needs a network that knows clean latents beside masked tokens; train with independent_clocks: true"


@dataclass
class JointLaw:
    """The law of (x_s, z_s) given (x_t, z_t): independent parts, both from one network call.

    Attributes:
        tokens: site by site. latent: Gaussian.
    """

    tokens: MaskedLaw
    latent: GaussianLaw


class FujiLDDM(LatentFamily):
    """Tokens and latent denoised together, eqs. (2), (4), (5).

    Calls, other arguments and what the network is told: see LatentFamily. The network's t is the tokens' time.

    Samplers: "ddim" (default) and "ddpm" move both parts on one grid; num_steps calls of the joint network. In one step
    the tokens are drawn while the latent is still pure noise: at least 2, better 8. "seq_ddim" and "seq_ddpm", for
    networks with independent clocks: `latent_steps` calls (default 32) with all tokens masked, then as SEQ; so does
    "first_hitting". A clamp needs independent clocks, too: known tokens stand beside a noisy latent. Infilling: with
    the joint samplers its error vanishes with the steps; with the others as in SeqLDDM.

    Args:
        independent_clocks: draw the times of tokens and latent independently in training (one time for both is
            published); bound and joint samplers keep to the diagonal.
    """

    samplers: Mapping[str, Maker] = MappingProxyType(_TOGETHER)

    def __init__(
        self,
        network: nn.Module,
        encoder: nn.Module,
        num_classes: int,
        shape: tuple[int, ...],
        independent_clocks: bool = False,
        **family: Any,
    ) -> None:
        super().__init__(network, encoder, num_classes, shape, **family)
        # the last step, from level 1, reveals tokens alone
        self.clock = LatentClock.to_snr(self.latent_schedule, self.max_snr, self.num_timesteps, 2)
        self.independent_clocks = independent_clocks
        sequential: dict[str, Maker] = {f"seq_{kind}": make for kind, make in _AFTER_LATENT.items()}
        sequential |= GIVEN_LATENT
        if independent_clocks:
            self.samplers = MappingProxyType({**type(self).samplers, **sequential})
        else:
            self.refused_samplers = dict.fromkeys(sequential, _ON_ONE_CLOCK)

    def decoder_time(self, t: Tensor) -> Tensor:
        return t

    def training_times(self, step: int, row: Tensor, total: int) -> TrainingTimes:
        t = self.on_grid(times.stratified(seed=self.seed, step=step, row=row, total=total))
        tz = t
        if self.independent_clocks:
            tz = self.on_grid(gaussian.independent_times(seed=self.seed, step=step, row=row, total=total))
        if self.in_first_stage(step) and self.recipe.stage1_latent == "clean":
            tz = torch.zeros_like(t)
        return TrainingTimes(t, tz, tz, self.clock.weight(tz))

    def predict_latent(
        self, zt: Tensor, t: Tensor, latent: Tensor, latent_time: Tensor, label: Tensor | None
    ) -> Tensor:
        return self.predict(zt, t, latent, latent_time, label)[1]

    def terms(self, x: Tensor, zt: Tensor, t: Tensor, latent: Tensor, label: Tensor | None = None) -> Tensor:
        """Float64[b], nats: the integrand of eq. (5) at t, given x_t = zt and z_t = latent Float64[b, S, d]; its mean
        over t ~ U(0, 1) and q is the bound less `prior_nats`. For finite T, t in {1/T, ..., 1}, and eq. (4)."""
        arguments.check_terms(self, x, zt, t, label)
        masked = self._masked(zt)
        answer, z0_hat = self.predict(zt, t, latent, t, label)
        error = (self.encode(x).double() - z0_hat.double()).square().sum((1, 2))
        tokens = answer.terms(x.flatten(1), masked, partial(self._weighted, t=t)).rows()
        return tokens.double() + self.clock.weight(t) * error

    def joint_law(
        self,
        zt: Tensor,
        t: Tensor,
        s: Tensor,
        label: Tensor | None = None,
        sharpening: Sharpening = PLAIN,
        *,
        latent: Tensor,
        sampler: str = "ddpm",
    ) -> JointLaw:
        """p(x_s, z_s | x_t, z_t), eq. (2); t, s Float64[b]. In the last step, s = 0, the latent has done its work."""
        arguments.check_law(self, zt, t, s, label, sharpening)
        logits_at, z0 = self.predict(zt, t, latent, t, label)
        law = gaussian.step(
            sampler, self.latent_schedule, latent.double(), z0.double(), self.clock.time(t), self.clock.time(s)
        )
        tokens = MaskedLaw.of_step(self.schedule, zt.flatten(1), t, s, logits_at, self.num_classes, sharpening)
        return JointLaw(tokens, law)

    def denoiser(self, request: Request) -> Denoiser:
        if not self.independent_clocks:
            raise ValueError(f"sampler '{request.sampler}' is refused: {_ON_ONE_CLOCK}")
        return super().denoiser(request)

    def draw(self, request: Request, sampler: Sampler) -> Samples:
        if request.clamp is not None and not self.independent_clocks:
            raise ValueError(f"clamp: {type(self).__name__} was trained on one clock; {_ON_ONE_CLOCK}")
        return super().draw(request, sampler)


class SeqLDDM(LatentFamily):
    """The latent first, then the tokens, eqs. (3), (6).

    Calls and other arguments: see LatentFamily; besides, latent_network(latent, latent_time, label=None) -> z_0
    Float[b, S, d], finite numbers. The joint network's own prediction of z_0 is not used. It sees the latent at its
    cleanest level, as the bound and the sampler want it; in stage 1 with stage1_latent: all_levels at every level, so
    that the encoder spreads its codes (a single latent of a hidden phase is learnt that way).

    Samplers: "ddim" (default) and "ddpm" say how the latent is drawn: `latent_steps` (default 32) calls of the latent's
    network, then num_steps of the joint one. "first_hitting" has no error of token steps: a site at a time, whatever
    num_steps is; its latent is drawn by `latent_sampler` (default ddim). With a clamp, infill_latents candidates are
    drawn for each example and one is chosen by how well it explains the known tokens. Infilling: its error falls as
    infill_latents grows (on a small law .31, .04, .02 with 1, 16, 64) and with both numbers of steps; with over four
    known tokens a floor may remain, because groups of them are weighed as independent (sampling/latent.py).

    Args:
        num_latent_timesteps: levels of the latent's discrete bound; None is continuous time.
    """

    samplers: Mapping[str, Maker] = MappingProxyType({**_AFTER_LATENT, **GIVEN_LATENT})
    uses_joint_latent = False
    stage1_latent = "clean"
    latent_network: nn.Module

    def __init__(
        self,
        network: nn.Module,
        encoder: nn.Module,
        latent_network: nn.Module,
        num_classes: int,
        shape: tuple[int, ...],
        num_latent_timesteps: int | None = None,
        **family: Any,
    ) -> None:
        if num_latent_timesteps is not None and num_latent_timesteps < 1:
            raise ValueError(f"num_latent_timesteps is {num_latent_timesteps}; it must be at least 1")
        super().__init__(network, encoder, num_classes, shape, **family)
        stages.latent_shape(encoder=encoder, latent_network=latent_network)
        self.latent_network = latent_network
        self.clock = LatentClock.to_snr(self.latent_schedule, self.max_snr, num_latent_timesteps, 1)
        self.num_latent_timesteps = num_latent_timesteps

    def decoder_time(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def training_times(self, step: int, row: Tensor, total: int) -> TrainingTimes:
        t = self.on_grid(times.stratified(seed=self.seed, step=step, row=row, total=total))
        u = gaussian.independent_times(seed=self.seed, step=step, row=row, total=total)
        if self.in_first_stage(step):
            shown = u if self.recipe.stage1_latent == "all_levels" else torch.zeros_like(t)
            return TrainingTimes(t, shown, torch.zeros_like(u), torch.ones_like(u))
        if self.recipe.latent_loss == "elbo":
            return TrainingTimes(t, torch.zeros_like(t), *self.clock.importance(u))
        return TrainingTimes(t, torch.zeros_like(t), u, torch.ones_like(u))

    def predict_latent(
        self, zt: Tensor, t: Tensor, latent: Tensor, latent_time: Tensor, label: Tensor | None
    ) -> Tensor:
        """The tokens are not looked at."""
        self.other_calls["latent_network"] += 1
        dtype = next(self.latent_network.parameters(), torch.zeros(())).dtype
        label = self.network_label(label, len(latent))
        z0 = self.latent_network(latent.to(dtype), self.clock.time(latent_time).to(dtype), label)
        return contract.numbers(self, "latent_network", z0, ((len(latent), *self.latent_shape),), "finite")

    def terms(self, x: Tensor, zt: Tensor, t: Tensor, latent: Tensor, label: Tensor | None = None) -> Tensor:
        """Float64[b], nats: the tokens' integrand of eq. (6) at t, given x_t = zt and the cleanest latent z_1. The
        latent's own is `latent_terms` (any tokens will do); both means and `prior_nats` make the bound."""
        arguments.check_terms(self, x, zt, t, label)
        return self.token_terms(x, zt, t, latent, label).double()

    def latent_law(
        self, latent: Tensor, t: Tensor, s: Tensor, label: Tensor | None, sampler: str = "ddpm"
    ) -> GaussianLaw:
        """p(z_s | z_t) at the clock's times t, s."""
        masked = self.prior_sample(len(latent))
        return latent_first.latent_step(self, masked, latent, t, s, label, sampler)
