"""A family whose bound has the wrong sign does not train to its end, and gets no figures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ggm_lightning.cli.bound_files import Bound, BoundFile
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.md4 import MD4

B, N, V = 13, 5, 7


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(N, V))

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
        return self.logits.expand(len(z), N, V)


class WrongSign(MD4):
    """A stranger's: what should be paid is earned."""

    def nelbo(self, *given: object, **named: object) -> Tensor:
        return -super().nelbo(*given, **named)


def rows() -> DataLoader:
    x = torch.randint(V, (2 * B, N), generator=torch.Generator().manual_seed(1))
    return DataLoader([{"x": row} for row in x], batch_size=B)


def trainer(folder: Path) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    more = {"enable_model_summary": False, "accelerator": "cpu", "devices": 1}
    return Trainer(max_steps=4, default_root_dir=folder, **quiet, **more)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_a_run_ends_in_one_line(command: str, tmp_path: Path) -> None:
    def run(model: MD4 | GGM) -> None:
        loaders = (rows(), rows()) if command == "fit" else (rows(),)
        getattr(trainer(tmp_path), command)(model, *loaders)

    with pytest.raises(ValueError, match=r"the bound is -\d.* over \d+ rows, but .* cannot be negative") as caught:
        run(WrongSign(Net(), V, (N,)))
    assert "\n" not in str(caught.value)
    run(MD4(Net(), V, (N,)))  # controls
    run(GGM(Net(), V, (N,), eval_samples=1))  # a single visit of a row tells of one site


@pytest.mark.parametrize("sign", [1, -1])
def test_evaluate_writes_no_figures(sign: int, tmp_path: Path) -> None:
    nats = sign * torch.linspace(9, 11, B, dtype=torch.float64)
    one = Bound("digits", {}, "val", nats, N, text=False, of_rows=B, characters_per_token=None, seconds=1.0)
    file = BoundFile(tmp_path / "digits.json", {})
    if sign > 0:
        file.write(one, {})
        assert one.figures()["nelbo"] == pytest.approx(10)
    else:
        with pytest.raises(ValueError, match=r"the bound is -10 .* cannot be negative"):
            file.write(one, {})
    assert len(list(tmp_path.iterdir())) == (2 if sign > 0 else 0)
