"""A hollow transformer: what comes out at a site depends on every token but the site's own (Sun et al. 2023, arXiv
2211.16750, section 5; GGM, arXiv 2405.17035, asks for such laws).

    f_i = forward stream, causal, over the inputs shifted by one:     sees x_0 .. x_{i-1}
    g_i = backward stream, the same from the other end:               sees x_{i+1} .. x_{n-1}
    h_i = W [f_i; g_i]; then merge blocks: h_i += W' [attention to f_0..f_i; attention to g_i..g_{n-1}], feed-forward

A plain transformer whose diagonal of attention is cut is not hollow: from its second layer on x_i comes back through
its neighbours. Here h_i asks, and only f and g answer, none of which that it may see holds x_i. Both attentions of a
merge block are causal (the second one in reversed order), so that no matrix of masks is formed and fast kernels apply.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ggm_lightning.networks import initialise
from ggm_lightning.networks.attention import RotaryAttention, at_sites, attend, rotate
from ggm_lightning.networks.blocks import Compiling, Stack
from ggm_lightning.networks.conditioning import Modulation, modulate
from ggm_lightning.networks.transformer import NORM_EPS, Block, GatedFeedForward, TokenNetwork

_LEVEL_FREQUENCIES = 8


class LevelEmbedding(nn.Module):
    """W2 silu(W1 f(a) + b1) + b2: each site's survival level a in [0, 1] as a vector, f(a) the sines, then the cosines,
    of 2^k a pi/2, k = 0..7. The highest frequencies tell a = 1 from a little less.

    Args:
        width: features per position.
    """

    def __init__(self, width: int):
        super().__init__()
        self.hidden = nn.Linear(2 * _LEVEL_FREQUENCIES, width)
        self.out = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        initialise.dense_(self.hidden)
        # at first no longer than the vector of a token, which it is added to
        initialise.dense_(self.out, 4 / self.out.in_features)

    def forward(self, levels: Float[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        weights = self.hidden.weight.dtype
        a = levels.to(torch.promote_types(weights, torch.float32))
        frequencies = torch.exp2(torch.arange(_LEVEL_FREQUENCIES, device=a.device, dtype=a.dtype)) * (math.pi / 2)
        angles = a[..., None] * frequencies
        known = torch.cat([angles.sin(), angles.cos()], -1).to(weights)
        return self.out(functional.silu(self.hidden(known)))


class TwoSidedAttention(nn.Module):
    """W [softmax(q k_f^T) v_f; softmax(q k_g^T) v_g]: query i sees f_0..f_i and g_i..g_{n-1}, each with a softmax of
    its own.

    Args:
        width: features per position.
        num_heads: heads; each gets width / num_heads features.
        dropout: rate of ordinary dropout on the attention probabilities.
    """

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(2 * width, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in (self.query, self.key_value, self.out):
            initialise.dense_(layer)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        streams: Float[Tensor, "2 b n d"],
        cos: Float[Tensor, "n h"],
        sin: Float[Tensor, "n h"],
    ) -> Float[Tensor, "b n d"]:
        """streams: f, and g in reversed order."""
        queries = self.query(x).unflatten(-1, (self.num_heads, -1))
        queries = torch.cat([queries, queries.flip(1)])
        keys, values = self.key_value(streams.flatten(0, 1)).chunk(2, -1)  # streams one above the other: one call
        keys, values = (part.unflatten(-1, (self.num_heads, -1)) for part in (keys, values))
        queries, keys = (rotate(part, cos, sin).to(values.dtype) for part in (queries, keys))
        mixed = attend(queries, keys, values, self.dropout if self.training else 0.0, causal=True)
        before, behind = mixed.chunk(2)
        return self.out(torch.cat([before, behind.flip(1)], -1))


class MergeBlock(Block):
    """h += g1 Attention(LN(h) (1 + s1) + b1, LN(streams) (1 + s0) + b0), then h += g2 FeedForward(LN(h) (1 + s2) + b2).

    Without conditioning the norms are RMSNorms with a scale, and the residuals are plain. With `sites` only what comes
    out at these is computed.
    """

    def __init__(
        self,
        attention: TwoSidedAttention,
        feed_forward: nn.Module,
        modulation: Modulation | None,
        stream_modulation: Modulation | None,
        dropout: float,
    ):
        super().__init__(attention, feed_forward, modulation, dropout)  # type: ignore[arg-type]
        self.stream_modulation = stream_modulation
        if stream_modulation is None:
            self.stream_norm = nn.RMSNorm(attention.out.out_features, eps=NORM_EPS)

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "b n d"],
        streams: Float[Tensor, "2 b n d"],
        condition: Float[Tensor, "b c"] | None,
        cos: Float[Tensor, "n h"],
        sin: Float[Tensor, "n h"],
        sites: Int[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b m d"]:
        if self.modulation is None:
            x = self.residual(x, self.attention(self.attention_norm(x), self.stream_norm(streams), cos, sin))
            x = _at(x, sites)
            return self.residual(x, self.feed_forward(self.feed_forward_norm(x)))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)
        seen = modulate(streams, *self.stream_modulation(condition), NORM_EPS)  # type: ignore[misc,call-arg]
        x = self.residual(x, self.attention(modulate(x, shift1, scale1, NORM_EPS), seen, cos, sin), gate1)
        x = _at(x, sites)
        return self.residual(x, self.feed_forward(modulate(x, shift2, scale2, NORM_EPS)), gate2)


def _at(x: Tensor, sites: Tensor | None) -> Tensor:
    return x if sites is None else at_sites(x, sites)


class HollowTransformer(TokenNetwork):
    """Logits at each site given all others: `network(z, t, label=None, visited=...)` -> Float[b, n, V].

    `z` holds ids 0..V in any shape [b, *s]; positions are flattened to n = prod(s) in this order. The output at site i
    moves by not one bit with z_i and visited_i (or levels_i). `features` and `head` are the Transformer's; with sites
    Int[b, m] the last feed-forward layer runs at these alone.

    Args:
        num_classes: V, the number of tokens without the mask.
        feature_dim: features per head, and size of the time and label embeddings; even.
        num_heads: attention heads; the width is feature_dim * num_heads.
        num_layers: blocks of each of the two streams; 2 num_layers + num_merges blocks cost what as many blocks of a
            Transformer cost.
        num_merges: blocks in which each site asks both streams.
        mlp, conditioning, time_features, num_labels, dropout, depth_scaled_init (over num_layers + num_merges blocks),
            checkpoint_activations, compile_blocks: see Transformer.
        visited_bits: learn two vectors, of which each position gets one by its `visited` bit, which GGM gives; false
            for a process without them.
        levels: instead of the bits, which are then not taken, learn a function of each position's survival level: the
            call is network(z, t, label=None, levels=Float[b, n]), for GGM with levels: true.
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int = 64,
        num_heads: int = 12,
        num_layers: int = 4,
        num_merges: int = 2,
        mlp: str = "glu",
        conditioning: str = "adaln_zero",
        time_features: str = "t",
        num_labels: int = 0,
        dropout: float = 0.0,
        depth_scaled_init: bool = True,
        checkpoint_activations: bool = False,
        compile_blocks: Compiling = None,
        visited_bits: bool = True,
        levels: bool = False,
    ):
        super().__init__(
            num_classes,
            feature_dim,
            num_heads,
            mlp,
            conditioning,
            time_features,
            num_labels,
            dropout,
            compile_blocks,
            visited_bits and not levels,
            num_layers=num_layers,
            num_merges=num_merges,
        )
        self.levels = levels
        self.level_embedding = LevelEmbedding(self.width) if levels else None
        self.ends = nn.Embedding(2, self.width)  # what the streams see before the first token, from either end
        init_scale = 2 / (num_layers + num_merges) if depth_scaled_init else 1.0

        def block() -> Block:
            attention = RotaryAttention(self.width, num_heads, dropout, causal=True)
            return Block(attention, GatedFeedForward(self.width, mlp, init_scale), self.modulation(6), dropout)

        def merge() -> MergeBlock:
            attention = TwoSidedAttention(self.width, num_heads, dropout)
            feed_forward = GatedFeedForward(self.width, mlp, init_scale)
            return MergeBlock(attention, feed_forward, self.modulation(6), self.modulation(2), dropout)

        self.forward_blocks = Stack([block() for _ in range(num_layers)], checkpoint_activations)
        self.backward_blocks = Stack([block() for _ in range(num_layers)], checkpoint_activations)
        self.join = nn.Linear(2 * self.width, self.width, bias=False)
        self.merge_blocks = Stack([merge() for _ in range(num_merges)], checkpoint_activations)
        self._end()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        initialise.embedding_(self.ends)
        initialise.dense_(self.join)

    def forward(
        self,
        z: Int[Tensor, " b *s"],
        t: Float[Tensor, " b"] | None,
        label: Int[Tensor, " b"] | None = None,
        visited: Bool[Tensor, "b n"] | None = None,
        levels: Float[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n v"]:
        return self.head(self.features(z, t, label, visited, levels=levels))

    def features(
        self,
        z: Int[Tensor, " b *s"],
        t: Float[Tensor, " b"] | None,
        label: Int[Tensor, " b"] | None = None,
        visited: Bool[Tensor, "b n"] | None = None,
        sites: Int[Tensor, "b m"] | None = None,
        levels: Float[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b m d"]:
        condition = self.condition(z.shape[0], t, label)
        x = self._with_levels(self._embed(rearrange(z, "b ... -> b (...)"), visited), levels)
        given = (condition, *self._rotary(x, x.shape[1]))
        (f,) = self.forward_blocks((self._shifted(x, 0),), *given)
        (g,) = self.backward_blocks((self._shifted(x.flip(1), 1),), *given)
        h = self.join(torch.cat([f, g.flip(1)], -1)).to(f.dtype)  # the residuals stay in the precision of the weights
        (h,) = self.merge_blocks((h,), torch.stack([f, g]), *given, last=sites)
        return self._finish(h, condition)

    def _with_levels(self, x: Tensor, levels: Tensor | None) -> Tensor:
        if (levels is None) == self.levels:
            given = "were not given" if levels is None else "were given"
            raise ValueError(
                f"the network's levels is {self.levels} and the sites' levels {given}; set it true for GGM with "
                "levels: true, else false"
            )
        if self.level_embedding is None:
            return x
        # under autocast the layers answer in bf16; the residuals stay in the precision of the weights
        return x + self.level_embedding(levels).to(x.dtype)

    def _shifted(self, x: Tensor, end: int) -> Tensor:
        """One step later: position i holds what stood at i - 1, position 0 the vector of this end."""
        first = self.ends.weight[end].expand(len(x), 1, -1)
        return torch.cat([first, x[:, :-1]], 1)
