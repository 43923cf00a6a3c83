"""The non-finite guard: NaN and infinity are seen in the step where they arise, and never reach a checkpoint.

Every step asks the device whether loss and gradients are finite and keeps the answer there; nobody waits for it. The
host looks every `every_n_steps` steps, before each validation and before each save.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from ggm_lightning.rundir.endings import NonFinite


@runtime_checkable
class ScalesLoss(Protocol):
    """A precision of Lightning's that may multiply the loss: `16-mixed`, also under FSDP."""

    scaler: Any  # None where it does not


class Guard(Callback):
    """Stops a run whose loss or gradients are no longer finite, or leaves out the updates of such steps.

    The first bad step's batch is written to <run folder>/nonfinite-step<step>-rank<rank>.pt: a dict with the step, the
    loss and the batch, for torch.load. last.ckpt and best.ckpt stay as they were before.

    Args:
        action: "stop" ends the run when the host looks; "skip" makes no update in such steps (weights and the
            optimiser's state stay as they are), and ends the run only when no update of a whole interval was finite.
        every_n_steps: steps between two looks.
    """

    def __init__(self, action: str = "stop", every_n_steps: int = 50) -> None:
        if action not in ("stop", "skip"):
            raise ValueError(f"Guard: action is '{action}'; choose stop or skip")
        if every_n_steps < 1:
            raise ValueError(f"Guard: every_n_steps is {every_n_steps}; it must be at least 1")
        self.action, self.every_n_steps = action, every_n_steps
        self._step = 0
        self._written = False
        self._bad_step: Tensor | None = None  # on the device, once training has begun

    # ------------------------------------------------------------------ on the device

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device = pl_module.device
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._loss = torch.zeros((), device=device)
        self._kept: dict[str, Tensor] = {}
        self._step, self._looked_at, self._skipped_before = trainer.global_step, trainer.global_step, 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch: dict[str, Tensor] = batch
        if not self._kept:
            self._kept = {name: torch.zeros_like(value) for name, value in batch.items()}

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._latest = loss.detach().float()
        self._note(~torch.isfinite(self._latest), trainer.global_step + 1)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        precision = trainer.precision_plugin
        if isinstance(precision, ScalesLoss) and precision.scaler is not None:
            return  # float16: infinite gradients are its way to find the loss scale, and it skips them itself
        weights = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None], foreach=True)
        bad = ~torch.isfinite(norm)  # of the gradients summed over the ranks: the same everywhere
        self._note(bad, trainer.global_step + 1)
        if self.action == "skip":
            self._skipped += bad
            self._skip(optimizer, weights, bad)

    def _note(self, bad: Tensor, step: int) -> None:
        """Keeps step, loss and batch where `bad` is true for the first time."""
        assert self._bad_step is not None
        first = bad & (self._bad_step < 0)
        self._bad_step = torch.where(first, step, self._bad_step)
        self._loss = torch.where(first, self._latest, self._loss)
        self._kept = {name: torch.where(first, self._batch[name], kept) for name, kept in self._kept.items()}

    @staticmethod
    def _skip(optimizer: torch.optim.Optimizer, weights: list[torch.nn.Parameter], bad: Tensor) -> None:
        if all(group.get("fused") for group in optimizer.param_groups):
            optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # fused kernels leave everything as it is then
        elif bool(bad):  # without a fused kernel the host has to know
            for weight in weights:
                weight.grad = None

    # ------------------------------------------------------------------ on the host

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._step and trainer.global_step % self.every_n_steps == 0:
            self._look(trainer)
        self._step = trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        bound = trainer.callback_metrics.get("val/nelbo")
        if bound is not None and not trainer.sanity_checking and not math.isfinite(bound):
            rank_zero_warn(
                f"step {trainer.global_step}: val/nelbo is {float(bound)} although all weights are finite; "
                "`lightning predict` says which examples it comes from"
            )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._look(trainer)
        saved = (checkpoint.get(part, {}) for part in ("state_dict", "current_model_state", "optimizer_states"))
        if not all_finite(saved):
            raise NonFinite(
                f"weights or optimiser state are not finite at step {trainer.global_step}; {self._remedy(trainer)}"
            )

    def _look(self, trainer: Trainer) -> None:
        """The only place where the host waits for the device."""
        if self._bad_step is None:
            return
        bad_step, skipped = int(self._bad_step), int(self._skipped)
        steps, new = trainer.global_step - self._looked_at, skipped - self._skipped_before
        self._looked_at, self._skipped_before = trainer.global_step, skipped
        if bad_step >= 0 and not self._written:
            self._write(trainer, bad_step)
        if not trainer.strategy.reduce_boolean_decision(bad_step >= 0, all=False):
            return
        file = _file(trainer, bad_step) if trainer.world_size == 1 else _file(trainer, bad_step, "*")
        if self.action == "stop":
            raise NonFinite(
                f"loss or gradients are not finite since step {bad_step}, whose batch is in {file}; "
                f"{self._remedy(trainer)}"
            )
        if new and new == steps >= self.every_n_steps:
            raise NonFinite(f"no update of the last {steps} steps was finite; {self._remedy(trainer)}")
        if new:
            rank_zero_warn(f"step {trainer.global_step}: {skipped} updates left out so far, not finite (first: {file})")

    def _write(self, trainer: Trainer, bad_step: int) -> None:
        self._written = True
        batch = {name: kept.cpu() for name, kept in self._kept.items()}
        file = _file(trainer, bad_step)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"step": bad_step, "loss": self._loss.cpu(), "batch": batch}, file)

    def _remedy(self, trainer: Trainer) -> str:
        last = Path(trainer.default_root_dir) / "last.ckpt"
        kept = f"{last} is from before" if last.is_file() else "nothing was saved"
        return f"{kept}; clip harder (trainer.gradient_clip_val), let Guard skip such steps, or start with a lower lr"


def _file(trainer: Trainer, step: int, rank: str | None = None) -> Path:
    return Path(trainer.default_root_dir) / f"nonfinite-step{step:06d}-rank{rank or trainer.global_rank}.pt"


def all_finite(values: Any) -> bool:
    """Whether every floating-point tensor in nested dicts and lists is finite; the host waits once per device."""
    bad: dict[torch.device, Tensor] = {}
    for tensor in _tensors(values):
        if tensor.is_floating_point():
            found = ~torch.isfinite(tensor).all()
            bad[tensor.device] = bad[tensor.device] | found if tensor.device in bad else found
    return not any(bool(found) for found in bad.values())


def _tensors(values: Any) -> Iterable[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(values.values())
    elif not isinstance(values, str | bytes) and isinstance(values, Iterable):
        for value in values:
            yield from _tensors(value)
