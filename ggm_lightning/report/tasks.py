"""Tasks that are right or wrong: a part of a row is given, the model fills in the rest, and the data know the answer.

The model is asked in several ways (samplers, temperatures), each by its name, and all ways get the same tasks. Data set
such tasks by report/protocols.py's SetsTasks; where their codec draws pictures (codecs/grids.py), some tasks are shown
while they fill themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ggm_lightning.codecs.grids import DrawsPictures
from ggm_lightning.report.pictures import grid, save_gif
from ggm_lightning.report.protocols import SetsTasks
from ggm_lightning.rundir.checkpoint import HasCodec
from ggm_lightning.sampling.request import Samples

Fill = Callable[..., Samples]  # fill(count, clamp=(values, known), trace=..., **options of Family.sample)

SHOWN = 2  # tasks in each animation
_FRAME = 4  # pixels of the frame that says right or wrong
_RIGHT, _WRONG = (31, 157, 118), (210, 60, 60)
_NONE_YET = (255, 255, 255)


def answered(
    data: SetsTasks, ways: Mapping[str, Mapping[str, Any]], count: int, fill: Fill, folder: Path
) -> dict | None:
    """For story.json: what was asked, the share of right answers for each way and by chance, and pictures; None where
    the data have no task to set.

    Writes filled-1.gif, filled-2.gif, ... into the folder, one for each way, where the data draw pictures.

    Args:
        data: sets the tasks.
        ways: name -> options of `Family.sample`.
        count: tasks, or fewer where the data have fewer.
        fill: draws from the model.
        folder: of the run.
    """
    solution, known = data.tasks(count)
    count = len(solution)  # the data may have fewer
    if not count:
        return None
    table, images = {}, {}
    for number, (name, options) in enumerate(ways.items(), 1):
        drawn = fill(count, clamp=(solution, known), trace=True, **options)
        x = drawn.x.cpu()
        right = data.right(x, solution)
        table[name] = float(right.double().mean())
        if isinstance(data, HasCodec) and isinstance(data.codec, DrawsPictures):
            file = folder / f"filled-{number}.gif"
            save_filling(file, [*(drawn.trace or []), x], known, right, data.codec)
            images[name] = file.name
    table["by chance"] = float(data.right(data.guessed(solution, known), solution).double().mean())
    return {"heading": data.task, "note": _note(count, bool(images)), "images": images, "table": table}


def save_filling(
    path: Path, states: Sequence[Tensor], known: Tensor, right: Tensor, codec: DrawsPictures, shown: int = SHOWN
) -> None:
    """An animation of the first tasks: what is given, then each state, and a green or red frame around the last."""
    shown = min(shown, len(known))
    frames = []
    for state in _different([torch.as_tensor(state)[:shown] for state in states]):
        pictures = codec.pictures(state, known[:shown])
        frames.append(grid(_framed(pictures, [_NONE_YET] * shown), columns=shown))
    last = codec.pictures(torch.as_tensor(states[-1])[:shown], known[:shown])
    colours = [_RIGHT if one else _WRONG for one in right[:shown].tolist()]
    frames.append(grid(_framed(last, colours), columns=shown))
    # the finished rows first: they are what paper and a stopped animation show
    save_gif([frames[-1], *frames], path, milliseconds=250, first_milliseconds=1200, last_milliseconds=3000)


def _different(states: Sequence[Tensor]) -> list[Tensor]:
    """Without states that equal the one before: nothing moves there in the rows that are shown."""
    kept: list[Tensor] = []
    for state in states:
        if not kept or not torch.equal(state, kept[-1]):
            kept.append(state)
    return kept


def _framed(pictures: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """UInt8[b, h, w, 3] with a frame of its own colour around each picture."""
    b, h, w, _ = pictures.shape
    framed = np.empty((b, h + 2 * _FRAME, w + 2 * _FRAME, 3), np.uint8)
    framed[:] = np.array(colours, np.uint8)[:, None, None]
    framed[:, _FRAME:-_FRAME, _FRAME:-_FRAME] = pictures
    return framed


def _note(count: int, pictures: bool) -> str:
    said = f"Share of {count} held-out tasks that came out right. Every way of filling gets the same tasks."
    if pictures:
        said += (
            " Pictures: the first tasks, not selected. Grey cells are given; at the end a green frame says right, a "
            "red one wrong."
        )
    return said
