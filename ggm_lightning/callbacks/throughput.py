"""How fast a run trains: examples and tokens per second, without validation time and without waiting for the device."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Rate:
    """Counts per second over the last `window` steps, by a clock that can be stopped.

    Counting needs only shapes, so no step waits for the device. A device's queue is short against the window: the
    host's clock measures it well enough.
    """

    def __init__(self, window: int) -> None:
        self._marks: deque[tuple[float, int, int]] = deque(maxlen=window + 1)
        self._examples = self._tokens = 0
        self._stopped_at: float | None = None
        self._paused = 0.0
        self.start()

    def _now(self) -> float:
        return time.perf_counter() - self._paused

    def start(self) -> None:
        """Forgets what was counted before."""
        self._marks.clear()
        self._marks.append((self._now(), self._examples, self._tokens))

    def pause(self) -> None:
        if self._stopped_at is None:
            self._stopped_at = time.perf_counter()

    def resume(self) -> None:
        if self._stopped_at is not None:
            self._paused += time.perf_counter() - self._stopped_at
            self._stopped_at = None

    def add(self, x: Any, step_ends: bool = True) -> None:
        """A micro-batch's examples Int[b, *s], and whether an optimiser step ends with it."""
        self._examples += x.shape[0]
        self._tokens += x.numel()
        if step_ends:
            self._marks.append((self._now(), self._examples, self._tokens))

    def per_second(self) -> tuple[float, float]:
        """(examples, tokens) per second on this rank; zeros before the first step."""
        first, last = self._marks[0], self._marks[-1]
        seconds = last[0] - first[0]
        if seconds <= 0:
            return 0.0, 0.0
        return (last[1] - first[1]) / seconds, (last[2] - first[2]) / seconds


class Throughput(Callback):
    """Logs train/tokens_per_s and train/examples_per_s every `log_every_n_steps` steps, over all ranks.

    A token is one site of `batch["x"]`. Every rank has the same batch size, so one rank's rate times their number is
    the whole, and no communication is needed.

    Args:
        window: optimiser steps over which the rate is taken.
    """

    def __init__(self, window: int = 100) -> None:
        if window < 1:
            raise ValueError(f"Throughput: window is {window}; it must be at least 1 step")
        self.window = window
        self.rate = Rate(window)
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rate = Rate(self.window)
        self._step = trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rate.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rate.resume()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step_ends = trainer.global_step != self._step
        self.rate.add(batch["x"], step_ends)
        if not step_ends:
            return
        self._step = trainer.global_step
        if trainer.log_every_n_steps and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            examples, tokens = (rate * trainer.world_size for rate in self.rate.per_second())
            pl_module.log_dict(
                {"train/tokens_per_s": tokens, "train/examples_per_s": examples}, batch_size=batch["x"].shape[0]
            )
