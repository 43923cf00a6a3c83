"""A training step of the hollow network beside that of a plain Transformer of equal depth, and the parameters of both:
`python -m tests.benchmarks.hollow`. At most 1.4 times is promised; results/hollow.json.

Depths are equal where 2 num_layers + num_merges blocks stand beside as many. A step is the cross-entropy of all tokens,
forward and backward, and AdamW. Both take turns, in alternating order, on one thread; seconds are those of the process.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ggm_lightning.networks.hollow import HollowTransformer
from ggm_lightning.networks.transformer import Transformer

RESULTS = Path(__file__).parent / "results" / "hollow.json"
ROUNDS = 15
# feature_dim, num_heads, num_layers, num_merges, V, rows, sites
SIZES = {
    "width 64, 1 + 1 + 1 blocks": (16, 4, 1, 1, 97, 32, 64),
    "width 256, 2 + 2 + 2 blocks": (64, 4, 2, 2, 1024, 8, 128),
}


def step_of(network: nn.Module, num_classes: int, rows: int, sites: int) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(num_classes, (rows, sites), generator=generator)
    visited = torch.rand(rows, sites, generator=generator) < 0.5
    t = torch.rand(rows, generator=generator)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, foreach=True)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(network(x, t, None, visited).flatten(0, 1), x.flatten()).backward()
        optimizer.step()

    return run


def compared(size: tuple[int, ...], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of a step and parameters of both, and the quotients."""
    feature_dim, num_heads, num_layers, num_merges, num_classes, rows, sites = size
    torch.manual_seed(0)
    width: dict[str, Any] = {"feature_dim": feature_dim, "num_heads": num_heads, "mlp": "geglu"}
    depth = 2 * num_layers + num_merges
    networks: dict[str, nn.Module] = {
        "plain": Transformer(num_classes, num_layers=depth, visited_bits=True, **width),
        "hollow": HollowTransformer(num_classes, num_layers=num_layers, num_merges=num_merges, **width),
    }
    steps = {name: step_of(network, num_classes, rows, sites) for name, network in networks.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 1):
        for name in list(steps)[:: 1 if round_ % 2 else -1]:
            begin = time.process_time()
            steps[name]()
            if round_:  # the first one does not count
                times[name].append(time.process_time() - begin)
    found: dict[str, float] = {f"{name}, s": round(statistics.median(taken), 5) for name, taken in times.items()}
    for name, network in networks.items():
        found[f"{name}, parameters"] = sum(weight.numel() for weight in network.parameters())
    quotients = [hollow / plain for hollow, plain in zip(times["hollow"], times["plain"], strict=True)]
    return found | {
        "step, times": round(statistics.median(quotients), 3),
        "parameters, times": round(found["hollow, parameters"] / found["plain, parameters"], 3),
    }


def main() -> None:
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    about = {"command": "python -m tests.benchmarks.hollow", "commit": commit, "torch": torch.__version__}
    about |= {"threads": 1, "rounds": ROUNDS, "device": platform.processor() or platform.machine()}  # type: ignore[dict-item]
    found = {name: compared(size) for name, size in SIZES.items()}
    for name, row in found.items():
        print(f"{name}: a step {row['step, times']:.2f} times, parameters {row['parameters, times']:.2f} times", row)
    RESULTS.write_text(json.dumps({"about": about, "sizes": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
