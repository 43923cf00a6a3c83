"""The learning curve of a run as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ggm_lightning.report.chart import limits
from ggm_lightning.rundir.csv_log import Curve

_INK, _QUIET, _GRID = "#1f2430", "#6b7280", "#e7e9ee"
_BOUND, _TRAIN = "#5b3fd6", "#e0802b"


def curve_png(
    metrics: dict[str, Curve],
    references: dict[str, float],
    scale: float | None,
    path: str | Path,
    title: str = "",
    loss: str = "train/bpd",
    measure: tuple[str, str] | None = None,
) -> None:
    """Validation bound with a band of one standard error, smoothed training loss, labelled reference lines.

    Args:
        metrics: as `csv_log.read_metrics` gives them: val/bpd, val/bpd_stderr and the training loss.
        references: name -> bits per dimension.
        scale: characters per token; the axis then is bits per character. None: bits per dimension.
        path: of the PNG, 900 by 500 points.
        title: above the picture.
        loss: name of the training loss; one that is not bits per dimension is drawn below, with an axis of its own.
        measure: (name, what it is) of what is drawn in place of the bound, where a model has none.
    """
    from matplotlib.figure import Figure  # without pyplot there is no global state and no window

    unit = 1.0 if scale is None else 1.0 / scale
    figure = Figure(figsize=(9, 5), dpi=160, layout="constrained")
    own = _points(metrics.get(loss, []), 1.0) if loss != "train/bpd" else np.zeros((0, 2))
    if len(own):
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
        _loss_below(below, own, loss)
    else:
        axes = figure.add_subplot()
    name, kind = measure or ("bpd", "bits per dimension (upper bound)")
    train = _points(metrics.get(f"train/{name}", []), unit)
    bound = _points(metrics.get(f"val/{name}", []), unit)
    labels: list[tuple[float, str, str]] = []
    if len(train):
        smooth = smoothed(train[:, 1])
        axes.plot(train[:, 0], train[:, 1], color=_TRAIN, alpha=0.18, linewidth=0.8)
        axes.plot(train[:, 0], smooth, color=_TRAIN, linewidth=1.6)
        labels.append((smooth[-1], f"training {smooth[-1]:.3f}", _TRAIN))
    if len(bound):
        stderr = dict(metrics.get(f"val/{name}_stderr", []))
        band = np.array([stderr.get(int(step), 0.0) * unit for step in bound[:, 0]])
        axes.fill_between(bound[:, 0], bound[:, 1] - band, bound[:, 1] + band, color=_BOUND, alpha=0.25, linewidth=0)
        axes.plot(bound[:, 0], bound[:, 1], color=_BOUND, linewidth=2.2, marker="o", markersize=3.5)
        labels.append((bound[-1, 1], f"held-out{'' if measure else ' bound'} {bound[-1, 1]:.3f}", _BOUND))
    for other, bits in references.items():
        axes.axhline(bits * unit, color=_QUIET, linewidth=1, linestyle=(0, (4, 3)))
        labels.append((bits * unit, f"{other} {bits * unit:.2f}", _QUIET))
    _frame(axes, train, bound, [bits * unit for bits in references.values()])
    _label(axes, labels)
    figure.axes[-1].set_xlabel("optimiser steps", color=_QUIET)
    axes.set_ylabel(kind if scale is None else kind.replace("dimension", "character"))
    axes.set_title(title, loc="left", color=_INK, fontsize=12)
    figure.savefig(path, facecolor="white")


def _loss_below(axes: Any, train: np.ndarray, name: str) -> None:
    smooth = smoothed(train[:, 1])
    axes.plot(train[:, 0], train[:, 1], color=_TRAIN, alpha=0.18, linewidth=0.8)
    axes.plot(train[:, 0], smooth, color=_TRAIN, linewidth=1.6)
    _frame(axes, train, np.zeros((0, 2)), [])
    _label(axes, [(smooth[-1], f"training {smooth[-1]:.3f}", _TRAIN)])
    name = name.removeprefix("train/")
    axes.set_ylabel(name if name == "loss" else f"{name} (loss)", color=_QUIET)


def _points(curve: Curve, unit: float) -> np.ndarray:
    """Float[k, 2] of steps and finite values."""
    return np.array([(step, value * unit) for step, value in curve if math.isfinite(value)], float).reshape(-1, 2)


def smoothed(values: Sequence[float] | np.ndarray, share: float = 0.04) -> np.ndarray:
    """Means over a window of `share` of the curve around each point.

    At the start, where curves are steep, the window shrinks on both sides; at the end only on the right.
    """
    values = np.asarray(values, float)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    left = np.minimum(max(1, round(share * len(values) / 2)), index)
    right = np.minimum(left, len(values) - 1 - index)
    return (total[index + right + 1] - total[index - left]) / (left + right + 1)


def _frame(axes: Any, train: np.ndarray, bound: np.ndarray, references: list[float]) -> None:
    """What comes first may leave the picture at the top (report/chart.py)."""
    curves = [curve for curve in (smoothed(train[:, 1]) if len(train) else train[:, 1], bound[:, 1]) if len(curve)]
    if curves or references:
        axes.set_ylim(*limits(curves, references))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
    axes.tick_params(colors=_QUIET, length=0)
    axes.yaxis.label.set_color(_QUIET)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)


def _label(axes: Any, labels: list[tuple[float, str, str]]) -> None:
    """Names at the right end of the lines, pushed apart where they would lie on one another."""
    low, high = axes.get_ylim()
    least = 0.048 * (high - low)
    placed: list[float] = []
    for value, _, _ in sorted(labels):
        placed.append(max(value, placed[-1] + least) if placed else value)
    # what was pushed out at the top moves down again, and takes those below it along
    ceiling = high
    for i in range(len(placed) - 1, -1, -1):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - least
    for (value, text, color), y in zip(sorted(labels), placed, strict=True):
        axes.annotate(
            text,
            xy=(1, value),
            xytext=(1.03, y),
            xycoords=("axes fraction", "data"),
            textcoords=("axes fraction", "data"),
            va="center",
            color=color,
            fontsize=9.5,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.6,
                "alpha": 0.6,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )
