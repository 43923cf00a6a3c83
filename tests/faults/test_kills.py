"""SIGKILL at random moments, again and again: the resumed run is bit for bit the one that was never stopped."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ggm_lightning.rundir.csv_log import read_metrics
from tests.faults.runs import Run

STEPS = 24
SCENARIOS = {
    "no workers": [],
    "two workers": ["--data.init_args.num_workers=2"],
    "accumulation": ["--data.init_args.max_batch_per_device=4"],
    "accumulation and workers": ["--data.init_args.max_batch_per_device=2", "--data.init_args.num_workers=2"],
    "two ranks": ["--trainer.devices=2", "--trainer.strategy=ddp"],
    "shards and workers": ["--data.init_args.num_workers=2"],
    "shards, two ranks": ["--trainer.devices=2", "--trainer.strategy=ddp"],
}
KILLS = 5  # in each scenario


def arguments(folder: Path, name: str, scenario: str, validate: int = 5, save: int = 3) -> list[str]:
    return [
        *(shards(folder) if "shards" in scenario else []),
        *SCENARIOS[scenario],
        f"--trainer.max_steps={STEPS}",
        f"--trainer.val_check_interval={validate}",  # an epoch has 7 steps: in its middle
        f"--checkpoint_every_n_steps={save}",
        f"--runs={folder}",
        f"--name={name}",
        "--ckpt_path=last",
        "--allow_fresh=true",
    ]


def shards(folder: Path) -> list[str]:
    """A text, tokenised into shards by the first run, in place of the synthetic source."""
    text, config = folder / "text.jsonl", folder / "shards.yaml"
    if not config.is_file():
        lines = (json.dumps({"text": f"document {i} " * (1 + i % 5)}) for i in range(12))
        text.write_text("".join(f"{line}\n" for line in lines))
        own = {"train": str(text), "length": 11, "held_out": "blocks", "val_fraction": 0.2, "folder": f"{folder}/made"}
        own |= {"global_batch_size": 8, "eval_batch_size": 4}
        data = {"class_path": "ggm_lightning.data.text.TextData", "init_args": own}
        config.write_text(yaml.safe_dump({"data": data}))
    return ["--config", str(config)]


def different(one: Any, two: Any, where: str = "") -> list[str]:
    """Places at which two checkpoints differ in any bit of what training depends on."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, two) else [where]
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        return [place for key in one for place in different(one[key], two[key], f"{where}/{key}")]
    if isinstance(one, list | tuple):
        return [
            place for i, pair in enumerate(zip(one, two, strict=True)) for place in different(*pair, f"{where}/{i}")
        ]
    return [] if one == two else [where]


PARTS = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "global_step")


def parts(run: Path, name: str) -> dict[str, Any]:
    checkpoint = torch.load(run / name, weights_only=True)
    return {part: checkpoint[part] for part in PARTS}


def rows(run: Path) -> dict[tuple[int, str], float]:
    """(step, metric) -> value of loss and bound in metrics.csv."""
    found = read_metrics(run / "metrics.csv")
    return {(step, name): value for name in ("train/bpd", "val/nelbo") for step, value in found[name]}


def has_ended(run: Run) -> bool:
    """Well, or because there is nothing left to train: a kill may come after last.ckpt of the last step."""
    finished = "this run is finished" in run.output
    return all(code == 0 or (code == 2 and finished) for code in run.end())


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_and_resumed_is_undisturbed(scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dice = random.Random(scenario)
    ranks = 2 if "two ranks" in scenario else 1
    whole = Run(arguments(tmp_path, "whole", scenario), tmp_path / "whole.log", ranks).start()
    assert whole.end() == [0] * ranks, whole.output[-3000:]
    moments, kills = len(whole.marks), []
    while True:
        run = Run(arguments(tmp_path, "killed", scenario), tmp_path / "killed.log", ranks).start()
        if len(kills) == KILLS:
            assert has_ended(run), run.output[-3000:]
            break
        if run.follow(dice.randint(1, max(2, moments // 3))):
            time.sleep(dice.uniform(0, 0.02))
            run.signal(signal.SIGKILL)
            kills.append(f"{run.marks[-1]}{len(run.marks)}")
        assert set(run.end()) <= {-signal.SIGKILL} or has_ended(run), run.output[-3000:]
    for name in ("last.ckpt", "best.ckpt"):
        assert not different(parts(tmp_path / "whole", name), parts(tmp_path / "killed", name)), name
    whole_rows, killed_rows = rows(tmp_path / "whole"), rows(tmp_path / "killed")
    assert killed_rows.items() <= whole_rows.items()
    # a step is logged just after it was saved: a kill in between loses this one row
    lost = whole_rows.keys() - killed_rows.keys()
    assert all(step % 3 == 0 and name == "train/bpd" for step, name in lost), lost
    assert len(lost) <= KILLS
    with capsys.disabled():
        print(f"\n{scenario}: {len(kills)} kills at {' '.join(kills)} (t train, v validation, s save): bit-equal")


@pytest.mark.slow
@pytest.mark.parametrize(("validate", "save"), [(6, 6), (7, 7), (3, 3)], ids=["in an epoch", "at its end", "both"])
def test_a_validation_that_was_killed_is_done_again(validate: int, save: int, tmp_path: Path) -> None:
    """The checkpoint is written before the validation that is due at its step: stock Lightning never does it then."""
    whole = Run(arguments(tmp_path, "whole", "no workers", validate, save), tmp_path / "whole.log").start()
    assert whole.end() == [0], whole.output[-3000:]
    kills = 0
    while True:
        run = Run(arguments(tmp_path, "killed", "no workers", validate, save), tmp_path / "killed.log").start()
        while run.follow(len(run.marks) + 1) and "tsv" not in run.marks:
            pass
        if "tsv" not in run.marks:
            break
        run.signal(signal.SIGKILL)
        kills += 1
        assert run.end() == [-signal.SIGKILL], run.output[-3000:]
    assert has_ended(run), run.output[-3000:]
    assert kills == STEPS // validate
    assert not different(parts(tmp_path / "whole", "last.ckpt"), parts(tmp_path / "killed", "last.ckpt"))
    # after the last step there is no training to resume, and `lightning validate` measures the finished run
    whole_bounds, bounds = (
        {step: value for (step, metric), value in rows(tmp_path / name).items() if metric == "val/nelbo"}
        for name in ("whole", "killed")
    )
    assert bounds == {step: value for step, value in whole_bounds.items() if step != STEPS}
    assert len(bounds) >= 3
