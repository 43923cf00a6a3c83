"""`sample` and `infill` of rows that are text and can be drawn: both the text and the pictures are written."""

from __future__ import annotations

from pathlib import Path

import torch

from ggm_lightning.cli.drawing import write
from ggm_lightning.cli.infill_input import Given
from ggm_lightning.codecs.grids import Grids
from ggm_lightning.codecs.text import Characters
from ggm_lightning.models.md4 import MD4
from ggm_lightning.networks.transformer import Transformer

V, SIDE = 5, 3


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_and_pictures_of_samples_and_of_fillings(tmp_path: Path) -> None:
    """Control: the same rows with a codec that draws nothing."""
    model = MD4(Transformer(V, feature_dim=8, num_heads=2, num_layers=1), V, (SIDE**2,))
    x, known = torch.arange(SIDE**2)[None] % V, torch.arange(SIDE**2)[None] < 4
    clamp = tuple(part.repeat_interleave(2, 0) for part in (x, known))
    drawn = model.sample(2, 3, trace=True, clamp=clamp)
    for name, codec in (("drawn", Grids("abcde", SIDE)), ("plain", Characters("abcde", unknown=None))):
        model.codec = codec
        for kind, given in (("samples", None), ("fillings", Given(x, known, SIDE**2))):
            (tmp_path / name / kind).mkdir(parents=True)
            write(tmp_path / name / kind, model, drawn, {"step": "7"}, given=given, columns=2)
    text = {"samples.npz", "samples.txt", "trace.html"}
    for kind in ("samples", "fillings"):
        assert set(names(tmp_path / "drawn" / kind)) == text | {"samples.png", "trace.gif"}
        assert set(names(tmp_path / "plain" / kind)) == text
    page = (tmp_path / "drawn" / "fillings" / "trace.html").read_text()
    assert "Left: what was given" in page
    assert "data:image/gif" in page
