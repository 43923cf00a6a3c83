"""What a network said of every site, before anybody asks for logits: the last step of the masked families' losses.

Logits are formed at the sites that are asked for; the cross-entropies of many classes without ever forming all of them
(core/fused.py). Used by MD4 and GenMD4 (arXiv 2406.04329), LDDM (arXiv 2510.18114) and GGM (arXiv 2405.17035).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ggm_lightning.core import fused, losses, watch
from ggm_lightning.core.fused import WeightedNats


def pays(network: nn.Module, switch: bool | None) -> bool:
    """Whether losses need no logits: the network stops before a linear head, and `switch`, or None and many classes."""
    head = getattr(network, "head", None)
    stops = hasattr(network, "features") or hasattr(network, "streams")
    if not stops or not isinstance(head, nn.Linear):
        return False
    return head.out_features >= fused.MIN_CLASSES if switch is None else switch


@dataclass
class Readout:
    """One call of a network.

    Attributes:
        values: Float[b, n, d], to which `head` is applied; without one, the logits Float[b, n, V]. Or of m sites only.
        head: the network's last layer, or None.
        fuse: take cross-entropies by core/fused.py, see `pays`.
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
        logits = values if self.head is None else self.head(values)
        watch.logits(logits, sites if self.sites is None else _places(self.sites))
        return logits

    def nats(self, x0: Tensor, masked: Tensor, w: Tensor | None = None) -> Tensor:
        """Float[b]: the sum over the masked sites (Bool[b, n]) of losses.cross_entropy at x0 Int64[b, n], or with w
        Float[V] of losses.rate_divergence."""
        if self.fuse and not torch.is_grad_enabled():
            return self.weighted_nats(x0, masked, x0.new_ones(len(x0), dtype=torch.float32), w).nats
        if w is None:
            return losses.masked_cross_entropy(self(masked), x0, masked)
        return losses.sum_over_sites(losses.rate_divergence(self(masked), x0[masked], w), masked)

    def weighted_nats(self, x0: Tensor, masked: Tensor, row_weight: Tensor, w: Tensor | None = None) -> WeightedNats:
        """(sum over b of row_weight_b nats_b with its gradients, nats Float[b] without). No logits are kept: the
        weights, Float[b], have to be known now. A row with no masked site counts 0, whatever its weight."""
        weight = row_weight[:, None].expand(x0.shape)
        loss, nats = fused.masked_linear_cross_entropy(
            self.values, self.head.weight, x0, weight, masked, self.head.bias, w, min_classes=0
        )
        return WeightedNats(loss, nats.sum(1))


def _places(sites: Tensor) -> tuple[Tensor, Tensor]:
    """(row, site) of each entry of Int64[b, m]."""
    row = torch.arange(len(sites), device=sites.device)[:, None].expand(sites.shape)
    return row.flatten(), sites.flatten()
