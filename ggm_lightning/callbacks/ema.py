"""Exponential moving average of the trained weights: what is validated, sampled, saved and kept at the end.

After optimiser step k (counted from 0):  average <- d_k average + (1 - d_k) weights,  d_k = min(decay, (1+k)/(10+k)).

An own callback and not a subclass of Lightning's `WeightAveraging` (2.6.6), whose storage is a deep copy of the whole
module. That class

- puts the raw weights back in its own `on_validation_epoch_end`, before the module and later callbacks have theirs;
- averages, copies and saves twice what is frozen;
- has no warm-up: after 1,000 steps at decay 0.9999 nine tenths of the average are still the initial weights.

The layout of its checkpoints is kept: `state_dict` holds the averaged weights ready to use, `current_model_state` the
raw ones to resume from, `averaging_state` the counters.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

_SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)


class EMA(Callback):
    """Keeps averages of all parameters that are trained, on the device where the module is.

    Buffers and frozen parameters are taken from the module as they are. Averages of half-precision weights are kept in
    float32: at a decay of 0.9999 their updates would be below bfloat16's resolution.

    Args:
        decay: share of the old average that a step keeps, in [0, 1).
        warmup: let the decay grow as (1+k)/(10+k) until it reaches `decay`; False for the constant decay of the papers.
    """

    def __init__(self, decay: float = 0.9999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: decay is {decay}; choose a number in [0, 1), for example 0.9999")
        self.decay = decay
        self.warmup = warmup
        self.updates = 0
        self._last_step = 0
        self._parameters: dict[str, torch.nn.Parameter] = {}
        self._trained: list[bool] = []
        self._average: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] | None = None  # the trained weights, while the averaged ones stand in the module
        self._restored: dict[str, Tensor] = {}

    def decay_at(self, update: int) -> float:
        """The decay of update number `update`, counted from 0."""
        return min(self.decay, (1 + update) / (10 + update)) if self.warmup else self.decay

    # the average

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if isinstance(trainer.strategy, _SHARDED):
            raise ValueError(
                f"EMA: {type(trainer.strategy).__name__} shards the weights, of which EMA keeps whole averages; "
                "use trainer.strategy ddp or remove the EMA callback"
            )
        # a second fit starts from the weights that are in the module
        self.updates, self._last_step = 0, trainer.global_step
        self._average, self._raw, self._restored = {}, None, {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # only now does the module stand on its device, with the raw weights of a resumed run
        self._parameters = dict(pl_module.named_parameters())
        self._track()
        with torch.no_grad():
            for name, average in self._average.items():
                if name in self._restored:
                    average.copy_(self._restored[name])
        self._restored = {}

    def _track(self) -> None:
        """Averages exactly the parameters that are trained now; those that join start at their present value."""
        self._trained = [p.requires_grad for p in self._parameters.values()]
        self._average = {
            name: self._average[name] if name in self._average else _float_copy(p)
            for name, p in self._parameters.items()
            if p.requires_grad
        }

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last_step:  # accumulating
            return
        self._last_step = trainer.global_step
        # a model may freeze a part of itself in the middle of a run
        if [p.requires_grad for p in self._parameters.values()] != self._trained:
            self._track()
        self.update()

    @torch.no_grad()
    def update(self) -> None:
        """Moves the averages towards the weights."""
        averages = list(self._average.values())
        weights = [self._parameters[name].detach() for name in self._average]
        if any(a.dtype != w.dtype for a, w in zip(averages, weights, strict=True)):
            weights = [w.to(a.dtype) for a, w in zip(averages, weights, strict=True)]
        if averages:
            torch._foreach_lerp_(averages, weights, 1 - self.decay_at(self.updates))
        self.updates += 1

    # averaged weights in place

    @torch.no_grad()
    def put_average(self) -> None:
        """Puts the averaged weights into the module; the raw ones are kept aside."""
        if self._raw is None and self._average:
            self._raw = {name: self._parameters[name].detach().clone() for name in self._average}
            for name, average in self._average.items():
                self._parameters[name].copy_(average)

    @torch.no_grad()
    def put_raw(self) -> None:
        """Puts the raw weights back."""
        if self._raw is not None:
            for name, raw in self._raw.items():
                self._parameters[name].copy_(raw)
            self._raw = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self.put_average()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self.put_raw()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self.put_raw()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.put_average()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            # the strategy has moved the module to the CPU; a checkpoint can still be saved after the fit
            self._average = {name: average.cpu() for name, average in self._average.items()}
            self._raw = None if self._raw is None else {name: raw.cpu() for name, raw in self._raw.items()}

    # checkpoints

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self._average:
            return
        raw = self._raw or {name: self._parameters[name].detach() for name in self._average}
        # a tied parameter has several names in the state dict, but one here
        names = {id(p): name for name, p in self._parameters.items()}
        alias = {name: names.get(id(p)) for name, p in pl_module.named_parameters(remove_duplicate=False)}
        present = checkpoint["state_dict"]
        for key, source in (("state_dict", self._average), ("current_model_state", raw)):
            checkpoint[key] = {name: source.get(alias.get(name), value) for name, value in present.items()}  # type: ignore[arg-type]
        checkpoint["averaging_state"] = {"updates": self.updates, "last_step": self._last_step}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if "averaging_state" not in checkpoint:
            rank_zero_info("EMA: the checkpoint holds no averages; they start at its weights")
            return
        self.updates = checkpoint["averaging_state"]["updates"]
        self._last_step = checkpoint["averaging_state"]["last_step"]
        self._restored = checkpoint["state_dict"]
        # Lightning has just loaded `state_dict`, the averaged weights, into the module
        pl_module.load_state_dict(checkpoint["current_model_state"], strict=pl_module.strict_loading)


def _float_copy(parameter: Tensor) -> Tensor:
    half = parameter.dtype in (torch.float16, torch.bfloat16)
    return parameter.detach().to(torch.float32 if half else parameter.dtype, copy=True)
