"""A real SLURM on loopback, and jobs on it that train a tiny model on two nodes with the shipped script.

Only the lines that the script calls the cluster's are changed. Where SLURM's commands are not on the path, the variable
GGM_SLURM_BIN names their folder.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PATIENCE = 420.0  # seconds for whatever is waited for: the machine may be busy with other jobs
MODEL = [
    "--model.network.init_args.feature_dim=4",
    "--model.network.init_args.num_layers=1",
    "--data.init_args.num_train=50",
    "--data.init_args.num_val=13",
    "--data.init_args.length=11",
    "--data.init_args.global_batch_size=8",
    "--data.init_args.eval_batch_size=4",
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
]
STEPS = 300
TRAINING = [*MODEL, f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=50", "--checkpoint_every_n_steps=20"]


def search_path() -> str:
    return os.pathsep.join(filter(None, [os.environ.get("GGM_SLURM_BIN"), os.environ["PATH"], "/usr/sbin"]))


def hindrance() -> str | None:
    """Why there can be no cluster here."""
    missing = [tool for tool in ("sbatch", "slurmctld", "munged") if shutil.which(tool, path=search_path()) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install slurm-wlm munge"
    return "slurmd starts jobs as root, which we are not" if os.getuid() != 0 else None


class Cluster:
    """Args: folder: of the daemons, and of the jobs' files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "PATH": search_path(), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        for name in [name for name in self.env if name.startswith(("SLURM_", "PYTEST_"))]:
            del self.env[name]

    def start(self) -> None:
        tools = self.folder / "tools"
        tools.mkdir()
        hidden = '[ -z "$GGM_TEST_NO_SCONTROL" ] || PATH=/nowhere\n'
        (tools / "lightning").write_text(f'#!/bin/sh\n{hidden}exec {sys.executable} -m ggm_lightning "$@"\n')
        (tools / "lightning").chmod(0o755)
        self.env["PATH"] = f"{tools}{os.pathsep}{self.env['PATH']}"
        said = self.run(str(HERE / "start_slurm.sh"), str(self.folder / "slurm"), "4", "4")
        self.env["SLURM_CONF"] = said.strip().splitlines()[-1]

    def stop(self) -> None:
        self.run(str(HERE / "stop_slurm.sh"), str(self.folder / "slurm"))

    def run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=120, cwd=self.folder)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, name: str, *options: str, script: str | None = None, sbatch: tuple[str, ...] = ()) -> Job:
        """train.sbatch of the package, or another script, its cluster's lines replaced.

        Args:
            name: of the job, and of its run.
            options: of the script.
            script: its text.
            sbatch: options of sbatch, which count more than the script's.
        """
        file = self.folder / f"{name}.sbatch"
        shipped = (ROOT / "experiments" / "slurm" / "train.sbatch").read_text()
        file.write_text(script if script is not None and "# ---- your" not in script else adapted(script or shipped))
        said = self.run("sbatch", "--parsable", f"--job-name={name}", *sbatch, str(file), *options)
        return Job(self, name, said.strip())

    def train(self, name: str, *options: str, sbatch: tuple[str, ...] = ()) -> Job:
        return self.submit(name, "md4_markov", *TRAINING, *options, sbatch=sbatch)


def adapted(script: str) -> str:
    """Two nodes of one task each."""
    ours = "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\n"
    changed, count = re.subn(r"(?s)(# ---- your cluster[^\n]*\n).*?(?=# ----\n)", rf"\1{ours}", script)
    assert count == 1, "the script says which lines are the cluster's"
    return changed


class Job:
    def __init__(self, cluster: Cluster, name: str, number: str) -> None:
        self.cluster, self.name, self.number = cluster, name, number
        self.run = cluster.folder / "runs" / name

    @property
    def output(self) -> str:
        """Of all its lives: the scripts append."""
        files = sorted(self.cluster.folder.glob(f"{self.name}-{self.number}*.out"))
        return "".join(file.read_text(errors="replace") for file in files)

    def shown(self, key: str) -> str:
        said = self.cluster.run("scontrol", "--oneliner", "show", "job", self.number)
        found = re.search(rf"\b{key}=(\S+)", said)
        return found[1] if found else ""

    def strike(self, when: Callable[[], object], what: Callable[[], object]) -> None:
        """Causes an event as soon as the job has got so far, whatever the tests are looking at by then."""

        def wait() -> None:
            deadline = time.monotonic() + PATIENCE
            while not when() and time.monotonic() < deadline:
                time.sleep(0.1)
            what()

        threading.Thread(target=wait, name=f"strikes {self.name}", daemon=True).start()

    def has_steps(self) -> bool:
        return (self.run / "last.ckpt").is_file()

    def wait_for(self, what: Callable[[], object], name: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not what():
            state = f"{self.shown('JobState')} ({self.shown('Reason')})"
            assert time.monotonic() < deadline, f"{self.name}: no {name}; {state}: {self.output[-3000:]}"
            time.sleep(0.3)

    def wait_for_text(self, text: str) -> None:
        self.wait_for(lambda: text in self.output, text)

    def wait_for_restarts(self, number: int) -> None:
        self.wait_for(lambda: int(self.shown("Restarts") or 0) >= number, f"restart {number}")

    def end(self) -> str:
        """Its state in the end."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        self.wait_for(lambda: self.shown("JobState") in over, "end")
        return self.shown("JobState")

    def send(self, name: str) -> None:
        """As SLURM itself does: to the tasks of the steps, and not to the script."""
        self.cluster.run("scancel", f"--signal={name}", self.number)

    def process(self, rank: int, command: str = "fit") -> int:
        """The pid of a rank's interpreter."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "environ").read_bytes().split(b"\0")
                line = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            wanted = {f"SLURM_JOB_ID={self.number}".encode(), f"SLURM_PROCID={rank}".encode()}
            if b"ggm_lightning" in line and f"\0{command}\0".encode() in line and wanted < set(words):
                return int(folder.name)
        raise AssertionError(f"{self.name}: no process of rank {rank}")

    def kill(self, rank: int, number: int = signal.SIGKILL, command: str = "fit") -> None:
        os.kill(self.process(rank, command), number)

    def errors(self) -> list[str]:
        return [line for line in self.output.splitlines() if "lightning: error:" in line]
