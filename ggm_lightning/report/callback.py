"""curve.png and report.html at the end of a fit."""

from __future__ import annotations

import platform
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from ggm_lightning.models.trained import Averages, Trained
from ggm_lightning.report.curve import curve_png
from ggm_lightning.report.drawing import classes_in_turn, decode, refuse_sampler, undisturbed
from ggm_lightning.report.images import image_figures, reconstruction_figure
from ggm_lightning.report.page import write_report
from ggm_lightning.report.protocols import (
    CountsCharacters,
    HasReferences,
    HasShape,
    Judges,
    Reconstructs,
    datamodule_of,
    is_exact,
    pieces_of,
)
from ggm_lightning.report.trace import trace_html
from ggm_lightning.rundir.csv_log import FILE_NAME, CSVLog, Curve, read_metrics
from ggm_lightning.sampling.sampler import Sampler

SHOWN_TEXTS = 8


class Report(Callback):
    """Draws samples with the averaged weights and writes what became of the run into its folder.

    The data module may add (report/protocols.py): `references()` -> name -> bits per dimension, lines in the curve;
    `characters_per_token`, for bits per character; `judge(texts)` -> name -> number, and `judgement`, the heading of
    that table; `codec.pieces(ids)` -> the text of each token, for the step-by-step view; `rows("val")[indices]` -> real
    pictures, to stand beside samples that are images and to be filled in.
    A network that takes labels is given all classes in turn. A model that draws nothing but has `reconstruct(x)` is
    shown by its reconstructions of held-out pictures.

    Args:
        num_samples: texts or images drawn; images are all shown, of texts the first eight, and all are judged.
        num_steps: sampling steps, as the model's `sample` defines them.
        sampler: one of the model's by name, or class_path and init_args of one of your own; None takes its first.
        seed: of the samples.
    """

    def __init__(
        self, num_samples: int = 32, num_steps: int = 128, sampler: str | Sampler | None = None, seed: int = 0
    ) -> None:
        for name, value in (("num_samples", num_samples), ("num_steps", num_steps)):
            if value < 1:
                raise ValueError(f"Report: {name} is {value}; it must be at least 1")
        self.num_samples = num_samples
        self.num_steps = num_steps
        self.sampler = sampler
        self.seed = seed

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        refuse_sampler("Report", self.sampler, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        try:
            self._write(trainer, pl_module)
        except OSError as error:
            folder = trainer.default_root_dir
            rank_zero_warn(f"{folder}: the report cannot be written ({error.strerror or error}); the run is complete")

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        metrics = _metrics(trainer, folder)
        datamodule = datamodule_of(trainer)
        if isinstance(pl_module, Reconstructs):
            self._write_reconstructions(trainer, pl_module, folder, metrics)
            return
        scale = datamodule.characters_per_token if isinstance(datamodule, CountsCharacters) else None
        references = datamodule.references() if isinstance(datamodule, HasReferences) else {}
        loss = pl_module.loss_name if isinstance(pl_module, Trained) else Trained.loss_name
        exact = is_exact(pl_module)
        measure = ("bpd", "bits per dimension") if exact else None
        curve_png(metrics, references, scale, folder / "curve.png", loss=loss, measure=measure)
        label = classes_in_turn(pl_module, self.num_samples)
        drawn = self._draw(trainer, pl_module, self.num_samples, label, trace=True)
        decoded = decode(trainer, drawn.x)
        texts = decoded if isinstance(decoded, list) else []
        draw = partial(self._draw, trainer, pl_module)
        figures = [] if isinstance(decoded, list) else image_figures(trainer, pl_module, drawn, label, draw)
        tables: dict[str, dict[str, float]] = {}
        if texts and isinstance(datamodule, Judges):
            tables[datamodule.judgement] = datamodule.judge(texts)
        write_report(
            folder / "report.html",
            title=f"{type(pl_module).__name__}: {folder.resolve().name}",
            curve_png_path=folder / "curve.png",
            bound=_bound(metrics, scale, label is not None),
            samples=texts[:SHOWN_TEXTS],
            trace_fragment=_trace(drawn.trace, datamodule, pl_module),
            facts=self._facts(trainer, pl_module, metrics, drawn.network_calls),
            tables=tables,
            figures=figures,
            exact=exact,
        )

    def _write_reconstructions(self, trainer: Trainer, pl_module: Any, folder: Path, metrics: dict[str, Curve]) -> None:
        """Of an autoencoder: no samples, and no bound."""
        curve_png(metrics, {}, None, folder / "curve.png", loss=pl_module.loss_name, measure=pl_module.measure)
        last = {name: curve[-1][1] for name, curve in metrics.items()}
        known = [(f"val/{name}", title) for name, title, _ in pl_module.results]
        write_report(
            folder / "report.html",
            title=f"{type(pl_module).__name__}: {folder.resolve().name}",
            curve_png_path=folder / "curve.png",
            bound={},
            samples=[],
            trace_fragment="",
            facts=self._facts(trainer, pl_module, metrics, None),
            tables={"On held-out pictures": {title: last[name] for name, title in known if name in last}},
            figures=[reconstruction_figure(trainer, pl_module, self.num_samples)],
            about_curve=f"The {pl_module.measure[1]}, of held-out examples and of single batches; below, the loss.",
        )

    def _draw(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        num_samples: int,
        label: Tensor | None = None,
        clamp: tuple[Tensor, Tensor] | None = None,
        trace: bool = False,
    ) -> Any:
        options = {"label": label, "clamp": clamp, "sampler": self.sampler}
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        # when a fit ends, the strategy has already moved the module to the CPU, where sampling may take minutes
        home, device = pl_module.device, trainer.strategy.root_device
        if label is not None:
            given["label"] = label.to(device)
        pl_module.to(device)
        with undisturbed(pl_module), trainer.precision_plugin.forward_context():
            drawn = pl_module.sample(num_samples, self.num_steps, seed=self.seed, trace=trace, **given)
        pl_module.to(home)
        return drawn

    def _facts(
        self, trainer: Trainer, pl_module: LightningModule, metrics: dict[str, Curve], network_calls: int | None
    ) -> dict[str, str]:
        trained = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        facts = {
            "Hardware": _hardware(trainer),
            "Precision": str(trainer.precision),
            "Optimiser steps": f"{trainer.global_step:,}",
            "Trained parameters": f"{trained:,}",
            "Final weights": _weights(trainer),
        }
        if "seconds" in metrics:
            facts["Time"] = _duration(metrics["seconds"][-1][1])
        of_images = isinstance(pl_module, HasShape) and len(pl_module.shape) > 1
        rate = "examples" if of_images else "tokens"
        if f"train/{rate}_per_s" in metrics:
            facts["Speed"] = f"{metrics[f'train/{rate}_per_s'][-1][1]:,.0f} {rate} per second"
        how = f"{self.num_steps} steps"
        if self.sampler is not None:
            how += f", {self.sampler.name if isinstance(self.sampler, Sampler) else self.sampler}"
        if network_calls is not None:
            drawn = f"{self.num_samples} samples in {how}, {network_calls} network calls, seed {self.seed}"
            facts["Sampling"] = drawn
        facts["Software"] = f"torch {torch.__version__}, lightning {lightning.__version__}"
        return facts


def _metrics(trainer: Trainer, folder: Path) -> dict[str, Curve]:
    """From metrics.csv; without it what the trainer still knows, as curves of one point."""
    for logger in trainer.loggers:
        if isinstance(logger, CSVLog):
            logger.flush()
    if (folder / FILE_NAME).is_file():
        return read_metrics(folder / FILE_NAME)
    return {
        name: [(trainer.global_step, float(value))]
        for name, value in trainer.callback_metrics.items()
        if value.numel() == 1
    }


def _bound(metrics: dict[str, Curve], scale: float | None, by_class: bool) -> dict[str, tuple[float, float | None]]:
    """The last validation's bounds; bits per character are bits per token over characters per token."""
    last = {name: curve[-1][1] for name, curve in metrics.items() if name.startswith("val/")}
    shown: dict[str, tuple[str, float]] = {}
    if scale is not None and scale != 1:
        shown["Bits per character"] = ("bpd", scale)
    is_text = "val/ppl" in last
    unit = "dimension" if not is_text else "character" if scale == 1 else "token"
    shown |= {f"Bits per {unit}": ("bpd", 1.0), "Perplexity": ("ppl", 1.0), "Nats per example": ("nelbo", 1.0)}
    bounds, given = {}, " given the class" if by_class else ""
    for title, (name, divisor) in shown.items():
        value, stderr = last.get(f"val/{name}"), last.get(f"val/{name}_stderr")
        if value is not None:
            bounds[f"{title}{given}"] = (value / divisor, None if stderr is None else stderr / divisor)
    return bounds


def _trace(states: list[Any] | None, datamodule: Any, pl_module: LightningModule) -> str:
    """Texts only: images have two or three axes."""
    if not states or states[0].dim() != 2:
        return ""
    pieces = pieces_of(datamodule) or (lambda ids: [f"{i} " for i in ids])
    return trace_html([state.cpu() for state in states], pieces, mask_id=pl_module.num_classes)  # type: ignore[arg-type]


def _weights(trainer: Trainer) -> str:
    """The averages are in the module when a fit has ended, see callbacks/ema.py."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Averages):
            return f"exponential moving average, decay {callback.decay:g}"
    return "those of the last step"


def _hardware(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_cpu_name()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    return name if trainer.world_size == 1 else f"{trainer.world_size} x {name}"


def _cpu_name() -> str:
    table = Path("/proc/cpuinfo")  # Linux; elsewhere the platform's name has to do
    lines = table.read_text().splitlines() if table.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
