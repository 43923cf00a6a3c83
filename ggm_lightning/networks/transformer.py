"""The text network of MD4 (arXiv 2406.04329): a transformer with rotary positions, gated feed-forward layers and adaLN
conditioning on the time, bidirectional unless it is to be causal. Widths, activations and initial laws are those of the
released code.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ggm_lightning.core.arguments import whole_number
from ggm_lightning.networks import initialise
from ggm_lightning.networks.attention import RotaryAttention, at_sites, rotary_tables
from ggm_lightning.networks.blocks import BlockNetwork, Compiling, Stack, check_sizes
from ggm_lightning.networks.causal import Cache, Memory
from ggm_lightning.networks.conditioning import Conditioning, Modulation, modulate

NORM_EPS = 1e-5
_HIDDEN_MULTIPLE = 32

# flax's gelu is the tanh approximation. The same function also stands in front of each adaLN Dense.
ACTIVATIONS = {"glu": torch.sigmoid, "swiglu": F.silu, "geglu": partial(F.gelu, approximate="tanh")}
CONDITIONINGS = ("adaln_zero", "adaln")


def hidden_width(width: int) -> int:
    """Two thirds of 4 width, rounded down, then up to a multiple of 32: a gated layer has three kernels, not two."""
    return -(-(2 * 4 * width // 3) // _HIDDEN_MULTIPLE) * _HIDDEN_MULTIPLE


class GatedFeedForward(nn.Module):
    """W2 (act(W1 x) * W3 x), without biases; W1, W3, W2 are `gate`, `up`, `down`."""

    def __init__(self, width: int, mlp: str = "glu", init_scale: float = 1.0):
        super().__init__()
        self.activation, self.init_scale = ACTIVATIONS[mlp], init_scale
        hidden = hidden_width(width)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in (self.gate, self.up, self.down):
            initialise.dense_(layer, self.init_scale)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.down(self.activation(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """h = x + g1 Attention(LN(x) (1 + s1) + b1), then h + g2 FeedForward(LN(h) (1 + s2) + b2).

    (b1, s1, g1, b2, s2, g2) = `modulation(condition)`. Without conditioning the norms are RMSNorms with a scale, and
    the residuals are plain. With `sites` only what comes out at these is computed, which all x still decide. With a
    memory (of a causal attention) x stands behind what it holds.
    """

    def __init__(
        self, attention: RotaryAttention, feed_forward: nn.Module, modulation: Modulation | None, dropout: float
    ):
        super().__init__()
        self.attention, self.feed_forward, self.modulation = attention, feed_forward, modulation
        self.dropout = dropout
        if modulation is None:
            width = attention.out.out_features
            self.attention_norm = nn.RMSNorm(width, eps=NORM_EPS)
            self.feed_forward_norm = nn.RMSNorm(width, eps=NORM_EPS)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        condition: Float[Tensor, "b c"] | None,
        cos: Float[Tensor, "n h"],
        sin: Float[Tensor, "n h"],
        sites: Int[Tensor, "b m"] | None = None,
        memory: Memory | None = None,
    ) -> Float[Tensor, "b m d"]:
        own = x if sites is None else at_sites(x, sites)
        if self.modulation is None:
            x = self.residual(own, self.attention(self.attention_norm(x), cos, sin, sites, memory))
            return self.residual(x, self.feed_forward(self.feed_forward_norm(x)))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)
        branch = self.attention(modulate(x, shift1, scale1, NORM_EPS), cos, sin, sites, memory)
        x = self.residual(own, branch, gate1)
        return self.residual(x, self.feed_forward(modulate(x, shift2, scale2, NORM_EPS)), gate2)

    def residual(
        self, x: Float[Tensor, "b n d"], branch: Float[Tensor, "b n d"], gate: Float[Tensor, "b 1 d"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """x + gate * drop(branch). Channel dropout hides the same channels at all positions of an example, so it may
        act on the gate, which has one number per example and channel, instead of on the whole branch."""
        dropping = self.training and self.dropout > 0
        if gate is None and not dropping:
            return x + branch
        if gate is None:
            gate = x.new_ones(x.shape[0], 1, x.shape[-1])
        return torch.addcmul(x, F.dropout(gate, self.dropout, self.training), branch)


class TokenNetwork(BlockNetwork):
    """What the networks of this kind share: tokens in, a condition on time and label, a linear head at the end.

    A subclass builds its blocks between `__init__` and `_end`: modules are registered in this order, by which
    optimisers number their parameters.
    """

    compiled = (Block,)
    takes_sites = True

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        num_heads: int,
        mlp: str,
        conditioning: str,
        time_features: str,
        num_labels: int,
        dropout: float,
        compile_blocks: Compiling,
        visited_bits: bool,
        outside_embed: bool = False,
        **sizes: int,
    ):
        super().__init__()
        sizes |= {"num_classes": num_classes, "num_heads": num_heads}
        check_sizes(feature_dim, dropout, mlp, ACTIVATIONS, num_labels, **sizes)
        if conditioning not in CONDITIONINGS:
            raise ValueError(f"conditioning is {conditioning!r}; choose one of {', '.join(CONDITIONINGS)}")
        self.num_classes, self.num_labels = num_classes, num_labels
        self.feature_dim, self.width = feature_dim, feature_dim * num_heads
        self.dropout, self.compile_blocks = dropout, compile_blocks
        self.mlp, self.conditioning = mlp, conditioning
        self.condition = Conditioning(feature_dim, time_features, num_labels)
        self.embedding = nn.Embedding(num_classes + 1, feature_dim if outside_embed else self.width)
        self.widen = nn.Linear(feature_dim, self.width) if outside_embed else None
        self.visited_bits = visited_bits
        self.visited_table = nn.Embedding(2, self.width) if visited_bits else None

    def modulation(self, parts: int) -> Modulation | None:
        """`parts` shifts, scales and gates from the condition; None where there is no condition."""
        if self.condition.empty:
            return None
        zero = self.conditioning == "adaln_zero"
        return Modulation(self.feature_dim, self.width, parts, ACTIVATIONS[self.mlp], zero)  # type: ignore[arg-type]

    def _end(self) -> None:
        """What stands behind the blocks."""
        self.final_modulation = self.modulation(2)
        self.final_norm = nn.RMSNorm(self.width, eps=NORM_EPS) if self.condition.empty else None
        self.head = nn.Linear(self.width, self.num_classes, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The parts that are this module's own; every submodule has drawn its kernels itself."""
        initialise.embedding_(self.embedding)
        initialise.zeros_(self.head)
        if self.widen is not None:
            initialise.dense_(self.widen)
        if self.visited_table is not None:
            initialise.embedding_(self.visited_table)

    def forward(
        self,
        z: Int[Tensor, " b *s"],
        t: Float[Tensor, " b"] | None,
        label: Int[Tensor, " b"] | None = None,
        visited: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n v"]:
        return self.head(self.features(z, t, label, visited))

    @abstractmethod
    def features(
        self,
        z: Int[Tensor, " b *s"],
        t: Float[Tensor, " b"] | None,
        label: Int[Tensor, " b"] | None = None,
        visited: Bool[Tensor, "b n"] | None = None,
        sites: Int[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b m d"]:
        """What the head is applied to. Raises ValueError if t or the visited bits are missing, or a label is given and
        not known."""

    def _rotary(self, x: Tensor, num_positions: int) -> tuple[Tensor, Tensor]:
        """(cos, sin), in float32 at least."""
        return rotary_tables(num_positions, self.feature_dim, torch.promote_types(x.dtype, torch.float32), x.device)

    def _embed(self, z: Tensor, visited: Tensor | None = None) -> Tensor:
        if (visited is None) == self.visited_bits:
            given = "were not given" if visited is None else "were given"
            raise ValueError(
                f"visited_bits is {self.visited_bits} and the bits {given}; set it true for GGM, else false"
            )
        x = self.embedding(z)
        if self.widen is not None:
            # Under autocast the Dense answers in bf16; the stream of residuals stays in the precision of the weights.
            x = self.widen(x).to(x.dtype)
        if self.visited_table is not None:
            x = x + self.visited_table(visited.long())  # type: ignore[union-attr]
        return x if self.widen is not None else F.dropout(x, self.dropout, self.training)

    def _finish(self, x: Tensor, condition: Tensor | None) -> Tensor:
        if self.final_modulation is None:
            return self.final_norm(x)  # type: ignore[misc]
        return modulate(x, *self.final_modulation(condition), NORM_EPS)  # type: ignore[arg-type, call-arg]


class Transformer(TokenNetwork):
    """Logits of the clean tokens given noisy ones: `network(z, t, label=None)` -> Float[b, n, V].

    `z` holds ids 0..V, V being the mask, in any shape [b, *s]; positions are flattened to n = prod(s). There is no
    logit for the mask. `features(z, t, label)` stops before the linear `head`, for losses that never form the logits:
    forward(z, t, label) is head(features(z, t, label)). With `visited_bits` both take Bool[b, n] more, as `visited`.
    For losses and samplers that look at few sites, features(..., sites=Int[b, m]) are those at m sites of each row: the
    last block computes no others. With `causal` what is said at a site depends on z up to this site alone, and `extend`
    reads a few tokens more at the cost of these.

    Args:
        num_classes: V, the number of tokens without the mask.
        feature_dim: features per head, and size of the time and label embeddings; even.
        num_heads: attention heads; the width is feature_dim * num_heads.
        num_layers: blocks.
        mlp: glu (sigmoid), swiglu (silu) or geglu (gelu): the gate of the feed-forward layers and the activation in
            front of adaLN.
        conditioning: adaln_zero (each block starts as the identity) or adaln.
        time_features: t, or none for a network that is not told the time.
        num_labels: classes to condition on, 0 for none; label `num_labels` is the null class, used when none is given.
        outside_embed: embed tokens in feature_dim numbers and widen them by a Dense (text8), instead of directly.
        dropout: one rate for the attention probabilities, the channels of both branches and (without outside_embed) the
            embedding.
        depth_scaled_init: feed-forward kernels start with variance 2 / num_layers / fan_in instead of 1 / fan_in.
        checkpoint_activations: recompute each block in the backward pass: less memory, about a third more time.
        compile_blocks: compile each block; None: on a GPU; "graphs": all of them as one CUDA graph, for small networks.
        visited_bits: learn two vectors, of which each position gets one by its `visited` bit (GGM, arXiv 2405.17035).
        causal: a position sees itself and those before it (autoregressive models, arXiv 1706.03762).
        site_vectors: number of sites n, each of which gets a learned vector besides its rotary position, which tells
            distances alone: for rows in which a site is a place, such as the cells of a grid. 0: none.
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int = 64,
        num_heads: int = 12,
        num_layers: int = 12,
        mlp: str = "glu",
        conditioning: str = "adaln_zero",
        time_features: str = "t",
        num_labels: int = 0,
        outside_embed: bool = False,
        dropout: float = 0.0,
        depth_scaled_init: bool = True,
        checkpoint_activations: bool = False,
        compile_blocks: Compiling = None,
        visited_bits: bool = False,
        causal: bool = False,
        site_vectors: int = 0,
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
            visited_bits,
            outside_embed,
            num_layers=num_layers,
        )
        self.causal = causal
        whole_number("site_vectors", site_vectors, 0)
        self.site_table = nn.Embedding(site_vectors, self.width) if site_vectors else None

        def block() -> Block:
            attention = RotaryAttention(self.width, num_heads, dropout, causal)
            feed_forward = GatedFeedForward(self.width, mlp, 2 / num_layers if depth_scaled_init else 1.0)
            return Block(attention, feed_forward, self.modulation(6), dropout)

        self.blocks = Stack([block() for _ in range(num_layers)], checkpoint_activations)
        self._end()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.site_table is not None:
            initialise.embedding_(self.site_table)

    def _at_its_site(self, x: Float[Tensor, "b m d"], start: int = 0) -> Float[Tensor, "b m d"]:
        """With the vectors of the sites start .. start + m - 1. Raises ValueError where there are others."""
        if self.site_table is None:
            return x
        last, known = start + x.shape[1], self.site_table.num_embeddings
        if last > known or (last < known and not self.causal):
            raise ValueError(f"site_vectors is {known}, but the row has {last} sites; give the data's own number")
        return x + self.site_table.weight[start:last]

    def features(
        self,
        z: Int[Tensor, " b *s"],
        t: Float[Tensor, " b"] | None,
        label: Int[Tensor, " b"] | None = None,
        visited: Bool[Tensor, "b n"] | None = None,
        sites: Int[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b m d"]:
        condition = self.condition(z.shape[0], t, label)
        x = self._at_its_site(self._embed(rearrange(z, "b ... -> b (...)"), visited))
        cos, sin = self._rotary(x, x.shape[1])
        (x,) = self.blocks((x,), condition, cos, sin, last=sites)
        return self._finish(x, condition)

    def new_cache(self, capacity: int) -> Cache:
        """An empty one, for `extend`, of as many sites as there will be at most."""
        if not self.causal:
            raise ValueError("this network sees every site, and a new one changes all of them; set its causal: true")
        return Cache(len(self.blocks), capacity)

    def extend(
        self, z: Int[Tensor, "b m"], t: Float[Tensor, " b"] | None, label: Int[Tensor, " b"] | None, cache: Cache
    ) -> Float[Tensor, "b m d"]:
        """The features of m tokens that stand behind those which the cache has seen; it then has seen these, too."""
        start = cache.length
        condition = self.condition(z.shape[0], t, label)
        x = self._at_its_site(self._embed(z), start)
        cos, sin = (table[start:] for table in self._rotary(x, start + z.shape[1]))
        for block, memory in zip(self.blocks, cache.blocks, strict=True):
            # not block(...): where blocks are compiled, each length would be compiled anew
            x = block.forward(x, condition, cos, sin, None, memory)
        return self._finish(x, condition)
