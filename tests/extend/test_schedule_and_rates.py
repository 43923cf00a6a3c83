"""docs/extend: the files of a stranger, as they are printed there, in an empty folder: trained, loaded, sampled.

The commands of the schedule's page are run as processes of their own, the others by the same function in this one.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ggm_lightning import load
from ggm_lightning.cli.main import main
from ggm_lightning.rundir import checkpoint as checkpoint_files

ROOT = Path(__file__).parents[2]
PAGES = ("schedule", "rates")
X = torch.arange(2 * 16).reshape(2, 16) % 11


def blocks(page: str) -> dict[str, str]:
    """Name or language -> text of each block."""
    text = (ROOT / "docs" / "extend" / f"{page}.md").read_text(encoding="utf-8")
    found = {}
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        named = re.match(r"# (\S+\.\w+)\n", block)
        found[named[1] if named else language] = block
    return found


def run_in_a_process(folder: Path, words: list[str]) -> None:
    """The folder is not on PYTHONPATH: only the package is, as if it were installed."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def run_here(words: list[str]) -> None:
    if words[0] == "-c":
        exec(words[1], {})
    else:
        assert words[:2] == ["-m", "ggm_lightning"]
        main(words[2:])


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty one but for the two files of a page."""
    for name in ("mine.py", "mine.yaml"):
        (tmp_path / name).write_text(blocks(request.param)[name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("mine", None)
    yield tmp_path
    sys.modules.pop("mine", None)


def commands(page: str) -> list[list[str]]:
    lines = [shlex.split(line) for line in blocks(page)["sh"].splitlines()]
    assert all(words[0] == "python" for words in lines)
    return [words[1:] for words in lines]


def arguments_of(run: str) -> dict[str, object]:
    """What the last checkpoint says of its model; it is that of the last step."""
    checkpoint = checkpoint_files.read(f"runs/{run}/last.ckpt")
    assert checkpoint["global_step"] == 20
    return checkpoint[checkpoint_files.KEY]["model"]["init_args"]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a command ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("page", PAGES)
def test_the_example_is_short_and_comes_first(page: str) -> None:
    text = (ROOT / "docs" / "extend" / f"{page}.md").read_text(encoding="utf-8")
    assert 20 <= len(blocks(page)["mine.py"].splitlines()) <= 70
    assert text.index("```python") < text.index("\n## ")


@pytest.mark.parametrize("folder", ["schedule"], indirect=True)
@pytest.mark.slow
def test_a_schedule_from_an_empty_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, other, sample = commands("schedule")
    run_in_a_process(folder, train)
    run_in_a_process(folder, sample)
    assert len(list(Path("runs/mine").glob("samples-*/samples.txt"))) == 1
    run_here(other)
    assert arguments_of("mine")["schedule"]["class_path"] == "mine.Cubic"
    assert arguments_of("other")["schedule"] == {"class_path": "mine.Sigmoid", "init_args": {"steepness": 8.0}}
    model = load("runs/mine/last.ckpt", trust="mine")
    assert bool(torch.isfinite(model.nelbo(X)).all())
    assert model.schedule.alpha(torch.tensor(0.5, dtype=torch.float64)) == 0.875
    assert "--trust mine" in refused(capsys, "sample", "--ckpt_path", "runs/mine/last.ckpt")


@pytest.mark.parametrize("folder", ["schedule"], indirect=True)
def test_a_wrong_schedule_ends_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ("fit", "--config", "mine.yaml", "--model.schedule")
    (folder / "mine.py").write_text(blocks("schedule")["mine.py"].replace("1 - t**3", "0.9 - t**3"))
    assert "schedule Cubic: alpha(0.9658) is -0.0009" in refused(capsys, *fit, "mine.Cubic")
    assert not list(Path("runs").rglob("*.ckpt"))


@pytest.mark.parametrize("folder", ["schedule"], indirect=True)
def test_lddm_takes_two_of_them(folder: Path) -> None:
    sizes = {"feature_dim": 8, "num_heads": 2, "num_layers": 1, "num_latents": 2, "latent_dim": 3}
    parts = {
        "network": {"class_path": "ggm_lightning.networks.latent.JointDenoiser", "init_args": sizes},
        "encoder": {"class_path": "ggm_lightning.networks.latent_encoder.LatentEncoder", "init_args": sizes},
        "schedule": {"class_path": "mine.Cubic"},
        "latent_schedule": {"class_path": "mine.Sigmoid", "init_args": {"steepness": 5.0}},
    }
    whole = yaml.safe_load((folder / "mine.yaml").read_text()) | {
        "model": {"class_path": "FujiLDDM", "init_args": parts}
    }
    (folder / "lddm.yaml").write_text(yaml.safe_dump(whole))
    main(["fit", "--config", "lddm.yaml", "--name", "lddm"])
    assert arguments_of("lddm")["latent_schedule"]["class_path"] == "mine.Sigmoid"
    model = load("runs/lddm/last.ckpt", trust="mine")
    assert (type(model.schedule).__name__, type(model.latent_schedule).__name__) == ("Cubic", "Sigmoid")
    assert bool(torch.isfinite(model.nelbo(X)).all())
    assert model.sample(2, 3).x.shape == (2, 16)


@pytest.mark.parametrize("folder", ["rates"], indirect=True)
@pytest.mark.slow
def test_rates_from_an_empty_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, save, train_from_file, sample, sample_of_file = commands("rates")
    for words in (train, save, train_from_file):
        run_here(words)
    ring = np.load("ring.npy")
    Path("ring.npy").unlink()  # the checkpoint's numbers are enough
    for words in (sample, sample_of_file):
        run_here(words)
    assert len(list(Path("runs").glob("*/samples-*/samples.txt"))) == 2
    assert arguments_of("mine")["process"]["class_path"] == "mine.RingThenMask"
    assert arguments_of("file")["process"] == "ring.npy"
    assert torch.equal(torch.tensor(arguments_of("file")["matrix"]).fill_diagonal_(0.0), torch.from_numpy(ring).float())
    assert load("runs/mine/last.ckpt", trust="mine").process.num_states == 12
    assert load("runs/file/last.ckpt").process.num_states == 11
    assert "--trust mine" in refused(capsys, "sample", "--ckpt_path", "runs/mine/last.ckpt")

    main(["inspect", "runs/file/last.ckpt"])
    assert "process: ring.npy" in capsys.readouterr().out
    draw = ["sample", "--ckpt_path", "runs/file/last.ckpt", "--num_samples", "2", "--num_steps", "2"]
    main([*draw, "--config", "runs/file/config.yaml"])

    go_on = ["fit", "--config", "mine.yaml", "--name", "file", "--model.process", "ring.npy", "--ckpt_path", "last"]
    assert "process: ring.npy: there is no such file" in refused(capsys, *go_on)
    np.save("ring.npy", 2 * ring)
    line = refused(capsys, *go_on)
    assert "is of another model: model.matrix is" in line
    assert len(line) < 700
    np.save("ring.npy", ring)
    main([*go_on, "--trainer.max_steps", "22"])
    assert torch.load("runs/file/last.ckpt", weights_only=True)["global_step"] == 22
