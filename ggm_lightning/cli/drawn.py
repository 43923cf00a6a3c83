"""Samples of a setting (checkpoint, sampler, steps, temperature), each drawn once and kept: of a sweep and of an
evaluation, whose measures all look at the same samples.

    DIR/demo-ancestral-16steps-temp0.7-seed0-n64-1f3a9c02/   samples.npz, settings.json

The folder is named by the setting and by the checkpoint's content: another checkpoint or setting is another folder.
settings.json is written last; batches that a stopped command has drawn are gone on with.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from ggm_lightning.cli import drawing
from ggm_lightning.cli.evaluation_sets import EvaluationSet
from ggm_lightning.cli.parts import batches, divided
from ggm_lightning.cli.results import Results, folder_name, place
from ggm_lightning.cli.sweep_grid import Cell
from ggm_lightning.data.arrays import DAMAGE
from ggm_lightning.data.fingerprints import hash_of_ids
from ggm_lightning.models.base import Family
from ggm_lightning.networks.labels import labels_known
from ggm_lightning.sampling import naming
from ggm_lightning.sampling.request import checked


@dataclass(frozen=True)
class Draws:
    """What all cells have in common: how many samples, with which seed, of which class, how many at once.

    `classes` are those of label data: one for each sample.
    """

    num_samples: int
    seed: int
    label: int | str | None
    batch_size: int
    classes: tuple[int, ...] = ()

    def labels(self, model: Family, count: int | None = None) -> Int64[Tensor, " count"] | None:
        """Of `count` samples, by default of all; None leaves the class to the model."""
        count = self.num_samples if count is None else count
        if not self.classes:
            return drawing.labels_of(model, self.label, count)
        spread = np.arange(count) * len(self.classes) // count
        return torch.tensor(self.classes, device=model.device)[spread]


@dataclass(frozen=True)
class Drawn:
    """Samples and what they cost.

    Attributes:
        x: Int64[num_samples, *shape].
        network_calls, rows: of all samples together; a row is one example sent through the network once.
        seconds: of sampling; on a CPU the processor's.
    """

    x: Int64[Tensor, " b *s"]
    network_calls: int
    rows: int
    seconds: float

    @property
    def hash(self) -> str:
        """Of x."""
        return hash_of_ids(self.x)


def of_classes(draws: Draws, model: Family, one: EvaluationSet, split: str) -> Draws:
    """With label data or none: each class as often as among the rows of that split, of which as many are taken, evenly
    spaced. Where model or data know no classes nothing changes; ValueError if label data was asked for."""
    if draws.label not in (None, "data"):
        return draws
    rows = one.data.rows(split) if split in one.data.splits else None
    if not labels_known(model.network) or rows is None or "label" not in rows[[0]]:
        if draws.label == "data":
            raise ValueError(f"--label data: the model or {one.name} ({split}) knows no classes; leave it out")
        return draws
    label = rows[np.arange(draws.num_samples) * len(rows) // draws.num_samples]["label"]
    return replace(draws, label="data", classes=tuple(label.tolist()))


def check(cell: Cell, draws: Draws) -> None:
    """ValueError for a request that the family cannot mean, before anything is drawn."""
    model = cell.contender.loaded.model
    labels = draws.labels(model)
    checked(model, draws.num_samples, cell.steps_told, labels, seed=draws.seed)
    naming.sharpening({"temperature": cell.temperature, "top_p": cell.top_p, **cell.contender.options})


def results_of(cell: Cell, draws: Draws, folder: Path) -> Results:
    """Where the cell's samples are, or will be."""
    one = cell.contender
    settings = {
        "command": "sweep",  # the first that kept them so
        "checkpoint_identity": one.loaded.identity,
        "step": one.loaded.step,
        "sampler": one.called,
        **one.options,
        "num_steps": cell.num_steps,
        "temperature": cell.temperature,
        "top_p": cell.top_p,
        "label": draws.label,
        "seed": draws.seed,
        "num_samples": draws.num_samples,
        **one.loaded.noted,
    }
    if draws.classes:
        settings["classes"] = hash_of_ids(torch.tensor(draws.classes))
    top_p = None if cell.top_p == 1 else cell.top_p
    name = folder_name(
        one.checkpoint.replace("/", "_"),
        one.loaded.step,
        ("", one.called, ""),
        *((name, value, "") for name, value in one.options.items()),
        ("", cell.num_steps, "steps"),
        ("temp", float(cell.temperature), ""),
        ("top_p", top_p, ""),
        ("label", draws.label, ""),
        ("seed", draws.seed, ""),
        ("n", draws.num_samples, ""),
        ("", one.loaded.noted.get("precision"), ""),
        ("", one.loaded.identity[:8], ""),
    )
    return place(folder, name, settings, None, again=False)


def draw(cell: Cell, draws: Draws, results: Results) -> None:
    """Draws all batches, each kept when it is finished, and then samples.npz. Of several ranks each draws its share,
    and rank 0 writes."""
    model = cell.contender.loaded.model
    labels = draws.labels(model)
    # a GPU works while the process waits, and a CPU may be shared with others
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter

    def part(start: int, stop: int) -> dict[str, np.ndarray]:
        row = torch.arange(start, stop, device=model.device)
        begin = clock()
        with cell.contender.loaded.computing():
            drawn = model.sample(
                len(row),
                cell.steps_told,
                label=None if labels is None else labels[row],
                row=row,
                progress=True,
                sampler=cell.contender.sampler,
                seed=draws.seed,
                temperature=cell.temperature,
                top_p=cell.top_p,
                **cell.contender.options,
            )
        x = drawn.x.cpu().numpy()
        cost = np.array([drawn.network_calls, drawn.rows, clock() - begin])
        return {"x": x.astype(np.int32), "cost": cost}

    parts = divided(results.parts, batches(draws.num_samples, draws.batch_size), part)
    if parts is None:
        return
    with results.writing() as folder:
        cost = np.sum([one["cost"] for one in parts], axis=0)
        x = np.concatenate([one["x"] for one in parts])
        meaning = {"tokenizer_hash": model.codec.tokenizer_hash} if model.codec else {}
        np.savez_compressed(folder / "samples.npz", x=x, cost=cost, **meaning)


def drawn(cell: Cell, draws: Draws, folder: Path) -> Drawn:
    """The cell's samples: drawn now, or read."""
    results = results_of(cell, draws, folder)
    if not results.done:
        draw(cell, draws, results)
    return read(results)


def read(results: Results) -> Drawn:
    """Samples that were drawn before."""
    file = results.folder / "samples.npz"
    try:
        with np.load(file, allow_pickle=False) as arrays:
            x, cost = torch.from_numpy(arrays["x"]).long(), arrays["cost"].tolist()
    except (*DAMAGE, KeyError) as error:
        raise ValueError(f"{file}: cannot be read ({error}); remove its folder, and it is drawn again") from None
    return Drawn(x, int(cost[0]), int(cost[1]), float(cost[2]))
