"""What a network said of every site, before anybody asks for logits, and the last step of the losses.

Logits are formed at the sites that are asked for; the cross-entropies of many classes without ever forming all of them
(core/fused.py). Used by MD4 and GenMD4 (arXiv 2406.04329), LDDM (arXiv 2510.18114) and GGM (arXiv 2405.17035). A loss
that has a faster form is chosen here and nowhere else, Blackout's (arXiv 2305.11089) too: a family writes one formula.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ggm_lightning.core import death, fused, losses, products, watch
from ggm_lightning.core.masked_sites import MaskedSites
from ggm_lightning.core.softplus_loss import softplus_loss
from ggm_lightning.models import declared


def takes_fused(network: nn.Module, switch: bool | None) -> bool:
    """Whether losses need no logits: the network stops before a linear head, and `switch`, or None and many classes."""
    head = declared.by(network).head
    if not declared.stops_before_head(network) or not isinstance(head, nn.Linear):
        return False
    return head.out_features >= fused.MIN_CLASSES if switch is None else switch


@dataclass
class Readout:
    """One call of a network.

    Attributes:
        values: Float[b, n, d], to which `head` is applied; without one, the logits Float[b, n, V]. Or of m sites only.
        head: the network's last layer, or None.
        fuse: take cross-entropies by core/fused.py, see `takes_fused`.
        sites: Int64[b, m], where `values` stand, or None: at all sites.
    """

    values: Tensor
    head: Any  # nn.Module | None
    fuse: bool
    sites: Tensor | None = None

    def __call__(self, sites: Tensor | None = None) -> Tensor:
        """Logits Float[k, V] at the True ones of Bool[b, n], at Int64[b, m], or at all sites that there are."""
        if sites is not None and sites.dtype != torch.bool:
            return Readout(self.values.take_along_dim(sites[..., None], 1), self.head, self.fuse, sites)()
        values = self.values.flatten(0, 1) if sites is None else self.values[sites]
        logits = values if self.head is None else products.head_logits(self.head, values)
        watch.logits(logits, sites if self.sites is None else _places(self.sites))
        return logits

    def of_tokens(self, x: Tensor, fuse: bool) -> Tensor:
        """Float[k], at each site the logit of one token alone, x Int64[k]; with `fuse` the other V - 1 are never formed
        where there is a linear head."""
        if fuse and isinstance(self.head, nn.Linear):
            return fused.token_logits(self.values.flatten(0, 1), self.head.weight, x, self.head.bias)
        return self().gather(1, x[:, None])[:, 0]

    def mean_cross_entropy(self, x: Tensor, offset: Tensor) -> Tensor:
        """Scalar, nats: the mean over all sites of -log softmax(logits + offset) at x Int64[b, n]; offset Float[V]."""
        if not self.fuse:
            logits = losses.at_least_float32(self())
            return losses.cross_entropy(logits + offset.to(logits.dtype), x.flatten()).mean()
        bias = offset if self.head.bias is None else offset + self.head.bias
        weight = torch.full(x.shape, 1 / x.numel(), device=x.device)
        return fused.masked_linear_cross_entropy(
            self.values, self.head.weight, x, weight, bias=bias, min_classes=0
        ).loss

    def terms(
        self, x0: Tensor, masked: Tensor | MaskedSites, weigh: Callable[[Tensor], Tensor], w: Tensor | None = None
    ) -> MaskedTerms:
        """What the masked sites (Bool[b, n]) cost at x0 Int64[b, n]; nothing is computed yet. Sites that were made
        before the network was called are counted by now (core/masked_sites.py)."""
        sites = masked if isinstance(masked, MaskedSites) else MaskedSites(masked)
        return MaskedTerms(self, x0, sites, weigh, w)

    def at(self, index: Tensor) -> Tensor:
        """Logits Float[k, V] at the sites Int64[k] of the flattened [b, n]; nothing is looked at."""
        values = self.values.flatten(0, 1).index_select(0, index)
        return values if self.head is None else products.head_logits(self.head, values)


@dataclass
class MaskedTerms:
    """The formula of the masked families: weigh(nats), row by row, where nats Float[b] is the sum over a row's masked
    sites of losses.cross_entropy, or with w Float[V] of losses.rate_divergence.

    `weigh` is linear and keeps rows apart. So what it makes of ones are the weights of the rows, which core/fused.py
    has to know before it starts.
    """

    answer: Readout
    x0: Tensor
    masked: MaskedSites
    weigh: Callable[[Tensor], Tensor]
    w: Tensor | None

    def rows(self) -> Tensor:
        """Float[b], with gradients."""
        if self.answer.fuse and not torch.is_grad_enabled():
            return self.weigh(self._fused(self.x0.new_ones(len(self.x0), dtype=torch.float32)).nats)
        index = self.masked.index()
        logits, x0 = self.answer.at(index), self.x0.flatten().index_select(0, index)
        nats = losses.cross_entropy(logits, x0) if self.w is None else losses.rate_divergence(logits, x0, self.w)
        return self.weigh(losses.sum_over_sites(nats, self.masked.mask))

    def loss(self, states: int = 1) -> tuple[Tensor, Tensor]:
        """(what is minimised, by its mean; the rows Float[b], of which nobody may ask gradients).

        The former is Float[b / states], for the rows may be several corrupted states of the same examples, the first of
        each and then the second. By core/fused.py it is the scalar mean at once, and no logits are kept.
        """
        if not self.answer.fuse:
            rows = self.rows()
            return rows.reshape(states, -1).mean(0), rows
        ones = torch.ones(len(self.x0), dtype=torch.float64, device=self.x0.device)
        total, nats = self._fused(self.weigh(ones) / len(self.x0))
        return total, self.weigh(nats)

    def _fused(self, row_weight: Tensor) -> fused.WeightedNats:
        """A row with no masked site counts 0, whatever its weight."""
        head, weight = self.answer.head, row_weight[:, None].expand(self.x0.shape)
        loss, nats = fused.masked_linear_cross_entropy(
            self.answer.values,
            head.weight,
            self.x0,
            weight,
            self.masked.mask,
            head.bias,
            self.w,
            min_classes=0,
            num_masked=self.masked.count,
        )
        return fused.WeightedNats(loss, nats.sum(1))


def published_loss(
    raw: Tensor, x0: Tensor, xt: Tensor, scale: Tensor | None, deaths: Callable[[], tuple[Tensor, Tensor]]
) -> Tensor:
    """Float64[b]: Blackout's y - m ln y, m = x0 - xt, mean over the sites; x0, xt Int64[b, n].

    In one pass, with its gradient, where y = scale softplus(raw); scale Float64[b]. None: from deaths(), which gives
    (y, ln y), each Float64[b, n].
    """
    if scale is not None:
        return softplus_loss(raw, x0, xt, scale) / x0.shape[1]
    y, log_y = deaths()
    return death.published_loss(y, log_y, (x0 - xt).double()).mean(-1)


def _places(sites: Tensor) -> tuple[Tensor, Tensor]:
    """(row, site) of each entry of Int64[b, m]."""
    row = torch.arange(len(sites), device=sites.device)[:, None].expand(sites.shape)
    return row.flatten(), sites.flatten()
