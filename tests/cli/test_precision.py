"""--precision of sample, infill and evaluate: the network's products alone, no draws; on a CPU nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.cli import loading
from ggm_lightning.cli.main import main
from ggm_lightning.core import categorical, products
from tests.cli.test_results import error_of, folders, run, sample  # noqa: F401 - a fixture

BF16 = "samples-step2-ancestral-3steps-temp1-seed0-n5-bf16"


@pytest.fixture
def drawn_from(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The logits of all draws."""
    seen: list[Tensor] = []
    draw: Callable[..., Tensor] = categorical.draw

    def watched(logits: Tensor, *rest: Any, **more: Any) -> Tensor:
        seen.append(logits)
        return draw(logits, *rest, **more)

    monkeypatch.setattr(categorical, "draw", watched)
    return seen


def test_draws_stay_float32_and_have_their_own_folder(run: Path, drawn_from: list[Tensor]) -> None:  # noqa: F811
    sample()
    plain, count = torch.cat(drawn_from), len(drawn_from)
    sample("--precision", "32")
    assert len(drawn_from) == count  # the same results: found, not drawn again
    sample("--precision", "bf16")
    assert folders(run) == [BF16.removesuffix("-bf16"), BF16]
    rounded = torch.cat(drawn_from[count:])
    assert rounded.dtype == torch.float32
    assert not torch.equal(drawn_from[count], drawn_from[0])  # the network was called in another precision
    assert (rounded[:5] - plain[:5]).abs().max() < 0.1
    with np.load(run / BF16 / "samples.npz") as arrays:
        assert arrays["x"].dtype == np.int64


def test_bounds_in_bf16_are_close_and_marked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    figures = []
    for precision in ("32", "bf16"):
        loaded = loading.load_family(str(run / "last.ckpt"), "cpu", (), precision)
        x = torch.zeros(3, *loaded.model.shape, dtype=torch.int64)
        with loaded.computing():
            figures.append(loaded.model.nelbo(x, num_samples=2))
    assert figures[0].dtype == figures[1].dtype == torch.float64
    assert 0 < (figures[0] - figures[1]).abs().max() < 0.02 * figures[0].abs().max()


def test_on_a_cpu_auto_is_full_precision(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    loaded = loading.load_family(str(run / "last.ckpt"))
    about = {"config": {"trainer": {"precision": "bf16-mixed"}}}
    assert loaded.precision == loading._precision(loading.replace(loaded, about=about)) == "32"
    monkeypatch.setattr(type(loaded.model), "device", torch.device("cuda"))
    assert loading._precision(loading.replace(loaded, about=about)) == "bf16"
    assert loading._precision(loaded) == "32"  # trained in full precision


def test_an_unknown_precision_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    assert "--precision 8: choose one of auto, 32, bf16" in error_of(capsys, "--precision", "8")
    with pytest.raises(SystemExit):
        main(["infill", "--ckpt_path", "run/last.ckpt", "--text", "a_", "--precision", "8"])


def test_logits_of_a_head_are_not_rounded() -> None:
    head, values = nn.Linear(64, 131), torch.randn(7, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits, rounded = products.head_logits(head, values), head(values)
    assert (logits.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    exact = values.bfloat16().double() @ head.weight.bfloat16().double().t() + head.bias
    assert (logits - exact).abs().max() < 1e-6
    assert (rounded - exact).abs().max() > 1e-4  # control


def test_sums_over_classes_are_not_rounded() -> None:
    a, b = torch.rand(5, 1000), torch.rand(1000)
    with torch.autocast("cpu", torch.bfloat16):
        found, rounded = products.exactly(a, b), a @ b
    assert torch.equal(found, a @ b)
    assert (rounded - found).abs().max() > 1e-2  # control
