"""`make gpu`: everything that has to be measured on a card, in one run of at most eight minutes that needs no network.

    python -m tests.benchmarks.gpu                       # on a machine with a GPU; JSON and a table
    python -m tests.benchmarks.gpu --tiny --device cpu   # the same programme with tiny sizes: its tests practise it

Each part has its share of the time and is left out, with the reason, when none is left, when it fails or when what it
compares with is not installed (liger-kernel, cut-cross-entropy). Figures are written after every part, so that a run
that is cut short keeps what it has. Device times and counts of kernels are torch.profiler's; waits are the warnings of
torch.cuda.set_sync_debug_mode. For a machine without a network: install from wheels that were carried there.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ggm_lightning.core import fused
from ggm_lightning.models.md4 import MD4
from ggm_lightning.networks.blocks import GRAPHS, Compiling
from ggm_lightning.networks.transformer import Transformer
from tests import predicted_memory
from tests.benchmarks import heads
from tests.benchmarks.card import Clock, Run, Sizes, device_time, milliseconds, peak, waits

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
BUDGET_S = 460.0
HEAD_ALIGNMENTS = (50_257, 50_304)
SMALL_CLASSES = 257  # bytes and the end of a text
SMALL_WAYS: dict[str, Compiling] = {"eager": False, "compiled": True, "graphs": GRAPHS}
GATE_STEPS = 8
GPU_TESTS = ["tests/core/test_kernels.py", "-q", "-m", "gpu", "-p", "no:cacheprovider"]


# ------------------------------------------------------------------ the parts


def gate(run: Run) -> dict[str, Any]:
    """The kernels' own tests: nothing below means anything where they fail."""
    if not run.cuda:
        return {"left_out": "no GPU: the kernels are interpreted by tests/core/test_kernels_interpreted.py"}
    found = subprocess.run([sys.executable, "-m", "pytest", *GPU_TESTS], cwd=ROOT, capture_output=True, text=True)
    return {"exit_code": found.returncode, "said": found.stdout.strip().splitlines()[-1:]}


def ceiling(run: Run) -> dict[str, Any]:
    """FLOP/s of a large product, and bytes/s of a copy."""
    n = 8192 if run.cuda else 256
    dtype = torch.bfloat16 if run.cuda else torch.float32
    a = torch.randn(n, n, device=run.device, dtype=dtype)
    large = torch.empty((1 << 30) if run.cuda else 1 << 16, device=run.device)
    other = torch.empty_like(large)
    product, copy = milliseconds(run, lambda: a @ a), milliseconds(run, lambda: other.copy_(large))
    return {"product_tflops": 2 * n**3 / product / 1e9, "copy_tb_s": 8 * large.numel() / copy / 1e9}


def head(run: Run) -> list[dict[str, Any]]:
    """The head and its loss beside what else there is, half of the rows masked."""
    sizes = run.sizes
    dtype = "bfloat16" if run.cuda else "float32"
    shape = heads.Shape(sizes.head_rows, sizes.head_dim, sizes.classes, 0.5, run.device, dtype)
    names = ["all logits", "gather", "Liger", "CCE", "ours"] + (["MDLM's form", "gather, compiled"] if run.cuda else [])
    return heads.measure(shape, names, rounds=sizes.rounds, memory=False)


def alignment(run: Run) -> dict[str, Any]:
    """The head alone for an odd and an aligned V: a user's odd V is to cost nothing."""
    sizes, found = run.sizes, {}
    for classes in HEAD_ALIGNMENTS if run.cuda else (sizes.classes, sizes.classes + 63):
        dtype = "bfloat16" if run.cuda else "float32"
        shape = heads.Shape(sizes.head_rows, sizes.head_dim, classes, 0.5, run.device, dtype)
        h, w, *rest = heads.given(shape, 0)

        def step(h: Any = h, w: Any = w, rest: Any = rest) -> None:
            h.grad = w.grad = None
            heads.ours(h, w, *rest).backward()

        found[str(classes)] = milliseconds(run, step)
    return found


def model_of(run: Run, compiled: bool) -> MD4:
    sizes = run.sizes
    return text_model(run, sizes.classes, sizes.length, {**sizes.network, "dropout": 0.02}, compiled)


