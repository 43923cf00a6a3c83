"""The largest of the ranks' codes, such as that of a signal, agreed upon between the hosts and without the devices.

A reduction of a tensor on a GPU ends in a look at its value, and so waits for all work that was handed out before it:
once a step that is a device which runs dry once a step. Here the codes go through a gloo group of the hosts, while the
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

    def ask(self, code: int) -> int:
        """The largest of all ranks' codes when this was asked the time before; of a rank alone, and where the ranks
        have no process group, the largest now. 0, the smallest, says that there is nothing to agree upon."""
        if self._trainer.world_size == 1:
            return code
        if not self._between_hosts:
            return self._by_decisions(code)
        before = self.settle()
        asked = torch.from_numpy(np.array(code))
        self._asked = asked, distributed.all_reduce(asked, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        return before

    def _by_decisions(self, code: int) -> int:
        """Where the strategy knows yes and no alone: one question as long as all codes are 0, and one more for each
        step up to the largest."""
        largest = 0
        while self._trainer.strategy.reduce_boolean_decision(code > largest, all=False):
            largest += 1
        return largest

    def largest(self, number: int) -> int:
        """Of all ranks' numbers; they wait for each other."""
        if not self._between_hosts:
            return number
        found = torch.from_numpy(np.array(number))
        distributed.all_reduce(found, distributed.ReduceOp.MAX, group=self._group)
        return int(found.numpy())

    def settle(self) -> int:
        """The answer to what was asked last; 0 where nothing was. Hosts wait for each other, not for devices."""
        if self._asked is None:
            return 0
        (asked, work), self._asked = self._asked, None
        work.wait()
        return int(asked.numpy())
