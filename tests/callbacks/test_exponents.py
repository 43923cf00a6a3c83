"""exponents.png: what is drawn, where it goes, and that a full disk does not end the run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ggm_lightning.callbacks import exponents as callback
from ggm_lightning.callbacks.exponents import Exponents
from ggm_lightning.rundir.bars import exponents_png, visible


@pytest.fixture
def drawn(monkeypatch):
    calls = []
    monkeypatch.setattr(callback, "exponents_png", lambda *args: calls.append(args))
    return calls


def test_after_each_validation_with_the_tokens_names(tiny, tiny_data, fit, drawn, tmp_path):
    model = tiny()
    model.exponents = lambda: torch.arange(1.0, 8.0).double()
    fit(model, Exponents(), data=tiny_data(2), max_epochs=2)
    assert len(drawn) == 2
    w, names, path, title = drawn[0]
    assert np.array_equal(w, np.arange(1.0, 8.0))
    assert names == list("<ab&c\n>")
    assert path == tmp_path / "exponents.png"
    assert title == "after step 2"


def test_levels_have_numbers(tiny, tiny_data, fit, drawn):
    model, data = tiny(), tiny_data(1)
    model.exponents = lambda: torch.ones(7).double()
    data.codec = object()
    fit(model, Exponents(), data=data, max_epochs=1)
    assert drawn[0][1] == [str(v) for v in range(7)]


def test_a_full_disk_is_one_warning(tiny, tiny_data, fit, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(callback, "exponents_png", full)
    model = tiny()
    model.exponents = lambda: torch.ones(7).double()
    with pytest.warns(UserWarning, match=r"exponents\.png: cannot be written \(No space left on device\)"):
        fit(model, Exponents(), data=tiny_data(1), max_epochs=1)


@pytest.mark.parametrize("tokens", [3, 7, 300])
def test_the_picture_shows_both_ends(tokens, tmp_path):
    w = np.linspace(0.5, 2.5, tokens)
    exponents_png(w, [f"token{i}" for i in range(tokens)], tmp_path / "w.png", most=5)
    picture = np.asarray(Image.open(tmp_path / "w.png").convert("RGB")).astype(int)
    late = (np.abs(picture - [0x5B, 0x3F, 0xD6]).sum(-1) < 12).sum(1)  # pixels of each colour in each row
    early = (np.abs(picture - [0xE0, 0x80, 0x2B]).sum(-1) < 12).sum(1)
    assert late.max() > 3.5 * early.min(initial=10**9, where=early > 0)  # 2.5 against 0.5
    assert np.flatnonzero(late).max() < np.flatnonzero(early).max()  # the largest on top


def test_signs_for_white_space():
    assert visible(" the\n") == "␣the↵"
    assert visible("") == "(empty)"
    assert visible("$x$") == r"\$x\$"
