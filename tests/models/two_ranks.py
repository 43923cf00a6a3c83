"""Training steps of two ranks (gloo), with the callbacks of a run, counted by tests/models/device_waits.py:

python -m tests.models.two_ranks [the broadcast that Lightning makes]
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from ggm_lightning.callbacks.ema import EMA
from ggm_lightning.callbacks.guard import Guard
from ggm_lightning.callbacks.keep import KeepLast
from ggm_lightning.callbacks.stop import StopSignals
from ggm_lightning.core import masked_sites
from tests.models.device_waits import DeviceWaits
from tests.models.test_device_waits import Arrived
from tests.models.test_fused_training import N, V, family

FIRST, LAST = 3, 7  # batches between whose beginnings everything is counted


class Counts(Callback):
    """The first of the callbacks: what lies between two of its beginnings is a whole step."""

    def __init__(self) -> None:
        self.seen = DeviceWaits(host=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        if batch_idx == FIRST:
            self.seen.__enter__()
        if batch_idx == LAST:
            self.seen.__exit__(None, None, None)
            asked = sum(self.seen.counts.values())
            line = f"rank {trainer.global_rank}: asked {asked} times in {LAST - FIRST} steps\n"
            os.write(1, line.encode())  # in one piece: both ranks write into one pipe
            print(dict(self.seen.counts), file=sys.stderr)


def main() -> None:
    masked_sites._waits, masked_sites._Arriving = lambda mask: True, Arrived  # as on a GPU
    x = torch.randint(V, (64, N), generator=torch.Generator().manual_seed(0))
    loader = DataLoader([{"x": row} for row in x], batch_size=4)
    model = family("md4")
    model.fused = True
    model.configure_optimizers = lambda: torch.optim.AdamW(model.parameters(), fused=True)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        keep = KeepLast(str(Path(folder)), every_n_steps=1000)
        stop = StopSignals(keep)
        if "broadcast" in sys.argv:  # a control
            stop.on_train_start = stop._install = lambda *_: None  # type: ignore[method-assign]
            stop.on_train_batch_end = lambda *_: None  # type: ignore[method-assign]
        trainer = Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            max_epochs=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=True,
            default_root_dir=folder,
            callbacks=[Counts(), EMA(), Guard(), keep, stop],
        )
        trainer.fit(model, loader)


if __name__ == "__main__":
    main()
