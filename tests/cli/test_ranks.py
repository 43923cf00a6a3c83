"""Several ranks give what one process gives, bit by bit, and compute nothing twice. Threads stand for processes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggm_lightning.cli import ranks
from ggm_lightning.cli.evaluate import evaluate
from ggm_lightning.cli.launcher import Mismatch, place
from ggm_lightning.cli.loading import load_family
from ggm_lightning.cli.measure import Sampling
from ggm_lightning.cli.measure_likelihood import Likelihood
from ggm_lightning.cli.measure_text import Text
from ggm_lightning.cli.measures import evaluate_measures
from ggm_lightning.cli.parts import Parts, batches, divided, shares
from ggm_lightning.cli.ranks import Ranks, working_as
from ggm_lightning.cli.sample import sample
from ggm_lightning.cli.sweep import sweep
from ggm_lightning.models.base import Family
from ggm_lightning.rundir.hub import Apart, Hub
from tests.cli.small_checkpoints import write

CKPT = "runs/md4/last.ckpt"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(Path(CKPT), "md4")
    return tmp_path


def together(work: Callable[[], object], count: int = 2) -> list[object]:
    """What each rank returns, or has raised."""
    hubs = [Hub(rank, count, f"n{rank}", os.urandom(4).hex(), "127.0.0.1") for rank in range(count)]
    for hub in hubs:
        hub.token = hubs[0].token
    found: list[object] = [None] * count

    def run(rank: int) -> None:
        try:
            hubs[rank].meet(10)
            with working_as(Ranks(rank, count, rank, hubs[rank])):
                found[rank] = work()
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for hub in hubs:
        hub.leave()
    return found


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """(rank, rows) of each call of `sample`."""
    calls: list[tuple[int, list[int]]] = []
    real = Family.sample

    def spy(model: Family, *arguments: Any, **options: Any) -> Any:
        calls.append((ranks.current().rank, options["row"].tolist()))
        return real(model, *arguments, **options)

    monkeypatch.setattr(Family, "sample", spy)
    return calls


def test_the_dearest_first_to_whom_has_least_to_do() -> None:
    assert shares([(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0)], 2) == [[0, 2, 4], [1, 3]]
    assert shares([(0, 8.0), (1, 16.0), (5, 1024.0), (3, 64.0)], 3) == [[5], [3], [0, 1]]
    assert shares([(2, 3.0)], 3) == [[2], [], []]
    assert shares([], 2) == [[], []]
    assert batches(7, 3) == [(0, 3), (3, 6), (6, 7)]


@pytest.mark.parametrize("count", [2, 3])
def test_samples_are_those_of_one_process(there: Path, drawn: list[Any], count: int) -> None:
    def draw(out: str, seed: int = 0) -> None:
        sample(CKPT, num_samples=7, num_steps=3, batch_size=2, seed=seed, out=out, device="cpu")

    draw("one")
    draw("other", seed=1)
    alone = [rows for _, rows in drawn]
    drawn.clear()
    assert together(lambda: draw("several"), count) == [None] * count
    assert sorted(rows for _, rows in drawn) == alone[:4]
    assert {rank for rank, _ in drawn} == set(range(count))
    one, several, other = (dict(np.load(f"{name}/samples.npz")) for name in ("one", "several", "other"))
    assert {key: value.tolist() for key, value in several.items()} == {key: one[key].tolist() for key in several}
    assert not np.array_equal(other["x"], one["x"])  # control
    assert sorted(os.listdir("several")) == sorted(os.listdir("one"))
    for file in ("settings.json", "trace.html", "samples.txt"):
        assert Path("several", file).read_bytes() == Path("one", file).read_bytes()
    drawn.clear()
    together(lambda: draw("several"), count)
    assert drawn == []


def test_whoever_goes_on_draws_what_is_missing(there: Path, drawn: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped alone, gone on with by two, of which one fails; finished by three."""

    def draw(out: str = "parts") -> None:
        sample(CKPT, num_samples=10, num_steps=2, batch_size=2, out=out, device="cpu")

    spied = Family.sample
    failing: set[tuple[int, ...]] = {(2, 3), (6, 7)}

    def fails(model: Family, *arguments: Any, **options: Any) -> Any:
        if tuple(options["row"].tolist()) in failing:
            raise ValueError("stopped")
        return spied(model, *arguments, **options)

    monkeypatch.setattr(Family, "sample", fails)
    with pytest.raises(ValueError, match="stopped"):
        draw()
    assert [rows for _, rows in drawn] == [[0, 1]]
    failing.remove((2, 3))
    monkeypatch.setenv("GGM_PART_SECONDS", "1")
    found = together(draw)  # rank 0: rows 2 and 6, rank 1: 4 and 8
    assert str(found[0]) == "stopped"
    assert sorted(rows for _, rows in drawn) == [[0, 1], [2, 3], [4, 5], [8, 9]]
    failing.clear()
    assert together(draw, 3) == [None] * 3
    assert sorted(rows for _, rows in drawn) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    draw("whole")
    assert np.array_equal(np.load("parts/samples.npz")["x"], np.load("whole/samples.npz")["x"])
    assert not Path("parts/.parts").exists()


