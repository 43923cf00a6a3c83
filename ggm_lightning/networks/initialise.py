"""Initial laws of flax, with which MD4 (arXiv 2406.04329) was trained: torch's own defaults differ from them.

Kernels are drawn from a normal law cut off at two standard deviations. The cut shrinks the deviation by the factor
0.8796, so flax widens the law beforehand: the variance asked for is the variance obtained.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

_CUT = 2.0
_CUT_DEVIATION = 0.87962566103423978  # deviation of a standard normal law truncated to [-2, 2]


def truncated_normal_(kernel: Tensor, fan_in: int, scale: float = 1.0) -> None:
    """Fill `kernel` in place with variance scale / fan_in; scale 1 is flax's lecun_normal."""
    deviation = math.sqrt(scale / fan_in) / _CUT_DEVIATION
    nn.init.trunc_normal_(kernel, std=deviation, a=-_CUT * deviation, b=_CUT * deviation)


def dense_(layer: nn.Linear | nn.Conv2d, scale: float = 1.0) -> None:
    """Flax's Dense and Conv: kernel with variance scale / (numbers that one output sees), bias zero."""
    truncated_normal_(layer.weight, layer.weight[0].numel(), scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def zeros_(layer: nn.Linear | nn.Conv2d) -> None:
    """A layer that says nothing at first: logits and adaLN-zero modulations start at 0."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def embedding_(table: nn.Embedding) -> None:
    """Flax's Embed: normal with deviation 1 / sqrt(features), not torch's 1."""
    nn.init.normal_(table.weight, std=table.embedding_dim**-0.5)
