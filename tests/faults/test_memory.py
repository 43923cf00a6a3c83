"""A long run does not grow: anonymous resident memory against steps, with samples drawn and two loggers on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.faults.runs import Run

STEPS = 2000
SETTLED = 600  # allocators, the graph of the first validations and the loggers' buffers have their size by then


def slope(steps: np.ndarray, kilobytes: np.ndarray) -> tuple[float, float]:
    """Least-squares slope in bytes per step, and its standard error from the residuals of blocks of eight points
    (neighbouring points are not independent)."""
    x = steps - steps.mean()
    found = (x * kilobytes).sum() / (x**2).sum()
    residual = kilobytes - kilobytes.mean() - found * x
    blocks = residual[: len(residual) // 8 * 8].reshape(-1, 8).mean(1)
    deviation = blocks.std(ddof=2) * np.sqrt(8)
    return 1024 * found, 1024 * deviation / np.sqrt((x**2).sum())


@pytest.mark.slow
def test_memory_does_not_grow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = {"class_path": "ggm_lightning.callbacks.samples.Samples", "init_args": {"num_steps": 4}}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [samples]}}))
    arguments = ["--config", str(tmp_path / "more.yaml"), f"--trainer.max_steps={STEPS}", "--name=run"]
    arguments += ["--trainer.val_check_interval=40", "--checkpoint_every_n_steps=100", f"--runs={tmp_path}"]
    arguments += ["--logger=[csv,tensorboard]"]
    file = tmp_path / "memory"
    run = Run(arguments, tmp_path / "log", environment={"MEMORY_LOG": str(file)}).start()
    assert run.end(timeout=400) == [0], run.output[-3000:]
    steps, kilobytes = np.loadtxt(file).T
    settled = steps >= SETTLED
    grows, stderr = slope(steps[settled], kilobytes[settled])
    leak = slope(steps[settled], kilobytes[settled] + 2 * steps[settled])[0]  # control: 2 kB lost per step
    with capsys.disabled():
        print(f"\n{STEPS} steps: {grows:.0f} ± {stderr:.0f} bytes per step, {kilobytes[-1] / 1024:.0f} MB at the end")
    assert len(list((tmp_path / "run" / "samples").glob("*.txt"))) == STEPS // 40
    assert settled.sum() >= 60
    assert grows < 200 + 3 * stderr
    assert leak > 10 * (200 + 3 * stderr) or leak > 2000 + grows - 1
