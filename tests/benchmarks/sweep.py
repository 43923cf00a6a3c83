"""`make bench-sweep`: MD4, GGM and an autoregressive model on the demo's characters, and a sweep of the three.

    python -m tests.benchmarks.sweep [--steps 600] [--num_steps 8 16 32 64 128] [--num_samples 64] [--runs FOLDER]

Windows of 64 characters; each model makes --steps steps of 32 windows (experiments/md4_demo, ggm_demo with its hollow
network, ar_demo). The judge is the autoregressive model; so that it does not stand alone, and since it judges its own
samples too, all cells are judged by a model of order 3 of the held-out text besides, which draws nothing again. What is
there below --runs is gone on with: delete the folder for new figures. Written: results/sweep.json and the plots in
docs/pictures/.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ggm_lightning.cli.main import main as lightning
from ggm_lightning.rundir import checkpoint as checkpoint_files

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "sweep.json"
PICTURES = ROOT / "docs" / "pictures"
RUNS = ROOT / "runs" / "benchmarks" / "sweep"
SAMPLERS = ("ancestral", "remasking:rule=rate,eta=2", "parallel")

_MODEL = "--model.init_args."
_NETWORK = f"{_MODEL}network"
_HOLLOW = [  # whatever the experiment takes now
    *(f"{_MODEL}{option}" for option in ("order=random", "block_size=1", "hide=own", "corrector_steps=0")),
    f"{_NETWORK}=ggm_lightning.networks.hollow.HollowTransformer",
    *(f"{_NETWORK}.init_args.{option}" for option in ("feature_dim=16", "num_heads=4", "num_layers=1", "num_merges=1")),
    f"{_NETWORK}.init_args.mlp=geglu",
]
EXPERIMENTS = {"md4_demo": [], "ggm_demo": _HOLLOW, "ar_demo": []}


def train(steps: int, runs: Path) -> list[Path]:
    """The checkpoints, after trainings that are made, gone on with, or there already; all of them at once."""
    running = {}
    for name, overrides in EXPERIMENTS.items():
        last = runs / name / "last.ckpt"
        if last.is_file() and checkpoint_files.step_of(checkpoint_files.read(last)) == steps:
            continue
        arguments = ["--config", str(ROOT / "experiments" / f"{name}.yaml"), *overrides]
        arguments += ["--data.init_args.encoding=characters", "--data.init_args.length=64"]
        arguments += [f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}"]
        arguments += ["--trainer.max_time=null", "--runs", str(runs), "--name", name]
        arguments += ["--ckpt_path", "last"] if last.is_file() else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        running[name] = subprocess.Popen([sys.executable, "-m", "ggm_lightning", "fit", *arguments], env=environment)
    for name, process in running.items():
        if process.wait():
            raise SystemExit(f"the training of {name} ended with code {process.returncode}")
    return [runs / name / "last.ckpt" for name in EXPERIMENTS]


def swept(checkpoints: list[Path], judge: list[str], given: argparse.Namespace) -> list[dict[str, str]]:
    """The table of all cells under one judge; those that are drawn are drawn once."""
    out = given.runs / "sweep"
    paths = ["--ckpt_path", *map(str, checkpoints), *judge, "--out", str(out)]
    grid = ["--num_steps", *map(str, given.num_steps), "--num_samples", str(given.num_samples)]
    lightning(["sweep", *paths, "--sampler", *SAMPLERS, *grid])
    with (out / "table.csv").open(encoding="utf-8") as file:
        return [{name: _short(value) for name, value in row.items()} for row in csv.DictReader(file)]


def _short(text: str) -> str:
    """Numbers with five digits."""
    try:
        return f"{float(text):.5g}"
    except ValueError:
        return text


def markdown(rows: list[dict[str, str]], other: list[dict[str, str]]) -> str:
    """Of temperature 1, both judges beside each other."""
    lines = ["| | steps | rows per sample | AR judge | order 3 | entropy | distinct 4 | duplicates | seconds |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row, second in zip(rows, other, strict=True):
        if row["temperature"] not in ("", "1"):
            continue
        judges = [f"{float(one['judge']):.2f} ± {float(one['judge_stderr']):.2f}" for one in (row, second)]
        cost = f"{float(row['rows_per_sample']):.3g}" if row["rows_per_sample"] else ""
        seconds = f"{float(row['seconds_per_sample']):.3f}" if row["seconds_per_sample"] else ""
        varied = [f"{float(row[key]):.2f}" for key in ("entropy", "distinct_4", "duplicates")]
        lines.append(f"| {' | '.join([row['sampler'], row['steps'], cost, *judges, *varied, seconds])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--num_steps", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--num_samples", type=int, default=64)
    parser.add_argument("--runs", type=Path, default=RUNS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.monotonic()
    checkpoints = train(given.steps, given.runs)
    counted = swept(checkpoints, [], given)
    rows = swept(checkpoints, ["--judge", str(checkpoints[-1])], given)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    about: dict[str, Any] = {
        "command": f"python -m tests.benchmarks.sweep --steps {given.steps} --num_samples {given.num_samples} "
        f"--num_steps {' '.join(map(str, given.num_steps))}",
        "commit": commit,
        "torch": torch.__version__,
        "device": f"{platform.processor() or platform.machine()}, 1 thread",
        "seconds_of_this_call": round(time.monotonic() - begin),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    body = {"about": about, "autoregressive": rows, "order_3": counted}
    RESULTS.write_text(json.dumps(body, indent=0) + "\n", encoding="utf-8")
    PICTURES.mkdir(exist_ok=True)
    for name in ("rows", "frontier", "seconds"):
        shutil.copy(given.runs / "sweep" / f"{name}.svg", PICTURES / f"sweep_{name}.svg")
    print(markdown(rows, counted))


if __name__ == "__main__":
    main()
