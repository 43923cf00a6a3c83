"""MD4 and GGM on one source with a known entropy, with equal network, data and steps: `python -m
tests.benchmarks.markov_source [name ...]`. Trains each variant, then draws from it; rows are kept in results/.

Seconds are those of this process on one thread (time.process_time), so that other programs do not count.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ggm_lightning
from ggm_lightning.cli.main import main
from ggm_lightning.data.toy.synthetic import MarkovChain
from tests.test_learning import bigrams, distance

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "markov_source.json"
LENGTH, SYMBOLS, SAMPLES, EVALUATED = 64, 11, 1000, 1024

Draw = tuple[str | None, int]
_MODEL = "--model.init_args."
_NETWORK = f"{_MODEL}network"
_SIZES = ("feature_dim=16", "num_heads=4", "num_layers=3", "mlp=geglu", "visited_bits=true")
_ONE_SITE = [  # 185,000 parameters beside 200,000 of the experiment's hollow network
    f"{_MODEL}order=raster",
    f"{_NETWORK}=ggm_lightning.networks.transformer.Transformer",
    *(f"{_NETWORK}.init_args.{size}" for size in _SIZES),
]
_HOLLOW_DRAWS: list[Draw] = [("parallel", 4), ("parallel", 16), ("parallel", 64)]
_BLOCK = [*_ONE_SITE, f"{_MODEL}loss=ce_x0", f"{_MODEL}block_size=16", f"{_MODEL}hide=block", f"{_MODEL}order=permuted"]
VARIANTS: dict[str, tuple[str, list[str], list[Draw]]] = {
    "MD4": ("md4_markov", [], [(None, 4), (None, 16), (None, 64), (None, 256)]),
    "GGM bce": ("ggm_markov", _ONE_SITE, [("heat_bath", 1)]),
    "GGM bce, 4 x steps": ("ggm_markov", [*_ONE_SITE, "--trainer.max_steps=3200"], [("heat_bath", 1)]),
    "GGM ce_x0": ("ggm_markov", [*_ONE_SITE, f"{_MODEL}loss=ce_x0"], [("heat_bath", 1)]),
    "GGM ce_x0, blocks": (
        "ggm_markov",
        _BLOCK,
        [("parallel", 16), ("parallel", 64), ("parallel", 128), ("heat_bath", 1)],
    ),
    "GGM hollow bce": ("ggm_markov", [], _HOLLOW_DRAWS),
    "GGM hollow bce, seed 1": ("ggm_markov", ["--seed_everything=1"], _HOLLOW_DRAWS),
    "GGM hollow bce, seed 2": ("ggm_markov", ["--seed_everything=2"], _HOLLOW_DRAWS),
    "GGM hollow ce_x0": ("ggm_markov", [f"{_MODEL}loss=ce_x0"], _HOLLOW_DRAWS),
}


def measured(action: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.process_time()
    result = action()
    return result, time.process_time() - begin


def bound(model: Any, x: torch.Tensor) -> tuple[float, float]:
    """(mean, standard error) of the bound, nats per token."""
    rows = torch.arange(len(x)).split(256)  # numbered, so that no two sequences share their noise
    nats = torch.cat([model.nelbo(x[row], num_samples=32, row=row) for row in rows])
    return float(nats.mean()) / LENGTH, float(nats.std()) / math.sqrt(len(nats)) / LENGTH


def variant(name: str, folder: str) -> dict[str, Any]:
    experiment, overrides, draws = VARIANTS[name]
    config = ["--config", str(ROOT / "experiments" / f"{experiment}.yaml"), *overrides]
    _, seconds = measured(lambda: main(["fit", *config, "--runs", folder, "--name", "run"]))
    source = MarkovChain(num_symbols=SYMBOLS, length=LENGTH, num_train=16, num_val=EVALUATED, seed=99)
    x = source.rows("val")[list(range(EVALUATED))]["x"]
    law = np.asarray((source.stationary[:, None] * source.transition).ravel())
    model = ggm_lightning.load(Path(folder) / "run" / "last.ckpt")
    mean, stderr = bound(model, x)
    result: dict[str, Any] = {
        "variant": name,
        "training_seconds": seconds,
        "bound": mean,
        "stderr": stderr,
        "entropy": -float(source.log_likelihood(x).mean()) / LENGTH,
        "bigram_floor": distance(bigrams(x[:SAMPLES].numpy(), SYMBOLS), law),
        "samplers": [],
    }
    print(f"{name}: {seconds:.0f} s, bound {mean:.4f} ± {stderr:.4f} nats/token (entropy {result['entropy']:.4f})")
    for sampler, steps in draws:
        drawn, spent = measured(lambda sampler=sampler, steps=steps: model.sample(SAMPLES, steps, sampler=sampler))
        error = distance(bigrams(drawn.x.numpy(), SYMBOLS), law)
        likely = -float(source.log_likelihood(drawn.x).mean()) / LENGTH
        row = {"sampler": sampler, "network_calls": drawn.network_calls, "seconds": spent}
        result["samplers"].append(row | {"bigram_error": error, "minus_log_p": likely})
        told = f"{drawn.network_calls} calls, {spent:.1f} s, bigrams {error:.4f}, -log p {likely:.3f}"
        print(f"  {sampler or 'ancestral'}: {told}")
    return result


def run(names: list[str]) -> None:
    torch.set_num_threads(1)
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name in names or VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            kept[name] = variant(name, folder)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    run(sys.argv[1:])
