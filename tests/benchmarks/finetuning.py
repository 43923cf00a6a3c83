"""Is a run that starts from weights of another text ahead of one that starts from nothing? `python -m
tests.benchmarks.finetuning`. Rows are kept in results/.

First text: Python's language reference in small letters. Second text, which is learnt then: the docstrings of the
standard library, with capital letters and so another vocabulary in another order. Bounds are those of the same held-out
rows with the same noise: differences are paired.
"""

from __future__ import annotations

import ast
import json
import math
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
import torch

import ggm_lightning
from ggm_lightning.cli.main import main
from ggm_lightning.codecs.codec import Codec
from ggm_lightning.data.text import TextData
from ggm_lightning.data.toy.demo import reference_text
from ggm_lightning.rundir import start

RESULTS = Path(__file__).parent / "results" / "finetuning.json"
LENGTH, ROWS, FIRST_STEPS, STEPS = 64, 224, 600, 150
CHARACTERS = 300_000  # of either text
_NETWORK = "--model.network.init_args."
_OPTIONS = [
    *(f"{_NETWORK}{option}" for option in ("feature_dim=16", "num_heads=4", "num_layers=2")),
    "--data=ggm_lightning.data.text.TextData",
    "--data.init_args.tokenizer=characters",
    "--data.init_args.alphabet=data",
    f"--data.init_args.length={LENGTH}",
    "--data.init_args.global_batch_size=32",
    "--trainer.max_time=null",
    "--trainer.limit_val_batches=1",
]


def docstrings() -> str:
    """Of the modules at the top of the standard library, their classes and functions."""
    found: list[str] = []
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        found += [ast.get_docstring(node) or "" for node in nodes if isinstance(node, kinds)]
    return "\n".join(text for text in found if text)


def by_number(ours: Codec, theirs: Codec) -> np.ndarray:
    """The mistake that `same_tokens` is there to prevent: row i becomes row i."""
    return np.where(np.arange(ours.num_classes) < theirs.num_classes, np.arange(ours.num_classes), -1)


def bounds(checkpoint: Path, data: TextData) -> torch.Tensor:
    """Float64[rows], nats per token of held-out rows, each with noise of its own number."""
    model = ggm_lightning.load(checkpoint)
    row = torch.arange(ROWS)
    return model.nelbo(data.rows("val")[row.tolist()]["x"], num_samples=4, row=row) / LENGTH


def compared(folder: Path, first_steps: int = FIRST_STEPS, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """Bounds of the second text's held-out rows after `steps` steps on it, by where the run started."""
    texts = {"first": reference_text()[0].lower()[:CHARACTERS], "second": docstrings()[:CHARACTERS]}
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")

    def fit(name: str, text: str, count: int, *extra: str) -> Path:
        run = ["--runs", str(folder), "--name", name, f"--data.init_args.train={folder / text}.txt"]
        place = [f"--data.init_args.folder={folder / f'{text}-shards'}", f"--trainer.val_check_interval={count}"]
        main(["fit", "--config", "md4_demo", *_OPTIONS, *run, *place, f"--trainer.max_steps={count}", *extra])
        return folder / name / "last.ckpt"

    start_from = ["--init_from", str(fit("first", "first", first_steps).parent)]
    checkpoints = {"nothing": fit("nothing", "second", steps), "weights": fit("weights", "second", steps, *start_from)}
    right, start.same_tokens = start.same_tokens, by_number
    try:
        checkpoints["weights, rows by number"] = fit("wrong", "second", steps, *start_from)
    finally:
        start.same_tokens = right
    data = TextData(
        str(folder / "second.txt"),
        tokenizer="characters",
        alphabet="data",
        length=LENGTH,
        folder=str(folder / "second-shards"),
    )
    data.prepare_data()
    return {name: bounds(path, data) for name, path in checkpoints.items()}


def ahead(better: torch.Tensor, worse: torch.Tensor) -> tuple[float, float]:
    """(mean of the paired differences, its standard error), nats per token."""
    difference = worse - better
    return float(difference.mean()), float(difference.std()) / math.sqrt(len(difference))


def run() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = compared(Path(folder))
    rows = []
    for name, values in found.items():
        mean, stderr = ahead(values, found["nothing"])
        row = {"start": name, "nats per token": round(float(values.mean()), 4)}
        rows.append({**row, "ahead of nothing": round(mean, 4), "stderr": round(stderr, 4)})
        print(rows[-1], file=sys.stderr)
    RESULTS.write_text(json.dumps({"first_steps": FIRST_STEPS, "steps": STEPS, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    run()
