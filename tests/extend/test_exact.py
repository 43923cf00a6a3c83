"""docs/extend/exact.md: followed word by word."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from pathlib import Path

import pytest

from ggm_lightning.exact import Disproved, proof
from tests.extend import pages

PAGE = "exact.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pages.write(PAGE, tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def test_the_mistake_of_the_page_is_named_as_the_page_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the samplers, which are right and take some seconds: they are drawn in the slow test."""
    monkeypatch.setattr(proof.samplers, "all_of", lambda subject, more: [])
    with pytest.raises(Disproved) as found:
        runpy.run_path(str(folder / "proof.py"))
    message = str(found.value)
    for part in ("Mine (3 classes, 3 sites): terms: ", "allowed 1e-05, at x = ", "all are -1 times what they"):
        assert part in message
    assert message.endswith("the sign (also fail: bound, equal, each, estimator counts, loss rises)")
    page = (pages.PAGES / PAGE).read_text(encoding="utf-8")
    assert f"    {Disproved.__module__}.{Disproved.__name__}: Mine (3 classes, 3 sites): terms: " in page
    assert "last line of its traceback" in page


@pytest.mark.slow
def test_without_the_mistake_a_table_is_printed(folder: Path) -> None:
    mine = folder / "mine.py"
    mine.write_text(mine.read_text().replace("-super()", "super()"))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(folder / "proof.py"))
    assert "FAILS" not in printed.getvalue()
    assert "ok     terms" in printed.getvalue()


def test_the_table_of_equations_is_complete() -> None:
    from ggm_lightning.exact.proof import EQUATIONS, OF_BOUND, OF_SAMPLERS

    text = (pages.PAGES / PAGE).read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in (*EQUATIONS, *OF_BOUND, *OF_SAMPLERS))


@pytest.mark.slow
def test_the_commands(folder: Path) -> None:
    of_class, fit, of_checkpoint = pages.commands_of(PAGE)
    assert "all is as it has to be" in pages.run_here(of_class, folder)
    pages.run_here(fit, folder, *pages.QUICK, "--model.network.num_layers=1", "--model.network.feature_dim=8")
    told = pages.run_here(of_checkpoint, folder, "--num_samples", "300")
    assert "total variation from the model's own conditional law" in told
    assert "first_hitting" in told
