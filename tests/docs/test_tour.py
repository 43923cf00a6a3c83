"""docs/tour.ipynb: its cells run one after the other, and come out as its words say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot
import pytest
import torch

TOUR = Path(__file__).parents[2] / "docs" / "tour.ipynb"


@pytest.mark.slow
def test_the_tour(capsys: pytest.CaptureFixture[str]) -> None:
    matplotlib.pyplot.switch_backend("Agg")
    space: dict[str, Any] = {"__name__": "tour"}
    cells = json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "tour", "exec"), space)
    matplotlib.pyplot.close("all")
    assert space["entropy"] - 0.6 < space["mean"] < space["entropy"] + 1
    assert space["share_right"](space["exact"]) > 0.9
    assert torch.equal(space["filled"], torch.tensor([[0, 3, 6, 2, 5, 1, 4, 0]]))
    printed = capsys.readouterr().out
    assert "4 of 4 hold" in printed
    assert "all are 2 times what they should be" in printed


def test_what_it_keeps_is_no_machine_s() -> None:
    """Warnings of the run that filled it in, with its paths, are left out."""
    cells = json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert any(output["output_type"] == "stream" for output in outputs)
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert "site-packages" not in TOUR.read_text(encoding="utf-8")
