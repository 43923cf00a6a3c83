"""GGM with a hollow network that is told each site's survival level, beside one that is told the sweep and the bits.

    python -m tests.benchmarks.levels [--steps 2213]

The demo's text, settings and figures of tests/benchmarks/text_families.py, equal steps, one seed. With levels one
network serves several numbers of sweeps R: each has a bound, and `parallel` takes one sweep for each call, up to the
most that it was trained on. Result: results/levels.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch

from ggm_lightning.models.ggm import GGM
from ggm_lightning.networks.hollow import HollowTransformer
from tests.benchmarks.text_families import LENGTH, Text, bits_of_rows, judged, model_of, texts, trained

RESULTS = Path(__file__).parent / "results" / "levels.json"
SWEEPS = (2, 4, 8, 16)
CALLS = (4, 8, 16, 64)
ROWS, SAMPLES = 512, 256


def told_levels(text: Text) -> GGM:
    torch.manual_seed(0)
    size = {"feature_dim": 16, "num_heads": 4, "mlp": "geglu", "num_layers": 1, "num_merges": 1}
    network = HollowTransformer(text.num_classes, levels=True, **size)
    law = {"noise_law": text.unigram(), "num_sweeps": 4, "levels": True, "train_sweeps": list(SWEEPS)}
    return GGM(network, text.num_classes, (LENGTH,), loss="ce_x0", order="random", seed=0, **law)


def figures(model: GGM, text: Text, steps: int) -> dict[str, Any]:
    count = itertools.count()
    begin = time.process_time()
    trained(model, text, steps, 0, clock=lambda: float(next(count)))
    found: dict[str, Any] = {"training_seconds": round(time.process_time() - begin, 1), "bits": {}, "samples": {}}
    for sweeps in SWEEPS if model.levels else (4,):
        with model.at_sweeps(sweeps):
            found["bits"][sweeps] = round(float(bits_of_rows(model, text.rows(ROWS)).mean()), 4)
    for calls in CALLS:
        drawn = model.sample(SAMPLES, calls, sampler="parallel", seed=1)
        found["samples"][calls] = judged(drawn.x, text, text.judge(), None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2213)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    text = texts()["demo"]
    result: dict[str, Any] = {"command": f"python -m tests.benchmarks.levels --steps {steps}"}
    for name, model in (("bits", model_of("GGM ce_x0", text, 0)), ("levels", told_levels(text))):
        result[name] = figures(model, text, steps)  # type: ignore[arg-type]
        print(name, json.dumps(result[name]), flush=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
