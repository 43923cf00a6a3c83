"""Denoisers with a latent: the joint two-stream transformer of LDDM and the latent-only one of its SEQ variant.

arXiv 2510.18114 ("Latent Discrete Diffusion Models", later "Latent-Augmented Discrete Diffusion"). The joint network is
an MM-DiT (arXiv 2403.03206): tokens and latents have weights of their own and meet in one attention. Both networks
predict the clean latent z_0.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ggm_lightning.networks import initialise
from ggm_lightning.networks.attention import RotaryAttention, attend, rotary_tables, rotary_tables_at, rotate
from ggm_lightning.networks.blocks import BlockNetwork, Compiling, Stack, check_sizes
from ggm_lightning.networks.conditioning import Conditioning, Modulation, modulate
from ggm_lightning.networks.transformer import Block, GatedFeedForward
from ggm_lightning.networks.uvit import FeedForward

_NORM_EPS = 1e-5
MLPS = ("gelu", "glu", "swiglu", "geglu")
_POSITIONS = ("rotary", "slots", "aligned")


def feed_forward(width: int, mlp: str, init_scale: float = 1.0) -> nn.Module:
    """gelu: two layers with biases and 4 width hidden units, as published; else a gated one with as many weights."""
    return FeedForward(width) if mlp == "gelu" else GatedFeedForward(width, mlp, init_scale)


def non_embedding_parameters(network: nn.Module) -> int:
    """Parameters without what the vocabulary decides, the embedding tables and the linear `head`: what two networks
    share alike if they are to be compared."""
    left_out = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    left_out |= {id(parameter) for parameter in getattr(network, "head", nn.Identity()).parameters()}
    return sum(parameter.numel() for parameter in network.parameters() if id(parameter) not in left_out)


class LatentInput(nn.Module):
    """W2 gelu(W1 z + a1) + a2 with 4 width hidden units, plus a vector per slot where slots are learned.

    Args:
        num_latents: S, the slots.
        latent_dim: d, numbers per slot.
        width: of what comes out.
        positions: slots, for a learned vector per slot; rotary or aligned, for none.
    """

    begins_alike = ("slots",)

    def __init__(self, num_latents: int, latent_dim: int, width: int, positions: str):
        super().__init__()
        if positions not in _POSITIONS:
            raise ValueError(f"latent_positions is {positions!r}; choose one of {', '.join(_POSITIONS)}")
        self.shape = (num_latents, latent_dim)
        self.up = nn.Linear(latent_dim, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.slots = nn.Parameter(torch.empty(num_latents, width)) if positions == "slots" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        initialise.dense_(self.up)
        initialise.dense_(self.down)
        if self.slots is not None:
            nn.init.normal_(self.slots, std=self.slots.shape[-1] ** -0.5)

    def forward(self, latent: Float[Tensor, "b s c"]) -> Float[Tensor, "b s d"]:
        if latent.shape[1:] != self.shape:
            raise ValueError(
                f"a latent of shape {list(latent.shape)} for a network of {self.shape[0]} latents of {self.shape[1]} "
                f"numbers; give encoder and network the same num_latents and latent_dim"
            )
        dtype = self.up.weight.dtype
        # Under autocast the layers answer in bf16; the stream of residuals stays in the precision of the weights.
        x = self.down(F.gelu(self.up(latent.to(dtype)), approximate="tanh")).to(dtype)
        return x if self.slots is None else x + self.slots


class JointBlock(nn.Module):
    """Two adaLN-zero blocks, `tokens` and `latents`, whose attentions are one softmax over [tokens; latents]."""

    def __init__(self, tokens: Block, latents: Block):
        super().__init__()
        self.tokens, self.latents = tokens, latents

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        latents: Float[Tensor, "b s d"],
        condition: Float[Tensor, "b c"],
        cos: Float[Tensor, "m h"],
        sin: Float[Tensor, "m h"],
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b s d"]]:
        n, dropout = tokens.shape[1], self.tokens.dropout if self.training else 0.0
        first, second = self.tokens.modulation(condition), self.latents.modulation(condition)  # type: ignore[misc]
        of_tokens = self.tokens.attention.project(modulate(tokens, first[0], first[1], _NORM_EPS))
        of_latents = self.latents.attention.project(modulate(latents, second[0], second[1], _NORM_EPS))
        queries, keys, values = torch.cat([of_tokens, of_latents], dim=2)
        queries, keys = (rotate(turned, cos, sin).to(values.dtype) for turned in (queries, keys))
        mixed = attend(queries, keys, values, dropout)
        return (
            self._finish(self.tokens, tokens, mixed[:, :n], first[2:]),
            self._finish(self.latents, latents, mixed[:, n:], second[2:]),
        )

    def _finish(self, stream: Block, x: Tensor, mixed: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        gate1, shift2, scale2, gate2 = modulation
        x = stream.residual(x, stream.attention.out(mixed), gate1)
        return stream.residual(x, stream.feed_forward(modulate(x, shift2, scale2, _NORM_EPS)), gate2)


class JointDenoiser(BlockNetwork):
    """Logits of the clean tokens and the clean latent z_0, given both noisy:
    `network(z, t, label=None, latent=z_t, latent_time=t_z)` -> (Float[b, n, V], Float[b, S, d]).

    `z` holds ids 0..V, V being the mask, in any shape [b, *s]; positions are flattened to n = prod(s). There is no
    logit for the mask. Both times are in [0, 1]. `streams` stops before the linear `head`, for losses that never form
    the logits: forward's logits are head(streams(...)[0]). Logits and prediction start at zero.

    Args:
        num_classes: V, the number of tokens without the mask.
        feature_dim: features per head; even.
        num_heads: attention heads; the width of both streams is feature_dim * num_heads.
        num_layers: blocks.
        num_latents: S, latents per example.
        latent_dim: d, numbers per latent.
        condition_dim: size of the embeddings of times and label; None: feature_dim. Published: 128 at width 768.
        mlp: gelu (as published), or gated: glu, swiglu, geglu.
        time_features: t, or none (as published) for a network that is not told the tokens' time. The latent's time is
            always heard.
        num_labels: classes to condition on, 0 for none; label `num_labels` is the null class, used when none is given.
        latent_positions: rotary: latents take the rotary positions behind the tokens' (as published). slots: they are
            not rotated and have a learned vector per slot, better where slots have no order, as with learned queries.
            aligned: latent s takes the mean position of its chunk, (s + 1/2) n/S - 1/2, for encoders whose latents read
            chunks of the text (LatentEncoder's `chunk`): a token finds what is said of its own place.
        dropout: one rate for the attention probabilities, the channels of all branches and the embedding.
        depth_scaled_init: gated kernels start with variance 2 / num_layers / fan_in instead of 1 / fan_in.
        checkpoint_activations: recompute each block in the backward pass: less memory, about a third more time.
        compile_blocks: compile each block; None: on a GPU; "graphs": all of them as one CUDA graph, for small networks.
    """

    compiled = (JointBlock,)
    # a Transformer's stream of tokens; its time is the latent's where this network is not told the tokens'
    also_named = ((r"^blocks\.(\d+)\.tokens\.", r"blocks.\1."), (r"^latent_condition\.", "condition."))

    def __init__(
        self,
        num_classes: int,
        feature_dim: int = 64,
        num_heads: int = 12,
        num_layers: int = 12,
        num_latents: int = 16,
        latent_dim: int = 32,
        condition_dim: int | None = None,
        mlp: str = "gelu",
        time_features: str = "none",
        num_labels: int = 0,
        latent_positions: str = "rotary",
        dropout: float = 0.0,
        depth_scaled_init: bool = True,
        checkpoint_activations: bool = False,
        compile_blocks: Compiling = None,
    ):
        super().__init__()
        sizes = {"num_heads": num_heads, "num_layers": num_layers, "num_latents": num_latents, "latent_dim": latent_dim}
        check_sizes(feature_dim, dropout, mlp, MLPS, num_labels, num_classes=num_classes, **sizes)
        self.num_classes, self.num_labels = num_classes, num_labels
        self.num_latents, self.latent_dim, self.latent_positions = num_latents, latent_dim, latent_positions
        self.feature_dim, self.width = feature_dim, feature_dim * num_heads
        self.dropout, self.compile_blocks = dropout, compile_blocks
        condition_dim, width = condition_dim or feature_dim, self.width
        self.condition = Conditioning(condition_dim, time_features, num_labels)
        self.latent_condition = Conditioning(condition_dim)
        self.embedding = nn.Embedding(num_classes + 1, width)
        self.latent_in = LatentInput(num_latents, latent_dim, width, latent_positions)

        def stream() -> Block:
            inner = feed_forward(width, mlp, 2 / num_layers if depth_scaled_init else 1.0)
            modulation = Modulation(condition_dim, width, 6, F.silu, zero=True)
            return Block(RotaryAttention(width, num_heads, dropout), inner, modulation, dropout)

        self.blocks = Stack([JointBlock(stream(), stream()) for _ in range(num_layers)], checkpoint_activations)
        self.final_modulation = Modulation(condition_dim, width, 2, F.silu, zero=True)
        self.final_latent_modulation = Modulation(condition_dim, width, 2, F.silu, zero=True)
        self.head = nn.Linear(width, num_classes, bias=False)
        self.latent_head = nn.Linear(width, latent_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The parts that are this module's own; every submodule has drawn its kernels itself."""
        initialise.embedding_(self.embedding)
        initialise.zeros_(self.head)
        initialise.zeros_(self.latent_head)

    def forward(
        self,
        z: Int[Tensor, " b *s"],
        t: Float[Tensor, " b"] | None,
        label: Int[Tensor, " b"] | None = None,
        latent: Float[Tensor, "b s c"] | None = None,
        latent_time: Float[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b n v"], Float[Tensor, "b s c"]]:
        features, prediction = self.streams(z, t, label, latent, latent_time)
        return self.head(features), prediction

    def streams(
        self,
        z: Int[Tensor, " b *s"],
        t: Float[Tensor, " b"] | None,
        label: Int[Tensor, " b"] | None = None,
        latent: Float[Tensor, "b s c"] | None = None,
        latent_time: Float[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b s c"]]:
        """What the head is applied to, and the prediction of z_0. Raises ValueError if the latent, its time or a known
        token time is missing, if the latent has another shape, or if a label is given and not known."""
        if latent is None or latent_time is None:
            raise ValueError("this network needs a latent and its time; pass latent= and latent_time=")
        condition = self.latent_condition(z.shape[0], latent_time)
        if not self.condition.empty:
            condition = condition + self.condition(z.shape[0], t, label)
        elif label is not None:
            self.condition(z.shape[0], t, label)  # says that there are no classes
        tokens = F.dropout(self.embedding(rearrange(z, "b ... -> b (...)")), self.dropout, self.training)
        latents = self.latent_in(latent)
        cos, sin = self._tables(tokens)
        tokens, latents = self.blocks((tokens, latents), condition, cos, sin)
        tokens = modulate(tokens, *self.final_modulation(condition), _NORM_EPS)  # type: ignore[call-arg]
        latents = modulate(latents, *self.final_latent_modulation(condition), _NORM_EPS)  # type: ignore[call-arg]
        return tokens, self.latent_head(latents).to(latents.dtype)

    def _tables(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Angles of the tokens 0..n-1, then of the latents: n..n+S-1, none for slots, or the means of their chunks."""
        n, dtype = tokens.shape[1], torch.promote_types(tokens.dtype, torch.float32)
        if self.latent_positions == "aligned":
            site, slot = (torch.arange(k, device=tokens.device).double() for k in (n, self.num_latents))
            middle = (slot + 0.5) * n / self.num_latents - 0.5
            return rotary_tables_at(torch.cat([site, middle]), self.feature_dim, dtype)
        length = n + (self.num_latents if self.latent_in.slots is None else 0)
        cos, sin = rotary_tables(length, self.feature_dim, dtype, tokens.device)
        if self.latent_in.slots is not None:
            cos, sin = F.pad(cos, (0, 0, 0, self.num_latents), value=1.0), F.pad(sin, (0, 0, 0, self.num_latents))
        return cos, sin


class LatentDenoiser(BlockNetwork):
    """The clean latent z_0 given a noisy one, without tokens: `network(latent, latent_time, label=None)`.

    A DiT (arXiv 2212.09748) on S latents of d numbers; the time is in [0, 1]. Predicts zero at first.

    Args: as those of JointDenoiser; there are no tokens, and aligned is rotary: latent s has the position s.
    """

    compiled = (Block,)

    def __init__(
        self,
        feature_dim: int = 64,
        num_heads: int = 12,
        num_layers: int = 12,
        num_latents: int = 16,
        latent_dim: int = 32,
        condition_dim: int | None = None,
        mlp: str = "gelu",
        num_labels: int = 0,
        latent_positions: str = "rotary",
        dropout: float = 0.0,
        depth_scaled_init: bool = True,
        checkpoint_activations: bool = False,
        compile_blocks: Compiling = None,
    ):
        super().__init__()
        sizes = {"num_heads": num_heads, "num_layers": num_layers, "num_latents": num_latents, "latent_dim": latent_dim}
        check_sizes(feature_dim, dropout, mlp, MLPS, num_labels, **sizes)
        self.num_latents, self.latent_dim, self.num_labels = num_latents, latent_dim, num_labels
        self.feature_dim, self.width = feature_dim, feature_dim * num_heads
        self.compile_blocks = compile_blocks
        condition_dim, width = condition_dim or feature_dim, self.width
        self.condition = Conditioning(condition_dim, "t", num_labels)
        self.latent_in = LatentInput(num_latents, latent_dim, width, latent_positions)

        def block() -> Block:
            inner = feed_forward(width, mlp, 2 / num_layers if depth_scaled_init else 1.0)
            modulation = Modulation(condition_dim, width, 6, F.silu, zero=True)
            return Block(RotaryAttention(width, num_heads, dropout), inner, modulation, dropout)

        self.blocks = Stack([block() for _ in range(num_layers)], checkpoint_activations)
        self.final_modulation = Modulation(condition_dim, width, 2, F.silu, zero=True)
        self.latent_head = nn.Linear(width, latent_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The part that is this module's own; every submodule has drawn its kernels itself."""
        initialise.zeros_(self.latent_head)

    def forward(
        self,
        latent: Float[Tensor, "b s c"],
        latent_time: Float[Tensor, " b"],
        label: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b s c"]:
        """Raises ValueError if the latent has another shape, the time is missing or a label is given and not known."""
        if latent_time is None:
            raise ValueError("this network needs the latent's time; pass latent_time=")
        condition = self.condition(latent.shape[0], latent_time, label)
        x = self.latent_in(latent)
        # slots are told apart by their vectors: all stand at position 0
        length = self.num_latents if self.latent_in.slots is None else 1
        dtype = torch.promote_types(x.dtype, torch.float32)
        cos, sin = (
            table.expand(self.num_latents, -1) for table in rotary_tables(length, self.feature_dim, dtype, x.device)
        )
        (x,) = self.blocks((x,), condition, cos, sin)
        x = modulate(x, *self.final_modulation(condition), _NORM_EPS)  # type: ignore[call-arg]
        return self.latent_head(x).to(x.dtype)
