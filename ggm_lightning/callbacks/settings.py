"""Settings of the optimiser that were changed when a run is resumed: those of the configuration are used.

A checkpoint holds the optimiser's settings beside its state, and restoring it would silently bring the old ones back.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import LambdaLR


class ChangedOptimizer(Callback):
    """Keeps the settings with which the optimisers were made (learning rate, betas, weight decay, ..), and puts them
    back after the checkpoint's have been restored; the moments stay the checkpoint's."""

    def __init__(self) -> None:
        self._made: list[list[dict[str, Any]]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # the optimisers are made, and the checkpoint's state is not yet in them
        self._made = [
            [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer, made in zip(trainer.optimizers, self._made, strict=True):
            # a callback of the user's own may have added groups since, which keep what they were restored with
            for group, settings in zip(optimizer.param_groups, made, strict=False):
                group.update(settings)
        for config in trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            if isinstance(scheduler, LambdaLR):
                scheduler.base_lrs = [group["initial_lr"] for group in scheduler.optimizer.param_groups]
                for group, base, factor in zip(
                    scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
                ):
                    group["lr"] = base * factor(scheduler.last_epoch)
                scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
