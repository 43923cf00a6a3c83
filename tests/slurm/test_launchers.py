"""Jobs whose ranks are not those of the configuration: one line with what to write, before anything is loaded."""

from __future__ import annotations

import pytest

from tests.slurm.cluster import MODEL, Cluster, Job

pytestmark = pytest.mark.slurm
FIT = "lightning fit --config md4_markov --trainer.max_steps=1 " + " ".join(MODEL)
HEAD = "#!/bin/bash\n#SBATCH --output=%x-%j.out\n"
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")
ONE_NODE = ("--nodes=1", "--ntasks-per-node=2")
STRATEGY = "lightning.pytorch.strategies.ModelParallelStrategy"
LABELLED = f"srun --label {FIT}"
# job -> options of sbatch, the command, the line
CASES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "nodes": (TWO_NODES, f"{LABELLED} --trainer.devices=1", "write --trainer.num_nodes=2 --trainer.devices=1"),
    "devices": (ONE_NODE, f"{LABELLED} --trainer.devices=1", "write --trainer.num_nodes=1 --trainer.devices=2"),
    "interactive": (ONE_NODE, f"{LABELLED} --trainer.devices=1", "write --trainer.num_nodes=1 --trainer.devices=2"),
    "without_srun": (ONE_NODE, f"{FIT} --trainer.devices=2", "was started without srun, as one process"),
    "uneven": (
        ("--nodes=2", "--ntasks-per-node=2"),
        f"srun --ntasks=3 --label {FIT}",
        "write --ntasks-per-node=2 in place of --ntasks=3",
    ),
    "sharded": (
        TWO_NODES,
        f"{LABELLED} --trainer.strategy={STRATEGY}",
        "ModelParallelStrategy, which divides the weights",
    ),
    "infilling": (
        TWO_NODES,
        "srun --label lightning infill --ckpt_path x",
        "write `srun --nodes=1 --ntasks=1 lightning",
    ),
}
TWO = "srun --label {} --trainer.devices=2 --trainer.strategy=ddp --trainer.limit_val_batches=1 --name {}"
# several tasks that are right: the words that Lightning takes for a shell, and --ntasks alone
RIGHT = {"bash": ONE_NODE, "ntasks": ("--nodes=1", "--ntasks=2")}


@pytest.fixture(scope="module")
def jobs(cluster: Cluster) -> dict[str, Job]:
    found = {}
    for name, (options, command, _) in CASES.items():
        found[name] = cluster.submit(name, script=f"{HEAD}{command}\n", sbatch=options)
    for name, options in RIGHT.items():
        found[name] = cluster.submit(name, script=f"{HEAD}{TWO.format(FIT, name)}\n", sbatch=options)
    return found


@pytest.mark.parametrize("name", CASES)
def test_launchers(name: str, jobs: dict[str, Job]) -> None:
    job = jobs[name]
    assert job.end() == "FAILED", job.output
    assert job.shown("ExitCode") == "2:0"
    (said,) = job.errors()
    assert CASES[name][2] in said
    assert "Traceback" not in job.output
    assert not job.cluster.folder.joinpath("runs", "md4_markov").exists()


@pytest.mark.parametrize("name", RIGHT)
def test_several_tasks(name: str, jobs: dict[str, Job]) -> None:
    job = jobs[name]
    assert job.end() == "COMPLETED", job.output
    assert "1 node, 2 ranks, first start" in job.output
    assert job.output.count("finished at step 1") == 1
