"""Who started a process is read from its environment, and a configuration that means another run ends in one line."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from ggm_lightning.cli.launcher import Mismatch, fill, place, refuse, refuse_several, trainer_section
from ggm_lightning.cli.together import first_node, folder_of


def srun(rank: int = 0, nodes: int = 2, per_node: int = 1, **more: str) -> dict[str, str]:
    """What srun sets, as SLURM 22.05 was seen to."""
    told = {"JOB_ID": "17", "JOB_NUM_NODES": nodes, "NTASKS": nodes * per_node, "STEP_ID": 0, "PROCID": rank}
    told |= {"STEP_NUM_TASKS": nodes * per_node, "STEP_NUM_NODES": nodes, "LOCALID": rank % per_node}
    told |= {"NODEID": rank // per_node, "STEP_TASKS_PER_NODE": f"{per_node}(x{nodes})", "JOB_NAME": "train"}
    return {f"SLURM_{name}": str(value) for name, value in told.items()} | {"SLURMD_NODENAME": "n2"} | more


BATCH = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "2", "SLURM_PROCID": "0"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}


def test_the_place_of_a_process() -> None:
    found = place(srun(rank=5, nodes=2, per_node=3))
    assert (found.launcher, found.ranks, found.nodes, found.per_node) == ("srun", 6, 2, (3, 3))
    assert (found.rank, found.local_rank, found.node_rank, found.node, found.job) == (5, 2, 1, "n2", "17")
    found = place({**srun(), **TORCHRUN, "GROUP_RANK": "1"})  # torchrun, itself started by srun
    assert (found.launcher, found.ranks, found.nodes, found.rank, found.local_rank) == ("torchrun", 4, 2, 3, 1)
    assert place({"LOCAL_RANK": "1"}).launcher == "lightning"
    assert place({}).launcher == ""
    assert place(BATCH).launcher == ""  # a script is one process, whatever the job has
    assert place({**srun(), "SLURM_STEP_ID": "4294967290"}).launcher == ""  # the shell of salloc
    uneven = place(srun(SLURM_STEP_TASKS_PER_NODE="2(x2),1", SLURM_STEP_NUM_TASKS="5", SLURM_STEP_NUM_NODES="3"))
    assert uneven.per_node == (2, 2, 1)


def test_a_shells_name_does_not_hide_several_tasks() -> None:
    for name in ("bash", "interactive"):
        assert place(srun(SLURM_JOB_NAME=name)).ranks == 2
        alone = place(srun(nodes=1, SLURM_JOB_NAME=name))
        assert (alone.launcher, alone.ranks) == ("", 1)  # Lightning may start the other ranks of that node


# (environment, trainer section, what the one line says)
WRONG: list[tuple[dict[str, str], dict[str, Any], str]] = [
    (srun(), {"devices": 1}, "2 processes on 2 nodes, but trainer.num_nodes is 1 .* write --trainer.num_nodes=2 "),
    (srun(nodes=1, per_node=2), {"devices": 1}, "on 1 node, .* write --trainer.num_nodes=1 --trainer.devices=2$"),
    (srun(nodes=1), {"devices": 2, "num_nodes": 2}, "1 process on 1 node, .* #SBATCH --nodes=2 --ntasks-per-node=2"),
    (srun(SLURM_STEP_TASKS_PER_NODE="1,2"), {}, r"1 and 2 tasks .* write --ntasks-per-node=2 in place of --ntasks=2"),
    (BATCH, {"devices": 2}, "job 17 has 2 tasks on 2 nodes, .* without srun, .* write `srun lightning fit ...`"),
    (TORCHRUN, {"devices": 2}, "torchrun started 4 processes on 2 nodes, .* write --trainer.num_nodes=2 "),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, {}, "mpirun started 2 processes that do not know of each other"),
]


@pytest.mark.parametrize(("env", "trainer", "said"), WRONG)
def test_a_configuration_that_means_another_run(env: dict[str, str], trainer: dict[str, Any], said: str) -> None:
    with pytest.raises(Mismatch, match=said):
        refuse(place(env), "fit", trainer)


def test_a_configuration_that_means_this_run() -> None:
    refuse(place(srun()), "fit", {"num_nodes": 2, "devices": 1})
    refuse(place(srun(nodes=1, per_node=2)), "fit", {"devices": "0,1"})
    refuse(place(srun(nodes=1, per_node=2)), "fit", {"devices": -1, "accelerator": "cuda"})  # counted later
    refuse(place(TORCHRUN), "fit", {"num_nodes": 2, "devices": 2})
    refuse(place({}), "fit", {"devices": 2})
    refuse(place({"SLURM_JOB_ID": "17"}), "fit", {"devices": 2})  # one task: Lightning starts the second rank


SHARDED = ["fsdp", "deepspeed_stage_2", "a.b.ModelParallelStrategy", {"class_path": "FSDPStrategy"}]


@pytest.mark.parametrize("strategy", SHARDED)
def test_strategies_that_divide_the_weights(strategy: Any) -> None:
    with pytest.raises(Mismatch, match=r"divides the weights .* take ddp"):
        refuse(place({}), "fit", {"strategy": strategy})
    refuse(place({}), "fit", {"strategy": {"class_path": "lightning.pytorch.strategies.DDPStrategy"}})


def test_slurm_as_a_number() -> None:
    merged, rest = {"trainer": {"num_nodes": "slurm", "max_steps": 3}}, ["--trainer.devices", "slurm", "--name", "x"]
    filled, left = fill(place(srun(nodes=3, per_node=2)), merged, rest)
    assert trainer_section(filled, left) == {"num_nodes": 3, "max_steps": 3, "devices": 2}
    assert [a for a in left if "slurm" in a] == []
    with pytest.raises(Mismatch, match="was not started by srun; write `srun lightning"):
        fill(place(BATCH), merged, rest)
    untouched = {"trainer": {"devices": 2}}, ["--name", "slurm"]
    assert fill(place({}), *untouched) == untouched


def test_the_command_line_counts_more_than_the_files() -> None:
    rest = ["--trainer.devices=2", "--trainer.strategy.class_path", "a.B", "--trainer", "{num_nodes: 5}"]
    section = trainer_section({"trainer": {"devices": 1, "num_nodes": 2}}, rest)
    assert section == {"devices": 2, "num_nodes": 5, "strategy": {"class_path": "a.B"}}


def test_what_every_process_would_do_as_a_whole_is_refused() -> None:
    with pytest.raises(Mismatch, match=r"write `srun --nodes=1 --ntasks=1 lightning sample \.\.\.`"):
        refuse_several(place(srun()), "sample")
    refuse_several(place(srun(nodes=1)), "sample")


def test_names_of_nodes_and_folders() -> None:
    names = {"gpu[007-009,011],cpu1": "gpu007", "n1,n2": "n1", "n1": "n1", "a[3]-ib": "a3-ib"}
    assert {nodes: first_node(nodes) for nodes in names} == names
    assert str(folder_of({"name": "a"}, ["--runs", "/x", "--trainer.devices=1"])) == "/x/a"
    assert str(folder_of({"name": "a"}, ["--name=b"])) == "runs/b"


def test_the_check_comes_before_the_heavy_imports() -> None:
    code = "import sys, ggm_lightning.cli.main, ggm_lightning.cli.together; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
