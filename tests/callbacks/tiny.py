"""A model, a data module and a trainer that are as small as the callbacks allow."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

B, N, V, D = 2, 5, 7, 11


class Tiny(LightningModule):
    """Predicts x from itself through one embedding and one linear layer; `frozen` is never trained."""

    def __init__(self, frozen_size: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.num_classes, self.shape = V, (N,)
        self.embed, self.head = nn.Embedding(V, D), nn.Linear(D, V)
        self.frozen = nn.Linear(frozen_size, frozen_size).requires_grad_(False)
        self.seen: dict[str, torch.Tensor] = {}

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.head(self.embed(batch["x"])).flatten(0, 1), batch["x"].flatten())
        self.log("train/bpd", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.seen["validation_step"] = self.head.weight.detach().clone()

    def on_validation_epoch_end(self):
        self.seen["on_validation_epoch_end"] = self.head.weight.detach().clone()
        values = {"nelbo": 9.5, "nelbo_stderr": 0.25, "bpd": 2.75, "bpd_stderr": 0.125, "ppl": 6.5, "ppl_stderr": 0.5}
        self.log_dict({f"val/{name}": value for name, value in values.items()})

    def configure_optimizers(self):
        return torch.optim.Adam((p for p in self.parameters() if p.requires_grad), lr=0.05)

    def sample(self, num_samples, num_steps, temperature=1.0, top_p=1.0, seed=0, trace=False):
        torch.rand(17)  # draws from the global generator, as a careless model might
        self.seen["sample"] = self.head.weight.detach().clone()
        rng = torch.Generator().manual_seed(seed)
        x = torch.randint(0, V, (num_samples, N), generator=rng)
        states = [torch.full_like(x, V), torch.where(torch.arange(N) < 2, x, V), x]
        return SimpleNamespace(x=x, network_calls=num_steps, trace=states if trace else None)


class Codec:
    def pieces(self, ids):
        return ["<ab&c\n>"[i] for i in ids]

    def to_dict(self):
        return {"kind": "test"}


class TinyData(LightningDataModule):
    """The same batches in each epoch."""

    judgement = "Share of words"

    def __init__(self, batches: int = 1) -> None:
        super().__init__()
        self.batches, self.codec, self.characters_per_token = batches, Codec(), 1.0

    def train_dataloader(self):
        x = torch.randint(0, V, (self.batches * B, N), generator=torch.Generator().manual_seed(1))
        return DataLoader([{"x": row} for row in x], batch_size=B)

    val_dataloader = train_dataloader

    def decode(self, x):
        return ["".join(self.codec.pieces(row)) for row in x.tolist()]

    def references(self):
        return {"order-1": 3.0, "order-2": 2.5}

    def judge(self, texts):
        return {"share": 0.5, "control": 0.25}


@pytest.fixture
def tiny():
    return Tiny


@pytest.fixture
def tiny_data():
    return TinyData


@pytest.fixture
def fit(tmp_path):
    """fit(model, *callbacks, data=..., ckpt_path=..., **trainer arguments) -> Trainer."""

    def run(model, *callbacks, data=None, ckpt_path=None, **arguments):
        silent = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        silent |= {"enable_progress_bar": False, "accelerator": "cpu", "max_epochs": 3, "log_every_n_steps": 1}
        trainer = Trainer(default_root_dir=tmp_path, callbacks=list(callbacks), **(silent | arguments))
        trainer.fit(model, datamodule=data or TinyData(), ckpt_path=ckpt_path)
        return trainer

    return run
