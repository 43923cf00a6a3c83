"""The CIFAR-10 network of MD4 (arXiv 2406.04329, appendix J): residual convolutions with skips at one resolution, as in
VDM (arXiv 2107.00630), and one attention layer in the middle. Widths and initial laws are those of the released code.

`ResBlock` and `Trunk` also carry the ImageNet network (uvit.py), which puts a transformer in the middle.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ggm_lightning.networks import initialise
from ggm_lightning.networks.attention import SelfAttention
from ggm_lightning.networks.blocks import BlockNetwork, joined, recomputed
from ggm_lightning.networks.conditioning import Conditioning, Modulation

_NUM_GROUPS = 32
_NORM_EPS = 1e-6


class GroupNorm(nn.Module):
    """GN(x) w + a over 32 groups of channels; with a `condition_dim`, GN(x) (1 + scale(condition)) + shift(condition).

    Computed in the precision of the weights also under autocast.
    """

    def __init__(self, channels: int, condition_dim: int | None = None):
        super().__init__()
        self.modulation: Modulation | None = None
        if condition_dim is None:
            self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        else:
            self.modulation = Modulation(condition_dim, channels, 2, _as_it_is, zero=True)

    def forward(self, x: Float[Tensor, "b d h w"], condition: Float[Tensor, "b c"] | None) -> Float[Tensor, "b d h w"]:
        if self.modulation is None:
            return F.group_norm(x.to(self.weight.dtype), _NUM_GROUPS, self.weight, self.bias, _NORM_EPS)
        scale, shift = (rearrange(part, "b 1 d -> b d 1 1") for part in self.modulation(condition))
        return torch.addcmul(shift, F.group_norm(x.to(scale.dtype), _NUM_GROUPS, eps=_NORM_EPS), 1 + scale)


def _as_it_is(condition: Tensor) -> Tensor:
    return condition


class ResBlock(nn.Module):
    """skip(x) + conv2(drop(silu(norm2(conv1(silu(norm1(x))) + U condition)))), which starts as skip(x).

    Args:
        inputs, outputs: channels; skip is the identity where they are equal, else a Dense over the channels.
        condition_dim: size of the conditioning vector; None for a network without one.
        modulated: condition the scales and shifts of both norms (ImageNet 64) instead of adding U condition (CIFAR-10).
        dropout: rate of ordinary dropout in front of conv2.
    """

    def __init__(self, inputs: int, outputs: int, condition_dim: int | None, modulated: bool, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        modulation_dim = condition_dim if modulated else None
        added = condition_dim is not None and not modulated
        self.norm1 = GroupNorm(inputs, modulation_dim)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.add = nn.Linear(condition_dim, outputs, bias=False) if added else None  # type: ignore[arg-type]
        self.norm2 = GroupNorm(outputs, modulation_dim)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        initialise.dense_(self.conv1)
        initialise.zeros_(self.conv2)
        if self.add is not None:
            initialise.zeros_(self.add)
        if self.skip is not None:
            initialise.dense_(self.skip)

    def forward(self, x: Float[Tensor, "b i h w"], condition: Float[Tensor, "b c"] | None) -> Float[Tensor, "b o h w"]:
        branch = self.conv1(F.silu(self.norm1(x, condition)))
        if self.add is not None:
            branch = branch + self.add(condition)[:, :, None, None]
        branch = F.dropout(F.silu(self.norm2(branch, condition)), self.dropout, self.training)
        kept = x if self.skip is None else self.skip(x).to(x.dtype)  # the stream stays in the precision of the weights
        return kept + self.conv2(branch)


class Trunk(nn.Module):
    """From ids to logits: embed, conv, n blocks that leave skips, `middle`, n + 1 blocks that take them back, conv.

    The embeddings of a pixel's channels are concatenated, channel by channel; the last convolution answers with V
    numbers for each of them, in the same order, and starts at zero.

    Args:
        num_classes: V.
        shape: (c, h, w) of one example, or (h, w) for a single channel.
        width: channels of every block, and size of a token's embedding.
        num_layers: n.
        block: makes a ResBlock from its channels in and out.
        norm: the last norm.
        middle: called as middle(x, condition), between the two halves.
        checkpoint_activations: recompute each block in the backward pass; `middle` sees to itself.
    """

    def __init__(
        self,
        num_classes: int,
        shape: tuple[int, ...],
        width: int,
        num_layers: int,
        block: Callable[[int, int], ResBlock],
        norm: GroupNorm,
        middle: nn.Module,
        checkpoint_activations: bool = False,
    ):
        super().__init__()
        self.shape, self.checkpoint_activations = tuple(shape), checkpoint_activations
        channels = image_shape(shape)[0]
        self.embedding = nn.Embedding(num_classes + 1, width)
        self.conv_in = nn.Conv2d(channels * width, width, 3, padding=1)
        self.down = nn.ModuleList(block(width, width) for _ in range(num_layers))
        self.middle = middle
        self.up = nn.ModuleList(block(2 * width, width) for _ in range(num_layers + 1))
        self.norm = norm
        self.conv_out = nn.Conv2d(width, channels * num_classes, 3, padding=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        initialise.embedding_(self.embedding)
        initialise.dense_(self.conv_in)
        initialise.zeros_(self.conv_out)

    def forward(self, z: Int[Tensor, " b *s"], condition: Float[Tensor, "b c"] | None) -> Float[Tensor, "b n v"]:
        channels, height, width = image_shape(self.shape)
        if tuple(z.shape[1:]) != self.shape:
            raise ValueError(f"the network was built for shape {self.shape}, not {tuple(z.shape[1:])}; set its shape")
        x = self.embedding(z.reshape(-1, channels, height, width))
        # Under autocast a convolution answers in bf16; the stream of residuals stays in the precision of the weights.
        x = self.conv_in(rearrange(x, "b c h w d -> b (c d) h w")).to(x.dtype)
        skips, again = [x], self.checkpoint_activations and self.training
        for block in self.down:
            x = recomputed(again, block, x, condition)
            skips.append(x)
        x = self.middle(x, condition)
        for block in self.up:
            x = recomputed(again, joined, block, x, skips.pop(), condition)
        logits = self.conv_out(F.silu(self.norm(x, condition)))
        return rearrange(logits, "b (c v) h w -> b (c h w) v", c=channels)


class AttentionMiddle(nn.Module):
    """block2(h + Attention(GN(h))), h = block1(x); one head looks from every pixel at every other."""

    def __init__(self, block1: ResBlock, block2: ResBlock, width: int, checkpoint_activations: bool = False):
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        self.block1, self.block2 = block1, block2
        self.norm = GroupNorm(width)
        self.attention = SelfAttention(width, num_heads=1, qkv_bias=True, out_bias=True)

    def forward(self, x: Float[Tensor, "b d h w"], condition: Float[Tensor, "b c"] | None) -> Float[Tensor, "b d h w"]:
        again = self.checkpoint_activations and self.training
        x = recomputed(again, self.block1, x, condition)
        x = recomputed(again, self._attend, x, condition)
        return recomputed(again, self.block2, x, condition)

    def _attend(self, x: Tensor, condition: Tensor | None) -> Tensor:
        seen = self.attention(rearrange(self.norm(x, condition), "b d h w -> b (h w) d"))
        return x + rearrange(seen, "b (h w) d -> b d h w", w=x.shape[-1])


class UNet(BlockNetwork):
    """Logits of the clean pixel values given noisy ones: `network(z, t, label=None)` -> Float[b, n, V].

    `z` holds ids 0..V, V being the mask, in shape [b, *shape], images as (c, h, w); n = c h w runs in that order. There
    is no logit for the mask. The resolution never changes, so h and w may be any numbers.

    There is no `features` with a linear `head`: the last layer is a 3 x 3 convolution, so that the features of a site
    would be 9 feature_dim numbers (1,152 for CIFAR-10), more than its 256 logits.

    Args:
        num_classes: V, the number of tokens without the mask.
        shape: (c, h, w) of one example, or (h, w) for a single channel.
        feature_dim: channels everywhere, size of the embeddings of token, time and label; a multiple of 32.
        num_layers: residual blocks on the way in; one more on the way out, two in the middle.
        time_features: t, or none for a network that is not told the time.
        num_labels: classes to condition on, 0 for none; label `num_labels` is the null class, used when none is given.
        dropout: rate of ordinary dropout inside every residual block.
        checkpoint_activations: recompute each block in the backward pass: less memory, about a third more time.
        compile_blocks: compile each block; None: on a GPU.
    """

    compiled = (ResBlock,)

    def __init__(
        self,
        num_classes: int,
        shape: tuple[int, ...] = (3, 32, 32),
        feature_dim: int = 128,
        num_layers: int = 32,
        time_features: str = "t",
        num_labels: int = 0,
        dropout: float = 0.0,
        checkpoint_activations: bool = False,
        compile_blocks: bool | None = None,
    ):
        super().__init__()
        least = {"num_classes": (num_classes, 1), "num_layers": (num_layers, 0), "num_labels": (num_labels, 0)}
        check_sizes(shape, feature_dim, dropout, **least)
        if feature_dim == _NUM_GROUPS:
            warnings.warn(
                f"UNet: with feature_dim {feature_dim} each group of a norm holds one channel, and takes the time and "
                f"the label out again; give {2 * feature_dim} or more",
                stacklevel=2,
            )
        self.num_classes, self.num_labels, self.compile_blocks = num_classes, num_labels, compile_blocks
        self.condition = Conditioning(feature_dim, time_features, num_labels)
        condition_dim = None if self.condition.empty else feature_dim

        def block(inputs: int, outputs: int) -> ResBlock:
            return ResBlock(inputs, outputs, condition_dim, modulated=False, dropout=dropout)

        d = feature_dim
        again = checkpoint_activations
        middle = AttentionMiddle(block(d, d), block(d, d), d, again)
        self.trunk = Trunk(num_classes, shape, d, num_layers, block, GroupNorm(d), middle, again)

    def forward(
        self, z: Int[Tensor, " b *s"], t: Float[Tensor, " b"] | None, label: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b n v"]:
        """Raises ValueError for another shape, if t is missing, or if a label is given and not known."""
        return self.trunk(z, self.condition(z.shape[0], t, label))


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(c, h, w), where (h, w) is an image of one channel."""
    channels, height, width = (1, *shape)[-3:]
    return channels, height, width


def check_sizes(shape: tuple[int, ...], feature_dim: int, dropout: float, **least: tuple[int, int]) -> None:
    """Raises ValueError for sizes that no image network can have; `least` maps names to (value, least value)."""
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise ValueError(f"{name} is {value}; it must be at least {smallest}")
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"shape is {tuple(shape)}; an image network needs (c, h, w) or (h, w): choose other data")
    if feature_dim < 1 or feature_dim % _NUM_GROUPS:
        raise ValueError(f"feature_dim is {feature_dim}; the norms have {_NUM_GROUPS} groups: give a multiple of it")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it is a probability: give a number in [0, 1)")
