"""A file that every rank needs is read by one rank of each node, which sends it to the others there.

64 ranks that each read a checkpoint of 6 GB, and its checksums, read 400 GB from one file system.
"""

from __future__ import annotations

import io
import os
import pickle
import socket
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed


def once_per_node(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `read` returns; every rank of torch's group calls this. An error is raised on all ranks of the node."""
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return read()
    ranks, group = _of_this_node()
    if len(ranks) == 1:
        return read()
    if distributed.get_rank() == ranks[0]:
        return _send(read, ranks[0], group)
    return _receive(ranks[0], group)


def _of_this_node() -> tuple[list[int], Any]:
    """Its ranks, and a group of the hosts of them."""
    everybody = distributed.new_group(backend="gloo")
    names: list[Any] = [None] * distributed.get_world_size()
    own = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    distributed.all_gather_object(names, own, group=everybody)
    found: tuple[list[int], Any] | None = None
    for name in sorted(set(names)):  # every rank makes all groups, in one order
        ranks = [rank for rank, theirs in enumerate(names) if theirs == name]
        group = distributed.new_group(ranks, backend="gloo")
        if name == own:
            found = ranks, group
    assert found is not None
    return found


class _WithoutTensors(pickle.Pickler):
    """Everything but the tensors, which are kept in the order in which they came."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, Tensor):
            return None
        self.tensors.append(value)
        return len(self.tensors) - 1


class _WithTensors(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, number: Any) -> Tensor:
        return self._tensors[number]


def _send(read: Callable[[], dict[str, Any]], source: int, group: Any) -> dict[str, Any]:
    try:
        content = read()
    except Exception as error:
        distributed.broadcast_object_list([None, str(error)], source, group=group)
        raise
    file = io.BytesIO()
    pickler = _WithoutTensors(file)
    pickler.dump(content)
    sizes = [(tensor.shape, tensor.dtype) for tensor in pickler.tensors]
    distributed.broadcast_object_list([file.getvalue(), sizes], source, group=group)
    for tensor in filter(Tensor.numel, pickler.tensors):
        distributed.broadcast(_bytes(tensor.detach().cpu().contiguous()), source, group=group)
    return content


def _receive(source: int, group: Any) -> dict[str, Any]:
    head: list[Any] = [None, None]
    distributed.broadcast_object_list(head, source, group=group)
    if head[0] is None:
        raise ValueError(head[1])
    tensors = [torch.empty(shape, dtype=dtype) for shape, dtype in head[1]]
    for tensor in filter(Tensor.numel, tensors):
        distributed.broadcast(_bytes(tensor), source, group=group)
    content: dict[str, Any] = _WithTensors(io.BytesIO(head[0]), tensors).load()
    return content


def _bytes(tensor: Tensor) -> Tensor:
    """The same memory."""
    return tensor.reshape(-1).view(torch.uint8)
