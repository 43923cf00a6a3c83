"""experiments/slurm/train.sbatch beside stand-ins for srun and scontrol: what it starts, and what it puts back."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRUN = """#!/bin/sh
echo "$@" > srun.txt
[ -z "$SAVES" ] || { mkdir -p "$SAVES"; echo more >> "$SAVES/last.ckpt"; }
exit $CODE
"""
SCONTROL = """#!/bin/sh
[ "$1" != requeue ] || echo "$2" > requeued.txt
[ "$1" != show ] || echo "JobId=7 PreemptEligibleTime=2026-11-29T00:00:00 PreemptTime=$PREEMPTED"
"""


def submitted(
    folder: Path, *arguments: str, code: int = 0, saves: str = "", preempted: str = "None", **env: str
) -> int:
    """The exit code; srun.txt and requeued.txt lie in the folder then."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    for name in ("srun.txt", "requeued.txt"):
        (folder / name).unlink(missing_ok=True)
    script = (ROOT / "experiments" / "slurm" / "train.sbatch").read_text().replace("source .venv", "true .venv")
    env = {"SLURM_JOB_NAME": "train.sbatch", "SLURM_JOB_ID": "7", **env}
    env |= {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "CODE": str(code),
        "SAVES": saves,
        "PREEMPTED": preempted,
    }
    run = subprocess.run(["bash", "-s", *arguments], input=script, env=env, cwd=folder, text=True, check=False)
    return run.returncode


@pytest.mark.parametrize(
    ("code", "saves", "preempted", "goes_back"),
    [
        (0, True, "None", False),
        (1, True, "None", True),
        (1, False, "None", False),
        (2, True, "None", False),  # a wrong command
        (137, True, "None", True),
        (138, True, "None", True),  # USR1, and no scontrol where the ranks run
        (75, False, "None", True),  # the same before the first step
        (143, True, "None", False),  # scancel
        (143, True, "2026-11-29T05:00:00", True),
        (143, False, "2026-11-29T05:00:00", True),
        (130, True, "None", False),
    ],
)
def test_what_goes_back(tmp_path: Path, code: int, saves: bool, preempted: str, goes_back: bool) -> None:
    assert submitted(tmp_path, "md4_owt", code=code, saves="runs/md4_owt" if saves else "", preempted=preempted) == code
    assert (tmp_path / "requeued.txt").is_file() == goes_back


def test_an_experiment_has_its_own_run(tmp_path: Path) -> None:
    """One of another experiment in the same folder would go on from its weights, and write over them."""
    for arguments, name, env in (
        (("md4_owt",), "md4_owt", {}),
        (("experiments/mdlm_owt.yaml", "--trainer.max_steps", "7"), "mdlm_owt", {}),
        (("md4_owt",), "mine", {"SLURM_JOB_NAME": "mine"}),
    ):
        submitted(tmp_path, *arguments, **env)
        words = (tmp_path / "srun.txt").read_text().split()
        assert words[words.index("--name") + 1] == name
        assert words[words.index("--config") + 1] == arguments[0]
        assert words[-2:] == (list(arguments[1:]) or ["--allow_fresh", "true"])
