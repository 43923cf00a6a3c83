"""The True sites of a mask, gathered without stopping a GPU.

How many sites a step masks decides how large its logits are, so the host has to know it. `nonzero` asks for it when all
the work that stands before it has been done: the device then runs dry. Here the mask is counted as soon as it has been
drawn, before the network is called, and the number travels to the host while the network computes; the host looks at
it when it has handed out the network's whole forward pass. By then it is there, or the device has a network to go on
with. A mask on the CPU is gathered by `nonzero`, which waits for nothing there; on the meta device, where there are no
values, all sites are taken: the most there can be.

A step of masked diffusion, arXiv 2406.04329, is what this is for.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

UNKNOWN = -1  # a count that has to be found out from the mask


class MaskedSites:
    """Bool[b, n], and where it is True.

    Args:
        mask: as made by the corruption. Make this object before the network is called.
        count: how many are True, where that is known beforehand.
    """

    def __init__(self, mask: Bool[Tensor, "b n"], count: int | None = None) -> None:
        self.mask = mask
        self._count = count
        self._arriving: _Arriving | None = None
        if count is None and _waits(mask):
            self._arriving = _Arriving(mask.sum())

    @property
    def count(self) -> int:
        """How many are True, or UNKNOWN where `nonzero` may find out."""
        if self._count is None:
            if self._arriving is not None:
                self._count = self._arriving.value()
            elif self.mask.is_meta:
                self._count = self.mask.numel()
            else:
                self._count = UNKNOWN
        return self._count

    def index(self) -> Int64[Tensor, " k"]:
        """The True sites of the flattened mask, in their order."""
        return indices(self.mask.flatten(), self.count)


def _waits(mask: Tensor) -> bool:
    """Whether `nonzero` would stop the host until the device has come so far."""
    return mask.device.type not in ("cpu", "meta")


class _Arriving:
    """A number on its way from a GPU to the host."""

    def __init__(self, number: Tensor) -> None:
        self._number = number.to("cpu", non_blocking=True)  # into pinned memory
        self._event = torch.cuda.Event()
        self._event.record()

    def value(self) -> int:
        self._event.synchronize()  # with what was handed out before the number, not with all that came after it
        return int(self._number)


def indices(mask: Bool[Tensor, " n"], count: int) -> Int64[Tensor, " k"]:
    """Where `mask` is True, in rising order; `count` is how often, or UNKNOWN."""
    if count == UNKNOWN:
        return torch.nonzero(mask)[:, 0]
    place = torch.where(mask, mask.cumsum(0) - 1, count)  # one place more, for all that is not asked for
    found = torch.zeros(count + 1, dtype=torch.int64, device=mask.device)
    return found.scatter_(0, place, torch.arange(len(mask), device=mask.device))[:count]
