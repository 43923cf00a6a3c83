"""How many of our own functions stand between `training_step` and the loss: what one must step through to read a loss.

Counted by sys.setprofile in one training step. A frame is own if its code lies in a file of ggm_lightning/. The kernel
is the first function of core/ that is entered on the way to the loss: one of KERNELS. The depth is the number of own
frames on the stack between `training_step` and the kernel, both left out; what has returned before (times, corruption,
the network) and frames of torch are not on the way. A step's depth is that of its deepest kernel.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import ggm_lightning
from ggm_lightning import Blackout
from ggm_lightning.models.base import Family
from tests.models.every_family import FAMILIES, N, V, small

ROOT = str(Path(ggm_lightning.__file__).parent)
KERNELS = {
    ("fused.py", "masked_linear_cross_entropy"),
    ("fused.py", "token_logits"),
    ("losses.py", "masked_cross_entropy"),
    ("losses.py", "cross_entropy"),
    ("losses.py", "rate_divergence"),
    ("glauber.py", "signal_cross_entropy"),
    ("hollow.py", "label_nats"),
    ("death.py", "published_loss"),
    ("death.py", "divergence"),
    ("softplus_loss.py", "softplus_loss"),
    ("logs.py", "log_normalised"),
    ("logs.py", "divergence"),
}
LIMITS = {"md4": 4, "ggm": 6, "ggm, whole blocks": 6, "ggm, all sites": 6, "blackout": 8}  # of the rest 8, too


def own_frames(frame: FrameType | None) -> list[tuple[str, str]] | None:
    """(file, function) of the own frames up to training_step, the innermost first; None outside of it."""
    found = []
    while frame is not None and frame.f_code.co_name != "training_step":
        if frame.f_code.co_filename.startswith(ROOT):
            found.append((Path(frame.f_code.co_filename).name, frame.f_code.co_name))
        frame = frame.f_back
    return None if frame is None else found


def depth(model: Family, fused: bool) -> int:
    """Of the deepest kernel in one training step."""
    model.fused = fused
    model.trainer = SimpleNamespace(world_size=1, global_rank=0, accumulate_grad_batches=1, global_step=0)
    x = torch.randint(V, (2, N), generator=torch.Generator().manual_seed(1))
    depths = []

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or (Path(frame.f_code.co_filename).name, frame.f_code.co_name) not in KERNELS:
            return
        own = own_frames(frame)
        if own is not None and not set(own[1:]) & KERNELS:  # a kernel that calls another is the first
            depths.append(len(own) - 1)

    sys.setprofile(watch)
    try:
        model.training_step({"x": x}, 0)
    finally:
        sys.setprofile(None)
    return max(depths)


class Deaths(nn.Module):
    """One number per site."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(N, N)

    def forward(self, z: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        return self.layer(z)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_loss_is_near_its_step(name: str, fused: bool) -> None:
    assert 1 <= depth(small(name), fused) <= LIMITS.get(name, 8)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("loss", ["instantaneous", "finite_time", "likelihood"])
def test_each_loss_of_blackout(loss: str, fused: bool) -> None:
    torch.manual_seed(0)
    assert 1 <= depth(Blackout(Deaths(), V, (N,), loss=loss, num_timesteps=20), fused) <= LIMITS["blackout"]


def test_a_layer_that_only_passes_on_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: one own function more in between is one more."""
    model = small("md4")
    before = depth(model, False)
    passing: dict[str, Any] = {}
    code = compile("def training_loss(*given):\n    return inner(*given)\n", f"{ROOT}/models/passing.py", "exec")
    exec(code, passing | {"inner": None}, passing)
    inner = model.training_loss
    monkeypatch.setitem(passing["training_loss"].__globals__, "inner", inner)
    monkeypatch.setattr(model, "training_loss", passing["training_loss"])
    assert depth(model, False) == before + 1
