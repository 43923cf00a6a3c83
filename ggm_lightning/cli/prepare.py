"""`lightning prepare`: what a run's data needs on the disk, ahead of time; builds no model, reads no trainer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import auto_cli

from ggm_lightning.data.base import DiscreteData
from ggm_lightning.rundir.codecs import check_loads_again


def run(experiment: dict[str, Any], args: list[str]) -> None:
    """Parses the command's own arguments; of an experiment only its data is taken."""
    if not experiment.get("data") and not any(argument.startswith(("--data", "--help", "-h")) for argument in args):
        raise ValueError("'data' is missing; give --config experiments/<name>.yaml or configs/data/<name>.yaml")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.yaml"
        file.write_text(yaml.safe_dump({"data": experiment.get("data") or {}}, sort_keys=False), encoding="utf-8")
        given = ["--config", str(file)] if experiment.get("data") else []
        auto_cli(prepare, args=[*given, *args], as_positional=False, exit_on_error=False, allow_abbrev=False)  # type: ignore[arg-type]


def prepare(data: DiscreteData, verify: bool = False) -> None:
    """Write what the data needs on the disk, unless it is there already; a preparation that was killed goes on.

    Args:
        data: class_path and init_args of a data set, as in an experiment.
        verify: afterwards read every byte again and compare it with its checksum.
    """
    data.prepare_data()
    check_loads_again(data.codec, data.shape)
    if verify:
        print(data.verify())
    for split in data.splits:
        rows = data.rows(split)
        print(f"{split}: {len(rows):,} rows of shape {list(data.shape)}, {data.num_classes:,} classes")
