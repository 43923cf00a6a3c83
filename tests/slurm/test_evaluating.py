"""sample.sbatch and evaluate.sbatch on two nodes: the results are those of one process, whatever happens on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggm_lightning.cli.evaluate import evaluate
from ggm_lightning.cli.sample import sample
from tests.cli.small_checkpoints import write
from tests.slurm.cluster import ROOT, Cluster, Job

pytestmark = pytest.mark.slurm
DRAWING = ["--num_samples=150", "--num_steps=200", "--batch_size=1", "--device=cpu"]
# job -> the script and its options
JOBS = {
    "drawn": ("sample", DRAWING),
    "loses_a_rank": ("sample", DRAWING),
    "bounds": ("evaluate", ["--batch_size=3", "--limit=23", "--device=cpu"]),
}


@pytest.fixture(scope="module")
def checkpoint(cluster: Cluster) -> str:
    return write(cluster.folder / "runs" / "small" / "last.ckpt", "md4")


def submitted(cluster: Cluster, name: str, checkpoint: str) -> Job:
    script, options = JOBS[name]
    text = (ROOT / "experiments" / "slurm" / f"{script}.sbatch").read_text()
    return cluster.submit(name, checkpoint, *options, f"--out={name}", script=text)


@pytest.fixture(scope="module")
def jobs(cluster: Cluster, checkpoint: str, chosen: set[str]) -> dict[str, Job]:
    found = {name: submitted(cluster, name, checkpoint) for name in JOBS if name in chosen}
    if "loses_a_rank" in found:
        job = found["loses_a_rank"]
        job.strike(lambda: len(parts_of(job)) > 2, lambda: job.kill(1, command="sample"))
    return found


def parts_of(job: Job) -> list[str]:
    return sorted(file.name for file in (job.cluster.folder / job.name / ".parts").glob("rows-*.npz"))


@pytest.fixture(scope="module")
def of_one(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The samples of one process."""
    out = tmp_path_factory.mktemp("one") / "drawn"
    sample(checkpoint, num_samples=150, num_steps=200, batch_size=1, out=str(out), device="cpu")
    return np.asarray(np.load(out / "samples.npz")["x"])


def test_drawn(jobs: dict[str, Job], cluster: Cluster, of_one: np.ndarray) -> None:
    job = jobs["drawn"]
    assert job.end() == "COMPLETED", job.output
    assert np.array_equal(np.load(cluster.folder / "drawn" / "samples.npz")["x"], of_one)
    assert job.output.count("150 samples in") == 1
    assert "0: 150 samples in" in job.output


def test_bounds(jobs: dict[str, Job], cluster: Cluster, checkpoint: str, tmp_path: Path) -> None:
    job = jobs["bounds"]
    assert job.end() == "COMPLETED", job.output
    evaluate(checkpoint, batch_size=3, limit=23, out=str(tmp_path / "one"), device="cpu")
    (one,), (two,) = (tmp_path / "one").glob("*.npy"), (cluster.folder / "bounds").glob("*.npy")
    assert two.read_bytes() == one.read_bytes()
    assert job.output.count("upper bounds on -log p") == 1


def test_loses_a_rank(jobs: dict[str, Job], cluster: Cluster, checkpoint: str, of_one: np.ndarray) -> None:
    """One line names it, and the same command again does what is missing."""
    job = jobs["loses_a_rank"]
    assert job.end() == "FAILED"
    (said,) = job.errors()
    assert "rank 1 on n2 has died; all ranks end" in said
    assert 2 < len(parts_of(job)) < 150
    again = submitted(cluster, "loses_a_rank", checkpoint)
    assert again.end() == "COMPLETED", again.output
    assert np.array_equal(np.load(cluster.folder / "loses_a_rank" / "samples.npz")["x"], of_one)
