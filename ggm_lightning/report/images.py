"""What a report shows of a model of images: samples beside real pictures, infilling, and the denoising as a GIF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ggm_lightning.networks.labels import labels_of_model
from ggm_lightning.report.drawing import columns_of, decode
from ggm_lightning.report.page import Figure
from ggm_lightning.report.pictures import grid, save_png, side_by_side
from ggm_lightning.report.protocols import HasRows, Reconstructs, datamodule_of, fills_gaps, originals_of
from ggm_lightning.report.trace import trace_gif
from ggm_lightning.rundir.building import trust_option
from ggm_lightning.rundir.checkpoint import describe

Draw = Callable[..., Any]  # of Report: draw(num_samples, label, clamp) -> Samples

INFILLED, FILLINGS = 4, 8  # at most, and together no more than there are samples
_LOOKED_AT = 20  # held-out pictures looked at to find one of the right class


def image_figures(
    trainer: Trainer, pl_module: LightningModule, drawn: Any, label: Tensor | None, draw: Draw
) -> list[Figure]:
    """Writes samples.png, trace.gif and, where the data module hands out rows, held_out.png, infilled.png and
    example.png (for models that fill gaps) into the run folder.

    Where the data module has `originals` (the pictures behind held-out rows that are codes), chain.png shows them
    beside their reconstructions and the samples.

    Args:
        drawn: the samples, with their trace.
        label: Int64[b], their classes.
        draw: draws more, for the infilling.
    """
    folder, columns = Path(trainer.default_root_dir), columns_of(label)
    datamodule = datamodule_of(trainer)
    rows = datamodule.rows if isinstance(datamodule, HasRows) else None
    originals = originals_of(datamodule)
    chosen = None
    if rows is not None:
        known = len(rows("val")) if originals is None else len(originals)
        chosen = _held_out(rows("val"), len(drawn.x), label, known)
    figures = [samples_figure(trainer, drawn.x, label, chosen)]
    if originals is not None:
        held_out = grid(decode(trainer, rows("val")[chosen]["x"]), columns)  # type: ignore[arg-type, misc]
        figures.insert(0, _chain(folder, originals[chosen], held_out, grid(decode(trainer, drawn.x), columns), columns))  # type: ignore[arg-type]
    # a model that goes on from a beginning cannot fill in the right half, and rows of one axis have none
    if rows is not None and fills_gaps(pl_module) and drawn.x.dim() > 2:
        fillings = min(FILLINGS, len(drawn.x))
        few = _held_out(rows("val"), min(INFILLED, len(drawn.x) // fillings), None, known)
        pictures = None if originals is None else originals[few]
        figures.append(_infilling(trainer, pl_module, rows("val")[few], fillings, draw, pictures))
    count = trace_gif(
        drawn.trace,
        lambda state: decode(trainer, state),  # type: ignore[arg-type, return-value]
        folder / "trace.gif",
        columns,
    )
    which = "these samples" if count == len(drawn.x) else f"the first {count} of these samples"
    note = f"The reverse process from the prior to {which}."
    return [*figures, Figure("Step by step", note, {"trace.gif": folder / "trace.gif"})]


def samples_figure(trainer: Trainer, x: Tensor, label: Tensor | None, chosen: np.ndarray | None = None) -> Figure:
    """Writes samples.png and, where the data module hands out rows, held_out.png with as many real pictures.

    Args:
        x: Int[b, *shape], the samples.
        label: Int64[b], their classes.
        chosen: numbers of the held-out rows; None: some of these classes.
    """
    folder, columns = Path(trainer.default_root_dir), columns_of(label)
    datamodule = datamodule_of(trainer)
    images = {"drawn from the model": folder / "samples.png"}
    save_png(grid(decode(trainer, x), columns), folder / "samples.png")  # type: ignore[arg-type]
    if isinstance(datamodule, HasRows):
        rows = datamodule.rows("val")
        if chosen is None:
            chosen = _held_out(rows, len(x), label, len(rows))
        images["held-out examples"] = folder / "held_out.png"
        save_png(grid(decode(trainer, rows[chosen]["x"]), columns), folder / "held_out.png")  # type: ignore[arg-type]
    by_class = " Each column is one class." if columns else ""
    return Figure("Samples", f"Drawn at step {trainer.global_step:,}, not selected.{by_class}", images)


def reconstruction_figure(trainer: Trainer, pl_module: LightningModule, count: int) -> Figure:
    """Writes reconstructed.png: held-out pictures, and what the autoencoder makes of them."""
    assert isinstance(pl_module, Reconstructs)
    rows = datamodule_of(trainer).rows("val")
    batch = rows[_held_out(rows, count, None, len(rows))]
    label = batch.get("label")
    x = batch["x"] if label is None else batch["x"][label.argsort(stable=True)]
    home, device = pl_module.device, trainer.strategy.root_device
    pl_module.to(device)
    restored = pl_module.reconstruct(x.to(device)).cpu()
    pl_module.to(home)
    path = Path(trainer.default_root_dir) / "reconstructed.png"
    save_png(side_by_side(grid(decode(trainer, x)), grid(decode(trainer, restored))), path)  # type: ignore[arg-type]
    note = "Left: held-out pictures, not selected. Right: the same from their codes alone."
    return Figure("Reconstructions", note, {"held-out pictures, reconstructions": path})


def _chain(folder: Path, real: np.ndarray, restored: np.ndarray, drawn: np.ndarray, columns: int | None) -> Figure:
    """Writes chain.png."""
    save_png(side_by_side(grid(real, columns), restored, drawn), folder / "chain.png")
    note = (
        "Left: held-out pictures. Middle: the same from their codes alone, which is as good as pictures of codes can "
        "be. Right: pictures of codes drawn from this model. Nothing is selected."
    )
    return Figure("Real, reconstructed, generated", note, {"real | reconstructed | generated": folder / "chain.png"})


def _held_out(rows: Any, count: int, label: Tensor | None, known: int) -> np.ndarray:
    """`count` of the first `known` rows, far apart, as many as there are; of the classes in `label`, where the rows
    have classes."""
    looked_at = count if label is None else _LOOKED_AT * count
    index = np.unique(np.linspace(0, known - 1, looked_at).astype(int))
    batch = rows[index]
    if label is None or "label" not in batch:
        return index[:count]
    left = list(range(len(index)))
    found = []
    for wanted in label.tolist()[: len(left)]:
        fitting = [i for i in left if batch["label"][i] == wanted]
        found.append((fitting or left)[0])
        left.remove(found[-1])
    return index[found]


def _infilling(
    trainer: Trainer,
    pl_module: LightningModule,
    real: dict[str, Tensor],
    fillings: int,
    draw: Draw,
    pictures: np.ndarray | None,
) -> Figure:
    """Of each picture the left half is given. `pictures`: those behind `real`, where it holds codes."""
    x = real["x"]
    known = torch.zeros_like(x, dtype=torch.bool)
    known[..., : x.shape[-1] // 2] = True
    takes_labels = labels_of_model(pl_module) and "label" in real
    label = real["label"].repeat_interleave(fillings).to(pl_module.device) if takes_labels else None
    clamp = tuple(part.repeat_interleave(fillings, 0) for part in (x, known))
    filled = decode(trainer, draw(len(x) * fillings, label, clamp).x.cpu())
    given = decode(trainer, torch.where(known, x, pl_module.num_classes))  # type: ignore[arg-type]
    original = decode(trainer, x) if pictures is None else pictures
    folder = Path(trainer.default_root_dir)
    columns = (grid(given, 1), grid(filled, fillings), grid(original, 1))  # type: ignore[arg-type]
    save_png(side_by_side(*columns), folder / "infilled.png")
    save_png(original[0], folder / "example.png", smallest_side=1)  # type: ignore[arg-type]
    also = " and the class" if takes_labels else ""
    note = (
        f"Left: what the model is given, half of a held-out picture{also}. Right: the picture itself. Between them "
        f"{fillings} fillings, not selected. More of them: `{command_for_more(pl_module)}`."
    )
    return Figure("Filling in the right half", note, {"given, fillings, original": folder / "infilled.png"})


def command_for_more(pl_module: LightningModule) -> str:
    """In the run's folder."""
    described = describe(pl_module)
    trust = trust_option([described["model"], described["codec"]])
    return f"lightning infill --ckpt_path last.ckpt{trust} --input example.png --mask right"
