"""Who started this process, and as one of how many: read here alone, and compared with the configuration before the
heavy imports.

    srun lightning fit --config md4_owt --config configs/trainer/slurm.yaml

A launcher starts every rank by itself. Where the configuration means another number of them, each process would train
alone and write the same files, or wait for others that never come. Here it ends in one line.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

_SHELL_STEPS = ("4294967290", "4294967291")  # SLURM's numbers of an interactive step and of a batch script
_SHELL_NAMES = ("bash", "interactive")  # of jobs whose one task is a shell, in which Lightning starts the other ranks
WORD = "slurm"  # trainer.num_nodes and trainer.devices: as many as the launcher says
_COUNTS = ("num_nodes", "devices")
_SHARDED = ("fsdp", "deepspeed", "model_parallel", "modelparallel", "xla_fsdp", "xlafsdp")


class Mismatch(ValueError):
    """Launcher and configuration mean different runs: of all ranks, one says so."""


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that were started together.

    Attributes:
        launcher: srun, torchrun, mpirun; "lightning" for a rank that Lightning (or the user, by LOCAL_RANK) has
            started; "" where this process was started alone.
        per_node: ranks on each node.
        node: its name.
        job: SLURM's number of it, None outside.
        tasks: of the SLURM job's allocation, also where srun was not used.
        job_nodes: likewise.
    """

    launcher: str = ""
    ranks: int = 1
    nodes: int = 1
    per_node: tuple[int, ...] = (1,)
    rank: int = 0
    local_rank: int = 0
    node_rank: int = 0
    node: str = ""
    job: str | None = None
    restart: int = 0
    tasks: int = 1
    job_nodes: int = 1
    is_shell: bool = False  # a job for typing commands

    @property
    def is_together(self) -> bool:
        """One of several that a launcher has started: they meet (rundir/hub.py)."""
        return self.launcher in ("srun", "torchrun") and self.ranks > 1


