"""The losses of core/losses.py, fast: where logits would be formed, only those that carry loss are, a chunk at a time.

    cross-entropy    L = sum_r c_r (lse(z_r) - z_{r y}),  dL/dz_{rv} = c_r (p_rv - 1{v = y})                      (1)
    rates, GenMD4    L = sum_r c_r (S_r - w_y (1 + log p_ry)),  S_r = sum_v w_v p_rv,
                     dL/dz_{rv} = c_r (p_rv (w_y + w_v - S_r) - w_y 1{v = y})                                    (2)
                     dL/dw_v = sum_r c_r (p_rv - 1{v = y} (1 + log p_ry))                                        (3)
    GGM              one logit per row, z = h . W_x + b_x: no row of logits at all                               (4)
    Blackout         y - m log y, y = g softplus(o), with d/do = g sigma(o) - m sigma(o) / softplus(o)            (5)

z = h W^T + b, p = softmax(z), y the target, c_r a weight per row, w_v one per class. c_r is known before, so that all
gradients are made while the logits are there: 6 k d V operations for k rows, where others need 8. Logits and the
gradient of W are float32 (float64 for float64 input), whatever the rest is. On CUDA a Triton kernel makes one pass
over a chunk (core/kernels.py); without Triton, and on a CPU, the same algorithm runs as PyTorch operations.

Sources: MD4 and GenMD4, arXiv 2406.04329; GGM, arXiv 2405.17035; Blackout, arXiv 2305.11089. The chunks are those of
Liger, arXiv 2410.10989, but sized in bytes: each one reads and writes all of W's gradient.
"""

from __future__ import annotations

import warnings
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from ggm_lightning.core import losses, masked_sites, products

MIN_CLASSES = 4096  # below, whole rows of logits are so small that forming them all at once costs no more
CHUNK_BYTES = {"cpu": 100_000_000}  # of logits and their gradients at once, by device
_CHUNK_BYTES = 1 << 30  # on other devices: 3,500 rows of 50,000 classes
_BLOCK_ROWS = 64  # rows for which GenMD4's factor is formed at once on a CPU


class WeightedNats(NamedTuple):
    """loss: scalar with gradients. nats: per row, without weight and without gradients, 0 where there is no loss."""

    loss: Tensor
    nats: Tensor


