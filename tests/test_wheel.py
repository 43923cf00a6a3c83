"""The package without its checkout: a wheel, built without network, in a fresh environment and an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggm_lightning

ROOT = Path(__file__).parents[1]
SMALL = [
    "--model.optimizer.warmup_steps=0",
    "--data.num_train=8",
    "--data.num_val=3",
    "--data.length=13",
    "--data.global_batch_size=2",
    "--trainer.val_check_interval=2",
    "--trainer.max_steps=2",
    "--trainer.enable_progress_bar=false",
]
# a user's file; it leaves a trace where it is imported
MYNET = """
from pathlib import Path
from torch import nn

Path("imported").touch()

class Tiny(nn.Module):
    def __init__(self, num_classes: int):
        super().__init__()
        self.embedding = nn.Embedding(num_classes + 1, num_classes)

    def forward(self, z, t, label=None):
        return self.embedding(z)
"""
WHERE = """
import sys, ggm_lightning
from ggm_lightning.cli import packaged
print(*sys.path, sep="|")
print(ggm_lightning.__file__, packaged.root(), sep="|")
"""


class Installed:
    """An environment of its own with the wheel in it; the libraries are those of the tests, by a .pth file."""

    def __init__(self, folder: Path) -> None:
        self.environment, self.wheels, self.work = folder / "environment", folder / "wheels", folder / "empty"
        self.work.mkdir()
        source = folder / "source"  # in the checkout itself setuptools would leave, and take up, a build/
        source.mkdir()
        for name in ("ggm_lightning", "configs", "experiments"):
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source / name)
        # by way of the source distribution, so that nothing is missing in that either
        sdist = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
        subprocess.run([sys.executable, "-c", sdist], cwd=source, stdout=subprocess.DEVNULL, check=True)
        (packed,) = folder.glob("*.tar.gz")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
        offline = ["--no-deps", "--no-index"]
        subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "-w", self.wheels, packed], check=True)
        venv.create(self.environment, with_pip=False)
        (self.wheel,) = self.wheels.glob("*.whl")
        python = ["--python", str(self.environment / "bin" / "python")]
        subprocess.run([*pip, *python, "install", *offline, str(self.wheel)], check=True)
        (own,) = self.environment.glob("lib/python*/site-packages")
        libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        (own / "libraries.pth").write_text("\n".join(libraries))

    def run(self, command: str, *arguments: str, fails: bool = False) -> str:
        """What a command of the environment prints, called from the empty folder."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        result = subprocess.run(
            [str(self.environment / "bin" / command), *arguments],
            cwd=self.work,
            env={**kept, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert (result.returncode != 0) == fails, result.stderr
        return result.stderr if fails else result.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_from_a_wheel_in_an_empty_folder(installed: Installed) -> None:
    """One test, as building and installing take longer than what is tested."""
    _the_checkout_is_out_of_reach(installed)
    assert installed.run("ggm-lightning", "--version").startswith(f"ggm_lightning {ggm_lightning.__version__}, torch ")
    listed = installed.run("lightning", "list")
    for path in (ROOT / "experiments").glob("*.yaml"):
        assert f"\n  {path.stem} " in listed
    # an experiment of the package by its name, with a network of one's own that lies in the folder
    (installed.work / "mynet.py").write_text(MYNET)
    own = ["--model.network", "mynet.Tiny", *SMALL]
    installed.run("lightning", "fit", "--config", "md4_markov", *own)
    assert (installed.work / "runs" / "md4_markov" / "report.html").is_file()
    _a_checkpoint_opens_no_folder(installed, "runs/md4_markov/last.ckpt")
    # the same by the other command, from a copy that knows its pieces
    installed.run("lightning", "copy", "md4_markov", "mine")
    installed.run("ggm-lightning", "fit", "--config", "mine/experiments/md4_markov.yaml", *own, "--name", "copied")
    assert (installed.work / "runs" / "copied" / "last.ckpt").is_file()


def _the_checkout_is_out_of_reach(installed: Installed) -> None:
    path, places = (line.split("|") for line in installed.run("python", "-c", WHERE).splitlines())
    assert ROOT not in [Path(entry).resolve() for entry in path if entry]
    assert all(Path(place).is_relative_to(installed.environment) for place in places)


def _a_checkpoint_opens_no_folder(installed: Installed, checkpoint: str) -> None:
    """What only a checkpoint names is not imported, though it lies in the working folder; nor is a file that is called
    like a library. Control: `--trust` imports it."""
    (installed.work / "imported").unlink()
    (installed.work / "yaml.py").write_text("from pathlib import Path; Path('imported').touch()")
    sample = ["sample", "--ckpt_path", checkpoint, "--num_samples", "3", "--num_steps", "2", "--out", "drawn"]
    assert "--trust mynet" in installed.run("lightning", *sample, fails=True)
    assert not (installed.work / "imported").exists()
    (installed.work / "yaml.py").unlink()
    installed.run("lightning", *sample, "--trust", "mynet")
    assert (installed.work / "imported").exists()
    assert np.load(installed.work / "drawn" / "samples.npz")["x"].shape == (3, 13)


def test_every_package_is_listed() -> None:
    """pyproject.toml names each package, as two of them lie elsewhere in the checkout."""
    listed = _setuptools()
    found = {file.parent.relative_to(ROOT).as_posix() for file in (ROOT / "ggm_lightning").rglob("*.py")}
    moved = listed["package-dir"]
    assert moved == {"ggm_lightning.configs": "configs", "ggm_lightning.experiments": "experiments"}
    assert set(listed["packages"]) == {name.replace("/", ".") for name in found} | set(moved)


def test_every_file_travels() -> None:
    """Of configs/ and experiments/: each file but the README's pictures matches a pattern of pyproject.toml."""
    for folder in ("configs", "experiments"):
        patterns = _setuptools()["package-data"][f"ggm_lightning.{folder}"]
        taken = {file for pattern in patterns for file in (ROOT / folder).glob(pattern)}
        there = {file for file in (ROOT / folder).rglob("*.*") if file.is_file() and file.parent.name != "pictures"}
        assert taken == there


def test_the_report_travels() -> None:
    """Whatever lies in the package beside Python files: the page's frame, looks and script."""
    listed = {f"report/{name}" for name in _setuptools()["package-data"]["ggm_lightning.report"]}
    package = ROOT / "ggm_lightning"
    there = {file.relative_to(package).as_posix() for file in package.rglob("*.*") if file.is_file()}
    assert {name for name in there if not name.endswith((".py", ".pyc"))} == listed


def test_extras_are_named_as_they_are_written_down() -> None:
    """Setuptools writes an extra's name in small letters with hyphens; pip before 23.3 installs nothing for another
    spelling, and only warns."""
    extras = _pyproject()["project"]["optional-dependencies"]
    assert [name for name in extras if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)] == []
    files = [
        ROOT / "Makefile",
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "ggm_lightning").rglob("*.py"),
    ]
    groups = [
        names
        for file in files
        for names in re.findall(r"(?:ggm-lightning|['\" ]\.)\[([\w,-]+)\]", file.read_text("utf-8"))
    ]
    named = {name for names in groups for name in names.split(",")}
    assert {"dev", "lm-eval", "images", "eval"} <= named
    assert named <= set(extras)


def _setuptools() -> dict[str, Any]:
    return _pyproject()["tool"]["setuptools"]


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
