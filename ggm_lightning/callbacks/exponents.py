"""exponents.png: which tokens a learned schedule delays most and least, redrawn after each validation."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ggm_lightning.report.protocols import HasExponents, datamodule_of, pieces_of
from ggm_lightning.rundir.bars import exponents_png


class Exponents(Callback):
    """For models with `exponents()`; the chart shows the averaged weights, and goes to TensorBoard and wandb, too."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, HasExponents)  # cli/fit.py adds this callback to no other model
        w = pl_module.exponents().detach().cpu().numpy()
        classes = range(len(w))
        names = [str(v) for v in classes]
        pieces = pieces_of(datamodule_of(trainer))
        with suppress(ValueError):  # pixels: a level has no text
            names = names if pieces is None else pieces(classes)
        path = Path(trainer.default_root_dir) / "exponents.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            exponents_png(w, names, path, f"after step {trainer.global_step:,}")
        except OSError as error:
            rank_zero_warn(f"{path}: cannot be written ({error.strerror or error}); training goes on")
            return
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("exponents", [str(path)])
            elif isinstance(logger, TensorBoardLogger):
                _to_tensorboard(logger, path, trainer.global_step)


def _to_tensorboard(logger: TensorBoardLogger, path: Path, step: int) -> None:
    import numpy as np
    from PIL import Image

    picture = np.asarray(Image.open(path).convert("RGB"))
    try:
        logger.experiment.add_image("exponents", picture, step, dataformats="HWC")
    except Exception as error:  # whatever a foreign logger raises must not end the training
        rank_zero_warn(f"TensorBoard: the exponents cannot be logged ({error}); training goes on")
