"""Draws the pictures of docs/families/: one line of text (or one digit), noised by each family's own `corrupt`.

python docs/pictures/draw_noise.py      writes noise_*.svg beside this file
"""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from pathlib import Path

import torch
from torch import Tensor, nn

from ggm_lightning import GGM, MD4, GenMD4, MarkovDiffusion
from ggm_lightning.core import noise

FOLDER = Path(__file__).parent
LINE = "the cat sat on the mat and saw a bird"
LETTERS = " abcdefghijklmnopqrstuvwxyz"
V = len(LETTERS)
SITES = len(LINE)
TIMES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
CELL = 17  # pixels
# readable on a white and on a dark page
STYLE = (
    "<style>text{font:14px ui-monospace,monospace;fill:#444}.new{fill:#c2410c}.hole{fill:#8886}.t{fill:#888}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}.new{fill:#fb923c}}</style>"
)


class Nothing(nn.Module):
    """The noise asks no network."""

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
        raise NotImplementedError


def uniform(stream: str) -> Tensor:
    """Float64[1, n]: the same for all times, so that what is noise stays noise."""
    return noise.uniform(stream, seed=3, step=0, row=torch.zeros(1, dtype=torch.long), num_sites=SITES)


def text_picture(rows: list[tuple[str, list[int]]], clean: list[int]) -> str:
    """An SVG, a line of text for each time. rows: (label, ids); the id V is a hole, a changed letter has a colour."""
    width, height = 96 + SITES * CELL, len(rows) * 26 + 8
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">{STYLE}']
    for line, (label, ids) in enumerate(rows):
        y = 20 + line * 26
        parts.append(f'<text class="t" x="4" y="{y}">{escape(label)}</text>')
        for site, token in enumerate(ids):
            x = 92 + site * CELL
            if token == V:
                parts.append(f'<rect class="hole" x="{x}" y="{y - 13}" width="{CELL - 4}" height="17" rx="3"/>')
                continue
            kind = ' class="new"' if token != clean[site] else ""
            parts.append(f'<text{kind} x="{x}" y="{y}">{escape(LETTERS[token])}</text>')
    return "".join([*parts, "</svg>\n"])


def grey_picture(rows: list[tuple[str, Tensor]], levels: int) -> str:
    """An SVG of pictures Int64[h, w] side by side, their labels below."""
    size, gap = 8, 18
    high, wide = rows[0][1].shape
    width, height = len(rows) * (wide * size + gap), high * size + 26
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">{STYLE}']
    for place, (label, picture) in enumerate(rows):
        left = place * (wide * size + gap)
        for i in range(high):
            for j in range(wide):
                grey = round(255 * int(picture[i, j]) / (levels - 1))
                box = f'x="{left + j * size}" y="{i * size}" width="{size}" height="{size}"'
                parts.append(f'<rect {box} fill="rgb({grey},{grey},{grey})"/>')
        parts.append(f'<text class="t" x="{left}" y="{high * size + 18}">{escape(label)}</text>')
    return "".join([*parts, "</svg>\n"])


def noised(corrupt: Callable[[Tensor], Tensor], times: tuple[float, ...] = TIMES) -> list[tuple[str, list[int]]]:
    rows = []
    for t in times:
        label = f"t = {t:g}"
        rows.append((label, corrupt(torch.tensor([t], dtype=torch.float64))[0].tolist()))
    return rows


def draw() -> None:
    clean = [LETTERS.index(letter) for letter in LINE]
    x = torch.tensor([clean])
    md4 = MD4(network=Nothing(), num_classes=V, shape=(SITES,))
    write("md4", text_picture(noised(lambda t: md4.corrupt(x, t, uniform("mask"))), clean))

    genmd4 = GenMD4(network=Nothing(), num_classes=V, shape=(SITES,))
    exponents = torch.ones(V)
    exponents[0] = 3.0  # spaces are hidden late
    with torch.no_grad():
        genmd4.raw_exponents.copy_(exponents.expm1().log())  # whose softplus they are
    write("genmd4", text_picture(noised(lambda t: genmd4.corrupt(x, t, uniform("mask"))), clean))

    sweeps = 5
    ggm = GGM(network=Nothing(), num_classes=V, shape=(SITES,), num_sweeps=sweeps)
    visits = [(f"sweep {r}", ggm.corrupt(x, torch.tensor([r * SITES]), uniform)[0].tolist()) for r in range(sweeps + 1)]
    write("ggm", text_picture(visits, clean))

    grown = []
    for share in reversed(TIMES):
        drawn = math.ceil(SITES * (1 - share))
        grown.append((f"{drawn} drawn", [*clean[:drawn], *[V] * (SITES - drawn)]))
    write("autoregressive", text_picture(grown, clean))

    levels, side = 17, 12
    centre = torch.arange(side) - (side - 1) / 2
    ring = (centre[:, None] ** 2 + centre**2).sqrt()
    picture = ((3 - (ring - 4).abs()).clamp(0, 2) * 8).round().long()
    process = MarkovDiffusion(
        network=Nothing(), num_classes=levels, shape=(side, side), process="gaussian", width=2.0, t_end=50.0, power=3.0
    )
    u = noise.uniform("x", seed=3, step=0, row=torch.zeros(1, dtype=torch.long), num_sites=side * side)
    pictures = []
    for t in TIMES:
        state = process.corrupt(picture[None], torch.tensor([t], dtype=torch.float64), u)
        pictures.append((f"t = {t:g}", state[0]))
    write("markov", grey_picture(pictures, levels))


def write(name: str, svg: str) -> None:
    (FOLDER / f"noise_{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    draw()