def test_bounds_are_those_of_one_process(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def figures(out: str) -> tuple[bytes, dict[str, Any]]:
        content = json.loads(Path(out, name).read_text())
        for key in ("date", "seconds"):
            del content[key]
        return Path(out, name).with_suffix(".npy").read_bytes(), content

    def bound(out: str, seed: int = 0, again: bool = False) -> int:
        found = evaluate(CKPT, num_samples=2, seed=seed, batch_size=3, limit=11, out=out, device="cpu", again=again)
        return len(found)

    bound("one")
    (name,) = (file.name for file in Path("one").glob("*.json"))
    bound("other", seed=1)
    assert together(lambda: bound("several")) == [1, 0]
    assert figures("several") == figures("one")
    assert figures("other")[0] != figures("one")[0]  # control
    assert sorted(os.listdir("several")) == sorted(os.listdir("one"))
    monkeypatch.setattr("ggm_lightning.cli.evaluate.nats_in_parts", lambda *_: measured.append(1))
    assert together(lambda: bound("several")) == [1, 0]
    assert measured == []
    together(lambda: bound("several", again=True))
    assert len(measured) == 2


def test_bounds_go_on_part_by_part(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[list[int]] = []
    model = type(load_family(CKPT, "cpu").model)
    real = model.nelbo

    def spy(self: Family, *arguments: Any, **options: Any) -> Any:
        if len(rows) == 2:
            rows.append([])
            raise KeyboardInterrupt
        rows.append(options["row"].tolist())
        return real(self, *arguments, **options)

    monkeypatch.setattr(model, "nelbo", spy)
    with pytest.raises(KeyboardInterrupt):
        evaluate(CKPT, batch_size=2, limit=7, out="part", device="cpu")
    evaluate(CKPT, batch_size=2, limit=7, out="part", device="cpu")
    assert rows == [[0, 1], [2, 3], [], [4, 5], [6]]
    evaluate(CKPT, batch_size=2, limit=7, out="whole", device="cpu")
    (part,), (whole,) = Path("part").glob("*.npy"), Path("whole").glob("*.npy")
    assert part.read_bytes() == whole.read_bytes()
    assert [name for name in os.listdir("part") if name.startswith(".")] == []


def table(file: Path) -> list[dict[str, str]]:
    """Without times."""
    with file.open() as lines:
        return [
            {k: v for k, v in row.items() if "seconds" not in k and "date" not in k} for row in csv.DictReader(lines)
        ]


def test_measures_are_those_of_one_process(there: Path, drawn: list[Any]) -> None:
    def measure(out: str) -> None:
        sampling = Sampling(num_steps=[2, 3], num_drawn=5)
        evaluate_measures(CKPT, [Likelihood(), Text()], sampling, batch_size=2, limit=12, out=out, device="cpu")

    measure("one")
    alone = sorted(rows for _, rows in drawn)
    drawn.clear()
    assert together(lambda: measure("several")) == [None, None]
    assert sorted(rows for _, rows in drawn) == alone
    assert {rank for rank, _ in drawn} == {0, 1}
    assert table(Path("several/evaluation.csv")) == table(Path("one/evaluation.csv"))
    assert [name for name in os.listdir("several") if name.startswith(".")] == []
    drawn.clear()
    together(lambda: measure("several"))
    assert drawn == []


def test_the_cells_of_a_sweep_are_divided(there: Path, drawn: list[Any]) -> None:
    def compare(out: str) -> None:
        sweep([CKPT], num_steps=[2, 3, 5], temperature=[1.0], num_samples=4, order=1, out=out, device="cpu")

    compare("one")
    alone = len(drawn)
    drawn.clear()
    assert together(lambda: compare("several")) == [None, None]
    assert (len(drawn), alone) == (3, 3)
    (one,), (several,) = Path("one").glob("*.csv"), Path("several").glob("*.csv")
    assert table(several) == table(one)
    assert not Path("several/.parts").exists()
    drawn.clear()
    together(lambda: compare("several"))
    assert drawn == []


def in_parts(make: Callable[[int, int], dict[str, np.ndarray]]) -> Callable[[], object]:
    return lambda: divided(Parts(Path("folder/.parts"), "{}"), batches(6, 2), make)


def test_a_part_that_does_not_come_is_named(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGM_PART_SECONDS", "0.3")

    def make(start: int, stop: int) -> dict[str, np.ndarray]:
        if ranks.current().rank == 1:
            time.sleep(1.5)
        return {"x": np.arange(start, stop)}

    first, second = together(in_parts(make))
    assert isinstance(first, Apart)
    assert "rank 1 on n1 has not written folder/.parts/rows-2-4.npz within 0 s; look at it" in str(first)
    assert isinstance(second, Apart)
    assert str(second) == ""  # rank 0 has said it
    monkeypatch.setenv("GGM_PART_SECONDS", "20")  # control
    found = together(in_parts(make))
    assert [one["x"].tolist() for one in found[0]] == [[0, 1], [2, 3], [4, 5]]  # type: ignore[union-attr, attr-defined]
    assert found[1] is None


def test_a_rank_that_does_not_come_is_named(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGM_PART_SECONDS", "0.3")

    def work() -> object:
        if ranks.current().rank == 1:
            return time.sleep(1.0)
        return in_parts(lambda start, stop: {})()

    first, _ = together(work)
    assert "rank 1 on n1 has not come to share the work within 0 s" in str(first)


def srun(command: str, *arguments: str) -> list[str]:
    env = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    return ranks.begin(place(env), [command, *arguments])


def test_what_is_not_divided_is_refused_and_devices_must_be_the_launchers() -> None:
    with pytest.raises(Mismatch, match=r"write `srun --nodes=1 --ntasks=1 lightning infill"):
        srun("infill", "--text", "x")
    with pytest.raises(Mismatch, match="srun started 2 processes on this node, but --devices is 3; leave it out"):
        srun("sample", "--devices", "3")
    mpirun = place({"OMPI_COMM_WORLD_SIZE": "2"})
    with pytest.raises(Mismatch, match="mpirun started 2 processes"):
        ranks.begin(mpirun, ["sample"])
    for wrong in ("0", "two", ""):
        with pytest.raises(ValueError, match=f"--devices is '{wrong}'; give the number of processes, at least 1"):
            ranks.begin(place({}), ["sample", f"--devices={wrong}"])
    assert ranks.begin(place({}), ["sample", "--devices", "1", "--seed", "3"]) == ["--seed", "3"]
    assert ranks.current().count == 1


def lightning(*arguments: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ggm_lightning", *arguments, "--ckpt_path", CKPT, "--device", "cpu"]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_two_processes(there: Path) -> None:
    """One command starts them. What it prints is what one process prints, and an error is said once."""
    few = ["--num_samples", "6", "--num_steps", "2", "--batch_size", "2"]
    one, two = lightning("sample", *few, "--out", "one"), lightning("sample", *few, "--out", "two", "--devices", "2")
    (said, _), (both, errors) = one.communicate(), two.communicate()
    assert (one.returncode, two.returncode) == (0, 0), errors
    assert both == said
    assert np.array_equal(np.load("two/samples.npz")["x"], np.load("one/samples.npz")["x"])
    wrong = lightning("sample", "--num_samples", "0", "--devices", "2")
    _, errors = wrong.communicate()
    assert wrong.returncode == 2
    assert errors.count("lightning: error:") == 1, errors


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_command(there: Path) -> None:
    many = lightning("sample", "--num_samples", "5000", "--num_steps", "9", "--batch_size", "1", "--devices", "2")
    deadline = time.monotonic() + 120
    while not list(there.rglob(".parts/*.npz")) and time.monotonic() < deadline:
        time.sleep(0.1)
    children = Path(f"/proc/{many.pid}/task/{many.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    _, errors = many.communicate(timeout=120)
    assert many.returncode != 0
    assert "has died; all ranks end" in errors
    assert len([line for line in errors.splitlines() if "error:" in line]) == 1, errors
