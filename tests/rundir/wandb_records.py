"""Reads the .wandb file of an offline run: blocks as LevelDB's log has them, each record a protobuf message."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _HEADER = 32768, 7


def records(path: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, message = path.read_bytes(), _HEADER, b""  # the file begins with 7 bytes of its own
    while at + _HEADER <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:
            at += left  # too small for a header: zeros
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + _HEADER])
        message += data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(message)
            yield record
            message = b""


def rows(path: Path) -> list[dict[str, Any]]:
    """What was logged: name -> value, row by row."""
    found = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            found.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return found


def about(path: Path) -> Any:
    """The run's own record: run_id, project, entity, display_name, run_group, tags, ..."""
    return next(record.run for record in records(path) if record.WhichOneof("record_type") == "run")
