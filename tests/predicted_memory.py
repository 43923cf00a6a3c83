"""How much memory a training step takes on a GPU, predicted on the meta device in seconds: no value is computed.

Every operation of a step is run for its shapes. Storages are counted from when they are made until nobody holds them,
in the forward and the backward pass, with recomputed blocks recomputed; the most at a time is the prediction. What CUDA
does otherwise than the meta device is put in its place: bf16 autocast with its copies of the weights, and attention
that keeps four tensors and no table. Optimiser, average and gradient buckets are added by their sizes.
"""

from __future__ import annotations

import importlib
import inspect
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ggm_lightning.cli import config
from ggm_lightning.core import counting, fused, masked_sites
from ggm_lightning.models.base import Family
from ggm_lightning.models.lddm_base import LatentFamily
from ggm_lightning.models.lddm_stages import Recipe

HALF = torch.bfloat16
CONTEXT = 1.5e9  # CUDA's own, cuBLAS's workspaces, what the allocator cannot use


class Live(TorchDispatchMode):
    """Bytes of the storages that are alive; `peak` is the most so far."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for part in pytree.tree_leaves(out):
            if isinstance(part, Tensor) and part.is_meta:
                self._note(part.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.sizes:
            return
        self.sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


class Flash(torch.autograd.Function):
    """Attention that keeps what went in and what came out."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        q, k, v, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


@contextmanager
def autocast() -> Iterator[None]:
    """bf16 autocast as CUDA has it: a copy of each weight, made once a step."""
    copies: dict[int, tuple[Tensor, Tensor]] = {}

    def half(w: Tensor | None) -> Tensor | None:
        if w is None or w.dtype != torch.float32:
            return w
        if id(w) not in copies:
            copies[id(w)] = (w, w.to(HALF))
        return copies[id(w)][1]

    linear, conv, layer_norm, group_norm, rms_norm = F.linear, F.conv2d, F.layer_norm, F.group_norm, F.rms_norm
    patches = {
        "linear": lambda x, w, b=None: linear(x.to(HALF), half(w), half(b)),
        "conv2d": lambda x, w, b=None, *rest, **more: conv(x.to(HALF), half(w), half(b), *rest, **more),
        "layer_norm": lambda x, *rest, **more: layer_norm(x.float(), *rest, **more),
        "group_norm": lambda x, *rest, **more: group_norm(x.float(), *rest, **more),
        "rms_norm": lambda x, *rest, **more: rms_norm(x.float(), *rest, **more),
        "scaled_dot_product_attention": lambda q, k, v, **_: Flash.apply(q.to(HALF), k.to(HALF), v.to(HALF)),
    }
    with mock.patch.multiple(F, **patches):
        yield


def built(section: dict[str, Any], from_data: dict[str, Any], device: str = "meta", **changes: Any) -> nn.Module:
    """A network or an encoder."""
    kind = class_of(section["class_path"])
    known = inspect.signature(kind).parameters
    taken = {key: value for key, value in from_data.items() if key in known}
    with torch.device(device):
        return kind(**taken, **section.get("init_args", {}), **{k: v for k, v in changes.items() if k in known})


def class_of(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def model_of(path: Path, num_classes: int, shape: tuple[int, ...], device: str = "meta", **changes: Any) -> Family:
    """The file's model at full size; what is not about sizes has its default."""
    section = config.load_file(str(path))["model"]
    from_data = {"num_classes": num_classes, "shape": shape}
    arguments: dict[str, Any] = dict(from_data)
    for name, value in section["init_args"].items():
        if name in ("network", "encoder", "latent_network"):
            arguments[name] = built(value, from_data, device, **changes)
        elif name == "prior":
            own = value["init_args"]
            sizes = {"num_classes": own["num_classes"], "shape": tuple(own["shape"])}
            network = built(own["network"], {}, device, **changes)
            arguments[name] = class_of(value["class_path"])(network, **sizes)
        elif name == "recipe":
            arguments[name] = Recipe(**value)
        elif isinstance(value, bool | int | float) or name in ("loss", "order", "hide", "output", "noise_law"):
            arguments[name] = value
    return class_of(section["class_path"])(**arguments).to(device)


def step_bytes(model: Family, rows: int) -> int:
    """The most at a time beside the weights and the optimiser: gradients, activations, logits. Of a model with a latent
    that is trained, in either of its stages."""
    stages = [10**9]
    if isinstance(model, LatentFamily) and model.recipe.stage1_steps:
        stages.insert(0, 0)
    return max(bytes_at(model, rows, step) for step in stages)


def bytes_at(model: Family, rows: int, step: int) -> int:
    """Those of one optimiser step."""
    x = torch.zeros(rows, *model.shape, dtype=torch.int64, device="meta")
    for family in (part for part in model.modules() if isinstance(part, Family)):  # the model, and a prior within it
        family.looked_at = Everything()
    number = property(lambda sites: sites.mask.numel() // 2)  # the mean of a linear schedule
    thin = mock.patch.object(counting, "thin", lambda x, p, q, u, cap: x * 1)
    with thin, mock.patch.object(masked_sites.MaskedSites, "count", number), autocast():
        model.loss(x[:2], step=step).backward()  # what is made once
        model.zero_grad(set_to_none=True)
        with Live() as live:
            model.loss(x, step=step).backward()
    head = fused._CHUNK_BYTES * 1.5 if model.fuses and model.fused is not False else 0
    return live.peak + int(head)


class Everything(set[Any]):
    """Of which all is looked at already."""

    def __contains__(self, key: object) -> bool:
        return True


def training_bytes(model: Family, rows: int, average: bool = True, ranks: bool = True) -> float:
    """All that a GPU holds in a step of `rows` rows."""
    trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    held = 4 * sum(p.numel() for p in model.parameters()) + trained * (2 + average + ranks)
    return step_bytes(model, rows) + held + CONTEXT
