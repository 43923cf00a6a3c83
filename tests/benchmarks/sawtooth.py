"""Few-step sampling on the binary sawtooth, whose law is known: MD4, FUJI and SEQ with equal non-embedding parameters
and training steps.

`python -m tests.benchmarks.sawtooth [--runs folder] [--seed 0] [name ...]` trains (in that folder, or goes on with the
runs it holds), draws samples and the picture; rows are kept in results/, those of other seeds beside ("FUJI, seed 1").

The figure of merit is the mean of -log p(x) over the samples, p the source: the entropy for a perfect sampler, less for
one that only emits likely rows. Seconds are those of this process on one thread (time.process_time).
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ggm_lightning
from ggm_lightning.cli.main import main
from ggm_lightning.data.toy.synthetic import Sawtooth
from ggm_lightning.networks.latent import non_embedding_parameters
from tests.benchmarks.markov_source import ROOT, measured

RESULTS = Path(__file__).parent / "results" / "sawtooth.json"
PICTURE = ROOT / "docs" / "pictures" / "sawtooth.png"
SAMPLES, BINS = 2048, 16
EXACT = {1: 112.0, 2: 89.7, 4: 77.6, 8: 72.4, 16: 69.9, 32: 68.8, 128: 68.0}
TOKEN_STEPS = (1, 2, 4, 8, 16)
VARIANTS = {"MD4": "md4_sawtooth", "FUJI": "lddm_sawtooth", "SEQ": "lddm_seq_sawtooth"}


def phases(source: Sawtooth, x: Tensor) -> Tensor:
    """Int64[b] in 0..BINS-1: the most likely phase of each row, in equal parts of the period."""
    grid = (torch.arange(512, dtype=torch.float64) + 0.5) / (512 * source.saws)
    p = source.probabilities(grid)
    nats = x.double() @ (p.log() - (-p).log1p()).T + (-p).log1p().sum(1)
    return nats.argmax(1) * BINS // 512


def from_uniform(index: Tensor) -> float:
    """Total variation of the bins from the uniform law."""
    share = index.bincount(minlength=BINS).double() / len(index)
    return 0.5 * float((share - 1 / BINS).abs().sum())


def networks(model: Any) -> int:
    """Parameters that sampling needs, without embeddings and heads of the vocabulary."""
    parts = [model.network, getattr(model, "latent_network", None)]
    return sum(non_embedding_parameters(part) for part in parts if part is not None)


def variant(name: str, folder: str, seed: int) -> dict[str, Any]:
    checkpoint = Path(folder) / name / "last.ckpt"
    config = ["--config", str(ROOT / "experiments" / f"{VARIANTS[name]}.yaml"), "--runs", folder, "--name", name]
    config += ["--seed_everything", str(seed)]
    config += ["--ckpt_path", "last"] if checkpoint.is_file() else []
    _, seconds = measured(lambda: main(["fit", *config]))
    return evaluated(name, ggm_lightning.load(checkpoint), seconds)


def evaluated(name: str, model: Any, seconds: float) -> dict[str, Any]:
    source = Sawtooth(num_train=16, num_val=SAMPLES, source_seed=99)
    x = source.rows("val")[list(range(SAMPLES))]["x"]
    rows = torch.arange(len(x)).split(256)
    bound = torch.cat([model.nelbo(x[row], num_samples=4, row=row) for row in rows])
    result: dict[str, Any] = {
        "parameters": networks(model),
        "training_seconds": seconds,
        "bound": float(bound.mean()),
        "bound_stderr": float(bound.std()) / math.sqrt(len(bound)),
        "entropy": -float(source.log_likelihood(x).mean()),
        "phase_floor": from_uniform(phases(source, x)),
        "steps": {},
    }
    print(name, {key: value for key, value in result.items() if key != "steps"})
    for steps in TOKEN_STEPS:
        drawn, spent = measured(lambda steps=steps: model.sample(SAMPLES, steps, grid="uniform", seed=1))
        nats = -source.log_likelihood(drawn.x)
        row = {
            "nats": float(nats.mean()),
            "stderr": float(nats.std()) / math.sqrt(SAMPLES),
            "phase": from_uniform(phases(source, drawn.x)),
            "network_calls": drawn.network_calls,
            "latent_calls": drawn.other_calls["latent_network"],
            "seconds": spent,
        }
        result["steps"][str(steps)] = row
        print(f"  {steps:3} steps:", {key: round(value, 3) for key, value in row.items()})
    return result


def picture(kept: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(list(EXACT), list(EXACT.values()), "--", color="#6b7280", label="MD4 with exact conditionals")
    for (name, result), color in zip(kept.items(), ("#5b3fd6", "#e0802b", "#1b998b"), strict=False):
        points = [(int(steps), row["nats"]) for steps, row in result["steps"].items()]
        axes.plot(*zip(*points, strict=True), "o-", color=color, label=f"{name}, trained")
    axes.axhline(next(iter(kept.values()))["entropy"], color="#1f2430", linewidth=0.8, label="entropy of the source")
    axes.set(xscale="log", xlabel="token steps", ylabel="mean of -log p(sample), nats")
    axes.set_xticks(list(EXACT), [str(steps) for steps in EXACT])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(PICTURE, facecolor="white")


def run(names: list[str], runs: str | None, seed: int) -> None:
    torch.set_num_threads(1)
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name in names or VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            kept[name if seed == 0 else f"{name}, seed {seed}"] = variant(name, runs or folder, seed)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(kept, indent=1))
    picture({name: kept[name] for name in VARIANTS if name in kept})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="name")
    parser.add_argument("--runs")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    run(given.names, given.runs, given.seed)
