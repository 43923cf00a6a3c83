"""`make bench`: everything whose speed matters, in one run, kept in tests/benchmarks/results/.

The loss of the head beside what else there is (correctness against float64 first), GGM's one logit, whole training
steps of every family, and the parts: drawing, thinning, sampling, reading. Contenders take turns in alternating order;
medians with their spread. Longer runs of their own: `python -m tests.benchmarks.heads --rows 8192`, `... .text`,
`... .images`, `... .markov_source`, `... .sawtooth`.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import lightning
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from ggm_lightning.core import categorical, death, noise
from ggm_lightning.core.categorical import Sharpening
from ggm_lightning.core.softplus_loss import softplus_loss
from ggm_lightning.models.md4 import MD4
from ggm_lightning.networks.transformer import Transformer
from tests.benchmarks import heads, steps

RESULTS = Path(__file__).parent / "results"
ROUNDS = 5


def sampling(num_steps: int, sampler: str = "ancestral") -> Callable[[], float]:
    torch.manual_seed(0)
    model = MD4(Transformer(1024, feature_dim=32, num_heads=4, num_layers=2), 1024, (128,))
    # a step in which no site is revealed costs no call of the network
    return lambda: float(model.sample(8, num_steps, sampler=sampler).x.numel())


def blackout_loss(fused: bool) -> Callable[[], float]:
    """y - m ln y and its gradient for 128 x 3,072 counts."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(128, 3072, generator=generator).requires_grad_()
    m = torch.randint(0, 3, (128, 3072), generator=generator)
    black, scale = torch.zeros_like(m), torch.ones(128)

    def formula() -> torch.Tensor:
        return death.published_loss(torch.nn.functional.softplus(raw), death.log_softplus(raw), m.float()).sum()

    def run() -> float:
        raw.grad = None
        (softplus_loss(raw, m, black, scale).sum() if fused else formula()).backward()
        return float(raw.numel())

    return run


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


def draws(top_p: float = 1.0) -> Callable[[], float]:
    """Of normal logits, in whose nucleus of 0.9 are 30,000 classes."""
    k = 64 if top_p < 1 else 512
    logits = torch.randn(k, 50_257, generator=torch.Generator().manual_seed(0))
    u = noise.uniform("value", seed=0, step=0, row=torch.arange(k), num_sites=1)[:, 0]
    return lambda: float(len(categorical.draw(logits, u, Sharpening(top_p=top_p))))


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


def ceiling() -> float:
    """FLOP/s of a large float32 matrix product with this many threads, the best of a few."""
    a, b = torch.randn(1024, 768), torch.randn(768, 16384)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - begin)
    return 2 * 1024 * 768 * 16384 / min(times)


def all_parts(folder: Path) -> dict[str, dict[str, object]]:
    return measure(
        {
            "sampling, 128 tokens, 32 steps": ("tokens/s", sampling(32)),
            "sampling, 128 tokens, 128 steps": ("tokens/s", sampling(128)),
            "sampling, 128 tokens, first hitting": ("tokens/s", sampling(1, "first_hitting")),
            "Blackout's loss, formula": ("counts/s", blackout_loss(fused=False)),
            "Blackout's loss, one pass": ("counts/s", blackout_loss(fused=True)),
            "counter-based uniforms": ("numbers/s", uniforms),
            "draws over V 50,257": ("draws/s", draws()),
            "draws over V 50,257, top-p 0.9": ("draws/s", draws(top_p=0.9)),
            "binomial thinning": ("counts/s", thinning(ours=True)),
            "the same by torch.binomial": ("counts/s", thinning(ours=False)),
            "reading windows of 1,024 bytes": ("tokens/s", reading(folder)),
        }
    )


def show(figures: dict[str, object], title: str) -> None:
    """The figures as tables; `figures` as main() makes it."""
    console = Console(width=None if sys.stdout.isatty() else 110)
    heads_table = Table(
        "loss of the head", "s", "spread", "beside all logits", "more memory, MiB", "share of ceiling", title=title
    )
    rows: list[dict[str, object]] = figures["heads"]["contenders"]  # type: ignore[index]
    whole = next(row["median_s"] for row in rows if row["name"] == "all logits")
    for row in rows:
        if row["why"]:
            heads_table.add_row(str(row["name"]), str(row["why"]))
            continue
        seconds = float(row["median_s"])  # type: ignore[arg-type]
        spread = f"{row['low_s']:.2f} .. {row['high_s']:.2f}"
        share = figures["heads"]["useful_flop"] / seconds / figures["ceiling_flops"]  # type: ignore[index, operator]
        cells = (f"{seconds:.2f}", spread, f"{whole / seconds:.2f} x", f"{row['extra_mib']:,.0f}", f"{share:.0%}")
        heads_table.add_row(str(row["name"]), *cells)
    console.print(heads_table)
    ggm = {name: row["median_s"] for name, row in figures["ggm"].items()}  # type: ignore[attr-defined]
    ggm_table = Table("GGM's loss, 8 rows of 256 sites", "s", "beside one logit")
    for name, taken in ggm.items():
        ggm_table.add_row(name, f"{taken:.3f}", f"{taken / ggm['one logit']:.1f} x")
    console.print(ggm_table)
    steps_table = Table("training step", *(f"{way}, ms" for way in steps.WAYS), "in all")
    for name, ways in figures["steps"].items():  # type: ignore[attr-defined]
        medians = [ways[way]["median_s"] for way in steps.WAYS]
        steps_table.add_row(name, *(f"{1000 * m:.0f}" for m in medians), f"{medians[0] / medians[-1]:.2f} x")
    console.print(steps_table)
    parts = Table("part", "unit", "median", "min", "max")
    for name, row in figures["parts"].items():  # type: ignore[attr-defined]
        parts.add_row(name, str(row["unit"]), *(f"{row[key]:,.0f}" for key in ("median", "min", "max")))
    console.print(parts)


def main() -> None:
    shape = heads.Shape(rows=512)
    threads = torch.get_num_threads()
    print("1 of 4: the loss of the head", flush=True)
    contenders = heads.measure(shape, list(heads.CONTENDERS), rounds=3, memory=True)
    useful = 6 * shape.rows * shape.masked * shape.dim * shape.classes
    print("2 of 4: one logit of GGM", flush=True)
    figures: dict[str, object] = {
        "ceiling_flops": ceiling(),
        "heads": {"shape": asdict(shape), "useful_flop": useful, "contenders": contenders},
        "ggm": heads.one_token(8, 256, 768, 50_257, rounds=3),
    }
    torch.set_num_threads(1)  # two threads make models this small slower
    print("3 of 4: training steps", flush=True)
    figures["steps"] = steps.measure()
    print("4 of 4: the parts", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures["parts"] = all_parts(Path(folder))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    now = datetime.now(UTC)
    about = {
        "date": now.isoformat(timespec="seconds"),
        "commit": commit,
        "device": f"{platform.processor() or platform.machine()}, {threads} threads for the head, 1 for the rest",
        "versions": {"torch": torch.__version__, "lightning": lightning.__version__, "numpy": np.__version__},
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{now:%Y%m%d-%H%M%S}-{commit}.json"
    file.write_text(json.dumps({**about, "figures": figures}, indent=1) + "\n", encoding="utf-8")
    show(figures, f"{about['device']}, commit {commit}")
    print(f"kept in {file.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
