"""The text network of MDLM (arXiv 2406.07524) and of the papers that build on its code: a diffusion transformer
(arXiv 2212.09748) over tokens, with the names of their state dicts, so that published weights load as they are.

It is not the network of MD4 (networks/transformer.py): its feed-forward layers have biases, no gate and four times the
width, its norms have weights, its rotary positions pair a feature with the one half a head away, and it is told the
noise sigma = -ln alpha instead of the time.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ggm_lightning.networks.attention import attend, rotary_tables
from ggm_lightning.networks.blocks import BlockNetwork, Compiling, Stack, check_sizes
from ggm_lightning.networks.conditioning import without_autocast

_FREQUENCIES = 256
_LONGEST_PERIOD = 10_000.0


def turn_halves(
    x: Float[Tensor, "b n heads d"], cos: Float[Tensor, "n h"], sin: Float[Tensor, "n h"]
) -> Float[Tensor, "b n heads d"]:
    """Turn each pair (x_i, x_{i + d/2}) by its angle; attention.rotate turns (x_2i, x_2i+1) instead."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]  # the same angle for all heads
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class Norm(nn.Module):
    """LN(x) w without a bias, computed in float32 at least."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        with without_autocast(x.device):
            return F.layer_norm(x.to(self.weight.dtype), x.shape[-1:], self.weight)


class NoiseEmbedding(nn.Module):
    """W2 silu(W1 [cos(sigma f), sin(sigma f)] + a1) + a2, f_k = 1e4^(-k / 128), k = 0..127, as `sigma_map`."""

    def __init__(self, dim: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, "b c"]:
        half = _FREQUENCIES // 2
        k = torch.arange(half, device=sigma.device, dtype=torch.float32)
        angles = sigma.float()[:, None] * torch.exp(k * (-math.log(_LONGEST_PERIOD) / half))
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        with without_autocast(sigma.device):  # one row per example
            return self.mlp(features.to(next(self.mlp.parameters()).dtype))


class DiTBlock(nn.Module):
    """h = x + g1 drop(W Attention(LN(x) (1 + s1) + b1)), then h + g2 drop(MLP(LN(h) (1 + s2) + b2)); (b1, s1, g1, b2,
    s2, g2) = `adaLN_modulation(condition)`, zero at first, so that a block begins as the identity."""

    def __init__(self, width: int, num_heads: int, cond_dim: int, dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.norm1 = Norm(width)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = Norm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.adaLN_modulation = _zero(nn.Linear(cond_dim, 6 * width))

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        condition: Float[Tensor, "b c"],
        cos: Float[Tensor, "n h"],
        sin: Float[Tensor, "n h"],
    ) -> Float[Tensor, "b n d"]:
        modulation = self.adaLN_modulation(condition).to(condition.dtype)  # autocast would round it
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation[:, None].chunk(6, dim=-1)
        qkv = self.attn_qkv(torch.addcmul(shift1, self.norm1(x), 1 + scale1))
        queries, keys, values = rearrange(qkv, "b n (k heads d) -> k b n heads d", k=3, heads=self.num_heads)
        mixed = attend(turn_halves(queries, cos, sin), turn_halves(keys, cos, sin), values)
        x = x + gate1 * F.dropout(self.attn_out(mixed), self.dropout, self.training)
        branch = self.mlp(torch.addcmul(shift2, self.norm2(x), 1 + scale2))
        return x + gate2 * F.dropout(branch, self.dropout, self.training)


class OutputLayer(nn.Module):
    """LN(x) (1 + s) + b, and a linear layer over the V tokens and the mask behind them; (b, s) from the condition."""

    def __init__(self, width: int, num_outputs: int, cond_dim: int):
        super().__init__()
        self.norm_final = Norm(width)
        self.linear = _zero(nn.Linear(width, num_outputs))
        self.adaLN_modulation = _zero(nn.Linear(cond_dim, 2 * width))

    def forward(self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b c"]) -> Float[Tensor, "b n d"]:
        """What `linear` is applied to."""
        shift, scale = self.adaLN_modulation(condition).to(condition.dtype)[:, None].chunk(2, dim=-1)
        return torch.addcmul(shift, self.norm_final(x), 1 + scale)


class TokenTable(nn.Module):
    """A vector for each token and for the mask."""

    def __init__(self, num_tokens: int, width: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(num_tokens, width))
        nn.init.kaiming_uniform_(self.embedding, a=math.sqrt(5))

    def forward(self, z: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        return F.embedding(z, self.embedding)


class DiT(BlockNetwork):
    """Logits of the clean tokens given noisy ones: `network(z, t, label=None)` -> Float[b, n, V].

    `z` holds ids 0..V, V being the mask, in any shape [b, *s]; positions are flattened to n = prod(s). The published
    head has a row for the mask, too, which their loss sets to -inf: `head` is the published layer without that row, and
    `features(z, t, label)` what it is applied to.

    With `time_conditioning` the network is told sigma(t) = -ln(1 - (1 - eps) t), the noise of their log-linear schedule
    in which a share (1 - eps) t is masked (here: core.schedules.Linear, whose share differs by at most eps). Without,
    as in the published OpenWebText weights, it is told sigma = 0 whatever t is.

    Args:
        num_classes: V, the number of tokens without the mask.
        feature_dim: features per head; even.
        num_heads: attention heads; the width is feature_dim * num_heads.
        num_layers: blocks.
        cond_dim: size of the vector that says sigma.
        dropout: rate on both branches of each block.
        time_conditioning: whether the network is told sigma(t), else 0.
        eps: of their schedule.
        checkpoint_activations: recompute each block in the backward pass: less memory, about a third more time.
        compile_blocks: compile each block; None: on a GPU; "graphs": all of them as one CUDA graph, for small networks.
    """

    compiled = (DiTBlock,)
    num_labels = 0

    def __init__(
        self,
        num_classes: int,
        feature_dim: int = 64,
        num_heads: int = 12,
        num_layers: int = 12,
        cond_dim: int = 128,
        dropout: float = 0.1,
        time_conditioning: bool = False,
        eps: float = 1e-3,
        checkpoint_activations: bool = False,
        compile_blocks: Compiling = None,
    ):
        super().__init__()
        sizes = {"num_classes": num_classes, "num_heads": num_heads, "num_layers": num_layers, "cond_dim": cond_dim}
        check_sizes(feature_dim, dropout, "gelu", ("gelu",), **sizes)
        if not 0 < eps < 1:
            raise ValueError(f"eps is {eps}; it is what stays clean at t = 1: give a number in (0, 1), published 1e-3")
        width = feature_dim * num_heads
        self.num_classes, self.feature_dim = num_classes, feature_dim
        self.time_conditioning, self.eps, self.compile_blocks = time_conditioning, eps, compile_blocks
        # in this order, in which their averages number the parameters
        self.vocab_embed = TokenTable(num_classes + 1, width)
        self.sigma_map = NoiseEmbedding(cond_dim)
        blocks: list[nn.Module] = [DiTBlock(width, num_heads, cond_dim, dropout) for _ in range(num_layers)]
        self.blocks = Stack(blocks, checkpoint_activations)
        self.output_layer = OutputLayer(width, num_classes + 1, cond_dim)

    @property
    def head(self) -> nn.Linear:
        """The last layer without the mask's row. Its weights are views: gradients reach the published layer."""
        layer = self.output_layer.linear
        head = nn.Linear(layer.in_features, self.num_classes, device="meta")
        del head.weight, head.bias
        head.weight, head.bias = layer.weight[:-1], layer.bias[:-1]  # type: ignore[assignment]
        return head

    def sigma(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """What the network is told of the time."""
        return -torch.log1p(-(1 - self.eps) * t) if self.time_conditioning else torch.zeros_like(t)

    def forward(
        self, z: Int[Tensor, " b *s"], t: Float[Tensor, " b"], label: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b n v"]:
        return self.head(self.features(z, t, label))

    def features(
        self, z: Int[Tensor, " b *s"], t: Float[Tensor, " b"], label: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """What the head is applied to. Raises ValueError where a label is given: the network knows none."""
        if label is not None:
            raise ValueError("a label was given to a DiT, which knows no classes; leave it out")
        x = self.vocab_embed(rearrange(z, "b ... -> b (...)"))
        condition = F.silu(self.sigma_map(self.sigma(t)))
        dtype = torch.promote_types(x.dtype, torch.float32)
        cos, sin = rotary_tables(x.shape[1], self.feature_dim, dtype, x.device)
        (x,) = self.blocks((x,), condition, cos, sin)
        return self.output_layer(x, condition)


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
