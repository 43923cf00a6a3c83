"""Each family trained for a few steps by one rank or by two (gloo), the weights of each written to a file:

python -m tests.models.all_families_on_ranks RANKS OUTPUT.pt [PRECISION]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from ggm_lightning.callbacks.ema import EMA
from ggm_lightning.data.arrays import ArrayData
from ggm_lightning.models.lddm_stages import Recipe
from tests.models.every_family import FAMILIES, LABELS, N, V, small

STEPS = 4
BATCH = 6  # rows of a step: of all ranks together
SWITCH = 2  # steps after which LDDM's encoder is frozen
FROZEN = "seq, frozen at a step"


def family(name: str):
    if name == FROZEN:
        return small("seq", recipe=Recipe(stage1_steps=SWITCH))
    return small(name)


def trained(name: str, ranks: int, data: Path, precision: str) -> dict[str, torch.Tensor]:
    model = family(name)
    loader = ArrayData(str(data), V, ordered=name == "blackout", global_batch_size=BATCH)
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=DDPStrategy(find_unused_parameters=model.unused_parameters) if ranks > 1 else "auto",
        precision=precision,
        max_steps=STEPS,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[EMA()],
    )
    trainer.fit(model, loader)
    return {key: value.detach().cpu().double() for key, value in model.state_dict().items()}


def main() -> None:
    ranks, output = int(sys.argv[1]), Path(sys.argv[2])
    precision = sys.argv[3] if len(sys.argv) > 3 else "32-true"
    if precision == "64-true":
        torch.set_default_dtype(torch.float64)
    data = output.with_suffix(".npz")
    drawn = np.random.default_rng(0)
    np.savez(data, x=drawn.integers(0, V, (40, N)), label=drawn.integers(0, LABELS, 40))
    found = {name: trained(name, ranks, data, precision) for name in [*FAMILIES, FROZEN]}
    if os.environ.get("LOCAL_RANK", "0") == "0":
        torch.save(found, output)


if __name__ == "__main__":
    main()
