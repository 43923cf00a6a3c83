"""Each family trained for a few steps by one rank or by two (gloo), and samples of it drawn by all of them; what each
rank has in the end is written to FOLDER/<rank>-of-<ranks>.pt:

python -m tests.models.all_families_on_ranks RANKS FOLDER [64 | 32 | 32-adam]

In 64 bits with the family's own optimiser; in 32 with an AdamW whose eps is larger than what rounding leaves of a
gradient that should be zero; 32-adam: with the usual eps.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy

from ggm_lightning.callbacks.ema import EMA
from ggm_lightning.callbacks.samples import Samples
from ggm_lightning.data.arrays import ArrayData
from ggm_lightning.models.base import Family
from ggm_lightning.models.lddm_stages import Recipe
from tests.models.every_family import FAMILIES, LABELS, N, V, small

STEPS = 5
BATCH = 6  # rows of a step: of all ranks together
SWITCH = 2  # steps after which LDDM's encoder is frozen
FROZEN, OTHER_SEED = "seq, frozen at a step", "md4, another seed"
NAMES = [*FAMILIES, FROZEN, OTHER_SEED]


def family(name: str) -> Family:
    if name == FROZEN:
        return small("seq", recipe=Recipe(stage1_steps=SWITCH))
    return small("md4", seed=1) if name == OTHER_SEED else small(name)


class Encoder(Callback):
    """What an encoder's weights are as each step begins."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if hasattr(pl_module, "encoder"):
            self.seen.append(torch.cat([p.detach().flatten().clone() for p in pl_module.encoder.parameters()]))


def trained(name: str, ranks: int, data: Path, bits: str) -> dict[str, Any]:
    model, encoder = family(name), Encoder()
    if bits != "64":
        adam = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-3 if bits == "32" else 1e-8)
        model.configure_optimizers = lambda: adam  # type: ignore[method-assign]
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=DDPStrategy(find_unused_parameters=model.unused_parameters) if ranks > 1 else "auto",
        precision="64-true" if bits == "64" else "32-true",
        max_steps=STEPS,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[EMA(), encoder],
    )
    trainer.fit(model, ArrayData(str(data), V, ordered=name == "blackout", global_batch_size=BATCH))
    weights = {key: value.detach().double() for key, value in model.state_dict().items()}
    drawn = Samples(num_samples=5, num_steps=3)._drawn(trainer, model)
    return {"weights": weights, "samples": drawn, "encoder": encoder.seen}


def main() -> None:
    ranks, folder = int(sys.argv[1]), Path(sys.argv[2])
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    bits = sys.argv[3] if len(sys.argv) > 3 else "64"
    torch.set_default_dtype(torch.float64 if bits == "64" else torch.float32)
    data, drawn = folder / f"{rank}-of-{ranks}.npz", np.random.default_rng(0)
    np.savez(data, x=drawn.integers(0, V, (40, N)), label=drawn.integers(0, LABELS, 40))
    torch.save({name: trained(name, ranks, data, bits) for name in NAMES}, folder / f"{rank}-of-{ranks}.pt")


if __name__ == "__main__":
    main()
