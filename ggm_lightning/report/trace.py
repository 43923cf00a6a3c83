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

STYLE = """
.trace-text { white-space: pre-wrap; overflow-wrap: anywhere; font: 15px/1.75 ui-monospace, "SF Mono", Menlo, Consolas,
  monospace; margin: 0; padding: 14px 16px; border-radius: 8px; background: var(--sunken, #8881); }
.trace-text span { border-radius: 3px; padding: 2px 0; background: hsl(var(--hue) 85% 55% / .30); transition:
  background .15s; }
.trace-text span.blank { color: transparent; background: #8882; }
.trace-text span.draft { opacity: .55; background: #8882; }
.trace-bar { display: flex; align-items: center; gap: 12px; margin: 0 0 12px; }
.trace-bar[hidden] { display: none; }
.trace-bar button { font: inherit; min-width: 5.2em; padding: 5px 12px; border-radius: 7px; border: 1px solid #8886;
  background: none; color: inherit; cursor: pointer; }
.trace-bar input { flex: 1; min-width: 80px; accent-color: hsl(265 60% 60%); }
.trace-bar output { font-variant-numeric: tabular-nums; min-width: 15.5em; text-align: right; opacity: .75; }
.trace-key { display: flex; align-items: center; gap: 10px; margin-top: 10px; font-size: 13px; opacity: .75; }
.trace-key i { flex: 0 0 160px; height: 10px; border-radius: 5px; }
"""

_SCRIPT = """
(function (root) {
  const tokens = root.querySelectorAll('.trace-text span');
  const history = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const bar = root.querySelector('.trace-bar'), slider = bar.querySelector('input');
  const button = bar.querySelector('button'), label = bar.querySelector('output');
  const last = Number(slider.max);
  let timer = null;
  function show(step) {
    let final = 0;
    tokens.forEach(function (token, i) {
      const changes = history[i], end = changes[changes.length - 1];
      let now = null;
      for (const change of changes) if (change[0] <= step) now = change;
      const done = now === end;
      final += done;
      token.className = done ? '' : now === null || now[1] === null ? 'blank' : 'draft';
      token.textContent = now === null || now[1] === null ? end[1] : now[1];
    });
    slider.value = step;
    label.textContent = 'step ' + step + ' of ' + last + ', ' + final + ' of ' + tokens.length + ' tokens';
  }
  function stop() { clearInterval(timer); timer = null; button.textContent = 'Play'; }
  button.addEventListener('click', function () {
    if (timer !== null) { stop(); return; }
    let step = Number(slider.value) >= last ? 0 : Number(slider.value);
    show(step);
    button.textContent = 'Pause';
    timer = setInterval(function () { show(++step); if (step >= last) stop(); }, Math.max(40, 6000 / last));
  });
  slider.addEventListener('input', function () { stop(); show(Number(slider.value)); });
  bar.hidden = false;
  show(last);
})(document.currentScript.parentElement);
"""


def first_row(states: Sequence[Any]) -> np.ndarray:
    """The states of the first sample, Int[step, *s], from Int[b, *s] arrays or tensors."""
    return np.stack([np.asarray(state)[0] for state in states])


def final_step(states: np.ndarray) -> np.ndarray:
    """Int[*s]: the step since which each site has its final value; 0 if it had it in the prior."""
    differs = states != states[-1]
    steps = np.arange(1, len(states) + 1).reshape(-1, *[1] * (states.ndim - 1))
    return (differs * steps).max(axis=0)


def trace_gif(states: Sequence[Any], decode: Decode, path: str | Path, columns: int | None = None) -> int:
    """The denoising of pictures as an animated GIF, from the prior to x, which is held. Returns how many it shows.

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
    save_gif([grid(decode(states[step][:shown]), columns) for step in steps], path)
    return shown


def trace_html(states: Sequence[Any], pieces: Pieces, mask_id: int) -> str:
    """The denoising of the first sample of Int[b, n] states, from the prior to x.

    Masked tokens are blanks. Where a process replaces tokens (GGM), values that do not last are shown pale. Without
    JavaScript the final text is shown, with each token's step in its colour and its tooltip.

    Args:
        states: Int[b, n] arrays or tensors, the first from the prior, the last final.
        pieces: token ids -> the text of each.
        mask_id: the id of [MASK]; it never reaches `pieces`.
    """
    sequence = first_row(states)
    if sequence.ndim != 2:
        raise ValueError(f"trace_html: states have shape {list(np.shape(states[0]))}; it shows texts, Int[b, n]")
    known = sorted({int(i) for i in np.unique(sequence)} - {mask_id})
    text_of: dict[int, str | None] = dict(zip(known, (pieces([i])[0] for i in known), strict=True))
    text_of[mask_id] = None
    return _fragment(_histories(sequence, text_of), final_step(sequence), len(sequence) - 1)


def _histories(sequence: np.ndarray, text_of: dict[int, str | None]) -> list[list[tuple[int, str | None]]]:
    """For every site its values and since when: [(step, text), ...]; a leading blank is left out."""
    histories = []
    for site in sequence.T:
        changed = [0, *(np.flatnonzero(site[1:] != site[:-1]) + 1).tolist()]
        history = [(step, text_of[int(site[step])]) for step in changed]
        if len(history) > 1 and history[0][1] is None:
            history = history[1:]
        histories.append(history)
    return histories


def _fragment(histories: list[list[tuple[int, str | None]]], final: np.ndarray, last: int) -> str:
    spans = []
    for history, step in zip(histories, final.tolist(), strict=True):
        text = "\N{LOW LINE}" if history[-1][1] is None else history[-1][1]
        hue = round(_EARLY + (_LATE - _EARLY) * step / max(1, last))
        spans.append(f'<span style="--hue:{hue}" title="step {step}">{html.escape(text)}</span>')
    # inside a script element nothing is unescaped, so no end tag may occur in the texts
    data = json.dumps(histories, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    stops = ", ".join(f"hsl({round(_EARLY + (_LATE - _EARLY) * i / 6)} 85% 55% / .55)" for i in range(7))
    return (
        '<div class="trace">'
        '<div class="trace-bar" hidden><button type="button">Play</button>'
        f'<input type="range" min="0" max="{last}" value="{last}" step="1" aria-label="sampling step">'
        "<output></output></div>"
        f'<p class="trace-text">{"".join(spans)}</p>'
        f'<div class="trace-key">step 0<i style="background:linear-gradient(90deg, {stops})"></i>step {last}</div>'
        f'<script type="application/json">{data}</script>'
        f"<script>{_SCRIPT}</script>"
        "</div>"
    )
