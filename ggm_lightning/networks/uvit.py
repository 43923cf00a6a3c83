"""The ImageNet 64 x 64 network of MD4 (arXiv 2406.04329, appendix J): the residual blocks of unet.py around a DiT
(arXiv 2212.09748) on patches of 2 x 2 pixels. Widths and initial laws are those of the released code.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ggm_lightning.networks import initialise
from ggm_lightning.networks.attention import SelfAttention
from ggm_lightning.networks.blocks import BlockNetwork, recomputed
from ggm_lightning.networks.conditioning import Conditioning, Modulation, modulate
from ggm_lightning.networks.unet import GroupNorm, ResBlock, Trunk, check_sizes, image_shape

_NORM_EPS = 1e-6
_MLP_RATIO = 4


def position_table(rows: int, columns: int, width: int) -> Float[Tensor, "n d"]:
    """Sines and cosines of column / 1e4^(4i / width), then the same of the row, i < width/4; patches row by row."""
    i = torch.arange(width // 4, dtype=torch.float64)
    angles = torch.outer(torch.arange(max(rows, columns), dtype=torch.float64), 1e4 ** (-4 * i / width))
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.cat([waves[column.flatten()], waves[row.flatten()]], dim=-1)


class FeedForward(nn.Module):
    """drop(W2 drop(gelu(W1 x + a1)) + a2) with 4 width hidden units; flax's gelu is the tanh approximation."""

    def __init__(self, width: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        self.up = nn.Linear(width, _MLP_RATIO * width)
        self.down = nn.Linear(_MLP_RATIO * width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        initialise.dense_(self.up)
        initialise.dense_(self.down)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        hidden = F.dropout(F.gelu(self.up(x), approximate="tanh"), self.dropout, self.training)
        return F.dropout(self.down(hidden), self.dropout, self.training)


class DiTBlock(nn.Module):
    """h = x + g1 Attention(LN(x) (1 + s1) + b1), then h + g2 FeedForward(LN(h) (1 + s2) + b2); starts as the identity.

    (b1, s1, g1, b2, s2, g2) = split6(W silu(condition) + a). Without conditioning the norms are RMSNorms with a scale,
    and the residuals are plain. Attention loses whole channels to dropout, the same at all positions of an example.
    """

    def __init__(self, width: int, num_heads: int, condition_dim: int | None, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        self.attention = SelfAttention(width, num_heads, dropout, qkv_bias=True)
        self.feed_forward = FeedForward(width, dropout)
        self.modulation: Modulation | None = None
        if condition_dim is None:
            self.attention_norm = nn.RMSNorm(width, eps=_NORM_EPS)
            self.feed_forward_norm = nn.RMSNorm(width, eps=_NORM_EPS)
        else:
            self.modulation = Modulation(condition_dim, width, 6, F.silu, zero=True)

    def forward(self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b c"] | None) -> Float[Tensor, "b n d"]:
        channels = F.dropout(x.new_ones(x.shape[0], 1, x.shape[-1]), self.dropout, self.training)
        if self.modulation is None:
            x = x + channels * self.attention(self.attention_norm(x))
            return x + self.feed_forward(self.feed_forward_norm(x))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)
        x = x + channels * gate1 * self.attention(modulate(x, shift1, scale1, _NORM_EPS))
        return x + gate2 * self.feed_forward(modulate(x, shift2, scale2, _NORM_EPS))


class DiT(nn.Module):
    """A transformer on the patches of a feature map, back to a feature map; no residual around it, and 0 at first.

    Sizes that are no multiple of the patch are padded with zeros below and on the right, and cut back.

    Args:
        channels: of the map.
        size: (h, w) of the map.
        patch_size: side of a patch, which becomes one token.
        width, num_layers, num_heads: of the transformer.
        condition_dim: size of the conditioning vector; None for a network without one.
        dropout: rate on attention probabilities, attention channels and both feed-forward layers.
        checkpoint_activations: recompute each block in the backward pass.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        patch_size: int,
        width: int,
        num_layers: int,
        num_heads: int,
        condition_dim: int | None,
        dropout: float = 0.0,
        checkpoint_activations: bool = False,
    ):
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        self.grid = (-(-size[0] // patch_size), -(-size[1] // patch_size))
        self.patch_size = patch_size
        self.embed = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.positions = nn.Parameter(torch.empty(self.grid[0] * self.grid[1], width))
        self.blocks = nn.ModuleList(DiTBlock(width, num_heads, condition_dim, dropout) for _ in range(num_layers))
        self.modulation: Modulation | None = None
        if condition_dim is None:
            self.norm = nn.RMSNorm(width, eps=_NORM_EPS)
        else:
            self.modulation = Modulation(condition_dim, width, 2, F.silu, zero=True)
        self.out = nn.Linear(width, patch_size**2 * channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        initialise.dense_(self.embed)
        initialise.zeros_(self.out)
        with torch.no_grad():  # where the table starts; it is trained
            self.positions.copy_(position_table(*self.grid, self.positions.shape[1]))

    def forward(self, x: Float[Tensor, "b d h w"], condition: Float[Tensor, "b c"] | None) -> Float[Tensor, "b d h w"]:
        (height, width), (rows, columns), p = x.shape[-2:], self.grid, self.patch_size
        padded = F.pad(x, (0, columns * p - width, 0, rows * p - height))
        tokens = rearrange(self.embed(padded), "b d i j -> b (i j) d") + self.positions
        again = self.checkpoint_activations and self.training
        for block in self.blocks:
            tokens = recomputed(again, block, tokens, condition)
        if self.modulation is None:
            tokens = self.norm(tokens)
        else:
            tokens = modulate(tokens, *self.modulation(condition), _NORM_EPS)  # type: ignore[call-arg]
        out = rearrange(self.out(tokens), "b (i j) (p q d) -> b d (i p) (j q)", i=rows, p=p, q=p)
        return out[..., :height, :width].to(x.dtype)


class UViT(BlockNetwork):
    """Logits of the clean pixel values given noisy ones: `network(z, t, label=None)` -> Float[b, n, V].

    `z` holds ids 0..V, V being the mask, in shape [b, *shape], images as (c, h, w); n = c h w runs in that order. There
    is no logit for the mask, and no `features`, for the reason given in UNet.

    Args:
        num_classes: V, the number of tokens without the mask.
        shape: (c, h, w) of one example, or (h, w) for a single channel.
        feature_dim: channels of the residual blocks, size of the embeddings of token, time and label; a multiple of 32.
        num_layers: residual blocks on the way in; one more on the way out.
        num_dit_layers: blocks of the transformer between them.
        dit_width: its width, a multiple of 4 and of dit_heads.
        dit_heads: its attention heads.
        patch_size: side of the patches that are its tokens.
        time_features: t, or none for a network that is not told the time.
        num_labels: classes to condition on, 0 for none; label `num_labels` is the null class, used when none is given.
        dropout: one rate, for the residual blocks and the transformer.
        checkpoint_activations: recompute each block in the backward pass: less memory, about a third more time.
        compile_blocks: compile each block; None: on a GPU.
    """

    compiled = (ResBlock, DiTBlock)

    def __init__(
        self,
        num_classes: int,
        shape: tuple[int, ...] = (3, 64, 64),
        feature_dim: int = 256,
        num_layers: int = 24,
        num_dit_layers: int = 12,
        dit_width: int = 768,
        dit_heads: int = 12,
        patch_size: int = 2,
        time_features: str = "t",
        num_labels: int = 0,
        dropout: float = 0.0,
        checkpoint_activations: bool = False,
        compile_blocks: bool | None = None,
    ):
        super().__init__()
        least = {"num_classes": (num_classes, 1), "num_layers": (num_layers, 0), "num_labels": (num_labels, 0)}
        least |= {"num_dit_layers": (num_dit_layers, 0), "dit_width": (dit_width, 1), "dit_heads": (dit_heads, 1)}
        check_sizes(shape, feature_dim, dropout, patch_size=(patch_size, 1), **least)
        if dit_width % 4 or dit_width % dit_heads:
            raise ValueError(f"dit_width is {dit_width}; give a multiple of 4 and of dit_heads = {dit_heads}")
        self.num_classes, self.num_labels, self.compile_blocks = num_classes, num_labels, compile_blocks
        self.condition = Conditioning(feature_dim, time_features, num_labels)
        condition_dim = None if self.condition.empty else feature_dim

        def block(inputs: int, outputs: int) -> ResBlock:
            return ResBlock(inputs, outputs, condition_dim, modulated=True, dropout=dropout)

        d, size = feature_dim, image_shape(shape)[1:]
        again = checkpoint_activations
        middle = DiT(d, size, patch_size, dit_width, num_dit_layers, dit_heads, condition_dim, dropout, again)
        self.trunk = Trunk(num_classes, shape, d, num_layers, block, GroupNorm(d, condition_dim), middle, again)

    def forward(
        self, z: Int[Tensor, " b *s"], t: Float[Tensor, " b"] | None, label: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b n v"]:
        """Raises ValueError for another shape, if t is missing, or if a label is given and not known."""
        return self.trunk(z, self.condition(z.shape[0], t, label))
