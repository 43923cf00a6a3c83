"""The absorbing process with one exponent per class, and its exact reversal.

Source: GenMD4, arXiv 2406.04329 (v4), section 6 and appendix I. V classes 0..V-1 with exponents w_v > 0, mask V.

    forward   a site holding v is masked at time t with probability 1 - alpha_v(t) = (1 - eps) t^{w_v}       eq. (11)
    rate      alpha_v'(t) / (1 - alpha_v(t)) = -w_v / t; eps cancels
    reverse   a masked site stays masked with probability sum_v (s/t)^{w_v} mu_v, and becomes v with
              (1 - (s/t)^{w_v}) mu_v; eps cancels, and s = 0 reveals everything                        appendix I.2
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ggm_lightning.core import categorical, watch
from ggm_lightning.core.categorical import PLAIN, Sharpening

EPS = 1e-4  # alpha_v(1), as in the published code


def masked_probability(
    x0: Int64[Tensor, "b n"], t: Float64[Tensor, " b"], w: Float64[Tensor, " v"]
) -> Float64[Tensor, "b n"]:
    """1 - alpha_{x0}(t) = (1 - eps) t^{w_{x0}}, differentiable in w."""
    return (1 - EPS) * torch.exp(w[x0] * t.log()[:, None])


def log_probability(
    masked: Bool[Tensor, "b n"], x0: Int64[Tensor, "b n"], t: Float64[Tensor, " b"], w: Float64[Tensor, " v"]
) -> Float64[Tensor, " b"]:
    """log q(z_t | x0), summed over sites; differentiable in w (appendix I.2)."""
    log_masked = math.log1p(-EPS) + w[x0] * t.log()[:, None]
    # log(1 - e^a): the argument is at most 1 - eps, so that this is finite everywhere
    return torch.where(masked, log_masked, torch.log1p(-log_masked.exp())).sum(-1)


def reconstruction(x0: Int64[Tensor, "b n"], first: float, w: Float64[Tensor, " v"]) -> Float64[Tensor, " b"]:
    """Nats, differentiable in w: a site still masked at t1 = `first` is decoded from t1^{w_v} / sum_v t1^{w_v}."""
    log_share = torch.log_softmax(w * math.log(first), -1)
    return -((1 - EPS) * torch.exp(w[x0] * math.log(first)) * log_share[x0]).sum(-1)


def prior(num_sites: int, num_classes: int) -> float:
    """N eps ln V nats, see core/masking.py: alpha_v(1) = eps for every class. The published code reports 0 here."""
    return num_sites * EPS * math.log(num_classes)


@dataclass
class VectorMaskedLaw:
    """The law of z_s given z_t, site by site. Whether a site is revealed depends on what it may become, so the network
    runs in every step that has masked sites; values are drawn at the revealed sites only.

    Attributes:
        zt: Int64[b, n], current state, mask_id where masked.
        log_ratio: Float64[b], ln(s/t) <= 0, -inf in the last step.
        w: Float64[v], exponents.
        logits_at: takes Bool[b, n] and returns the logits Float[k, v] of its k True sites in row-major order.
        mask_id: V.
        sharpening: of mu.
    """

    zt: Int64[Tensor, "b n"]
    log_ratio: Float64[Tensor, " b"]
    w: Float64[Tensor, " v"]
    logits_at: Callable[[Bool[Tensor, "b n"]], Float[Tensor, "k v"]]
    mask_id: int
    sharpening: Sharpening = PLAIN

    def _becomes(self, masked: Bool[Tensor, "b n"]) -> Float64[Tensor, "k v"]:
        """(1 - (s/t)^{w_v}) mu_v at the masked sites; a row's sum is the probability to be revealed."""
        logits = self.logits_at(masked)
        watch.note(watch.faults_of(logits), masked)  # a site whose law is NaN would stay masked
        mu = self.sharpening.probabilities(logits)
        row = torch.nonzero(masked)[:, 0]
        return -torch.expm1(self.log_ratio[row, None] * self.w) * mu

    def draw(self, uniform: Callable[[str], Float64[Tensor, "b n"]]) -> Int64[Tensor, "b n"]:
        """Choose the sites to reveal, then a value for each of them; `uniform(stream)` gives this step's uniforms."""
        masked = self.zt == self.mask_id
        if not bool(masked.any()):
            return self.zt
        becomes = self._becomes(masked)
        reveal = torch.zeros(masked.shape, dtype=torch.float64, device=masked.device)
        # the sum of the last step is 1 up to rounding, and every uniform lies below
        last = torch.isinf(self.log_ratio)[torch.nonzero(masked)[:, 0]]
        reveal = reveal.masked_scatter(masked, torch.where(last, 1.0, becomes.sum(-1)))
        sites = categorical.choose_sites(reveal, uniform("site"))
        values = categorical.draw(becomes[sites[masked]].log(), uniform("value")[sites], at=sites)
        return self.zt.masked_scatter(sites, values)

    def probs(self) -> Float64[Tensor, "b n w"]:
        """Float64[b, n, V + 1]: the whole law, last column the mask. For enumeration: as large as all logits."""
        masked = self.zt == self.mask_id
        law = torch.nn.functional.one_hot(self.zt, self.mask_id + 1).double()
        if bool(masked.any()):
            becomes = self._becomes(masked)
            law[masked] = torch.cat([becomes, 1 - becomes.sum(-1, keepdim=True)], -1)
        return law
