"""What a network knows besides its input: the time t and a class label, and how they modulate it (arXiv 2406.04329).

`Conditioning` makes one vector per example, `Modulation` turns it into the shifts, scales and gates of a block (adaLN).
Both are shared by the text transformer and the image networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ggm_lightning.networks import initialise

_TIME_FEATURES = ("t", "none")
_TIME_SCALE = 1000.0  # t in [0, 1] becomes the step counts for which the frequencies were chosen
_LONGEST_PERIOD = 10_000.0


def time_embedding(t: Float[Tensor, " b"], dim: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "b {dim}"]:
    """Sines, then cosines, of 1000 t exp(-k ln(1e4) / (dim/2 - 1)), k = 0..dim/2-1, computed in `dtype`."""
    half = dim // 2
    k = torch.arange(half, device=t.device, dtype=dtype)
    frequencies = torch.exp(k * (-math.log(_LONGEST_PERIOD) / (half - 1)))
    angles = (t.to(dtype) * _TIME_SCALE)[:, None] * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, dim % 2))


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Full precision where it costs nothing; meta, a device without autocast, has it anyway."""
    # not by torch.amp.is_autocast_available: in torch 2.11 it would cut a compiled graph in two
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class Conditioning(nn.Module):
    """c = W2 silu(W1 [emb(t), emb(label)] + a1) + a2 with 4 `dim` hidden units: one vector of size `dim` per example.

    Without time the label's embedding is c itself, as in the official code; with neither, c is None (`empty`).

    Args:
        dim: size of the time embedding, of the label embedding and of c.
        time_features: "t", or "none" for a network that is not told the time.
        num_labels: number of classes, 0 for none. Row `num_labels` of the table is the null class: what a call without
            a label gets, and what label dropout writes.
    """

    begins_alike = ("mlp.0.weight",)  # columns of the time's embedding first, those of a label's behind them

    def __init__(self, dim: int, time_features: str = "t", num_labels: int = 0):
        super().__init__()
        if time_features not in _TIME_FEATURES:
            raise ValueError(f"time_features is {time_features!r}; choose one of {', '.join(_TIME_FEATURES)}")
        if time_features == "t" and dim < 4:
            raise ValueError(f"a time embedding needs at least 4 features, not {dim}; raise feature_dim")
        self.dim, self.num_labels = dim, num_labels
        self.knows_time = time_features == "t"
        self.empty = not self.knows_time and num_labels == 0
        self.label_table = nn.Embedding(num_labels + 1, dim) if num_labels > 0 else None
        self.mlp = None
        if self.knows_time:
            inputs = dim if num_labels == 0 else 2 * dim
            self.mlp = nn.Sequential(nn.Linear(inputs, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.label_table is not None:
            initialise.embedding_(self.label_table)
        for layer in self.mlp or ():
            if isinstance(layer, nn.Linear):
                initialise.dense_(layer)

    def forward(
        self, batch_size: int, t: Float[Tensor, " b"] | None, label: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b d"] | None:
        """c, or None when there is nothing to condition on. Raises ValueError for a missing or unknown input."""
        if label is not None and self.label_table is None:
            raise ValueError("a label was given to a network without classes; set num_labels or drop the label")
        if self.empty:
            return None
        known = [] if self.mlp is None else [self._embed_time(t)]
        if self.label_table is not None:
            known.append(self._embed_label(batch_size, label))
        if self.mlp is None:
            return known[0]
        # One row per example, so precision is free here, and bf16 would blur the fast sines.
        with without_autocast(known[0].device):
            return self.mlp(torch.cat(known, dim=-1))

    def _embed_time(self, t: Tensor | None) -> Tensor:
        if t is None:
            raise ValueError("this network needs the time t; pass it, or build the network with time_features='none'")
        weights = self.mlp[0].weight.dtype  # type: ignore[index]
        return time_embedding(t, self.dim, torch.promote_types(weights, torch.float32)).to(weights)  # type: ignore[arg-type]

    def _embed_label(self, batch_size: int, label: Tensor | None) -> Tensor:
        if label is None:
            label = torch.full((batch_size,), self.num_labels, device=self.label_table.weight.device)
        return self.label_table(label)  # type: ignore[misc]


class Modulation(nn.Module):
    """adaLN's Dense: (m_1, ..., m_k) = split(W act(c) + a), each of shape [b, 1, d].

    Args:
        dim: size of the conditioning vector c.
        width: size of each part.
        parts: k, the number of parts.
        activation: act, which MD4 ties to the kind of feed-forward layer.
        zero: start from zero (adaLN-zero) instead of flax's default law.
    """

    def __init__(self, dim: int, width: int, parts: int, activation: Callable[[Tensor], Tensor], zero: bool):
        super().__init__()
        self.parts, self.activation, self.zero = parts, activation, zero
        self.dense = nn.Linear(dim, parts * width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        (initialise.zeros_ if self.zero else initialise.dense_)(self.dense)

    def forward(self, condition: Float[Tensor, "b c"]) -> tuple[Float[Tensor, "b 1 d"], ...]:
        modulation = self.dense(self.activation(condition)).to(condition.dtype)
        return rearrange(modulation, "b (k d) -> k b 1 d", k=self.parts).unbind()


def modulate(
    x: Float[Tensor, "b n d"], shift: Float[Tensor, "b 1 d"], scale: Float[Tensor, "b 1 d"], eps: float = 1e-5
) -> Float[Tensor, "b n d"]:
    """LN(x) (1 + scale) + shift; LN has no weights of its own."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=eps), 1 + scale)