def text_model(run: Run, classes: int, length: int, network: dict[str, Any], compiled: Compiling) -> MD4:
    torch.manual_seed(0)
    model = MD4(Transformer(classes, **network, compile_blocks=compiled), classes, (length,)).to(run.device)
    model.configure_model()
    return model


def training(model: MD4, run: Run, rows: int, losses: list[Tensor] | None = None) -> Callable[[], None]:
    """A whole step: loss, backward, clipping, fused AdamW. The losses are put into `losses`."""
    x = torch.randint(model.num_classes, (rows, *model.shape), device=run.device)
    number = torch.arange(rows, device=run.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    steps = iter(range(10**9))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with run.autocast():
            loss = model.loss(x, step=next(steps), row=number, total=rows)
        if losses is not None:
            losses.append(loss.detach())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()

    return step


def steps(run: Run) -> list[dict[str, Any]]:
    """MD4-S: ms, tokens/s, memory, share of the card's peak, waits of the host."""
    found = []
    for compiled in (False, True) if run.cuda else (False,):
        model = model_of(run, compiled)
        for rows in run.sizes.batches:
            step = training(model, run, rows)
            ms = milliseconds(run, step)
            parameters = sum(p.numel() for p in model.parameters()) - model.network.embedding.weight.numel()
            # 6 P per token, the head for the masked half alone, and attention
            head_share = model.network.head.weight.numel() / 2
            attention = 12 * run.sizes.network["num_layers"] * model.network.width * run.sizes.length
            flops = (6 * (parameters - head_share) + attention) * rows * run.sizes.length
            row = {"compiled": compiled, "batch": rows, "ms": ms, "tokens_s": 1000 * rows * run.sizes.length / ms}
            row |= {
                "mfu_of_989": flops / ms / 1e9 / 989,
                **peak(run, step),
                **waits(run, step),
                **device_time(run, step),
            }
            found.append(row)
        del model
    return found


def small(run: Run) -> list[dict[str, Any]]:
    """A network of about ten million parameters, whose step waits for the host that starts its kernels: eager, blocks
    compiled, all blocks as one CUDA graph. `apart` is how far the losses of the first steps are from the eager ones."""
    sizes, found = run.sizes, []
    compared: list[Tensor] = []
    for name, way in SMALL_WAYS.items():
        losses: list[Tensor] = []
        model = text_model(run, SMALL_CLASSES, sizes.small_length, sizes.small, way)
        for parameter in model.parameters():  # new blocks are the identity, of which any graph is right
            torch.nn.init.normal_(parameter, std=0.05)
        step = training(model, run, sizes.small_rows, losses)
        ms = milliseconds(run, step)
        compared.append(torch.stack(losses[:GATE_STEPS]).float().cpu())
        apart = float((compared[-1] - compared[0]).abs().max())
        row = {"blocks": name, "ms": ms, "tokens_s": 1000 * sizes.small_rows * sizes.small_length / ms, "apart": apart}
        found.append(row | waits(run, step) | device_time(run, step))
    return found


def fit(run: Run) -> dict[str, Any]:
    """A network of about ten million parameters through `lightning fit`, on bytes made here."""
    sizes = run.sizes
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("all work and no play makes the model dull. " * 20_000, encoding="utf-8")
        trainer = "one_gpu" if run.cuda else "cpu"
        pieces = ("data/text_file", "network/transformer_tiny", f"trainer/{trainer}")
        network = {"init_args": {**sizes.small, "dropout": 0.1}}
        data = {"train": str(text), "length": sizes.small_length, "folder": f"{folder}/shards"}
        data |= {"global_batch_size": sizes.small_rows, "num_workers": 2 if run.cuda else 0}
        every = max(1, sizes.small_steps // 20)
        settings = {
            "include": [str(ROOT / "configs" / f"{piece}.yaml") for piece in pieces],
            "name": "small",
            "model": {"class_path": "ggm_lightning.models.md4.MD4", "init_args": {"network": network}},
            "data": {"init_args": data},
            "trainer": {"max_steps": sizes.small_steps, "limit_val_batches": 0, "log_every_n_steps": every},
        }
        (Path(folder) / "small.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        command = [sys.executable, "-m", "ggm_lightning", "fit", "--runs", folder, "--config", f"{folder}/small.yaml"]
        begin = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(10, run.clock.left()))
        if done.returncode:
            return {"left_out": done.stderr.strip().splitlines()[-1:]}
        metrics = (Path(folder) / "small" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    names = metrics[0].split(",")
    rates = [line.split(",")[names.index("train/tokens_per_s")] for line in metrics[1:]]
    fast = [float(rate) for rate in rates if rate]
    return {
        "seconds": time.monotonic() - begin,
        "tokens_s": statistics.median(fast[len(fast) // 2 :]) if fast else None,
    }


def memory(run: Run) -> list[dict[str, Any]]:
    """Full-size networks at the micro-batch of their files: measured beside predicted."""
    from tests.test_experiments import CASES

    found = []
    for name in run.sizes.full_size:
        if run.clock.left() < 60:
            break
        case, path = CASES[name], ROOT / "experiments" / f"{name}.yaml"
        rows = predicted_memory.config.load_file(str(path))["data"]["init_args"].get("max_batch_per_device", 2)
        model = predicted_memory.model_of(path, case.num_classes, case.shape)
        predicted = predicted_memory.training_bytes(model, rows, average=False, ranks=False) / 1e9
        row: dict[str, Any] = {"name": name, "rows": rows, "predicted_gb": predicted}
        model = predicted_memory.model_of(path, case.num_classes, case.shape, device=run.device)
        step = training(model, run, rows)  # type: ignore[arg-type]
        row |= {"ms": milliseconds(run, step, warm=1), **peak(run, step)}
        found.append(row)
        del model, step
    return found


def sampling(run: Run) -> list[dict[str, Any]]:
    """An untrained MD4-S in float32 and, as `lightning sample` does on a GPU, in bf16."""
    model, sizes, found = model_of(run, compiled=False), run.sizes, []
    for steps_ in sizes.sample_steps:
        for half in (False, True):
            with torch.autocast(run.device, torch.bfloat16, enabled=half):
                model.sample(sizes.sample_rows, 2)
                taken = heads.seconds(lambda n=steps_: model.sample(sizes.sample_rows, n), run.device)
            found.append({"steps": steps_, "precision": "bf16" if half else "32", "seconds": taken})
    return found


PARTS: dict[str, Callable[[Run], Any]] = {
    "gate": gate,
    "ceiling": ceiling,
    "head": head,
    "alignment": alignment,
    "steps": steps,
    "small": small,
    "fit": fit,
    "sampling": sampling,
    "memory": memory,
}


# ------------------------------------------------------------------ the run


def measured(run: Run, file: Path, only: list[str]) -> dict[str, Any]:
    """All parts in their order, written to `file` after each."""
    device = torch.cuda.get_device_name() if run.cuda else platform.processor() or platform.machine()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    figures: dict[str, Any] = {"device": device, "torch": torch.__version__, "commit": commit.stdout.strip()}
    figures |= {"triton": fused.triton_losses() is not None, "python": platform.python_version()}
    for name in only:
        begin = time.monotonic()
        print(f"{name}: {run.clock.left():.0f} s left", file=sys.stderr, flush=True)
        try:
            figures[name] = PARTS[name](run) if run.clock.left() > 15 else {"left_out": "no time left"}
        except Exception as error:  # one part that fails must not cost the others
            figures[name] = {"left_out": f"{type(error).__name__}: {str(error)[:300]}"}
        figures.setdefault("seconds", {})[name] = time.monotonic() - begin
        if run.cuda:
            torch.cuda.empty_cache()
        file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


def show(figures: dict[str, Any]) -> None:
    """A table for each part."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    for name in PARTS:
        rows = figures.get(name)
        if rows is None:
            continue
        rows = rows if isinstance(rows, list) else [rows]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = Table(*columns, title=name)
        for row in rows:
            cells = (row.get(key, "") for key in columns)
            table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells))
        console.print(table)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds")
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--out", type=Path, help="the JSON file; default tests/benchmarks/results/gpu-<date>.json")
    asked = parser.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("make gpu: no CUDA device here; --tiny --device cpu practises the programme")
    file = asked.out or RESULTS / f"gpu-{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    run = Run(asked.device, Sizes.tiny() if asked.tiny else Sizes(), Clock(asked.budget))
    show(measured(run, file, asked.only))
    print(f"kept in {file}")


if __name__ == "__main__":
    main()
