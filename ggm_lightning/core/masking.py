"""The absorbing (masking) process and its exact reversal.

Source: MD4, arXiv 2406.04329 (v4), sections 2 and 3, appendices C to E. V classes 0..V-1, the mask is class m = V.

    forward   each site independently: z_t = x0 with probability alpha(t), else m                            eq. (1)
    reverse   a masked site becomes v with probability r mu_v, stays masked with 1 - r,
              r = (alpha_s - alpha_t) / (1 - alpha_t); a clean site stays                                    eq. (6)
    bound     -log p(x0) <= prior + recon + integral over t of weight(t) E sum_masked log mu_n(x0_n)         eq. (5)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ggm_lightning.core import categorical
from ggm_lightning.core.categorical import PLAIN, Sharpening
from ggm_lightning.core.schedules import Schedule


def corrupt(
    x0: Int64[Tensor, "b n"], masked_fraction: Float64[Tensor, " b"], u: Float64[Tensor, "b n"], mask_id: int
) -> Int64[Tensor, "b n"]:
    """z_t ~ q(. | x0): a site is masked where its uniform u lies below 1 - alpha(t)."""
    return torch.where(u < masked_fraction[:, None], mask_id, x0)


def continuous_weight(schedule: Schedule, t: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
    """-alpha'(t) / (1 - alpha(t)) >= 0, the factor of the masked cross-entropy in eq. (5)."""
    return -schedule.weight(t)


def discrete_weight(schedule: Schedule, t: Float64[Tensor, " b"], num_steps: int) -> Float64[Tensor, " b"]:
    """T (alpha_s - alpha_t) / (1 - alpha_t) with s = t - 1/T, for t in {1/T, ..., 1}: the finite-T bound L_T.

    Its mean over uniform t is the sum of the T step KLs, i = 1..T (the paper's L_T leaves out i = 1; the published
    code does not, and its reconstruction term at t = 0 makes that a valid bound too).
    """
    s = (torch.round(t * num_steps) - 1) / num_steps  # exactly 0 at the first step, never -1e-17
    return num_steps * schedule.reveal_probability(t, s)


def to_grid(t: Float64[Tensor, " b"], num_steps: int) -> Float64[Tensor, " b"]:
    """The discrete time (floor(t T) + 1) / T of a continuous t in [0, 1)."""
    return (torch.floor(t * num_steps) + 1) / num_steps


def reconstruction(schedule: Schedule, num_sites: int, num_classes: int) -> float:
    """N (1 - alpha(0)) ln V nats: a site masked at t = 0 is decoded uniformly (appendix D)."""
    zero = torch.zeros(1, dtype=torch.float64)
    return num_sites * schedule.masked_fraction(zero).item() * math.log(num_classes)


def prior(schedule: Schedule, num_sites: int, num_classes: int) -> float:
    """N alpha(1) ln V nats: KL(q(z_1 | x0) || p(z_1)) for p(z_1) = alpha(1)/V on each class, 1 - alpha(1) on the mask.

    The published code reports 0 here (appendix E calls it negligible); without it the sum is not a bound.
    """
    one = torch.ones(1, dtype=torch.float64)
    return num_sites * schedule.alpha(one).item() * math.log(num_classes)


@dataclass
class MaskedLaw:
    """The law of z_s given z_t, site by site: `reveal` decides where, `logits_at(sites)` what.

    Attributes:
        zt: Int64[b, n], current state, mask_id where masked.
        reveal: Float64[b, n], probability that the site leaves the mask in this step (0 where it is clean).
        logits_at: takes Bool[b, n] and returns the logits Float[k, v] of its k True sites in row-major order. The
            network runs when it is first called, so a step that reveals nothing costs no network call.
        mask_id: V.
        sharpening: of the law of the values.
    """

    zt: Int64[Tensor, "b n"]
    reveal: Float64[Tensor, "b n"]
    logits_at: Callable[[Bool[Tensor, "b n"]], Float[Tensor, "k v"]]
    mask_id: int
    sharpening: Sharpening = PLAIN

    @classmethod
    def of_step(
        cls,
        schedule: Schedule,
        zt: Int64[Tensor, "b n"],
        t: Float64[Tensor, " b"],
        s: Float64[Tensor, " b"],
        logits_at: Callable[[Bool[Tensor, "b n"]], Float[Tensor, "k v"]],
        mask_id: int,
        sharpening: Sharpening = PLAIN,
    ) -> MaskedLaw:
        """The reverse step from t to s, eq. (6), where one schedule masks all classes."""
        r = schedule.reveal_probability(t.double(), s.double())
        reveal = torch.where(zt == mask_id, r[:, None], 0.0)
        return cls(zt, reveal, logits_at, mask_id, sharpening)

    def draw(self, uniform: Callable[[str], Float64[Tensor, "b n"]]) -> Int64[Tensor, "b n"]:
        """Choose the sites to reveal, then a value for each of them; `uniform(stream)` gives this step's uniforms."""
        sites = categorical.choose_sites(self.reveal, uniform("site"))
        if not bool(sites.any()):
            return self.zt
        logits = self.logits_at(sites)
        values = self.sharpening.draw(logits, uniform("value")[sites], sites)
        return self.zt.masked_scatter(sites, values)

    def probs(self) -> Float64[Tensor, "b n w"]:
        """Float64[b, n, V + 1]: the whole law, last column the mask. For enumeration: as large as all logits."""
        everywhere = torch.ones_like(self.zt, dtype=torch.bool)
        mu = self.sharpening.probabilities(self.logits_at(everywhere))
        mu = mu.reshape(*self.zt.shape, -1)
        stay = 1 - self.reveal[..., None]
        law = torch.cat([self.reveal[..., None] * mu, stay], dim=-1)
        clean = torch.nn.functional.one_hot(self.zt, self.mask_id + 1).double()
        return torch.where((self.zt == self.mask_id)[..., None], law, clean)
