"""Matrix products of a head, W Float[V, d] with any V, at the speed of one whose V is a multiple of 64.

A GPU's fast kernels load 128 bits at a time and so want rows whose length is a multiple of 8 entries (of bfloat16);
with V = 50,257 (GPT-2's) the three products of a head took 5 times as long as with 50,304 (one H200, 16,384 rows,
d = 768). So the products take a copy of W that ends in rows of zeros: its logits are 0 there and read by nobody, its
gradient is 0 there and left out. On a CPU the copy costs more than the odd length does, and nothing is padded.

Sums are those of the result's precision: torch.mm's out_dtype, where the device has it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

ALIGNMENT = 64  # columns: rows begin at addresses that are loaded 128 bits at a time, also for odd V
_FAST_MULTIPLE = 8  # entries of 16 bits in 128
_MANY_ROWS = 1024  # with fewer the copy of W costs more than it saves


def padded(v: int) -> int:
    """v up to a multiple of 64."""
    return -(-v // ALIGNMENT) * ALIGNMENT


def pays(weight: Tensor) -> bool:
    """Whether products with W are faster with rows of zeros behind it. The meta device stands for a GPU."""
    return weight.device.type != "cpu"


def with_zero_rows(weight: Float[Tensor, "v d"], dtype: torch.dtype) -> Float[Tensor, "p d"]:
    """W in `dtype`, followed by zeros up to a multiple of 64 rows; W itself where nothing is to be changed."""
    v, d = weight.shape
    if padded(v) == v:
        return weight.to(dtype)
    copy = weight.new_empty(padded(v), d, dtype=dtype)
    copy[:v] = weight
    copy[v:] = 0
    return copy


def head_logits(head: nn.Module, values: Float[Tensor, "k d"]) -> Float[Tensor, "k v"]:
    """head(values): by a padded copy of its weight where that pays, else by the head itself.

    Without gradients, as in sampling and bounds, what autocast would round to its own precision stays float32: the
    factors are rounded, the logits are not.
    """
    if type(head) is not nn.Linear:
        return head(values)
    if not torch.is_grad_enabled() and _is_autocast(values):
        return _in_float32(head, values)
    return head(values) if len(values) < _MANY_ROWS else linear(values, head.weight, head.bias)


def _is_autocast(x: Tensor) -> bool:
    return not x.is_meta and torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64


def _in_float32(head: nn.Linear, values: Float[Tensor, "k d"]) -> Float[Tensor, "k v"]:
    dtype = torch.get_autocast_dtype(values.device.type)
    with torch.autocast(values.device.type, enabled=False):
        weight = with_zero_rows(head.weight, dtype) if pays(head.weight) else head.weight.to(dtype)
        out = torch.empty(len(values), len(weight), device=values.device)
        product(out, values.to(dtype), weight.t())
    logits = out[:, : head.out_features]
    return logits if head.bias is None else logits + head.bias


def exactly(a: Float[Tensor, "k c"], b: Float[Tensor, " c"]) -> Float[Tensor, " k"]:
    """a b in their own precision, also under autocast."""
    if a.is_meta:
        return a @ b
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def linear(
    values: Float[Tensor, "k d"], weight: Float[Tensor, "v d"], bias: Float[Tensor, " v"] | None = None
) -> Float[Tensor, "k v"]:
    """functional.linear; its rows may lie further apart than V entries."""
    v = len(weight)
    if v % _FAST_MULTIPLE == 0 or not pays(weight):
        return functional.linear(values, weight, bias)
    more = padded(v) - v
    weight = functional.pad(weight, (0, 0, 0, more))
    bias = None if bias is None else functional.pad(bias, (0, more))
    return functional.linear(values, weight, bias)[:, :v]


def _sums_in_float32(a: Tensor) -> bool:
    return a.is_cuda and torch.cuda.get_device_capability(a.device)[0] >= 8


def product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out = a b, not rounded to the factors' precision."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif _sums_in_float32(a):
        torch.mm(a, b, out_dtype=out.dtype, out=out)  # type: ignore[call-overload]
    else:
        torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)


def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a b, added up in out's precision: in bfloat16 each chunk would lose another 0.2 % of it."""
    if a.dtype == out.dtype:
        out.addmm_(a, b)
    elif _sums_in_float32(a):
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)  # type: ignore[call-overload]
    else:
        out.addmm_(a.to(out.dtype), b.to(out.dtype))
