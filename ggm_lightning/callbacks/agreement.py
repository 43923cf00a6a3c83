"""Whether any rank has raised its flag, agreed upon between the hosts and without the devices.

A reduction of a tensor on a GPU ends in a look at its value, and so waits for all work that was handed out before it:
once a step that is a device which runs dry once a step. Here the flags go through a gloo group of the hosts, while the
devices compute, and the answer to the question of one step is taken in the next.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import distributed


class Agreement:
    """One run's questions; every rank asks each of them, in the same order.

    Args:
        trainer: whose ranks they are; alone a rank agrees with itself at once.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._between_hosts = trainer.world_size > 1 and distributed.is_available() and distributed.is_initialized()
        self._group = None
        if self._between_hosts and distributed.get_backend() != "gloo":
            self._group = distributed.new_group(backend="gloo")
        self._asked: tuple[torch.Tensor, Any] | None = None

    def ask(self, raised: bool) -> bool:
        """Whether a flag was raised when this was asked the time before; of a rank alone, and where the ranks have no
        process group, whether one is raised now."""
        if not self._between_hosts:
            return self._trainer.strategy.reduce_boolean_decision(raised, all=False)
        before = self.settle()
        flag = torch.from_numpy(np.array(int(raised)))
        self._asked = flag, distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        return before

    def largest(self, number: int) -> int:
        """Of all ranks' numbers; they wait for each other."""
        if not self._between_hosts:
            return number
        found = torch.from_numpy(np.array(number))
        distributed.all_reduce(found, distributed.ReduceOp.MAX, group=self._group)
        return int(found.numpy())

    def settle(self) -> bool:
        """The answer to what was asked last; False where nothing was. Hosts wait for each other, not for devices."""
        if self._asked is None:
            return False
        (flag, work), self._asked = self._asked, None
        work.wait()
        return bool(flag.numpy())
