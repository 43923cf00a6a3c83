"""Samples drawn during training, from the averaged weights, as files in the run folder and in the loggers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from ggm_lightning.data.base import DiscreteData
from ggm_lightning.metrics.samples import Rows, SampleMetric
from ggm_lightning.models.base import Family
from ggm_lightning.report.drawing import (
    classes_in_turn,
    columns_of,
    decode,
    numbered_texts,
    refuse_sampler,
    undisturbed,
)
from ggm_lightning.report.pictures import grid, save_png
from ggm_lightning.rundir.folder import unused_path
from ggm_lightning.sampling.sampler import Sampler


class Samples(Callback):
    """Draws after a validation, while the averaged weights are still in the module.

    Texts go to <run folder>/samples/step-000500.txt, images as a grid to step-000500.png; TensorBoard and wandb get
    them too where they are set. The seed is the same each time, so successive files show one set of samples getting
    better. A network that takes labels is given all classes in turn. The global random state is left as it was:
    training goes on bit for bit as without this callback.

    Args:
        every_n_validations: draw after each n-th validation.
        num_samples: how many.
        num_steps: sampling steps, as the model's `sample` defines them.
        temperature: of the values' law; 1 draws from the model itself.
        top_p: nucleus mass; 1 draws from the model itself.
        sampler: one of the model's by name, or class_path and init_args of one of your own; None takes its first.
        seed: of the draws.
        metrics: measures of the samples (metrics/samples.py, or classes of your own), logged as val/<name>. They are
            given as many held-out rows to compare with, so that the data module must be one of ggm_lightning.data.
    """

    def __init__(
        self,
        every_n_validations: int = 1,
        num_samples: int = 4,
        num_steps: int = 64,
        temperature: float = 1.0,
        top_p: float = 1.0,
        sampler: str | Sampler | None = None,
        seed: int = 0,
        metrics: list[SampleMetric] | None = None,
    ) -> None:
        for name, value in (
            ("every_n_validations", every_n_validations),
            ("num_samples", num_samples),
            ("num_steps", num_steps),
        ):
            if value < 1:
                raise ValueError(f"Samples: {name} is {value}; it must be at least 1")
        if not 0 < temperature < math.inf:
            raise ValueError(f"Samples: temperature is {temperature}; it must be positive and finite")
        if not 0 < top_p <= 1:
            raise ValueError(f"Samples: top_p is {top_p}; it is a probability mass in (0, 1]")
        self.every_n_validations = every_n_validations
        self.num_samples = num_samples
        self.num_steps = num_steps
        self.temperature = temperature
        self.top_p = top_p
        self.sampler = sampler
        self.seed = seed
        self.metrics = metrics or []
        self._validations = 0

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        refuse_sampler("Samples", self.sampler, pl_module)
        if self.metrics and not isinstance(getattr(trainer, "datamodule", None), DiscreteData):
            raise ValueError("Samples: metrics need held-out rows; fit with a data module of ggm_lightning.data")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._validations += 1
        draws_here = trainer.is_global_zero or _ranks(trainer, pl_module) > 1
        if draws_here and self._validations % self.every_n_validations == 0:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        drawn = self._drawn(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        decoded = decode(trainer, drawn)
        if self.metrics:
            self._measure(trainer, pl_module, Rows(drawn.cpu(), decoded))
        self._keep(trainer, decoded, columns_of(classes_in_turn(pl_module, self.num_samples)))

    def _drawn(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        """x Int64[num_samples, *shape], of which each rank has drawn its share: of many samples the other ranks would
        otherwise wait longer for the first than they may wait for each other. A row's noise is that of its number."""
        options: dict[str, Any] = {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        if self.sampler is not None:
            options["sampler"] = self.sampler
        label = classes_in_turn(pl_module, self.num_samples)
        ranks = _ranks(trainer, pl_module)
        share = math.ceil(self.num_samples / ranks)
        # every rank draws as many: where they do not divide evenly, the first rows are drawn by two
        rows = torch.arange(share * ranks) % self.num_samples
        first = share * trainer.global_rank if ranks > 1 else 0
        own = rows[first : first + share]
        if label is not None:
            options["label"] = label[own.to(label.device)]
        if ranks > 1:
            options["row"] = own
        with undisturbed(pl_module), trainer.precision_plugin.forward_context():
            x: Tensor = pl_module.sample(share, self.num_steps, **options).x
        return x if ranks == 1 else pl_module.all_gather(x).flatten(0, 1)[: self.num_samples]

    def _keep(self, trainer: Trainer, decoded: list[str] | np.ndarray, columns: int | None) -> None:
        """In files and loggers."""
        stem = Path(trainer.default_root_dir) / "samples" / f"step-{trainer.global_step:06d}"
        try:
            _write(decoded, stem, columns)
        except OSError as error:
            rank_zero_warn(f"{stem.parent}: samples cannot be written ({error.strerror or error}); training goes on")
        for logger in trainer.loggers:
            try:
                _log(logger, decoded, trainer.global_step)
            except Exception as error:  # whatever a foreign logger raises must not end the training
                rank_zero_warn(f"{type(logger).__name__}: samples cannot be logged ({error}); training goes on")

    def _measure(self, trainer: Trainer, pl_module: LightningModule, drawn: Rows) -> None:
        held_out = trainer.datamodule.rows("val")  # type: ignore[attr-defined]
        x = held_out[list(range(min(len(drawn.x), len(held_out))))]["x"]
        real = Rows(x, decode(trainer, x))
        for metric in self.metrics:
            values = {f"val/{name}": float(value) for name, value in metric.measure(drawn, real).items()}
            pl_module.log_dict(values, rank_zero_only=True)  # the other ranks draw nothing


def _ranks(trainer: Trainer, model: LightningModule) -> int:
    """How many share the drawing. A model that is none of the families' may not know rows by their numbers."""
    return trainer.world_size if isinstance(model, Family) else 1


def _write(decoded: list[str] | np.ndarray, stem: Path, columns: int | None) -> None:
    """A run that was continued with other settings may come to the same step again: its samples then get a number."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(decoded, list):
        content = numbered_texts(decoded).encode()
        unused_path(stem.with_suffix(".txt"), content).write_bytes(content)
        return
    drawn = stem.parent / f".{stem.name}.partial.png"
    save_png(grid(decoded, columns), drawn)
    drawn.replace(unused_path(stem.with_suffix(".png"), drawn.read_bytes()))


def _log(logger: Logger, decoded: list[str] | np.ndarray, step: int) -> None:
    """Loggers other than these two have no place for samples; the run folder has them."""
    is_text = isinstance(decoded, list)
    if isinstance(logger, TensorBoardLogger):
        if is_text:
            # indented by four spaces, a text is shown as it is and not as markdown
            quoted = "\n\n---\n\n".join("    " + text.replace("\n", "\n    ") for text in decoded)
            logger.experiment.add_text("samples", quoted, step)
        else:
            logger.experiment.add_image("samples", grid(decoded), step, dataformats="HWC")  # type: ignore[arg-type]
    elif isinstance(logger, WandbLogger):
        if is_text:
            logger.log_text("samples", columns=["sample", "text"], data=[[i, t] for i, t in enumerate(decoded)])  # type: ignore[list-item]
        else:
            logger.log_image("samples", [grid(decoded)])  # type: ignore[arg-type]
