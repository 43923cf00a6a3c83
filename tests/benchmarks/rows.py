"""Many steps of ancestral sampling: only the rows in which a site is revealed, and whole batches, in one run.

`python -m tests.benchmarks.rows` draws 64 samples of 128 sites by 1,000 steps with a small transformer, once each, and
keeps rows per sample and seconds in results/rows.json. Both draw the same samples.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ggm_lightning.core import categorical
from ggm_lightning.models.md4 import MD4
from ggm_lightning.networks.transformer import Transformer
from ggm_lightning.sampling.plan import Ancestral
from ggm_lightning.sampling.sampler import Run

RESULTS = Path(__file__).parent / "results" / "rows.json"
STEPS, SITES, ROWS, V = 1000, 128, 64, 97


class WholeBatches(Ancestral):
    """The same, but every step sends every row."""

    def move(self, run: Run) -> None:
        everything = torch.ones_like(run.masked)
        logits = run.logits(everything).reshape(*run.z.shape, -1)
        sites = categorical.choose_sites(run.reveal_probability(), run.uniform("site"))
        values = run.request.sharpening.draw(logits[sites], run.uniform("value")[sites], sites)
        run.put(run.z.masked_scatter(sites, values))


def drawn(model: MD4, sampler: Any) -> tuple[Tensor, dict[str, float]]:
    begin = time.perf_counter()
    found = model.sample(ROWS, STEPS, seed=1, sampler=sampler)
    seconds = time.perf_counter() - begin
    return found.x, {"rows_per_sample": found.rows / ROWS, "calls": found.network_calls, "seconds": seconds}


def run() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = MD4(Transformer(V, feature_dim=16, num_heads=4, num_layers=2, mlp="geglu"), V, (SITES,))
    few, changing = drawn(model, Ancestral())
    whole, all_rows = drawn(model, WholeBatches())
    kept = {"command": "python -m tests.benchmarks.rows", "steps": STEPS, "sites": SITES, "rows": ROWS}
    kept |= {"same samples": bool(torch.equal(few, whole)), "rows that change": changing, "whole batches": all_rows}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps(kept, indent=1))


if __name__ == "__main__":
    run()