def masked_linear_cross_entropy(
    hidden: Float[Tensor, "*n d"],
    weight: Float[Tensor, "v d"],
    targets: Int[Tensor, "*n"],
    row_weight: Float[Tensor, "*n"],
    mask: Bool[Tensor, "*n"] | None = None,
    bias: Float[Tensor, " v"] | None = None,
    class_weight: Float[Tensor, " v"] | None = None,
    *,
    min_classes: int = MIN_CLASSES,
    max_bytes: int | None = None,
    num_masked: int = masked_sites.UNKNOWN,
) -> WeightedNats:
    """sum_r c_r losses.cross_entropy(h_r W^T + b, y_r) over the True rows of `mask`, nats, eq. (1); with class_weight
    sum_r c_r losses.rate_divergence(h_r W^T + b, y_r, w), eq. (2).

    Args:
        row_weight: c_r; neither it nor hidden is looked at where `mask` is False.
        min_classes: with fewer, the formula itself is computed on the masked rows.
        max_bytes: of logits and their gradients at once; None takes 100 MB on a CPU, 1 GiB elsewhere.
        num_masked: how often `mask` is True; a GPU that has to be asked stops for it (core/masked_sites.py).

    Differentiable once, in hidden, weight, bias, class_weight and row_weight. Raises ValueError for shapes that do not
    belong together, RuntimeError where a gradient is to be differentiated again.
    """
    n, v = targets.shape, weight.shape[0]
    if hidden.shape[:-1] != n or row_weight.shape != n or (mask is not None and mask.shape != n):
        raise ValueError(
            f"linear cross-entropy: hidden {tuple(hidden.shape)}, row_weight {tuple(row_weight.shape)} and mask do not "
            f"belong to targets {tuple(n)}; give each one entry per target"
        )
    h, y, c = hidden.flatten(0, -2), targets.flatten(), row_weight.flatten()
    if mask is None:
        rows, num_masked = torch.ones_like(y, dtype=torch.bool), len(y)
    else:
        rows = mask.flatten()
    if v < min_classes:
        return _whole(h, weight, y, c, rows, bias, class_weight, n)
    exact = torch.float64 if torch.float64 in (h.dtype, weight.dtype) else torch.float32
    computed = _product_dtype(h, weight, exact)
    size = torch.empty((), dtype=exact).element_size() + (0 if computed == exact else computed.itemsize)
    budget = CHUNK_BYTES.get(h.device.type, _CHUNK_BYTES) if max_bytes is None else max_bytes
    parts = (h, weight, bias, class_weight)
    needs = [torch.is_grad_enabled() and part is not None and part.requires_grad for part in parts]
    loss, nats, *_ = _linear_cross_entropy(
        h,
        weight,
        y,
        c.to(exact),
        rows,
        None if bias is None else bias.to(exact),
        None if class_weight is None else class_weight.to(exact),
        needs,
        computed,
        max(1, budget // (products.padded(v) * size)),
        num_masked,
    )
    return WeightedNats(loss, nats.reshape(n))


def _whole(
    h: Tensor, weight: Tensor, y: Tensor, c: Tensor, rows: Tensor, bias: Tensor | None, w: Tensor | None, n: torch.Size
) -> WeightedNats:
    """The formulas on all masked rows at once."""
    y = y[rows]
    logits = functional.linear(h[rows], weight, bias)
    values = losses.cross_entropy(logits, y) if w is None else losses.rate_divergence(logits, y, w)
    loss = (c[rows].to(values.dtype) * values).sum()
    nats = values.new_zeros(rows.shape).masked_scatter(rows, values.detach())
    return WeightedNats(loss, nats.reshape(n))


def _product_dtype(h: Tensor, weight: Tensor, exact: torch.dtype) -> torch.dtype:
    """In which the matrix products take their factors: autocast's on a GPU; on a CPU as the logits, which costs it
    nothing."""
    device = h.device.type
    if exact == torch.float64 or device == "cpu":
        return exact
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(h.dtype, weight.dtype)


@cache
def triton_losses() -> ModuleType | None:
    """The Triton kernels, or None with a warning where Triton is missing."""
    try:
        from ggm_lightning.core import kernels
    except ImportError:
        warnings.warn("Triton is not installed: losses take several passes; pip install triton", stacklevel=2)
        return None
    return kernels


# One node for torch.compile, which neither looks inside nor breaks its graph; all gradients are outputs.
@torch.library.custom_op(
    "ggm_lightning::linear_cross_entropy",
    mutates_args=(),
    schema="(Tensor hidden, Tensor weight, Tensor targets, Tensor row_weight, Tensor mask, Tensor? bias, "
    "Tensor? class_weight, bool[] needs, ScalarType computed, int chunk_rows, int num_masked) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    row_weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    needs: list[bool],
    computed: torch.dtype,
    chunk_rows: int,
    num_masked: int,
) -> tuple[Tensor, ...]:
    """(loss, nats, and the gradients of hidden, weight, bias, class_weight where `needs` says so, else empty)."""
    with torch.autocast(hidden.device.type, enabled=False):  # its casts would reach the products in here
        outputs = list(_empty_outputs(hidden, weight, row_weight, needs))
        whole = outputs[3]
        if needs[1] and products.pays(weight):
            whole, outputs[3] = _with_rows_behind(weight, row_weight.dtype)
        loss, nats, d_hidden, d_weight, d_bias, d_class = outputs
        index = masked_sites.indices(mask, num_masked)
        for output in outputs:
            if output is not d_weight or not len(index):  # the first chunk writes all of it
                output.zero_()
        chunk = _Chunk.of(weight, computed, row_weight.dtype, bias, class_weight, min(chunk_rows, len(index)), needs)
        for i, rows in enumerate(index.split(chunk_rows) if len(index) else ()):
            x = hidden.index_select(0, rows).to(computed)
            c = row_weight.index_select(0, rows)
            values, gradient = chunk.run(x, targets.index_select(0, rows), c, d_class if needs[3] else None)
            nats.index_copy_(0, rows, values)
            loss += torch.dot(c, values)
            if needs[0]:
                d_hidden.index_copy_(0, rows, torch.mm(gradient, chunk.weight).to(hidden.dtype))
            if needs[1]:
                (products.add_product if i else products.product)(whole, gradient.t(), x)
            if needs[2]:
                d_bias += gradient.sum(0, dtype=d_bias.dtype)[: len(d_bias)]
    return loss, nats, d_hidden, d_weight, d_bias, d_class


def _with_rows_behind(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(memory for the gradient of W with its rows of zeros, the gradient in it: the same memory without them)."""
    v, d = weight.shape
    whole = weight.new_empty(products.padded(v), d, dtype=dtype)
    return whole, whole.new_empty(0).set_(whole.untyped_storage(), 0, (v, d), (d, 1))  # no view: autograd may take it


def _empty_outputs(hidden: Tensor, weight: Tensor, row_weight: Tensor, needs: list[bool]) -> tuple[Tensor, ...]:
    (k, d), v = hidden.shape, weight.shape[0]
    shapes = [(k, d), (v, d), (v,), (v,)]
    d_hidden, *others = [shape if need else (0,) for shape, need in zip(shapes, needs, strict=True)]
    exact = [row_weight.new_empty(shape) for shape in ((), (k,), *others)]
    return (*exact[:2], hidden.new_empty(d_hidden), *exact[2:])


@_linear_cross_entropy.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    row_weight: Tensor,
    mask: Tensor,
    bias: Any,
    class_weight: Any,
    needs: Any,
    computed: Any,
    chunk_rows: Any,
    num_masked: Any,
) -> tuple[Tensor, ...]:
    return _empty_outputs(hidden, weight, row_weight, needs)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # else a matrix of zeros for each gradient that nobody differentiates
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])
    ctx.dtypes = [None if part is None else part.dtype for part in (inputs[0], inputs[1], inputs[5], inputs[6])]
    ctx.needs = inputs[7]


def _nobody_else_reads(saved: Tensor) -> bool:
    """Whether this backward is the last to see what was saved; False where that cannot be known, as while tracing."""
    kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
    return not torch.compiler.is_compiling() and type(saved) is Tensor and not kept()


def _hand_out(ctx: Any, d_loss: Tensor | None, *others: Tensor | None) -> tuple[Any, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the fused linear cross-entropy has no second derivative: use core.losses where create_graph=True"
        )
    if d_loss is None:
        return (None,) * 11
    nats, *gradients = ctx.saved_tensors
    # in place, where one may: no second matrix of W's size, nor the time to write it
    scaled = Tensor.mul_ if _nobody_else_reads(nats) else Tensor.mul
    d_hidden, d_weight, d_bias, d_class = (
        scaled(gradient, d_loss).to(dtype) if need else None
        for gradient, dtype, need in zip(gradients, ctx.dtypes, ctx.needs, strict=True)
    )
    d_row = nats * d_loss if ctx.needs_input_grad[3] else None
    return d_hidden, d_weight, None, d_row, None, d_bias, d_class, None, None, None, None


_linear_cross_entropy.register_autograd(_hand_out, setup_context=_keep)


class _Chunk(NamedTuple):
    """Buffers for a chunk's logits and their gradients, used again by each chunk, and what all chunks share."""

    weight: Tensor  # Float[v, d] in the precision of the products, or Float[padded, d]: core/products.py
    v: int
    logits: Tensor  # Float[rows, padded], float32 or float64
    gradients: Tensor | None  # of their own where a kernel reads logits and writes gradients
    bias: Tensor | None
    class_weight: Tensor | None  # both padded where a kernel reads them
    kernels: ModuleType | None
    needs_gradient: bool

    @classmethod
    def of(
        cls,
        weight: Tensor,
        computed: torch.dtype,
        exact: torch.dtype,
        bias: Tensor | None,
        class_weight: Tensor | None,
        rows: int,
        needs: list[bool],
    ) -> _Chunk:
        v, needed = weight.shape[0], any(needs[:3])
        width = products.padded(v)
        factor = products.with_zero_rows(weight, computed) if products.pays(weight) else weight.to(computed)
        logits, gradients = factor.new_empty(rows, width, dtype=exact), None
        kernels = triton_losses() if logits.is_cuda and exact == torch.float32 else None
        if kernels is not None:
            gradients = factor.new_empty(rows, width) if needed else None
            bias, class_weight = (
                None if part is None else functional.pad(part, (0, width - v)) for part in (bias, class_weight)
            )
        return cls(factor, v, logits, gradients, bias, class_weight, kernels, needed)

    def run(self, x: Tensor, y: Tensor, c: Tensor, d_class: Tensor | None) -> tuple[Tensor, Tensor]:
        """(nats Float[k], gradient of the logits Float[k, v] in the precision of the products, with zeros behind it
        where the weight has them); adds to d_class."""
        whole, wide = self.logits[: len(x)], len(self.weight)
        products.product(whole[:, :wide], x, self.weight.t())
        if self.kernels is not None:
            gradient = None if self.gradients is None else self.gradients[: len(x)]
            nats = self.kernels.rows(whole, self.v, y, c, self.bias, self.class_weight, gradient, d_class)
            return nats, (whole if gradient is None else gradient)[:, :wide]
        z = whole[:, : self.v]
        if self.bias is not None:
            z += self.bias
        nats = rows_in_place(z, y, c, self.class_weight, self.needs_gradient, d_class)
        return nats, whole[:, :wide].to(self.weight.dtype)  # what stands behind z is 0, as the weight's rows there


def rows_in_place(
    z: Float[Tensor, "k v"],
    y: Int[Tensor, " k"],
    c: Float[Tensor, " k"],
    w: Float[Tensor, " v"] | None,
    gradient: bool,
    d_class: Float[Tensor, " v"] | None,
) -> Float[Tensor, " k"]:
    """Nats per row, eqs. (1), (2). The logits z become their gradient (or, without `gradient`, anything); eq. (3) is
    added to d_class."""
    target, c_column = y[:, None], c[:, None]
    z_y = z.gather(1, target)
    top = z.amax(1, keepdim=True)
    p = z.sub_(top).exp_()
    total = p.sum(1, keepdim=True)
    log_p_y = z_y - top - total.log()
    if w is None:
        if gradient:
            p.mul_(c_column / total).scatter_add_(1, target, -c_column)
        return -log_p_y[:, 0]
    p.div_(total)
    w_y, mean = w[target], p.mv(w)[:, None]
    if d_class is not None:
        d_class.addmv_(p.t(), c).index_add_(0, y, -c * (1 + log_p_y[:, 0]))
    if gradient:
        for part, shift, factor in zip(*(a.split(_BLOCK_ROWS) for a in (p, w_y - mean, c_column)), strict=True):
            part.mul_((w + shift).mul_(factor))
        p.scatter_add_(1, target, -c_column * w_y)
    return (mean - w_y * (1 + log_p_y))[:, 0]


def token_logits(
    hidden: Float[Tensor, "k d"],
    weight: Float[Tensor, "v d"],
    tokens: Int[Tensor, " k"],
    bias: Float[Tensor, " v"] | None = None,
) -> Float[Tensor, " k"]:
    """h . W_x + b_x for one token x per row, eq. (4): V - 1 of the V logits are never formed. float32 or better."""
    z = (losses.at_least_float32(hidden) * losses.at_least_float32(weight[tokens])).sum(-1)
    return z if bias is None else z + bias[tokens]
