"""How everything here is optimised, and what its checkpoints say of it: the base of the families and of the VQGAN.

AdamW, arXiv 1711.05101, its learning rate along half a cosine, arXiv 1608.03983.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from ggm_lightning.models import declared
from ggm_lightning.rundir.checkpoint import describe


@runtime_checkable
class Averages(Protocol):
    """A callback that keeps averages of the weights, as callbacks/ema.py does.

    Attributes:
        decay: share of the old average that a step keeps.
    """

    decay: float

    def put_average(self) -> None:
        """Puts the averaged weights into the module; the raw ones are kept aside."""

    def put_raw(self) -> None:
        """Puts the raw weights back."""


@runtime_checkable
class DealsBatches(Protocol):
    """The order of a training loader, as data/order.py makes it.

    Attributes:
        global_batch: rows of an optimiser step, over all ranks and micro-batches.
    """

    global_batch: int


@dataclass(frozen=True)
class Optimizer:
    """AdamW on all parameters, linear warm-up, then a half cosine to 0 at the last step (or constant).

    Attributes:
        lr: peak learning rate.
        betas, eps, weight_decay: as torch.optim.AdamW (decoupled decay).
        warmup_steps: lr grows as step / warmup_steps, step counted from 0.
        decay: "cosine" or "constant".
    """

    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay: str = "cosine"

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "weight_decay", "warmup_steps"):
            value = getattr(self, name)
            if value is None or not 0 <= value < math.inf:
                raise ValueError(f"optimizer.{name} is {value}; it must be at least 0 and finite")
        if self.betas is None or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas are {self.betas}; both must lie in [0, 1)")
        if self.decay not in ("cosine", "constant"):
            raise ValueError(f"optimizer.decay is '{self.decay}'; choose cosine or constant")

    def factor(self, step: int, total_steps: float) -> float:
        """The learning rate at `step` as a share of lr."""
        warm = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        if self.decay == "constant":
            return warm
        progress = (step - self.warmup_steps) / max(1.0, total_steps - self.warmup_steps)
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))


class StepMeans:
    """Scalars of one optimiser step, averaged over its micro-batches as the gradient is: each of them counts the same.

    Everything stays on the device; nothing here waits for it.
    """

    def __init__(self) -> None:
        self.step = -1  # optimiser steps done before the one that is collected; -1 as long as there is nothing
        self._values: dict[str, list[Tensor]] = {}

    def add(self, step: int, values: dict[str, Tensor]) -> None:
        """Scalars of a micro-batch of this step, by name; the first ones of another step replace those before."""
        if step != self.step:
            self.clear()
            self.step = step
        for name, value in values.items():
            self._values.setdefault(name, []).append(value.detach())

    def clear(self) -> None:
        self.step, self._values = -1, {}

    def means(self) -> dict[str, Tensor]:
        """Name -> mean over the micro-batches seen so far, on this rank. Of a single one its value, to the bit."""
        return {name: torch.stack(seen).mean() if len(seen) > 1 else seen[0] for name, seen in self._values.items()}


class Trained(LightningModule):
    """What the command line trains: how it is optimised, what is logged of a step, what its checkpoints say of it.

    What `training_step` gives to `collect` is logged when the optimiser step has ended, as the mean over its
    micro-batches and over the ranks: the objective of the whole global batch, however it was divided. The ranks add up
    their means only in steps that reach the loggers (every trainer.log_every_n_steps); in between,
    `trainer.callback_metrics` and the progress bar hold the mean of their own rank.
    """

    optimizer: Optimizer
    resolved_config: dict[str, Any] | None = None  # set by the command line, kept in checkpoints
    started_from: dict[str, Any] | None = None  # the weights that a run started from (rundir/start.py), of checkpoints
    codec: Any = None  # what the ids stand for, where a checkpoint says so (rundir/restore.py)
    best_by = "val/nelbo"  # best.ckpt has its lowest value
    loss_name = "train/bpd"  # under which the training loss is logged; another where it is not bits per dimension
    # what a checkpoint of format 1 means where it does not name these arguments, which did not exist then: the
    # constructor's defaults have become others since (rundir/building.py fills them in)
    defaults_before: Mapping[str, Any] = MappingProxyType({})

    def __init__(self) -> None:
        super().__init__()
        self.step_means = StepMeans()
        self._weight = 1.0  # rows of the present micro-batch, in units of their mean over the step's parts

    def compile_all(self, *modules: nn.Module | None) -> None:
        """Compiles what asks for it (models/declared.py), as it suits the trainer, if there is one."""
        trainer = self._trainer
        if trainer is None:
            declared.compile_all(*modules)
        else:
            on_gpu = trainer.strategy.root_device.type == "cuda"
            declared.compile_all(*modules, on_gpu=on_gpu, micro_batches=trainer.accumulate_grad_batches)

    def collect(self, values: dict[str, Tensor]) -> None:
        """Scalars of this micro-batch, by the names under which their means are logged."""
        self.step_means.add(self.global_step, {name: self.weighed(value) for name, value in values.items()})

    def divides(self, rows: int) -> tuple[int, int]:
        """(parts that the optimiser step is made of, its rows in all), known from a micro-batch of `rows` rows.

        A loader that does not say how many rows a step has, such as a plain DataLoader, is taken to deal out equal
        parts.
        """
        parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        order = getattr(getattr(self.trainer, "train_dataloader", None), "sampler", None)
        total = order.global_batch if isinstance(order, DealsBatches) else rows * parts
        self._weight = rows * parts / total
        return parts, total

    def weighed(self, mean: Tensor) -> Tensor:
        """A mean over the rows of this micro-batch, so that the plain mean over all parts of the step is the mean over
        its rows: parts of unequal size count by their rows. Where they are equal, the number itself."""
        return mean if self._weight == 1 else mean * self._weight

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Lightning calls this after all callbacks' hooks, just before it hands the step's metrics to the loggers
        if self.step_means.step < 0 or self.global_step == self.step_means.step:
            return  # nothing collected, or accumulating
        means = self.step_means.means()
        self.step_means.clear()
        if self.trainer.world_size > 1 and self._is_logged():
            # one call for all of them; a float32 beside a float64 becomes one
            reduced = self.trainer.strategy.reduce(torch.stack(list(means.values())), reduce_op="mean")
            means = dict(zip(means, reduced.unbind(), strict=True))
        for name, value in means.items():
            shown = name == self.loss_name and self._has_stock_bar()
            self.log(name, value, prog_bar=shown, on_step=True, on_epoch=False)

    def _is_logged(self) -> bool:
        """Lightning's own rule, from the number of steps alone: the same on every rank."""
        return bool(self.trainer._logger_connector.should_update_logs or self.trainer.fast_dev_run)  # type: ignore[attr-defined]

    def _has_stock_bar(self) -> bool:
        """Whether the bar wants numbers: for what is logged with prog_bar=True, Lightning waits for the device after
        every micro-batch. Ours (callbacks/progress.py) takes the loss from the device only when it shows it."""
        bar = self.trainer.progress_bar_callback
        return bar is not None and not hasattr(bar, "shows_step_means")

    def carried_arguments(self) -> dict[str, Any]:
        """Constructor arguments that a checkpoint holds beside those of the configuration: what files contained."""
        return {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained, as torch's optimisers take it; a group may set its own lr and weight_decay."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def configure_optimizers(self) -> Any:
        o = self.optimizer
        # one kernel per step on a GPU, which can also leave a step out without asking the host (callbacks/guard.py)
        fused = self.device.type == "cuda" or None
        optimizer = torch.optim.AdamW(self.parameter_groups(), o.lr, o.betas, o.eps, o.weight_decay, fused=fused)
        total = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: o.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        # Lightning refuses its own clipping with fused AdamW under bf16-mixed, where nothing needs unscaling
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            norm = nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val, foreach=True)
            self.log("train/grad_norm", norm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        require_ema(self.trainer, checkpoint)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ggm_lightning"] = describe(self)


def require_ema(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """An averaged checkpoint is not to be resumed without a callback that averages.

    Raises:
        ValueError: the run would silently go on from the averaged weights, with the optimiser state of the raw ones.
    """
    if "averaging_state" not in checkpoint or trainer.state.fn != TrainerFn.FITTING:
        return
    if not any(isinstance(callback, Averages) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise ValueError(
            "the checkpoint to resume holds averaged weights, but trainer.callbacks has no EMA; add "
            "ggm_lightning.callbacks.ema.EMA to trainer.callbacks"
        )
