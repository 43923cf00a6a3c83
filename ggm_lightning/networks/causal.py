"""Keys and values of the sites that a causal network has read: each new token then costs one site, not all of them.

A cache gives the same features as reading everything again, up to the order of sums (arXiv 1706.03762, the decoder).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


class Memory:
    """Keys and values of one block, in the order of the sites.

    Args:
        capacity: sites that there will be at most.
    """

    def __init__(self, capacity: int):
        self.capacity, self.length = capacity, 0
        self._keys: Tensor | None = None  # [b, capacity, heads, h], made when the first ones say their size
        self._values: Tensor | None = None

    def append(
        self, keys: Float[Tensor, "b m heads h"], values: Float[Tensor, "b m heads h"]
    ) -> tuple[Float[Tensor, "b n heads h"], Float[Tensor, "b n heads h"]]:
        """All keys and values so far, these m behind the others. Raises ValueError beyond the capacity."""
        b, m, heads, width = keys.shape
        end = self.length + m
        if end > self.capacity:
            raise ValueError(f"the cache was made for {self.capacity} sites, {end} came; make it for more")
        if self._keys is None or self._values is None:
            self._keys = keys.new_empty(b, self.capacity, heads, width)
            self._values = values.new_empty(b, self.capacity, heads, width)
        self._keys[:, self.length : end] = keys
        self._values[:, self.length : end] = values
        self.length = end
        return self._keys[:, :end], self._values[:, :end]


class Cache:
    """A memory for each block of a network.

    Args:
        num_blocks: blocks.
        capacity: sites that there will be at most.
    """

    def __init__(self, num_blocks: int, capacity: int):
        self.blocks = [Memory(capacity) for _ in range(num_blocks)]

    @property
    def length(self) -> int:
        """Sites read so far."""
        return self.blocks[0].length
