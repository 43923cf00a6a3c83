"""Attention, plain and with rotary positions (arXiv 2406.04329; rotary embedding arXiv 2104.09864), to all sites or, as
in an autoregressive model, to those before."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ggm_lightning.networks import initialise
from ggm_lightning.networks.causal import Memory


def rotary_tables(
    length: int, head_dim: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> tuple[Float[Tensor, "n h"], Float[Tensor, "n h"]]:
    """`rotary_tables_at` of the positions 0 .. length - 1.

    Made anew in every forward pass: that is a few thousand sines, and a cached table would have to follow the network
    through .to(), .double(), inference mode and longer inputs.
    """
    return rotary_tables_at(torch.arange(length, device=device, dtype=torch.float64), head_dim, dtype)


def rotary_tables_at(
    positions: Float64[Tensor, " n"], head_dim: int, dtype: torch.dtype = torch.float32
) -> tuple[Float[Tensor, "n h"], Float[Tensor, "n h"]]:
    """cos and sin of position * 10000^(-2i / head_dim), i < head_dim/2; angles in float64, rounded once at the end."""
    i = torch.arange(head_dim // 2, device=positions.device, dtype=torch.float64)
    angles = torch.outer(positions, 1e4 ** (-2 * i / head_dim))
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(
    x: Float[Tensor, "*b n heads d"], cos: Float[Tensor, "*b n h"], sin: Float[Tensor, "*b n h"]
) -> Float[Tensor, "*b n heads d"]:
    """Turn each pair (x_2i, x_2i+1) by its angle, in the precision of the tables or of x, whichever is finer.

    As complex numbers, (x_2i + j x_2i+1) (cos + j sin): one pass instead of six.
    """
    if torch.compiler.is_compiling():
        return rotate_real(x, cos, sin)
    dtype = torch.promote_types(x.dtype, cos.dtype)
    turn = torch.complex(cos.to(dtype), sin.to(dtype))[..., None, :]  # the same angle for all heads
    pairs = torch.view_as_complex(rearrange(x.to(dtype), "... (h two) -> ... h two", two=2))
    return torch.view_as_real(pairs * turn).flatten(-2)


def rotate_real(
    x: Float[Tensor, "*b n heads d"], cos: Float[Tensor, "*b n h"], sin: Float[Tensor, "*b n h"]
) -> Float[Tensor, "*b n heads d"]:
    """`rotate` without complex numbers, for which torch.compile has no code; it fuses these six passes into one."""
    even, odd = rearrange(x, "... (h two) -> two ... h", two=2)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def attend(
    queries: Float[Tensor, "b n heads h"],
    keys: Float[Tensor, "b m heads h"],
    values: Float[Tensor, "b m heads h"],
    dropout: float = 0.0,
    visible: Bool[Tensor, "... n m"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "b n d"]:
    """softmax(q k^T / sqrt(h)) v with d = heads h, the probabilities dropped at the rate `dropout`. Each position sees
    every other; with `visible` those where it is True, with `causal` itself and those before."""
    queries, keys, values = (rearrange(part, "b n heads h -> b heads n h") for part in (queries, keys, values))
    mixed = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=visible, dropout_p=dropout, is_causal=causal
    )
    return rearrange(mixed, "b heads n h -> b n (heads h)")


class SelfAttention(nn.Module):
    """softmax(q k^T / sqrt(head_dim)) v, every position seeing every other.

    Queries, keys and values come out of one matrix product; `qkv.weight` stacks their three kernels.

    Args:
        width: features per position.
        num_heads: heads; each gets width / num_heads features.
        dropout: rate of ordinary dropout on the attention probabilities.
        qkv_bias: give queries, keys and values a bias.
        out_bias: give the output a bias.
    """

    def __init__(
        self, width: int, num_heads: int, dropout: float = 0.0, qkv_bias: bool = False, out_bias: bool = False
    ):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.out = nn.Linear(width, width, bias=out_bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        initialise.dense_(self.qkv)  # the law depends on the fan-in alone, which the three kernels share
        initialise.dense_(self.out)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.out(self._mix(*self.project(x)))

    def project(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "3 b n heads h"]:
        """Queries, keys and values."""
        return rearrange(self.qkv(x), "b n (k heads d) -> k b n heads d", k=3, heads=self.num_heads)

    def _mix(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return attend(queries, keys, values, self.dropout if self.training else 0.0)


class RotaryAttention(SelfAttention):
    """softmax(R q (R k)^T / sqrt(head_dim)) v, R turning pairs of features by angles that grow with the position.

    A head has an even number of features.

    Args:
        width, num_heads, dropout: see SelfAttention.
        causal: a position sees itself and those before it, not those behind.
    """

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0, causal: bool = False):
        super().__init__(width, num_heads, dropout)
        self.causal = causal

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "b n d"],
        cos: Float[Tensor, "n h"],
        sin: Float[Tensor, "n h"],
        sites: Int[Tensor, "b m"] | None = None,
        memory: Memory | None = None,
    ) -> Float[Tensor, "b m d"]:
        """With `sites` these alone ask, and all answer. With a memory (causal) x stands behind what it holds; cos and
        sin are those of x."""
        if sites is None:
            queries, keys, values = self.project(x)
        else:
            queries, keys, values = self._project_at(x, sites)
        queries = rotate(queries, *((cos, sin) if sites is None else (cos[sites], sin[sites]))).to(values.dtype)
        keys = rotate(keys, cos, sin).to(values.dtype)
        if memory is not None:
            keys, values = memory.append(keys, values)
        if not self.causal:
            return self.out(self._mix(queries, keys, values))
        dropout = self.dropout if self.training else 0.0
        if sites is None and memory is None:
            return self.out(attend(queries, keys, values, dropout, causal=True))
        return self.out(attend(queries, keys, values, dropout, _before(queries.shape[1], keys, sites)))

    def _project_at(self, x: Tensor, sites: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries at the sites, keys and values everywhere."""
        width = x.shape[-1]
        weights = self.qkv.weight.split([width, 2 * width])
        biases = (None, None) if self.qkv.bias is None else self.qkv.bias.split([width, 2 * width])
        queries = F.linear(at_sites(x, sites), weights[0], biases[0])
        keys, values = F.linear(x, weights[1], biases[1]).chunk(2, -1)
        queries, keys, values = (part.unflatten(-1, (self.num_heads, -1)) for part in (queries, keys, values))
        return queries, keys, values


def at_sites(x: Float[Tensor, "b n d"], sites: Int[Tensor, "b m"]) -> Float[Tensor, "b m d"]:
    """Not by take_along_dim, which torch.compile traces for one batch size alone: a block would be compiled again for
    each number of rows that a sampler still has."""
    return x.gather(1, sites[..., None].expand(-1, -1, x.shape[-1]))


def _before(num_queries: int, keys: Tensor, sites: Tensor | None) -> Bool[Tensor, "... m n"]:
    """True where a query sees a key: the queries stand at `sites`, or at the last positions of the keys."""
    position = torch.arange(keys.shape[1], device=keys.device)
    if sites is None:
        return position <= position[-num_queries:, None]
    return (position <= sites[..., None])[:, None]  # the same for all heads
