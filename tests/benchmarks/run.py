"""Times the parts in alternating order and keeps medians with their spread in tests/benchmarks/results/."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import lightning
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from ggm_lightning.core import categorical, death, noise
from ggm_lightning.models.md4 import MD4
from ggm_lightning.networks.transformer import Transformer

RESULTS = Path(__file__).parent / "results"
ROUNDS = 7


def training_step(width: int, layers: int, classes: int, length: int, batch: int) -> Callable[[], float]:
    """One optimiser step of MD4; returns its tokens."""
    torch.manual_seed(0)
    network = Transformer(classes, feature_dim=32, num_heads=width // 32, num_layers=layers)
    model = MD4(network, classes, (length,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x = torch.randint(classes, (batch, length))

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        model.loss(x).backward()
        optimizer.step()
        return x.numel()

    return step


def head_everywhere(classes: int, fast: bool) -> Callable[[], float]:
    """The loss with logits only at masked sites (features and head), or at all of them."""
    torch.manual_seed(0)
    network = Transformer(classes, feature_dim=32, num_heads=4, num_layers=1)
    inner = network if fast else WholeLogits(network)
    model = MD4(inner, classes, (128,))
    x = torch.randint(classes, (16, 128))

    def step() -> float:
        model.loss(x, step=0).backward()
        return x.numel()

    return step


class WholeLogits(torch.nn.Module):
    """Hides `features` and `head`, so that all logits are formed."""

    def __init__(self, network: Transformer) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        return self.network(z, t, label)


def sampling(num_steps: int) -> Callable[[], float]:
    torch.manual_seed(0)
    model = MD4(Transformer(1024, feature_dim=32, num_heads=4, num_layers=2), 1024, (128,))
    return lambda: float(model.sample(8, num_steps).x.numel())


def uniforms() -> float:
    return float(noise.uniform("mask", seed=0, step=0, row=torch.arange(384), num_sites=1024).numel())


def thinning(ours: bool) -> Callable[[], float]:
    """128 x 3 x 32 x 32 counts at times drawn as in Blackout's training, by one uniform each or by torch.binomial."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (128, 3072), generator=generator)
    t = death.observation_times(1000, 15.0)[torch.randint(0, 1000, (128,), generator=generator)]
    u = noise.uniform("thin", seed=0, step=0, row=torch.arange(128), num_sites=3072)
    counts, p = x.float(), torch.exp(-t).float()[:, None].expand(-1, 3072).contiguous()
    return lambda: float((death.thin(x, t, u, 255) if ours else torch.binomial(counts, p)).numel())


def draws() -> Callable[[], float]:
    logits = torch.randn(512, 50_257, generator=torch.Generator().manual_seed(0))
    u = noise.uniform("value", seed=0, step=0, row=torch.arange(512), num_sites=1)[:, 0]
    return lambda: float(len(categorical.draw(logits, u)))


def reading(folder: Path) -> Callable[[], float]:
    """Training windows out of warm memory-mapped shards."""
    from ggm_lightning.data.text import TextData

    (folder / "text.txt").write_text("all work and no play makes the model dull. " * 50_000)
    data = TextData(train=str(folder / "text.txt"), length=1024, folder=str(folder / "shards"))
    data.prepare_data()
    rows = data.rows("train")
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    return lambda: float(rows[order]["x"].numel())


def measure(parts: dict[str, tuple[str, Callable[[], float]]]) -> dict[str, dict[str, object]]:
    rates: dict[str, list[float]] = {name: [] for name in parts}
    for _, function in parts.values():
        function()  # warm up
    for i in tqdm(range(ROUNDS), desc="rounds", unit="round"):
        for name in list(parts) if i % 2 == 0 else reversed(list(parts)):
            begin = time.perf_counter()
            amount = parts[name][1]()
            rates[name].append(amount / (time.perf_counter() - begin))
    return {
        name: {"unit": parts[name][0], "median": statistics.median(r), "min": min(r), "max": max(r)}
        for name, r in rates.items()
    }


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        parts = {
            "MD4 step, width 64, 2 layers, V 11": ("tokens/s", training_step(64, 2, 11, 64, 32)),
            "MD4 step, width 128, 3 layers, V 1024": ("tokens/s", training_step(128, 3, 1024, 128, 16)),
            "loss, logits at masked sites, V 8192": ("tokens/s", head_everywhere(8192, fast=True)),
            "loss, logits everywhere, V 8192": ("tokens/s", head_everywhere(8192, fast=False)),
            "sampling, 128 tokens, 32 steps": ("tokens/s", sampling(32)),
            "counter-based uniforms": ("numbers/s", uniforms),
            "draws over V 50,257": ("draws/s", draws()),
            "binomial thinning": ("counts/s", thinning(ours=True)),
            "the same by torch.binomial": ("counts/s", thinning(ours=False)),
            "reading windows of 1,024 bytes": ("tokens/s", reading(Path(folder))),
        }
        figures = measure(parts)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    now = datetime.now(UTC)
    about = {
        "date": now.isoformat(timespec="seconds"),
        "commit": commit,
        "device": f"{platform.processor() or platform.machine()}, 1 thread",
        "versions": {"torch": torch.__version__, "lightning": lightning.__version__, "numpy": np.__version__},
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{now:%Y%m%d-%H%M%S}-{commit}.json"
    file.write_text(json.dumps({**about, "figures": figures}, indent=1) + "\n", encoding="utf-8")
    table = Table("part", "unit", "median", "min", "max", title=f"{about['device']}, commit {commit}")
    for name, row in figures.items():
        table.add_row(name, str(row["unit"]), *(f"{row[key]:,.0f}" for key in ("median", "min", "max")))
    Console().print(table)
    print(f"kept in {file.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
