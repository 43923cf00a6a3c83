"""Each event of docs/cluster.md on a real SLURM with two nodes: what is saved, whether the job comes back, and that the
run which went on is the undisturbed one bit for bit. The jobs run side by side; an event is caused as soon as its job
has got so far. A test has the name of its job.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.faults.test_kills import different, parts, rows
from tests.slurm.cluster import STEPS, Cluster, Job

pytestmark = pytest.mark.slurm
# job -> options of sbatch, options of the run; all train as the undisturbed run does
JOBS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "early": ((), ()),
    "usr1": ((), ()),
    "array": (("--array=7",), ()),
    "dies": ((), ()),
    "rank_0_dies": ((), ()),
    "silent": ((), ("--trainer.strategy.init_args.timeout=0:00:40",)),
    "cancelled": ((), ()),
    "admin": ((), ()),
    "no_scontrol": (("--export=ALL,GGM_TEST_NO_SCONTROL=1",), ()),
    "preempted": (("--partition=low", "--cpus-per-task=4"), ()),
}
URGENT = """#!/bin/bash
# ---- your cluster
# ----
srun sleep 1
"""


def strike(job: Job) -> None:
    """What befalls it, once it has saved its first steps."""
    if job.name in ("early", "usr1", "array", "no_scontrol"):
        job.send("USR1")
    elif job.name == "dies":
        job.kill(1)
    elif job.name == "rank_0_dies":
        job.kill(0)
    elif job.name == "silent":
        job.kill(1, signal.SIGSTOP)
    elif job.name == "cancelled":
        job.cluster.run("scancel", job.number)
    elif job.name == "admin":
        job.cluster.run("scontrol", "requeue", job.number)
    elif job.name == "preempted":
        job.cluster.submit("urgent", script=URGENT, sbatch=("--partition=urgent", "--cpus-per-task=4"))


@pytest.fixture(scope="module")
def jobs(cluster: Cluster, undisturbed: Path, chosen: set[str]) -> dict[str, Job]:
    found = {}
    for name, (sbatch, options) in JOBS.items():
        if name in chosen:
            job = found[name] = cluster.train(name, *options, sbatch=sbatch)
            has_begun = (job.run / "lives.jsonl").is_file if name == "early" else job.has_steps
            job.strike(has_begun, lambda job=job: strike(job))
    return found


def undisturbed_in_the_end(job: Job, undisturbed: Path, lives: int = 2, lost_rows: int = 0) -> None:
    """`lost_rows`: of metrics.csv, where rank 0 ended at once: a step is logged just after it was saved."""
    assert job.end() == "COMPLETED", job.output
    assert job.output.count("goes on from step") == lives - 1, job.output
    assert "Traceback" not in job.output
    assert not different(parts(job.run, "last.ckpt"), parts(undisturbed, "last.ckpt"))
    assert parts(job.run, "last.ckpt")["global_step"] == STEPS
    whole, found = rows(undisturbed), rows(job.run)
    assert found.items() <= whole.items()
    assert len(whole) - len(found) <= lost_rows


def test_early(jobs: dict[str, Job], undisturbed: Path) -> None:
    """USR1 before the first step."""
    job = jobs["early"]
    job.wait_for_text("stopped by SIGUSR1 before the first step; nothing was to be saved; the job goes back")
    undisturbed_in_the_end(job, undisturbed, lives=1)
    assert "restart 1, " in job.output


def test_usr1(jobs: dict[str, Job], undisturbed: Path) -> None:
    job = jobs["usr1"]
    job.wait_for_text("last.ckpt is saved; the job goes back into the queue")
    undisturbed_in_the_end(job, undisturbed)


def test_array(jobs: dict[str, Job], undisturbed: Path) -> None:
    job = jobs["array"]
    job.wait_for_text("last.ckpt is saved; the job goes back into the queue")
    undisturbed_in_the_end(job, undisturbed)


def test_admin(jobs: dict[str, Job], undisturbed: Path) -> None:
    """An administrator requeues it."""
    undisturbed_in_the_end(jobs["admin"], undisturbed)


def test_dies(jobs: dict[str, Job], undisturbed: Path) -> None:
    """A rank is killed: rank 0 saves the last whole step."""
    job = jobs["dies"]
    job.wait_for_text("rank 1 on n2 has died; all ranks end, and the job goes back into the queue")
    undisturbed_in_the_end(job, undisturbed)


def test_rank_0_dies(jobs: dict[str, Job], undisturbed: Path) -> None:
    """What was logged and not saved goes with it; the weights are made again."""
    job = jobs["rank_0_dies"]
    job.wait_for_text("rank 0 on n1 has died; all ranks end, and the job goes back into the queue")
    assert job.end() == "COMPLETED", job.output
    assert not different(parts(job.run, "last.ckpt"), parts(undisturbed, "last.ckpt"))


def test_silent(jobs: dict[str, Job], undisturbed: Path) -> None:
    """A rank stops answering."""
    job = jobs["silent"]
    job.wait_for_text("rank 1 on n2 has not answered for 20 s; all ranks end, and the job goes back into the queue")
    undisturbed_in_the_end(job, undisturbed, lost_rows=1)


def test_cancelled(jobs: dict[str, Job]) -> None:
    """scancel saves and does not requeue."""
    job = jobs["cancelled"]
    assert job.end() == "CANCELLED"
    job.wait_for_text("stopped by SIGTERM after step ")
    assert "last.ckpt is saved; continue with --ckpt_path last" in job.output
    assert job.shown("Restarts") == "0"
    assert parts(job.run, "last.ckpt")["global_step"] < STEPS


def test_no_scontrol(jobs: dict[str, Job], undisturbed: Path) -> None:
    """As in a container: a line says that it cannot be done from there, and the script does it behind srun."""
    job = jobs["no_scontrol"]
    job.wait_for_text("last.ckpt is saved; scontrol is not found here (a container?); requeue it from the job's script")
    undisturbed_in_the_end(job, undisturbed)


def test_preempted(jobs: dict[str, Job], undisturbed: Path) -> None:
    """SIGTERM with a grace time."""
    job = jobs["preempted"]
    job.wait_for_text("the job is preempted and goes back into the queue")
    undisturbed_in_the_end(job, undisturbed)
