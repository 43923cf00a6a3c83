"""What Lightning is told of the ranks that srun has started: the words of cli/launcher.py, and no others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from ggm_lightning.cli.launcher import Place
from ggm_lightning.rundir import hub as hubs

_SILENCE = 120.0  # seconds after which a rank that says nothing counts as gone, if the group's time-out is no shorter


class Launched(ClusterEnvironment):
    """Ranks, nodes and numbers of a place. The port of torch's own meeting is chosen by rank 0 at the last moment,
    where it is free.

    Args:
        place: of this process.
        address: of rank 0's node.
    """

    def __init__(self, place: Place, address: str) -> None:
        super().__init__()
        self.place, self._address = place, address
        self._port: int | None = None

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self._address

    @property
    def main_port(self) -> int:
        if self._port is None:
            self._port = self._agreed_port()
        return self._port

    def _agreed_port(self) -> int:
        hub = hubs.current()
        if hub is None:
            return hubs.free_port()
        if hub.rank != 0:
            return int(hub.hear("port"))
        port = int(os.environ.get("MASTER_PORT") or hubs.free_port())
        hub.tell("port", port)
        return port

    @staticmethod
    def detect() -> bool:
        return False  # it is given to the trainer, never looked for

    def world_size(self) -> int:
        return self.place.ranks

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return self.place.rank

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return self.place.local_rank

    def node_rank(self) -> int:
        return self.place.node_rank


def environments(place: Place, address: str, plugins: Sequence[Any]) -> list[ClusterEnvironment]:
    """What is to be among the trainer's plugins."""
    if any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        return []
    if place.launcher == "srun":
        return [Launched(place, address)]
    # in a job, but not by srun: Lightning would still believe SLURM's numbers
    alone = place.launcher in ("", "lightning") and place.job is not None
    return [LightningEnvironment()] if alone else []


def check_ranks(trainer: Trainer, place: Place) -> None:
    """ValueError where the devices that were found (`devices: auto`) are another number than the launcher's ranks."""
    if place.is_together and trainer.world_size != place.ranks:
        raise ValueError(
            f"{place.launcher} started {place.ranks} processes, but trainer.num_nodes is {trainer.num_nodes} and "
            f"{trainer.num_devices} devices were found on this node; write --trainer.num_nodes={place.nodes} "
            f"--trainer.devices={place.per_node[0]}"
        )
    hub = hubs.current()
    if hub is not None:
        hub.silence = silence(trainer.strategy)


def silence(strategy: Strategy) -> float:
    """Half the group's time-out, so that the rank is named before torch gives up without a name."""
    timeout = strategy._timeout if isinstance(strategy, DDPStrategy) else None
    return _SILENCE if timeout is None else min(_SILENCE, timeout.total_seconds() / 2)
