"""How samples came about. A text: a self-contained piece of HTML with a slider over the steps, each token coloured by
the step at which it took its final value. Pictures: an animated GIF."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ggm_lightning.report.pictures import grid, save_gif

Pieces = Callable[[list[int]], list[str]]
Decode = Callable[[Any], np.ndarray]

FRAMES = 36
FRAME_PIXELS = 90_000  # a report holds the whole GIF: a few MB at most

_EARLY, _LATE = 250, 395  # hues: violet for the first step, by way of red to orange (395 = 35) for the last


def first_row(states: Sequence[Any]) -> np.ndarray:
    """The states of the first sample, Int[step, *s], from Int[b, *s] arrays or tensors."""
    return np.stack([np.asarray(state)[0] for state in states])


def final_step(states: np.ndarray) -> np.ndarray:
    """Int[*s]: the step since which each site has its final value; 0 if it had it in the prior."""
    differs = states != states[-1]
    steps = np.arange(1, len(states) + 1).reshape(-1, *[1] * (states.ndim - 1))
    return (differs * steps).max(axis=0)


def trace_gif(states: Sequence[Any], decode: Decode, path: str | Path, columns: int | None = None) -> int:
    """The denoising of pictures as an animated GIF: x, which is what paper and a stopped animation show, then the way
    from the prior to it. Returns how many pictures it shows.

    At most 36 states, evenly spread over the steps, and as many whole rows of the grid as 90,000 pixels hold.

    Args:
        states: Int[b, *s] arrays or tensors, the first from the prior, the last final.
        decode: Int[b, *s], masks included, -> uint8 images [b, h, w, 3].
        path: of the GIF.
        columns: of the grid.
    """
    last = len(states) - 1
    steps = sorted({round(i * last / (FRAMES - 1)) for i in range(FRAMES)})
    shown = len(states[0])
    _, h, w, *_ = np.shape(decode(states[0][:1]))
    while shown > 1 and shown * h * w > FRAME_PIXELS:
        shown -= columns if columns and shown > columns else 1
    frames = [grid(decode(states[step][:shown]), columns) for step in steps]
    save_gif([frames[-1], *frames], path)
    return shown


def trace_html(states: Sequence[Any], pieces: Pieces, mask_id: int) -> str:
    """The denoising of the first sample of Int[b, n] states, from the prior to x. Arguments as of `trace_data`."""
    return trace_fragment(trace_data(states, pieces, mask_id))


def trace_data(states: Sequence[Any], pieces: Pieces, mask_id: int) -> dict[str, Any]:
    """What the page shows of the first sample, as data for a JSON file.

    Args:
        states: Int[b, n] arrays or tensors, the first from the prior, the last final.
        pieces: token ids -> the text of each.
        mask_id: the id of [MASK]; it never reaches `pieces`.

    Returns:
        `histories`: of each site its values and since when, [[step, text or None], ...]; `final`: the step since which
        it has its last one; `last`: the number of steps.
    """
    sequence = first_row(states)
    if sequence.ndim != 2:
        raise ValueError(f"trace_html: states have shape {list(np.shape(states[0]))}; it shows texts, Int[b, n]")
    known = sorted({int(i) for i in np.unique(sequence)} - {mask_id})
    text_of: dict[int, str | None] = dict(zip(known, (pieces([i])[0] for i in known), strict=True))
    text_of[mask_id] = None
    return {
        "histories": _histories(sequence, text_of),
        "final": final_step(sequence).tolist(),
        "last": len(sequence) - 1,
    }


def _histories(sequence: np.ndarray, text_of: dict[int, str | None]) -> list[list[list[Any]]]:
    """For every site its values and since when: [[step, text], ...]; a leading blank is left out."""
    histories = []
    for site in sequence.T:
        changed = [0, *(np.flatnonzero(site[1:] != site[:-1]) + 1).tolist()]
        history = [[step, text_of[int(site[step])]] for step in changed]
        if len(history) > 1 and history[0][1] is None:
            history = history[1:]
        histories.append(history)
    return histories


def trace_fragment(data: dict[str, Any]) -> str:
    """HTML of what `trace_data` gives. Masked tokens are blanks. Where a process replaces tokens (GGM), values that do
    not last are shown pale. Without JavaScript the final text is shown, with each token's step in its colour and its
    tooltip."""
    last = int(data["last"])
    histories = [[[int(step), None if text is None else str(text)] for step, text in h] for h in data["histories"]]
    spans = []
    for history, step in zip(histories, data["final"], strict=True):
        text = "\N{LOW LINE}" if history[-1][1] is None else history[-1][1]
        hue = round(_EARLY + (_LATE - _EARLY) * int(step) / max(1, last))
        spans.append(f'<span style="--hue:{hue}" title="step {int(step)}">{html.escape(str(text))}</span>')
    # inside a script element nothing is unescaped, so no end tag may occur in the texts
    written = json.dumps(histories, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    stops = ", ".join(f"hsl({round(_EARLY + (_LATE - _EARLY) * i / 6)} 85% 55% / .55)" for i in range(7))
    script = Path(__file__).with_name("trace.js").read_text(encoding="utf-8")
    return (
        '<div class="trace">'
        '<div class="trace-bar" hidden><button type="button">Play</button>'
        f'<input type="range" min="0" max="{last}" value="{last}" step="1" aria-label="sampling step">'
        "<output></output></div>"
        f'<p class="trace-text">{"".join(spans)}</p>'
        f'<div class="trace-key">step 0<i style="background:linear-gradient(90deg, {stops})"></i>step {last}</div>'
        f'<script type="application/json">{written}</script>'
        f"<script>{script}</script>"
        "</div>"
    )
