"""Counts what would stop a host that drives a GPU, on a machine that has none.

A model on the meta device has no values: whatever asks for one raises, and what is copied from or to another device is
seen as such. On the CPU the same operations are told by their names, which is how what runs below a custom operator is
counted, too."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ggm_lightning.core import fused

_FUSED = fused._linear_cross_entropy
# operations whose result's size or value the host must know
ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "unique2", "_unique2", "equal", "is_nonzero")


def _devices(values: Any) -> set[str]:
    """Of the tensors in `values`; numbers that are held as 0-dim tensors of the host are scalars to every device."""
    tensors = [part for part in pytree.tree_leaves(values) if isinstance(part, Tensor)]
    return {part.device.type for part in tensors if part.dim() or part.device.type != "cpu"}


class DeviceWaits(TorchDispatchMode):
    """`counts`: what was seen, by name. In the host's own numbers (`host=True` counts the CPU as the device) anything
    may be looked at."""

    def __init__(self, host: bool = False) -> None:
        super().__init__()
        self.host = host
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[-1]
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        given = _devices((args, kwargs))
        if (by_mask or name in ASKING) and (self.host or given - {"cpu"}):
            self.counts[name] += 1
        if func is _FUSED._opoverload and self.host:  # what is below an operator of ours runs out of sight
            with self:
                return _FUSED._init_fn(*args, **kwargs)
        out = func(*args, **kwargs)
        if len(given | _devices(out)) > 1 and not func._schema.name.startswith("c10d"):
            self.counts[f"copy by {name}"] += 1
        return out