def place(env: Mapping[str, str] = os.environ) -> Place:
    """The innermost launcher's word: torchrun may itself have been started by srun."""
    job: dict[str, Any] = {
        "node": env.get("SLURMD_NODENAME") or socket.gethostname().split(".")[0],
        "job": env.get("SLURM_JOB_ID"),
        "restart": _number(env, "SLURM_RESTART_COUNT", 0),
        "tasks": _number(env, "SLURM_NTASKS", 1),
        "job_nodes": _number(env, "SLURM_JOB_NUM_NODES", _number(env, "SLURM_NNODES", 1)),
        "is_shell": env.get("SLURM_JOB_NAME") in _SHELL_NAMES,
    }
    if "TORCHELASTIC_RUN_ID" in env:
        ranks, here = _number(env, "WORLD_SIZE", 1), _number(env, "LOCAL_WORLD_SIZE", 1)
        numbers = _numbers(env, "RANK", "LOCAL_RANK", "GROUP_RANK")
        return Place("torchrun", ranks, max(1, ranks // here), (here,), **numbers, **job)
    step = env.get("SLURM_STEP_ID")
    if step is not None and step not in _SHELL_STEPS:
        ranks, nodes = _number(env, "SLURM_STEP_NUM_TASKS", 1), _number(env, "SLURM_STEP_NUM_NODES", 1)
        if ranks > 1 or not job["is_shell"]:
            numbers = _numbers(env, "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
            return Place("srun", ranks, nodes, _per_node(env, ranks, nodes), **numbers, **job)
    for name in ("OMPI_COMM_WORLD_", "PMI_"):
        if _number(env, f"{name}SIZE", 1) > 1:
            return Place("mpirun", _number(env, f"{name}SIZE", 1), rank=_number(env, f"{name}RANK", 0), **job)
    if "LOCAL_RANK" in env:
        return Place("lightning", local_rank=_number(env, "LOCAL_RANK", 0), **job)
    return Place(**job)


def _number(env: Mapping[str, str], name: str, default: int) -> int:
    value = env.get(name, "")
    return int(value) if value.isdecimal() else default


def _numbers(env: Mapping[str, str], rank: str, local_rank: str, node_rank: str) -> dict[str, Any]:
    names = {"rank": rank, "local_rank": local_rank, "node_rank": node_rank}
    return {key: _number(env, name, 0) for key, name in names.items()}


def _per_node(env: Mapping[str, str], ranks: int, nodes: int) -> tuple[int, ...]:
    """`2(x3),1` as (2, 2, 2, 1)."""
    found: list[int] = []
    for part in env.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match:
            found += [int(match[1])] * int(match[2] or 1)
    return tuple(found) or (max(1, ranks // nodes),) * nodes


# ------------------------------------------------------------------ what the configuration says


def trainer_section(merged: dict[str, Any], rest: list[str]) -> dict[str, Any]:
    """The trainer's keys that matter here, those of the command line over those of the files."""
    given = merged.get("trainer")
    found = dict(given) if isinstance(given, dict) else {}
    for position, argument in enumerate(rest):
        option, equals, value = argument.partition("=")
        if not option.startswith("--trainer"):
            continue
        if not equals:
            value = rest[position + 1] if position + 1 < len(rest) else ""
        key = option.removeprefix("--trainer").removeprefix(".")
        plain = _plain(value)
        owner, dot, name = key.partition(".")
        if dot:
            known = found.get(owner)
            found[owner] = {**(known if isinstance(known, dict) else {}), name: plain}
        elif key:
            found[key] = plain
        elif isinstance(plain, dict):
            found.update(plain)
    return found


def _plain(value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def fill(place: Place, merged: dict[str, Any], rest: list[str]) -> tuple[dict[str, Any], list[str]]:
    """`slurm` in trainer.num_nodes and trainer.devices as the numbers of this job.

    Raises:
        Mismatch: no launcher says them.
    """
    section = trainer_section(merged, rest)
    asked = [key for key in _COUNTS if section.get(key) == WORD]
    if not asked:
        return merged, rest
    if place.launcher not in ("srun", "torchrun"):
        raise Mismatch(
            f"trainer.{asked[0]} is {WORD}, but this process was not started by srun; write `srun lightning ...` in "
            "the job's script (docs/cluster.md), or give --trainer.num_nodes=1 --trainer.devices=1 here"
        )
    numbers = {key: {"num_nodes": place.nodes, "devices": place.per_node[0]}[key] for key in asked}
    if isinstance(merged.get("trainer"), dict):
        merged = {**merged, "trainer": {**merged["trainer"], **numbers}}
    words = {f"--trainer.{key}={WORD}" for key in _COUNTS}
    return merged, [argument for argument in _joined(rest) if argument not in words]


def _joined(rest: list[str]) -> list[str]:
    """`--trainer.devices slurm` as one argument."""
    found: list[str] = []
    for argument in rest:
        if argument == WORD and found and found[-1] in [f"--trainer.{key}" for key in _COUNTS]:
            found[-1] += f"={argument}"
        else:
            found.append(argument)
    return found


def refuse(place: Place, command: str, trainer: dict[str, Any]) -> None:
    """Mismatch, with the line to write, where launcher and configuration mean different runs.

    Args:
        place: of this process.
        command: fit, validate, test or predict.
        trainer: see trainer_section, after `fill`.
    """
    refuse_sharded(trainer.get("strategy"))
    nodes, devices = _count(trainer.get("num_nodes"), 1), _devices(trainer)
    if place.launcher == "mpirun" and importlib.util.find_spec("mpi4py") is None:
        raise Mismatch(
            f"mpirun started {place.ranks} processes that do not know of each other; write `srun lightning {command} "
            "...`, or start them by torchrun"
        )
    if place.launcher in ("srun", "torchrun"):
        _refuse_numbers(place, command, nodes, devices)
    if place.launcher == "" and place.job is not None and max(place.tasks, place.job_nodes, nodes) > 1:
        raise Mismatch(
            f"job {place.job} has {_counted(place.tasks, 'task', 'tasks')} on "
            f"{_counted(place.job_nodes, 'node', 'nodes')}, and lightning was started without srun, as one process "
            f"(trainer.num_nodes is {nodes}); write `srun lightning {command} ...`"
        )


def _refuse_numbers(place: Place, command: str, nodes: int, devices: int | None) -> None:
    if len(set(place.per_node)) > 1:
        tasks = " and ".join(str(number) for number in place.per_node)
        raise Mismatch(
            f"srun started {tasks} tasks on its nodes, and every node must have as many; write --ntasks-per-node="
            f"{max(place.per_node)} in place of --ntasks={place.ranks}"
        )
    here = place.per_node[0]
    if nodes == place.nodes and devices in (None, here):
        return
    said = f"trainer.num_nodes is {nodes}" + ("" if devices is None else f" and trainer.devices is {devices}")
    if place.ranks == 1:
        per_node = devices or 1
        write = f"#SBATCH --nodes={nodes} --ntasks-per-node={per_node}, or --trainer.num_nodes=1 --trainer.devices=1"
    else:
        write = f"--trainer.num_nodes={place.nodes} --trainer.devices={here}"
    raise Mismatch(
        f"{place.launcher} started {_counted(place.ranks, 'process', 'processes')} on "
        f"{_counted(place.nodes, 'node', 'nodes')}, but {said}; write {write}"
    )


def refuse_several(place: Place, command: str) -> None:
    """Mismatch for a command that every process would do as a whole, and write the same files."""
    if place.launcher in ("srun", "torchrun", "mpirun") and place.ranks > 1:
        write = "srun --nodes=1 --ntasks=1 lightning" if place.launcher == "srun" else "lightning"
        raise Mismatch(
            f"{place.launcher} started {place.ranks} processes, and each would do all the work of `lightning "
            f"{command}`; write `{write} {command} ...`"
        )


def refuse_sharded(strategy: Any) -> None:
    """Mismatch for strategies that divide the weights; `strategy` as it is configured: a name, or a class_path."""
    name = strategy.get("class_path", "") if isinstance(strategy, dict) else strategy
    short = str(name or "").rpartition(".")[2]
    if short.lower().startswith(_SHARDED):
        raise Mismatch(
            f"trainer.strategy is {short}, which divides the weights over the ranks, and neither averages nor "
            "checkpoints are made for that yet; take ddp, which reaches about 3 billion parameters on 80 GB "
            "(docs/cluster.md)"
        )


def _counted(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _count(value: Any, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _devices(trainer: dict[str, Any]) -> int | None:
    """How many a node; None where that depends on the machine."""
    value = trainer.get("devices", "auto")
    if isinstance(value, list):
        return len(value)
    if isinstance(value, str) and "," in value:
        return len([part for part in value.split(",") if part.strip()])
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return 1 if value in ("auto", None) and trainer.get("accelerator") == "cpu" else None
