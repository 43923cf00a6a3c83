"""SIGTERM, SIGUSR1 and Ctrl-C through whole runs: the step is ended and saved, one line is said, nothing is lost."""

from __future__ import annotations

import signal
import stat
import time
from pathlib import Path

import pytest
import torch

from ggm_lightning.cli.main import main
from ggm_lightning.data.toy.synthetic import MarkovChain
from tests.faults.runs import MARKOV, TINY, Run
from tests.faults.test_kills import arguments, different, parts, rows

MESSAGES = {signal.SIGTERM: "stopped by SIGTERM after step ", signal.SIGUSR1: "stopped by SIGUSR1 after step "}
MESSAGES[signal.SIGINT] = "stopped by Ctrl-C after step "


def start(tmp_path: Path, name: str, scenario: str = "no workers", **more: int) -> Run:
    ranks = 2 if scenario == "two ranks" else 1
    return Run(arguments(tmp_path, name, scenario, **more), tmp_path / f"{name}.log", ranks).start()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run = start(folder, "run", save=1000)
    assert run.end() == [0], run.output[-3000:]
    return folder / "run"


@pytest.mark.parametrize(
    ("number", "until", "scenario"),
    [
        pytest.param(signal.SIGTERM, "ttttt", "no workers", marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, "ttttt", "accumulation", marks=pytest.mark.slow),
        (signal.SIGINT, "tttt", "two workers"),
        pytest.param(signal.SIGTERM, "tttt", "two workers", marks=pytest.mark.slow),
        (signal.SIGINT, "tv", "no workers"),  # the first batch of a validation within training
        (signal.SIGTERM, "tttt", "two ranks"),
        pytest.param(signal.SIGUSR1, "tttt", "two ranks", marks=pytest.mark.slow),
    ],
)
def test_ends_the_step_and_saves(number: int, until: str, scenario: str, tmp_path: Path, whole: Path) -> None:
    run = start(tmp_path, "run", scenario, save=1000)
    while until not in run.marks:
        assert run.follow(len(run.marks) + 1), run.output[-3000:]
    if scenario == "two workers":
        run.signal_group(number)  # a terminal sends Ctrl-C, and SLURM its signals, to the loader's workers, too
    else:
        told = 1 if number == signal.SIGUSR1 else 0  # one rank is told, both leave, for the same signal
        run.signal(number, [told] if scenario == "two ranks" else None)
    codes = run.end()
    assert codes == [128 + number, 0][: run.ranks], run.output[-3000:]
    said = [line for line in run.output.splitlines() if MESSAGES[number] in line]
    assert len(said) == 1, run.output[-3000:]
    assert said[0].endswith("run/last.ckpt is saved; continue with --ckpt_path last")
    assert "Traceback" not in run.output
    step = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"]
    assert f"after step {step};" in said[0]
    assert step >= 1
    resumed = start(tmp_path, "run", scenario, save=1000)
    assert resumed.end() == [0] * run.ranks, resumed.output[-3000:]
    if scenario in ("no workers", "two workers"):  # the same arithmetic as the undisturbed run's
        assert not different(parts(tmp_path / "run", "last.ckpt"), parts(whole, "last.ckpt"))
        assert rows(tmp_path / "run") == rows(whole)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    run = start(tmp_path, "run", save=1000)
    run.follow(30)
    run.signal(signal.SIGSTOP)  # so that no step ends in between
    run.signal(signal.SIGINT)
    time.sleep(0.1)
    run.signal(signal.SIGCONT)
    run.signal(signal.SIGINT)
    run.signal(signal.SIGINT)
    code = run.end()[0]
    assert code in (-signal.SIGINT, 130), run.output[-3000:]


def test_a_slurm_job_goes_back_into_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for scontrol notes what it was asked; the requeued job continues without being told to."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (tools / "scontrol").chmod(stat.S_IRWXU)
    slurm = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0"}
    slurm |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "1", "PATH": f"{tools}:/bin:/usr/bin"}
    plain = [a for a in arguments(tmp_path, "run", "no workers") if not a.startswith(("--ckpt_path", "--allow_fresh"))]
    run = Run(plain, tmp_path / "run.log", environment=slurm).start()
    run.follow(9)
    run.signal(signal.SIGUSR1)
    assert run.end() == [0], run.output[-3000:]
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    assert "last.ckpt is saved; the job goes back into the queue" in run.output
    again = Run(plain, tmp_path / "again.log", environment={**slurm, "SLURM_RESTART_COUNT": "1"}).start()
    assert again.end() == [0], again.output[-3000:]
    assert "requeued job: goes on from" in again.output
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 24


@pytest.mark.parametrize("where", ["setup", "prepare_data"])
def test_ctrl_c_before_training(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MarkovChain, where, pressed)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(MARKOV), *TINY, "--runs", str(tmp_path), "--trainer.max_steps=1"])
    signal.signal(signal.SIGINT, before)  # Lightning leaves it ignored: the process was about to end
    assert stop.value.code == 130
    said = [line for line in capsys.readouterr().err.splitlines() if "Ctrl-C" in line]
    assert len(said) == 1
    assert said[0].startswith("stopped by Ctrl-C")
