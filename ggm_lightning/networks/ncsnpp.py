"""NCSN++ as Blackout diffusion uses it (arXiv 2305.11089; the network is that of score SDEs, arXiv 2011.13456, appendix
H): residual blocks of BigGAN, resampling by FIR filters of StyleGAN2 (arXiv 1912.04958), and a pyramid that shows the
image itself to every resolution. Layers, widths and initial laws are those of the released code.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ggm_lightning.networks.attention import SelfAttention
from ggm_lightning.networks.blocks import BlockNetwork, joined, recomputed
from ggm_lightning.networks.conditioning import time_embedding, without_autocast
from ggm_lightning.networks.unet import image_shape

_NORM_EPS = 1e-6
_MOST_GROUPS = 32
_SILENT = 1e-10  # variance scale of the layers that say nothing at first; published, where others take 0
_TIME_SCALE = 1000.0  # which time_embedding multiplies by, for times in [0, 1]


class Resample(nn.Module):
    """x filtered by (1, 3, 3, 1)/8 in both directions, black beyond the border, at half or twice the resolution.

        down  y_i = (x_{2i-1} + 3 x_{2i} + 3 x_{2i+1} + x_{2i+2}) / 8
        up    y_{2i} = (x_{i-1} + 3 x_i) / 4,  y_{2i+1} = (3 x_i + x_{i+1}) / 4

    In the precision of x, also under autocast: it is the stream of residuals that is resampled.

    Args:
        direction: up or down; "blur" is down without leaving every second one out, on one pixel more: y_{i - 1/2},
            i = 0..n, as a strided convolution wants it.
    """

    def __init__(self, direction: str):
        super().__init__()
        self.direction = direction
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / (4 if direction == "up" else 8)
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None], persistent=False)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h2 w2"]:
        d = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(d, 1, 4, 4)  # type: ignore[operator, union-attr]
        with without_autocast(x.device):
            if self.direction == "up":
                return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=d)
            blurred = self.direction == "blur"
            return F.conv2d(x, kernel, stride=1 if blurred else 2, padding=2 if blurred else 1, groups=d)


class GroupNorm(nn.GroupNorm):
    """Over at most 32 groups of at least 4 channels; in the precision of the weights also under autocast."""

    def __init__(self, channels: int):
        groups = max(1, min(channels // 4, _MOST_GROUPS))
        if channels % groups:
            raise ValueError(f"a norm cannot divide {channels} channels into {groups} groups; give another feature_dim")
        super().__init__(groups, channels, eps=_NORM_EPS)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        return super().forward(x.to(self.weight.dtype))


def _published_(layer: nn.Linear | nn.Conv2d, scale: float = 1.0) -> None:
    """Kernel uniform with variance scale / mean(fan in, fan out), bias zero."""
    nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(scale))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class ResBlock(nn.Module):
    """(skip(x) + conv2(drop(silu(norm2(conv1(r(silu(norm1(x)))) + U silu(condition)))))) / sqrt 2, r the resampling.

    Args:
        inputs, outputs: channels.
        condition_dim: size of the conditioning vector.
        dropout: rate of ordinary dropout in front of conv2.
        direction: up, down or same. skip(x) resamples too, and is a Dense over the channels unless nothing changes.
    """

    def __init__(self, inputs: int, outputs: int, condition_dim: int, dropout: float, direction: str = "same"):
        super().__init__()
        self.dropout = dropout
        same = direction == "same"
        self.resample = nn.Identity() if same else Resample(direction)
        self.norm1 = GroupNorm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.add = nn.Linear(condition_dim, outputs)
        self.norm2 = GroupNorm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if same and inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in (self.conv1, self.add, self.skip):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                _published_(layer)
        _published_(self.conv2, _SILENT)

    def forward(self, x: Float[Tensor, "b i h w"], condition: Float[Tensor, "b c"]) -> Float[Tensor, "b o h2 w2"]:
        branch = self.conv1(self.resample(F.silu(self.norm1(x))))
        branch = branch + self.add(F.silu(condition))[:, :, None, None]
        branch = self.conv2(F.dropout(F.silu(self.norm2(branch)), self.dropout, self.training))
        # under autocast a convolution answers in bf16; the stream of residuals stays in the precision of x
        return (self.skip(self.resample(x)).to(x.dtype) + branch) / math.sqrt(2)


class Attention(nn.Module):
    """(x + Attention(GN(x))) / sqrt 2; one head looks from every pixel at every other."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = GroupNorm(channels)
        self.attention = SelfAttention(channels, num_heads=1, qkv_bias=True, out_bias=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for kernel in self.attention.qkv.weight.chunk(3):  # published as three layers, of variance scale 0.1
            nn.init.xavier_uniform_(kernel, gain=math.sqrt(0.1))
        nn.init.zeros_(self.attention.qkv.bias)
        _published_(self.attention.out, _SILENT)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        seen = self.attention(rearrange(self.norm(x), "b d h w -> b (h w) d"))
        return (x + rearrange(seen, "b (h w) d -> b d h w", w=x.shape[-1])) / math.sqrt(2)


class Pyramid(nn.Module):
    """The image (or what the pyramid holds so far), filtered, halved and turned into as many channels as x has:
    (conv(blur(image)) + x) / sqrt 2."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.blur = Resample("blur")
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2)
        _published_(self.conv)

    def forward(self, image: Float[Tensor, "b i h w"], x: Float[Tensor, "b o h2 w2"]) -> Float[Tensor, "b o h2 w2"]:
        return (self.conv(self.blur(image)) + x) / math.sqrt(2)


class Stage(nn.Module):
    """What happens at one resolution, on the way in or out, and the block that leads to the next."""

    def __init__(self, blocks: list[ResBlock], attentions: list[nn.Module], leave: ResBlock | None):
        super().__init__()
        self.blocks, self.attentions, self.leave = nn.ModuleList(blocks), nn.ModuleList(attentions), leave


class NCSNpp(BlockNetwork):
    """Expected deaths before their softplus, one number for each site: `network(z, t, label=None)` -> Float[b, *shape].

    `z` is the centred image Float[b, *shape], images as (c, h, w), in levels (not scaled to [-1, 1]); `t` Float[b] is
    the index 0..T-1 of the observation time or any number of that order: its sines have periods up to 6e4. The last
    layer starts near zero. First and last convolution run in the precision of the weights under autocast: bf16 would
    round the levels that go in, and the expectation that comes out.

    The published sizes are the defaults: 62,693,251 parameters for 3 channels, 62,686,337 for 1.

    Args:
        shape: (c, h, w) of one example, or (h, w) for a single channel; h and w can be halved len(multipliers) - 1
            times.
        feature_dim: channels at full resolution, and size of the time embedding.
        multipliers: channels of each resolution, in units of feature_dim; each is half the one before it.
        num_blocks: residual blocks of each resolution on the way in; one more on the way out.
        attention_sizes: heights at which pixels look at each other; besides them they always do in the middle.
        num_labels: classes to condition on, 0 for none; label `num_labels` is the null class, used when none is given.
        dropout: rate of ordinary dropout inside every residual block.
        checkpoint_activations: recompute each block in the backward pass: less memory, about a third more time.
        compile_blocks: compile each block; None: on a GPU.
    """

    compiled = (ResBlock,)

    def __init__(
        self,
        shape: tuple[int, ...] = (3, 32, 32),
        feature_dim: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2, 2),
        num_blocks: int = 4,
        attention_sizes: tuple[int, ...] = (16,),
        num_labels: int = 0,
        dropout: float = 0.1,
        checkpoint_activations: bool = False,
        compile_blocks: bool | None = None,
    ):
        super().__init__()
        _check(shape, feature_dim, multipliers, num_blocks, num_labels, dropout)
        self.shape, self.num_labels, self.compile_blocks = tuple(shape), num_labels, compile_blocks
        self.feature_dim, self.checkpoint_activations = feature_dim, checkpoint_activations
        c, height, _ = image_shape(shape)
        widths = [feature_dim * m for m in multipliers]
        condition_dim = 4 * feature_dim
        self.time_mlp = nn.Sequential(
            nn.Linear(feature_dim, condition_dim), nn.SiLU(), nn.Linear(condition_dim, condition_dim)
        )
        self.label_table = nn.Embedding(num_labels + 1, condition_dim) if num_labels else None
        self.conv_in = nn.Conv2d(c, feature_dim, 3, padding=1)

        def block(inputs: int, outputs: int, direction: str = "same") -> ResBlock:
            return ResBlock(inputs, outputs, condition_dim, dropout, direction)

        def attention(level: int) -> nn.Module:
            return Attention(widths[level]) if height >> level in attention_sizes else nn.Identity()

        self.down, self.pyramid, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        left, x, last = [feature_dim], feature_dim, len(widths) - 1  # channels of the skips, and of x
        for level, width in enumerate(widths):
            blocks = [block(x if i == 0 else width, width) for i in range(num_blocks)]
            leave = block(width, width, "down") if level < last else None
            self.down.append(Stage(blocks, [attention(level) for _ in blocks], leave))
            left += [width] * (num_blocks + (level < last))
            if level < last:
                self.pyramid.append(Pyramid(c if level == 0 else widths[level - 1], width))
            x = width
        self.middle = nn.ModuleList([block(x, x), Attention(x), block(x, x)])
        for level, width in reversed(list(enumerate(widths))):
            blocks = [block((x if i == 0 else width) + left.pop(), width) for i in range(num_blocks + 1)]
            leave = block(width, width, "up") if level else None
            self.up.append(Stage(blocks, [attention(level)], leave))
            x = width
        self.norm = GroupNorm(x)
        self.conv_out = nn.Conv2d(x, c, 3, padding=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in (self.time_mlp[0], self.time_mlp[2], self.conv_in):
            _published_(layer)  # type: ignore[arg-type]
        _published_(self.conv_out, _SILENT)
        if self.label_table is not None:
            nn.init.normal_(self.label_table.weight, std=self.label_table.embedding_dim**-0.5)

    def forward(
        self, z: Float[Tensor, " b *s"], t: Float[Tensor, " b"] | None, label: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, " b *s"]:
        """Raises ValueError for another shape, if t is missing, or if a label is given and not known."""
        if tuple(z.shape[1:]) != self.shape:
            raise ValueError(f"the network was built for shape {self.shape}, not {tuple(z.shape[1:])}; set its shape")
        image = z.reshape(len(z), *image_shape(self.shape)).to(self.conv_in.weight.dtype)
        condition = self._condition(len(z), t, label)
        with without_autocast(z.device):
            x = self.conv_in(image)
        x = self._out(*self._in(x, image, condition), condition)
        with without_autocast(z.device):
            return self.conv_out(F.silu(self.norm(x))).reshape(z.shape)

    def _condition(self, b: int, t: Tensor | None, label: Tensor | None) -> Float[Tensor, "b c"]:
        """c = W2 silu(W1 emb(t) + a1) + a2, plus the label's vector."""
        if t is None:
            raise ValueError("this network needs the time t; pass it")
        if label is not None and self.label_table is None:
            raise ValueError("a label was given to a network without classes; set num_labels or drop the label")
        # float64 undoes the factor that is meant for times in [0, 1] without a trace
        waves = time_embedding(t.double() / _TIME_SCALE, self.feature_dim, torch.float64)
        with without_autocast(t.device):
            condition = self.time_mlp(waves.to(self.conv_in.weight.dtype))
            if self.label_table is None:
                return condition
            if label is None:
                label = torch.full((b,), self.num_labels, device=t.device)
            return condition + self.label_table(label)

    def _in(self, x: Tensor, image: Tensor, condition: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The smallest map, and what is left on the way for the way out."""
        skips, again = [x], self.checkpoint_activations and self.training
        for level, stage in enumerate(self.down):
            for block, attention in zip(stage.blocks, stage.attentions, strict=True):  # type: ignore[arg-type, union-attr]
                x = recomputed(again, attention, recomputed(again, block, x, condition))
                skips.append(x)
            if stage.leave is not None:
                x = recomputed(again, stage.leave, x, condition)  # type: ignore[arg-type]
                image = x = self.pyramid[level](image, x)  # type: ignore[operator]
                skips.append(x)
        return x, skips

    def _out(self, x: Tensor, skips: list[Tensor], condition: Tensor) -> Tensor:
        first, attention, second = self.middle
        again = self.checkpoint_activations and self.training
        x = recomputed(again, attention, recomputed(again, first, x, condition))
        x = recomputed(again, second, x, condition)
        for stage in self.up:
            for block in stage.blocks:  # type: ignore[union-attr]
                x = recomputed(again, joined, block, x, skips.pop(), condition)
            x = recomputed(again, stage.attentions[0], x)  # type: ignore[arg-type, index]
            if stage.leave is not None:
                x = recomputed(again, stage.leave, x, condition)  # type: ignore[arg-type]
        return x


def _check(
    shape: tuple[int, ...],
    feature_dim: int,
    multipliers: tuple[int, ...],
    num_blocks: int,
    num_labels: int,
    dropout: float,
) -> None:
    for name, value, least in (("num_blocks", num_blocks, 1), ("num_labels", num_labels, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"shape is {tuple(shape)}; an image network needs (c, h, w) or (h, w): choose other data")
    if not multipliers or min(multipliers) < 1:
        raise ValueError(f"multipliers are {tuple(multipliers)}; give one whole number for each resolution")
    if feature_dim < 4:
        raise ValueError(f"feature_dim is {feature_dim}; a time embedding needs at least 4")
    halved = 2 ** (len(multipliers) - 1)
    if shape[-1] % halved or shape[-2] % halved:
        raise ValueError(
            f"shape is {tuple(shape)}: {shape[-2]}x{shape[-1]} cannot be halved {len(multipliers) - 1} times; give "
            f"fewer multipliers, or pictures whose sides are multiples of {halved}"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it is a probability: give a number in [0, 1)")
