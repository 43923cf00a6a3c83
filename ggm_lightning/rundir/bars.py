"""The learned exponents of a schedule as a bar chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

_INK, _QUIET, _LATE, _EARLY = "#1f2430", "#6b7280", "#5b3fd6", "#e0802b"


def exponents_png(w: np.ndarray, names: Sequence[str], path: str | Path, title: str = "", most: int = 20) -> None:
    """The `most` largest and smallest exponents, largest on top: tokens masked late (generated early) and early (late).

    Args:
        w: Float[v], positive.
        names: of the v tokens; white space is made visible.
        path: of the PNG.
        title: above the picture.
        most: bars at each end.
    """
    from matplotlib.figure import Figure  # without pyplot there is no global state and no window

    order = np.argsort(w)
    shown = order if len(w) <= 2 * most else np.concatenate([order[:most], order[-most:]])
    values = w[shown]
    figure = Figure(figsize=(7, 1.2 + 0.21 * len(shown)), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    place = np.arange(len(shown)) + (np.arange(len(shown)) >= most) * (
        len(shown) < len(w)
    )  # a gap where some are left out
    middle = float(np.median(w))
    axes.barh(place, values, color=[_LATE if value >= middle else _EARLY for value in values], height=0.75)
    axes.axvline(middle, color=_QUIET, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(place, [visible(names[i]) for i in shown], fontsize=8, family="monospace")
    axes.set_xlabel(f"exponent w (median {middle:.3f}): large = masked late, generated early", color=_QUIET, fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=_INK, length=0)
    axes.margins(y=0.01)
    axes.set_title(title, loc="left", color=_INK, fontsize=11)
    figure.savefig(path, facecolor="white")


def visible(token: str) -> str:
    """A token as a label: spaces and line ends as signs, `$` taken literally."""
    text = token.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥").replace("$", r"\$")
    return text[:14] or "(empty)"
