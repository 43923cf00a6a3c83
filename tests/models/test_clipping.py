"""Gradients are clipped beside a fused AdamW under bf16-mixed, which Lightning itself refuses."""

from __future__ import annotations

from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

from ggm_lightning.models.md4 import MD4
from ggm_lightning.models.trained import Trained
from tests.models.test_fused_training import N, V, transformer

LIMIT = 1e-3


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": torch.full((N,), i)}


class FusedMD4(MD4):
    """With the optimiser of a GPU, on any device; notes the gradients' norm that the optimiser sees."""

    def configure_optimizers(self) -> Any:
        chosen = super().configure_optimizers()
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)
        return {**chosen, "optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer)}

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        self.before = self.norm()
        super().configure_gradient_clipping(*args, **kwargs)
        self.after = self.norm()

    def norm(self) -> float:
        return float(torch.nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None]))


def fit(precision: str) -> FusedMD4:
    torch.manual_seed(0)
    model = FusedMD4(transformer(), V, (N,))
    trainer = lightning.Trainer(
        accelerator="cpu",
        precision=precision,  # type: ignore[arg-type]
        gradient_clip_val=LIMIT,
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, torch.utils.data.DataLoader(Rows(), batch_size=4))
    assert float(trainer.callback_metrics["train/grad_norm"]) == pytest.approx(model.before, rel=1e-5)
    return model


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fused_step_takes_clipped_gradients(precision: str) -> None:
    model = fit(precision)
    assert model.before > 10 * LIMIT
    assert model.after == pytest.approx(LIMIT, rel=1e-2)


def test_control_lightnings_own_clipping_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trained, "configure_gradient_clipping", lightning.LightningModule.configure_gradient_clipping)
    with pytest.raises(RuntimeError, match="gradient clipping"):
        fit("bf16-mixed")
