"""GenMD4: masked diffusion with a learned schedule per class, arXiv 2406.04329 (v4), section 6 and appendix I.

corrupt  ->  terms  ->  leave_one_out (the gradient of the schedule)  ->  loss, nelbo  ->  reverse_law

    z_t       a site that holds v is masked with probability 1 - alpha_v(t) = (1 - eps) t^{w_v}               eq. (11)
    L         = integral_{t1}^1 (1/t) E[ sum over masked n of
                  -w_{x_n} log mu_n(x_n) - w_{x_n} + sum_v w_v mu_n(v) ] dt                            eqs. (12), (32)
    -log p(x) <= L + recon + prior,  recon: sites still masked at t1, prior = N eps ln V
    p(z_s|z_t) a masked site becomes v with probability (1 - (s/t)^{w_v}) mu_v                         appendix I.2
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ggm_lightning.core import noise, times, vector_masking
from ggm_lightning.core.categorical import PLAIN, Sharpening
from ggm_lightning.core.masked_sites import MaskedSites
from ggm_lightning.core.noise import StepNoise
from ggm_lightning.core.vector_masking import VectorMaskedLaw
from ggm_lightning.models.base import Family
from ggm_lightning.models.readout import MaskedTerms
from ggm_lightning.sampling import arguments
from ggm_lightning.sampling.plans import OF_MASKED

NO_COMMON_TIMES = (
    "each class is masked at times of its own, so that when a site is revealed depends on what it becomes, and no plan "
    "can choose the site first; use ancestral"
)


class GenMD4(Family):
    """Masked diffusion whose classes are masked at their own times: w_v > 1 late, w_v < 1 early.

    The network is called as network(z, t, label=None), as MD4's. Its best prediction depends on t even where MD4's does
    not, because which sites are masked tells of their values.

    With an exact network the bound is -log p(x) in the limit first_time -> 0 and eps -> 0 alone. With the defaults it
    belongs to a law that is not quite p: on a law of 4 sites of 3 classes, exponents 0.5, 1 and 2.5, it is 1.8e-3
    nats above -log p(x) in the mean, and for single (rare) x off by -0.26 to +7.9e-3.

    Infilling: its error vanishes with the steps.

    Args:
        network, num_classes, shape: see Family.
        initial_exponent: every w_v at the start; 1 is MD4's linear schedule.
        exponent_lr: peak learning rate of the exponents; None takes the network's.
        published_optimizer: exponents get the network's learning rate and weight decay, which pulls them to ln 2.
        first_time: t1; times are drawn from [t1, 1].
        published_estimate: leave out the factor (1 - t1) of the integral, as the published numbers do (they are larger
            by 0.1 % for it).
        count_prior: add the prior term, without which the sum is no bound; False is the published convention.
        family: optimizer, label_dropout, eval_samples, seed, eval_seed (see Family).
    """

    refused_samplers = MappingProxyType(
        dict.fromkeys([name for name in OF_MASKED if name != "ancestral"], NO_COMMON_TIMES)
    )

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        shape: tuple[int, ...],
        initial_exponent: float = 1.0,
        exponent_lr: float | None = None,
        published_optimizer: bool = False,
        first_time: float = 1e-3,
        published_estimate: bool = False,
        count_prior: bool = True,
        **family: Any,
    ) -> None:
        super().__init__(network, num_classes, shape, **family)
        if not 0 < initial_exponent < math.inf:
            raise ValueError(f"initial_exponent is {initial_exponent}; it must be positive and finite")
        if not 0 < first_time < 1:
            raise ValueError(f"first_time is {first_time}; it must lie inside (0, 1), 0.001 is the published one")
        if exponent_lr is not None and not 0 <= exponent_lr < math.inf:
            raise ValueError(f"exponent_lr is {exponent_lr}; it must be at least 0 and finite, or null")
        if published_optimizer and exponent_lr is not None:
            raise ValueError(
                "published_optimizer gives the exponents the network's learning rate; leave out one of both"
            )
        self.raw_exponents = nn.Parameter(torch.full((num_classes,), math.log(math.expm1(initial_exponent))))
        self.exponent_lr, self.published_optimizer = exponent_lr, published_optimizer
        self.first_time = first_time
        self.jacobian = 1.0 if published_estimate else 1.0 - first_time
        self.mask_id = num_classes
        self.prior_nats = vector_masking.prior(self.num_sites, num_classes) if count_prior else 0.0

    def exponents(self) -> Tensor:
        """w Float64[V], one per class."""
        return softplus(self.raw_exponents.double())

    # ------------------------------------------------------------------ corrupt

    def time(self, t0: Tensor) -> Tensor:
        """Times in [t1, 1) from times in [0, 1)."""
        return (1 - self.first_time) * t0 + self.first_time

    def corrupt(self, x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        """z_t Int64[b, *shape] from x, t Float64[b] and uniforms u Float64[b, n]."""
        with torch.no_grad():
            masked = u < vector_masking.masked_probability(x.flatten(1), t, self.exponents())
        return torch.where(masked.reshape(x.shape), self.mask_id, x)

    # ------------------------------------------------------------------ the loss given a corrupted state

    def terms(self, x: Tensor, zt: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Float[b], nats: the integrand of eq. (12) at t, differentiable in the exponents that stand in it. Its mean
        over z_t ~ q(. | x), integrated over t from t1 to 1, is L."""
        arguments.check_terms(self, x, zt, t, label)
        return self._terms(x, zt, t, label).rows()

    def _terms(self, x: Tensor, zt: Tensor, t: Tensor, label: Tensor | None) -> MaskedTerms:
        masked = MaskedSites((zt == self.mask_id).flatten(1))
        answer = self.readout(zt, t, label)
        return answer.terms(x.flatten(1), masked, lambda nats: nats / t.to(nats.dtype), self.exponents())

    def reconstruction(self, x: Tensor) -> Tensor:
        """Float64[b], nats: sites still masked at t1, decoded without context."""
        return vector_masking.reconstruction(x.flatten(1), self.first_time, self.exponents())

    def leave_one_out(
        self, x: Tensor, z1: Tensor, z2: Tensor, t: Tensor, label: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, terms, surrogate), nats. The loss has the mean over rows of (l1 + l2)/2, terms Float[2 b] are l1 and
        then l2, those of the corrupted states z1 and z2. The surrogate Float[b] is the scalar whose gradient in the
        exponents is that of the drawing of the states (two-sample REINFORCE, appendix I.2):
        (l1 - l2)/2 (log q(z1 | x) - log q(z2 | x)), l1 and l2 taken as constants."""
        both = None if label is None else torch.cat([label, label])
        two = self._terms(torch.cat([x, x]), torch.cat([z1, z2]), torch.cat([t, t]), both)
        loss, terms = two.loss(states=2)
        l1, l2 = terms.chunk(2)
        return loss, terms, self._surrogate(x, z1, z2, t, l1 - l2)

    def _surrogate(self, x: Tensor, z1: Tensor, z2: Tensor, t: Tensor, difference: Tensor) -> Tensor:
        w, flat = self.exponents(), x.flatten(1)
        log_q1, log_q2 = (vector_masking.log_probability((z == self.mask_id).flatten(1), flat, t, w) for z in (z1, z2))
        difference = difference.detach()
        # a class of logit -inf makes l1 or l2 infinite: the loss is, but nothing is known of this slope
        difference = torch.where(torch.isfinite(difference), difference, 0.0)
        return 0.5 * difference * (log_q1 - log_q2)

    # ------------------------------------------------------------------ loss and bound

    def training_loss(self, x: Tensor, label: Tensor | None, draws: StepNoise) -> Tensor:
        """Bits per dimension, mean over the rows: its value is the bound (without prior), its gradient in the exponents
        is unbiased. Two network evaluations per row."""
        t = self.time(times.of_step(draws))
        z1, z2 = (self.corrupt(x, t, draws.uniform(stream, self.num_sites)) for stream in ("mask", "second mask"))
        mean, _, surrogate = self.leave_one_out(x, z1, z2, t, label)
        # the surrogate's value means nothing: only its gradient is taken
        nats = self.jacobian * (mean + surrogate - surrogate.detach()) + self.reconstruction(x)
        return nats.mean() / (self.num_sites * math.log(2))

    def nelbo(
        self,
        x: Tensor,
        label: Tensor | None = None,
        num_samples: int = 1,
        seed: int = 0,
        row: Tensor | None = None,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """Float64[b], nats: diffusion term averaged over num_samples (t, z_t), plus reconstruction and prior.

        t is stratified over a row's own samples, so the estimate of a row is a function of (seed, row) alone.
        There is no estimator by counts, as MD4 has one: the masks of l sites are not equally probable, since each class
        has its own times.
        states: see MD4.
        """
        x, label, row = arguments.of_bound(self, x, label, row, num_samples, seed)
        nats, samples = torch.zeros(len(x), dtype=torch.float64, device=x.device), []
        t_all = times.stratified_per_row(seed=seed, row=row, num_samples=num_samples)
        with self.evaluating():
            for j, t0 in enumerate(t_all):
                t = self.time(t0)
                u = noise.uniform("eval mask", seed=seed, step=j, row=row, num_sites=self.num_sites)
                samples.append(self.terms(x, self.corrupt(x, t, u), t, label).double())
                nats += samples[-1]
            if states is not None:
                states.append(self.jacobian * times.by_time(samples, t_all))
            return self.jacobian * nats / num_samples + self.reconstruction(x) + self.prior_nats

    # ------------------------------------------------------------------ reverse step

    def reverse_law(
        self,
        zt: Tensor,
        t: Tensor,
        s: Tensor,
        label: Tensor | None = None,
        sharpening: Sharpening = PLAIN,
    ) -> VectorMaskedLaw:
        """p(z_s | z_t) site by site, appendix I.2; t, s Float64[b]. The network sees t."""
        arguments.check_law(self, zt, t, s, label, sharpening)

        def logits_at(sites: Tensor) -> Tensor:
            return self.logits_at(zt, t, label, sites)

        log_ratio = torch.log(s.double() / t.double())
        return VectorMaskedLaw(zt.flatten(1), log_ratio, self.exponents(), logits_at, self.mask_id, sharpening)

    # ------------------------------------------------------------------ training

    def parameter_groups(self) -> list[dict[str, Any]]:
        if self.published_optimizer:
            return super().parameter_groups()
        network = [p for p in self.parameters() if p.requires_grad and p is not self.raw_exponents]
        rate = self.optimizer.lr if self.exponent_lr is None else self.exponent_lr
        exponents = [self.raw_exponents] if self.raw_exponents.requires_grad else []
        return [{"params": network}, {"params": exponents, "lr": rate, "weight_decay": 0.0}]

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        w = self.exponents().detach()
        self.log_dict({"val/w_min": w.min(), "val/w_mean": w.mean(), "val/w_max": w.max()}, sync_dist=True)
