"""What a report shows of a model of images: samples beside real pictures, infilling, and the denoising as a GIF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ggm_lightning.callbacks.samples import columns_of, decode
from ggm_lightning.rundir.pictures import beside, grid, save_png
from ggm_lightning.rundir.report import Figure
from ggm_lightning.rundir.trace import trace_gif

Draw = Callable[..., Any]  # of Report: draw(num_samples, label, clamp) -> Samples

INFILLED, FILLINGS = 4, 8  # at most, and together no more than there are samples
_LOOKED_AT = 20  # held-out pictures looked at to find one of the right class


def image_figures(
    trainer: Trainer, pl_module: LightningModule, drawn: Any, label: Tensor | None, draw: Draw
) -> list[Figure]:
    """Writes samples.png, trace.gif and, where the data module hands out rows, held_out.png, infilled.png and
    example.png into the run folder.

    Args:
        drawn: the samples, with their trace.
        label: Int64[b], their classes.
        draw: draws more, for the infilling.
    """
    folder, columns = Path(trainer.default_root_dir), columns_of(label)
    rows = getattr(trainer.datamodule, "rows", None)  # type: ignore[attr-defined]
    held_out = None if rows is None else _held_out(rows("val"), len(drawn.x), label)
    images = {"drawn from the model": folder / "samples.png"}
    save_png(grid(decode(trainer, drawn.x), columns), folder / "samples.png")  # type: ignore[arg-type]
    if held_out is not None:
        images["held-out examples"] = folder / "held_out.png"
        save_png(grid(decode(trainer, held_out["x"]), columns), folder / "held_out.png")  # type: ignore[arg-type]
    by_class = " Each column is one class." if columns else ""
    note = f"Drawn from the final weights, not selected.{by_class}"
    figures = [Figure("Samples", note, images)]
    if rows is not None:
        fillings = min(FILLINGS, len(drawn.x))
        few = _held_out(rows("val"), min(INFILLED, len(drawn.x) // fillings), None)
        figures.append(_infilling(trainer, pl_module, few, fillings, draw))
    count = trace_gif(
        drawn.trace,
        lambda state: decode(trainer, state),  # type: ignore[arg-type, return-value]
        folder / "trace.gif",
        columns,
    )
    which = "these samples" if count == len(drawn.x) else f"the first {count} of these samples"
    note = f"The reverse process from the prior to {which}."
    return [*figures, Figure("Step by step", note, {"trace.gif": folder / "trace.gif"})]


def _held_out(rows: Any, count: int, label: Tensor | None) -> dict[str, Tensor]:
    """`count` rows far apart, as many as there are; of the classes in `label`, where the rows have classes."""
    looked_at = count if label is None else _LOOKED_AT * count
    batch = rows[np.unique(np.linspace(0, len(rows) - 1, looked_at).astype(int))]
    if label is None or "label" not in batch:
        return {name: value[:count] for name, value in batch.items()}
    left = list(range(len(batch["x"])))
    found = []
    for wanted in label.tolist()[: len(left)]:
        fitting = [i for i in left if batch["label"][i] == wanted]
        found.append((fitting or left)[0])
        left.remove(found[-1])
    return {name: value[found] for name, value in batch.items()}


def _infilling(
    trainer: Trainer, pl_module: LightningModule, real: dict[str, Tensor], fillings: int, draw: Draw
) -> Figure:
    """Of each picture the left half is given."""
    x = real["x"]
    known = torch.zeros_like(x, dtype=torch.bool)
    known[..., : x.shape[-1] // 2] = True
    takes_labels = getattr(getattr(pl_module, "network", None), "num_labels", 0) and "label" in real
    label = real["label"].repeat_interleave(fillings).to(pl_module.device) if takes_labels else None
    clamp = tuple(part.repeat_interleave(fillings, 0) for part in (x, known))
    filled = decode(trainer, draw(len(x) * fillings, label, clamp).x.cpu())
    given = decode(trainer, torch.where(known, x, pl_module.num_classes))  # type: ignore[arg-type]
    original = decode(trainer, x)
    folder = Path(trainer.default_root_dir)
    columns = (grid(given, 1), grid(filled, fillings), grid(original, 1))  # type: ignore[arg-type]
    save_png(beside(*columns), folder / "infilled.png")
    save_png(original[0], folder / "example.png", smallest_side=1)  # type: ignore[arg-type]
    also = " and the class" if takes_labels else ""
    note = (
        f"Left: what the model is given, half of a held-out picture{also}. Right: the picture itself. Between them "
        f"{fillings} fillings, not selected. More of them: <code>lightning infill --ckpt_path last.ckpt --input "
        "example.png --mask right</code>."
    )
    return Figure("Filling in the right half", note, {"given, fillings, original": folder / "infilled.png"})
