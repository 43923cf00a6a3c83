"""SLURM's queue: back into it, and whether that is right. Nothing heavy is imported."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping

_SECONDS = 60


def job_name(env: Mapping[str, str] = os.environ) -> str | None:
    """What scontrol calls this job, or this task of a job array; None outside SLURM."""
    job, array = env.get("SLURM_JOB_ID"), env.get("SLURM_ARRAY_JOB_ID")
    if job is None:
        return None
    return f"{array}_{env.get('SLURM_ARRAY_TASK_ID')}" if array else job


def hindrance(env: Mapping[str, str] = os.environ) -> str | None:
    """Why this job cannot be put back from here, in words that end with the remedy; None where nothing is known."""
    name = job_name(env)
    if name is None:
        return "this is no SLURM job"
    if not re.fullmatch(r"[0-9_]+", name):
        return f"SLURM's job number {name!r} looks wrong; requeue it by hand"
    if shutil.which("scontrol", path=env.get("PATH")) is None:
        return (
            "scontrol is not found here (a container?); requeue it from the job's script, as those of "
            f"experiments/slurm/ do, or by hand: scontrol requeue {name}"
        )
    return None


def requeue() -> str | None:
    """`scontrol requeue` of this job; None where it was done, else why not. SLURM ends this process soon after."""
    reason = hindrance()
    if reason is not None:
        return reason
    name = job_name()
    try:
        subprocess.run(["scontrol", "requeue", str(name)], check=True, capture_output=True, timeout=_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else None
        told = " ".join((said or str(error).encode()).decode(errors="replace").split())
        return f"scontrol requeue {name} failed ({told}); requeue it by hand"
    return None


def is_preempted() -> bool:
    """Whether SLURM is taking this job's nodes away for another job: SIGTERM then means to save, and to come back.

    `scancel` and the time limit send SIGTERM, too, and leave PreemptTime as it is.
    """
    if hindrance() is not None:
        return False
    command = ["scontrol", "--oneliner", "show", "job", os.environ["SLURM_JOB_ID"]]
    try:
        said = subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS, text=True).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return preempt_time(said) is not None


def preempt_time(said: str) -> str | None:
    """Of `scontrol show job`; None where the job is not being preempted."""
    found = re.search(r"\bPreemptTime=(\S+)", said)
    return None if found is None or found[1] in ("None", "N/A", "Unknown", "(null)") else found[1]
