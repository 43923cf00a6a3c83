"""Sudoku of 6x6 by infilling: how many puzzles with one solution are solved, the surest cell first and in random order.

`python -m tests.benchmarks.sudoku [--runs folder]` trains experiments/md4_sudoku.yaml (in that folder, or takes the run
that it holds), fills 200 puzzles of held-out grids, 8 to 12 clues each and none to spare, and keeps what it found in
results/sudoku.json. Seconds are those of this process on one thread (time.process_time).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ggm_lightning
from ggm_lightning.cli.main import main
from ggm_lightning.data.toy.sudoku import Sudoku
from tests.benchmarks.markov_source import ROOT, measured

RESULTS = Path(__file__).parent / "results" / "sudoku.json"
COUNT, CLUES = 200, (8, 12)
SAMPLERS: dict[str, dict[str, Any]] = {
    "surest first, mode": {"sampler": "ordered", "k": 1, "temperature": 0},
    "surest first, drawn": {"sampler": "ordered", "k": 1},
    "random order, mode": {"sampler": "first_hitting", "temperature": 0},
    "random order, drawn": {"sampler": "first_hitting"},
    "ancestral, 64 steps, drawn": {"sampler": "ancestral"},
}


def shares(x: Tensor, solution: Tensor, given: Tensor) -> dict[str, float]:
    """Of puzzles that are solved, and of cells that are right."""
    solved = (x == solution).all(1).double()
    return {
        "solved": float(solved.mean()),
        "stderr": float((solved.mean() * (1 - solved.mean()) / len(solved)).sqrt()),
        "cells": float((x == solution)[~given].double().mean()),
    }


def evaluated(model: Any, data: Sudoku) -> dict[str, Any]:
    solution, given = data.puzzles(COUNT, CLUES)
    clues = given.sum(1)
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "puzzles": COUNT,
        "clues": [int(clues.min()), round(float(clues.double().mean()), 2), int(clues.max())],
        "samplers": {"chance": shares(data.guessed(solution, given), solution, given)},
    }
    for name, options in SAMPLERS.items():
        drawn, seconds = measured(lambda options=options: model.sample(COUNT, 64, clamp=(solution, given), **options))
        row = shares(drawn.x, solution, given)
        found["samplers"][name] = row | {"rows_per_puzzle": drawn.rows / COUNT, "seconds": round(seconds, 2)}
    return found


def run(runs: str) -> None:
    torch.set_num_threads(1)
    checkpoint = Path(runs) / "md4_sudoku" / "last.ckpt"
    result: dict[str, Any] = {"command": "python -m tests.benchmarks.sudoku"}
    if not checkpoint.is_file():
        config = str(ROOT / "experiments" / "md4_sudoku.yaml")
        _, result["training_seconds"] = measured(lambda: main(["fit", "--config", config, "--runs", runs]))
    result |= evaluated(ggm_lightning.load(checkpoint), Sudoku())
    for name, row in result["samplers"].items():
        print(f"{name:28} solved {100 * row['solved']:5.1f} %, cells {100 * row['cells']:5.1f} %")
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", help="folder of the run; a temporary one where none is given")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(given.runs or folder)
