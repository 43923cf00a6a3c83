"""Runs that cannot go on end within their time limit, in one line, and lose nothing. A signal within a validation."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.test_kills import parts
from tests.slurm.cluster import MODEL, Cluster, Job

pytestmark = pytest.mark.slurm
FIT = "lightning fit --config md4_markov --config configs/trainer/slurm.yaml " + " ".join(MODEL)
HEAD = "#!/bin/bash\n#SBATCH --open-mode=append\n#SBATCH --output=%x-%j.out\n# ---- your cluster\n# ----\n"
# job -> what it runs
OWN = "srun --label bash -c 'cd $SLURMD_NODENAME; exec {} --name x'"  # in a folder of the node
LONG = "--data.init_args.num_val=40000 --data.init_args.eval_batch_size=2 --trainer.num_sanity_val_steps=0"
SCRIPTS = {
    # rank 1 never comes
    "apart": f"GGM_MEETING_SECONDS=10 srun --label bash -c '[ $SLURM_PROCID = 0 ] || exec sleep 45; {FIT} --name x'",
    # the second node has no checkpoint
    "node_local": f"mkdir -p n1 n2; {OWN.format(f'{FIT} --trainer.max_steps=2')}; rm -f n2/runs/x/last.ckpt; "
    + OWN.format(f"{FIT} --trainer.max_steps=4 --ckpt_path last"),
    # files of at most 20 kB, which no checkpoint fits into
    "disk_full": f"ulimit -f 20; srun --label {FIT} --trainer.max_steps=40 --checkpoint_every_n_steps=5",
    "validating": f"srun --label {FIT} {LONG} --trainer.max_steps=5 --trainer.val_check_interval=1 "
    "--checkpoint_every_n_steps=1",
    "in_use": f"srun --label {FIT} --trainer.max_steps=100000 --checkpoint_every_n_steps=5",
}
NAMED = ("disk_full", "validating", "in_use")  # after their jobs


@pytest.fixture(scope="module")
def jobs(cluster: Cluster, chosen: set[str]) -> dict[str, Job]:
    found = {}
    for name, script in SCRIPTS.items():
        if name in chosen:
            own = f" --name {name}" if name in NAMED else ""
            found[name] = cluster.submit(name, script=f"{HEAD}{script}{own}\n")
    if "validating" in found:
        found["validating"].strike(found["validating"].has_steps, lambda: found["validating"].send("USR1"))
    return found


def test_apart(jobs: dict[str, Job]) -> None:
    """The ranks never find each other."""
    job = jobs["apart"]
    assert job.end() == "FAILED"
    (said,) = job.errors()
    assert "0: lightning: error: of 2 ranks 1 have not come to rank 0 on n1 within 10 s (rank 1); look at" in said
    assert "Traceback" not in job.output


def test_node_local(jobs: dict[str, Job]) -> None:
    """Rank 0 sees last.ckpt and rank 1 does not."""
    job = jobs["node_local"]
    assert job.end() == "FAILED"
    (said,) = job.errors()
    assert "rank 1 on n2: rank 0 goes on from runs/x/last.ckpt of step 2, and node n2 sees no such file" in said
    assert said.endswith("put --runs on a file system that all nodes share")


def test_disk_full(jobs: dict[str, Job]) -> None:
    job = jobs["disk_full"]
    assert job.end() == "FAILED"
    (said,) = job.errors()
    assert "last.ckpt: cannot be written (File too large)" in said
    assert list(job.run.glob("*.ckpt")) == []


def test_validating(jobs: dict[str, Job]) -> None:
    """A signal within a validation of many minutes is obeyed at its next batch, and the validation is done again."""
    job = jobs["validating"]
    job.wait_for_text("stopped by SIGUSR1 after step 1; ")
    job.cluster.run("scancel", job.number)
    assert parts(job.run, "last.ckpt")["global_step"] == 1
    assert "validation, upper bound" not in job.output


def test_in_use(jobs: dict[str, Job], cluster: Cluster) -> None:
    """A second job for the same folder."""
    job = jobs["in_use"]
    job.wait_for(job.has_steps, "checkpoint")
    second = cluster.submit("second", script=f"{HEAD}srun --label {FIT} --name in_use --ckpt_path last\n")
    assert second.end() == "FAILED"
    (said,) = second.errors()
    assert f"runs/in_use: in use by process {job.process(0)} on n1 (SLURM job {job.number}); wait for its end" in said
    cluster.run("scancel", job.number)
    assert job.end() == "CANCELLED"


def test_node_fails(cluster: Cluster, undisturbed: Path) -> None:
    """Last of all, as it takes a node away from whatever runs there."""
    job = cluster.train("node_fails")
    job.wait_for(job.has_steps, "checkpoint")
    cluster.run("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    job.wait_for_restarts(1)  # the node comes back by itself when its slurmd is heard (ReturnToService)
    assert job.end() == "COMPLETED", job.output
    assert "goes on from step" in job.output
    assert parts(job.run, "last.ckpt")["global_step"] == parts(undisturbed, "last.ckpt")["global_step"]
