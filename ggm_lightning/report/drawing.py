"""Samples drawn to be looked at: of which classes, how they are decoded and laid out; training is left undisturbed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer

from ggm_lightning.codecs.grids import DrawsPictures
from ggm_lightning.networks.labels import labels_of_model
from ggm_lightning.report.protocols import Decodes, HasSamplers, datamodule_of
from ggm_lightning.rundir.checkpoint import HasCodec
from ggm_lightning.sampling import naming
from ggm_lightning.sampling.contract import Denoises
from ggm_lightning.sampling.sampler import Sampler

MOST_COLUMNS = 16
_OF_SAMPLE = ("sampler", "num_steps", "seed", "grid", "guidance")  # what every family's `sample` takes


def refuse_sampler(callback: str, sampler: str | Sampler | None, pl_module: LightningModule) -> None:
    """ValueError for one that the model cannot be sampled with: now, and not after the first hours of training."""
    if sampler is None or not isinstance(pl_module, HasSamplers):
        return
    known = pl_module.samplers
    if sampler in known:
        return
    if isinstance(sampler, str) and "." not in sampler:
        raise ValueError(
            f"{callback}: sampler '{sampler}' is unknown to {type(pl_module).__name__}; choose {', '.join(known)}"
        )
    try:
        naming.chosen(cast(Denoises, pl_module), sampler, {})
    except ValueError as error:
        raise ValueError(f"{callback}: {error}") from None


def refuse_ways(
    which: str, ways: Mapping[str, Mapping[str, Any]], sampler: str | Sampler | None, pl_module: LightningModule
) -> None:
    """ValueError for named ways of sampling (name -> options of `sample`) that the model does not know: now, too.

    `sampler`: where a way names none.
    """
    if not isinstance(pl_module, HasSamplers) or not isinstance(pl_module.samplers, Mapping):
        return
    for name, options in ways.items():
        if not isinstance(options, Mapping):
            raise ValueError(f"{which}: {name} is {options!r}; give options of `sample`, and no dot in the name")
        of_sampler = {key: value for key, value in options.items() if key not in _OF_SAMPLE}
        try:
            naming.sharpening(of_sampler)
            naming.chosen(cast(Denoises, pl_module), options.get("sampler", sampler), of_sampler)
        except ValueError as error:
            raise ValueError(f"{which}: {name}: {error}") from None


def undisturbed(pl_module: LightningModule) -> Any:
    """A context in which drawing from the global generators leaves no trace."""
    devices = [pl_module.device] if pl_module.device.type == "cuda" else []
    return torch.random.fork_rng(devices=devices)


def classes_in_turn(model: LightningModule, count: int) -> torch.Tensor | None:
    """Int64[count]: 0, 1, ..., 0, 1, ...; of more classes than samples some, evenly spread. None where there are none.

    A network that was always told the class in training (label_dropout 0) cannot do without.
    """
    known = labels_of_model(model)
    if not known:
        return None
    index = torch.arange(count, device=model.device)
    return index % known if known <= count else index * known // count


def columns_of(label: torch.Tensor | None) -> int | None:
    """Of a grid in which each class has a column; None for no classes, or too many of them."""
    if label is None:
        return None
    classes = int(label.max()) + 1
    in_turn = torch.equal(label, torch.arange(len(label)).to(label) % classes)
    return classes if in_turn and 1 < classes <= MOST_COLUMNS else None


def decode(trainer: Trainer, x: torch.Tensor) -> list[str] | np.ndarray:
    """Texts or uint8 images, these where the data know both; lines of numbers where they know no better."""
    datamodule = datamodule_of(trainer)
    if isinstance(datamodule, HasCodec) and isinstance(datamodule.codec, DrawsPictures):
        return datamodule.codec.pictures(x.cpu())
    if not isinstance(datamodule, Decodes):
        return [" ".join(str(i) for i in row) for row in x.flatten(1).tolist()]
    decoded = datamodule.decode(x.cpu())
    return list(decoded) if isinstance(decoded, list | tuple) else np.asarray(decoded)


def numbered_texts(texts: list[str]) -> str:
    """Texts below one another, numbered."""
    return "".join(f"----- sample {i} -----\n{text}\n\n" for i, text in enumerate(texts))
