"""MD4: simplified and generalised masked diffusion, arXiv 2406.04329 (v4). Read from top to bottom:

corrupt  ->  terms (the loss given a corrupted state)  ->  loss, nelbo  ->  reverse_law  ->  finish

    z_t       each site is masked with probability 1 - alpha(t)                                              eq. (1)
    L_inf     = integral_0^1 alpha'(t) / (1 - alpha(t)) E[ sum over masked n of log mu_n(x0_n | z_t, t) ] dt eq. (5)
    -log p(x) <= L_inf + recon + prior,  recon = N (1 - alpha(0)) ln V,  prior = N alpha(1) ln V
    p(z_s|z_t) a masked site becomes v with probability r mu_v, r = (alpha_s - alpha_t)/(1 - alpha_t)        eq. (6)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ggm_lightning.core import counts, masking, noise, schedule_checks, times
from ggm_lightning.core.categorical import PLAIN, Sharpening
from ggm_lightning.core.masked_sites import MaskedSites
from ggm_lightning.core.masking import MaskedLaw
from ggm_lightning.core.noise import StepNoise
from ggm_lightning.core.schedules import Linear, Schedule
from ggm_lightning.models.base import Family
from ggm_lightning.models.readout import MaskedTerms
from ggm_lightning.sampling import arguments
from ggm_lightning.sampling.contract import Denoiser
from ggm_lightning.sampling.naming import Maker
from ggm_lightning.sampling.plans import OF_MASKED


class MD4(Family):
    """Masked diffusion with one schedule for all classes.

    The network is called as network(z, t, label=None) with z Int64[b, *shape] in 0..V (V is the mask) and t Float[b];
    it returns logits over the V classes, Float[b, n, V] or Float[b, *shape, V].

    With an exact network and a schedule of eps = 0 the bound is -log p(x) for every x. With the default eps = 1e-4 it
    belongs to a law that is not quite p (what is still masked at t = 0 is decoded uniformly): on a law of 4 sites of 3
    classes it is 1.7e-4 nats above -log p(x) in the mean, and for single x off by -3.0e-3 to +4.2e-4.

    Infilling: exact with samplers first_hitting (up to eps) and ordered, k = 1; with ancestral its error vanishes with
    the steps. All of them: docs/samplers.md.

    Args:
        network, num_classes, shape: see Family.
        schedule: alpha(t), a class of core/schedules.py or one of your own (docs/extend/schedule.md); Linear is the
            paper's.
        num_timesteps: T of the finite-time bound L_T; None is continuous time, tighter and the paper's choice.
        count_prior: add the prior term, without which the sum is no bound; False is the published convention.
        leftover: sites still masked at t = 0 (N eps of them expected) are drawn from the network ("draw") or take its
            mode ("argmax", as published).
        family: optimizer, label_dropout, eval_samples, seed, eval_seed (see Family).
    """

    samplers: Mapping[str, Maker] = OF_MASKED

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        shape: tuple[int, ...],
        schedule: Schedule = Linear(),
        num_timesteps: int | None = None,
        count_prior: bool = True,
        leftover: str = "draw",
        **family: Any,
    ) -> None:
        super().__init__(network, num_classes, shape, **family)
        if num_timesteps is not None and num_timesteps < 1:
            raise ValueError(f"num_timesteps is {num_timesteps}; give a positive number, or null for continuous time")
        if leftover not in ("draw", "argmax"):
            raise ValueError(f"leftover is '{leftover}'; choose draw or argmax")
        self.schedule = schedule_checks.checked(schedule)
        self.num_timesteps = num_timesteps
        if num_timesteps is None:
            self.estimators = ("times", "counts")
        self.count_prior = count_prior
        self.leftover = leftover
        self.mask_id = num_classes
        self.reconstruction_nats = masking.reconstruction(schedule, self.num_sites, num_classes)
        self.prior_nats = masking.prior(schedule, self.num_sites, num_classes)

    # ------------------------------------------------------------------ corrupt

    def corrupt(self, x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        """z_t Int64[b, *shape] from x, t Float64[b] and uniforms u Float64[b, n]."""
        zt = masking.corrupt(x.flatten(1), self.schedule.masked_fraction(t), u, self.mask_id)
        return zt.reshape(x.shape)

    # ------------------------------------------------------------------ the loss given a corrupted state

    def terms(self, x: Tensor, zt: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Float[b], nats: weight(t) * (-sum over masked n of log mu_n(x_n | z_t, t)), whose mean over t ~ U(0,1) and
        z_t ~ q(. | x) is L_inf, eq. (5); for finite T, t in {1/T, ..., 1}, and the mean is L_T, eq. (4)."""
        arguments.check_terms(self, x, zt, t, label)
        return self._terms(x, zt, t, label, self.weight(t)).rows()

    def count_terms(self, x: Tensor, zt: Tensor, fraction: Tensor, label: Tensor | None = None) -> Tensor:
        """Float[b], nats: (N / l) * (-sum over the l masked n of log mu_n(x_n | z_t, t)), with t the time at which the
        masked fraction is `fraction` Float64[b]; 0 where there is no such time. Its mean over l in 1..N, the masks of
        l sites and fraction ~ Beta(l, N - l + 1) is L_inf, eq. (5); see core/counts.py."""
        t = self.schedule.inverse(fraction)
        arguments.check_terms(self, x, zt, t, label)
        count = (zt == self.mask_id).flatten(1).sum(-1)
        ends = self.schedule.masked_fraction(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        weight = counts.weight(count, self.num_sites, fraction, *ends)
        return self._terms(x, zt, t, label, weight).rows()

    def _terms(self, x: Tensor, zt: Tensor, t: Tensor, label: Tensor | None, weight: Tensor) -> MaskedTerms:
        masked = MaskedSites((zt == self.mask_id).flatten(1))
        # nothing masked: 0, also where the weight is infinite
        weight = torch.where(masked.mask.any(-1), weight, 0.0)
        return self.readout(zt, t, label).terms(x.flatten(1), masked, lambda nats: weight.to(nats.dtype) * nats)

    def weight(self, t: Tensor) -> Tensor:
        """Float64[b]: the factor of the cross-entropy at t, eq. (5), or eq. (4) for finite T."""
        if self.num_timesteps is None:
            return masking.continuous_weight(self.schedule, t.double())
        return masking.discrete_weight(self.schedule, t.double(), self.num_timesteps)

    # ------------------------------------------------------------------ loss and bound

    def training_loss(self, x: Tensor, label: Tensor | None, draws: StepNoise) -> Tensor:
        """Bits per dimension, mean over the rows: diffusion + reconstruction, what the published code optimises."""
        t = times.of_step(draws)
        if self.num_timesteps is not None:
            t = masking.to_grid(t, self.num_timesteps)
        zt = self.corrupt(x, t, draws.uniform("mask", self.num_sites))
        loss, _ = self._terms(x, zt, t, label, self.weight(t)).loss()
        return (loss.mean() + self.reconstruction_nats) / (self.num_sites * math.log(2))

    def nelbo(
        self,
        x: Tensor,
        label: Tensor | None = None,
        num_samples: int = 1,
        seed: int = 0,
        row: Tensor | None = None,
        estimator: str = "times",
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """Float64[b], nats: diffusion term averaged over num_samples states, plus reconstruction and prior.

        t is stratified over a row's own samples, so the estimate of a row is a function of (seed, row) alone.

        Args:
            estimator: what is drawn of a state: "times" t, of which the number l of masked sites follows; "counts" l
                itself, from which t follows (core/counts.py). The mean is the same, the noise of "counts" far smaller.
            states: a list to which what each state came to is added, Float64[b, num_samples], nats, in the order of
                their times: of it comes the error (metrics/likelihood.py).
        """
        x, label, row = arguments.of_bound(self, x, label, row, num_samples, seed)
        arguments.check_estimator(self, estimator)
        t_all = times.stratified_per_row(seed=seed, row=row, num_samples=num_samples)
        nats, samples = torch.zeros(len(x), dtype=torch.float64, device=x.device), []
        estimate = self._estimate if estimator == "times" else self._estimate_of_count
        with self.evaluating():
            for j, t in enumerate(t_all):
                u = noise.uniform("eval mask", seed=seed, step=j, row=row, num_sites=self.num_sites)
                samples.append(estimate(x, t, u, label).double())
                nats += samples[-1]
        if states is not None:
            states.append(times.by_time(samples, t_all))
        constant = self.reconstruction_nats + (self.prior_nats if self.count_prior else 0.0)
        return nats / num_samples + constant

    def _estimate(self, x: Tensor, t: Tensor, u: Tensor, label: Tensor | None) -> Tensor:
        if self.num_timesteps is not None:
            t = masking.to_grid(t, self.num_timesteps)
        return self.terms(x, self.corrupt(x, t, u), t, label)

    def _estimate_of_count(self, x: Tensor, t: Tensor, u: Tensor, label: Tensor | None) -> Tensor:
        count = counts.stratified(t, self.num_sites)
        zt, fraction = counts.corrupt(x.flatten(1), count, u, self.mask_id)
        return self.count_terms(x, zt.reshape(x.shape), fraction, label)

    # ------------------------------------------------------------------ reverse step

    def reverse_law(
        self,
        zt: Tensor,
        t: Tensor,
        s: Tensor,
        label: Tensor | None = None,
        sharpening: Sharpening = PLAIN,
    ) -> MaskedLaw:
        """p(z_s | z_t) site by site, eq. (6); t, s Float64[b]. The network sees t."""
        arguments.check_law(self, zt, t, s, label, sharpening)

        def logits_at(sites: Tensor) -> Tensor:
            return self.logits_at(zt, t, label, sites)

        return MaskedLaw.of_step(self.schedule, zt.flatten(1), t, s, logits_at, self.num_classes, sharpening)

    def finish(
        self,
        z: Tensor,
        label: Tensor | None,
        uniform: Callable[[str], Tensor] | None,
        sharpening: Sharpening = PLAIN,
        denoiser: Denoiser | None = None,
    ) -> Tensor:
        """Fill the sites still masked at t = 0, all at once."""
        drawn = None if self.leftover == "argmax" else uniform
        return super().finish(z, label, drawn, sharpening, denoiser)
