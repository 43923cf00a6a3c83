"""bounds.csv: what `lightning predict` writes, one line per example."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from ggm_lightning.rundir.folder import unused_path


class Bounds(BasePredictionWriter):
    """Writes <run folder>/bounds.csv: index in the data set, upper bound on -log p in nats and in bits per dimension.
    Other bounds that are there already, of another checkpoint or other data, stay: these go to bounds-2.csv, and so on.

    Every rank writes its own part; rank zero joins them in the order of the data set.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        rows = torch.cat([part["row"].cpu() for part in predictions]) if predictions else torch.zeros(0)
        nats = torch.cat([part["nelbo"].double().cpu() for part in predictions]) if predictions else torch.zeros(0)
        torch.save({"row": rows, "nats": nats}, _part(folder, trainer.global_rank))
        trainer.strategy.barrier("bounds")
        if not trainer.is_global_zero:
            return
        parts = [torch.load(_part(folder, rank), weights_only=True) for rank in range(trainer.world_size)]
        rows, nats = (torch.cat([part[name] for part in parts]) for name in ("row", "nats"))
        order = rows.argsort()
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["example", "nats", "bits_per_dimension"])
        for example, bound in zip(rows[order].tolist(), nats[order].tolist(), strict=True):
            writer.writerow([int(example), repr(bound), repr(bound / (pl_module.num_sites * math.log(2)))])
        content = text.getvalue().encode()
        file = unused_path(folder / "bounds.csv", content)
        file.write_bytes(content)
        for rank in range(trainer.world_size):
            _part(folder, rank).unlink()
        rank_zero_info(f"bounds of {len(rows)} examples: {file}")


def _part(folder: Path, rank: int) -> Path:
    return folder / f".bounds-{rank}.pt"
