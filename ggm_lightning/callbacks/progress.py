"""One progress bar for a whole run, or a plain line now and then where the output is no terminal."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from tqdm import tqdm

from ggm_lightning.callbacks.throughput import Rate
from ggm_lightning.models.trained import Trained
from ggm_lightning.report.protocols import HasShape, Reconstructs, is_exact

_RESULTS = (("nelbo", "nats per example", ".3f"), ("bpd", "bits per {}", ".4f"), ("ppl", "perplexity", ".3f"))


class Progress(ProgressBar):
    """Shows the step, its loss, what else the model logs with prog_bar=True, tokens per second, elapsed and remaining
    time. Where an example has several axes, as images have, they are bits per dimension and examples per second.

    The loss is the mean over the step's micro-batches on this rank; the loggers get the mean over the ranks.

    A resumed run starts at its own step. Validation has a bar of its own, which gives way to one line with the result.
    Metrics are taken from the device only when something is shown.

    Args:
        refresh_seconds: how often the bar is brought up to date.
        plain_seconds: how often a line is printed where the output is no terminal.
    """

    shows_step_means = True  # so models/trained.py need not have Lightning fetch the loss at every step

    def __init__(self, refresh_seconds: float = 0.5, plain_seconds: float = 10.0) -> None:
        super().__init__()
        for name, value in (("refresh_seconds", refresh_seconds), ("plain_seconds", plain_seconds)):
            if not value >= 0:
                raise ValueError(f"Progress: {name} is {value}; it must be at least 0")
        self.refresh_seconds = refresh_seconds
        self.plain_seconds = plain_seconds
        self._enabled = True
        self._train: tqdm | None = None
        self._sub: tqdm | None = None
        self._rate = Rate(window=50)
        self._first_step = self._last_step = self._total = 0
        self._started = self._shown = 0.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    @property
    def _stream(self) -> TextIO:
        return sys.stderr  # looked up late, since whoever started the run may have redirected it

    @property
    def _plain(self) -> bool:
        return not self._stream.isatty()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """A line that does not break the bar."""
        if self._enabled:
            tqdm.write(kwargs.get("sep", " ").join(str(a) for a in args), file=self._stream)
            self._stream.flush()

    # training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._enabled:
            return
        self._rate = Rate(window=50)
        self._first_step = self._last_step = trainer.global_step
        steps = trainer.estimated_stepping_batches
        self._total = 0 if steps in (float("inf"), -1) else int(steps)
        self._started = self._shown = time.monotonic()
        if not self._plain:
            self._train = tqdm(
                total=self._total or None,
                initial=self._first_step,
                unit="step",
                desc="training",
                dynamic_ncols=True,
                smoothing=0,  # the average over the run: validation is part of the time that is left
                mininterval=self.refresh_seconds,
                file=self._stream,
                bar_format="{desc} {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._enabled:
            return
        now, step = time.monotonic(), trainer.global_step
        self._rate.add(batch["x"], step_ends=step != self._last_step)
        self._last_step = step
        last = step == self._total
        if self._train is not None and (last or now - self._shown >= self.refresh_seconds):
            self._shown = now
            self._train.set_postfix_str("  ".join(self._values(trainer)), refresh=False)
            self._train.n = step
            self._train.refresh()
        elif self._train is None and (last or now - self._shown >= self.plain_seconds):
            self._shown = now
            self._print_line(trainer, now - self._started)

    def _values(self, trainer: Trainer) -> list[str]:
        """What is shown beside the step; this waits for the device."""
        found = {**_loss(trainer), **trainer.progress_bar_metrics}
        metrics = {
            name.removeprefix("train/"): value
            for name, value in found.items()
            if not name.startswith(("val/", "test/"))
        }
        several = _has_several_axes(trainer)
        labels = {"bpd": "bits/dim" if several else "bits/token"}
        shown = [f"{labels.get(name, name)} {float(value):.4g}" for name, value in metrics.items()]
        examples, tokens = (_short(rate * trainer.world_size) for rate in self._rate.per_second())
        return [*shown, f"{examples} examples/s" if several else f"{tokens} tokens/s"]

    def _print_line(self, trainer: Trainer, elapsed: float) -> None:
        step = trainer.global_step
        done = step - self._first_step
        of = f"/{self._total} ({100 * step / self._total:.0f}%)" if self._total else ""
        left = f"  left {_clock(elapsed / done * (self._total - step))}" if self._total and done else ""
        self.print("  ".join([f"step {step}{of}", *self._values(trainer), f"elapsed {_clock(elapsed)}{left}"]))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._train is not None:
            self._train.n = trainer.global_step
            self._train.refresh()
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        for bar in (self._sub, self._train):
            if bar is not None:
                bar.close()
        self._sub = self._train = None

    # evaluation

    def _open_sub(self, name: str, batches: Any) -> None:
        self._rate.pause()
        if self._enabled and not self._plain:
            total = sum(batches) if isinstance(batches, list) else batches
            self._sub = tqdm(
                total=None if total == float("inf") else int(total),
                desc=name,
                unit="batch",
                leave=False,
                dynamic_ncols=True,
                file=self._stream,
            )

    def _advance_sub(self) -> None:
        if self._sub is not None:
            self._sub.update()

    def _close_sub(self) -> None:
        if self._sub is not None:
            self._sub.close()
            self._sub = None
        self._rate.resume()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        checking = trainer.sanity_checking
        batches = trainer.num_sanity_val_batches if checking else trainer.num_val_batches
        self._open_sub("checking" if checking else "validation", batches)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._advance_sub()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close_sub()
        # outside a fit the command prints its result itself, with or without a bar
        if self._enabled and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            line = result_line(trainer, "val")
            if line:
                self.print(f"step {trainer.global_step}  {line}")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open_sub("test", trainer.num_test_batches)

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._advance_sub()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close_sub()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open_sub("prediction", trainer.num_predict_batches)

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._advance_sub()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close_sub()


def result_line(trainer: Trainer, split: str, further: bool = False) -> str:
    """What was measured, with its errors: known only after the module's own epoch end; empty where it logs nothing.

    Args:
        trainer: behind a validation or a test.
        split: val or test.
        further: also what else was logged, by its names.
    """
    metrics = trainer.callback_metrics
    parts, said = [], set()
    dimension = "dimension" if _has_several_axes(trainer) else "token"
    model = trainer.lightning_module
    for name, unit, form in model.results if isinstance(model, Reconstructs) else _RESULTS:
        value, stderr = (metrics.get(f"{split}/{name}{suffix}") for suffix in ("", "_stderr"))
        said |= {f"{split}/{name}", f"{split}/{name}_stderr"}
        if value is not None:
            error = "" if stderr is None else f" ± {float(stderr):{form}}"
            parts.append(f"{float(value):{form}}{error} {unit.format(dimension)}")
    if further:
        others = {name: value for name, value in metrics.items() if name not in said}
        parts += [f"{name} {float(value):.5g}" for name, value in others.items()]
    is_bound = not isinstance(model, Reconstructs) and not is_exact(model)
    kind = {"val": "validation", "test": "test"}[split]
    what = f"{kind}, upper bound" if is_bound else kind
    return f"{what}: {'  '.join(parts)}" if parts else ""


def _loss(trainer: Trainer) -> dict[str, Any]:
    """Name -> value of this step's loss, of the models of models/trained.py."""
    model = trainer.lightning_module
    if not isinstance(model, Trained):
        return {}
    return {name: value for name, value in model.step_means.means().items() if name == model.loss_name}


def _has_several_axes(trainer: Trainer) -> bool:
    """The places of a sequence are tokens, those of images (and of arrays like them) are dimensions."""
    model = trainer.lightning_module
    return isinstance(model, HasShape) and len(model.shape) > 1


def _short(count: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.0f}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes:02d}:{seconds:02d}"
