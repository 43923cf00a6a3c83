"""Where a run comes from: its command, commit, versions, machine and data."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Trainer

import ggm_lightning
from ggm_lightning.data.fingerprints import rows_fingerprint
from ggm_lightning.report.protocols import HasRows

_PATIENCE = 5.0  # seconds for git, which may be slow on a shared disk


def now() -> str:
    """Local date and time to the second, with the offset from UTC."""
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %z")


def started(step: int) -> dict[str, str]:
    """What is to be known of this start of a run."""
    facts = {"Command": command(), "Date": now()}
    if step:
        facts["From step"] = f"{step:,}"
    for name, found in (("Commit", own_commit()), ("Commit of the working folder", commit_of(Path.cwd()))):
        if found and found not in facts.values():
            facts[name] = found
    facts["Versions"] = (
        f"ggm_lightning {ggm_lightning.__version__}, torch {torch.__version__}, lightning {lightning.__version__}, "
        f"Python {platform.python_version()}"
    )
    return facts


def command() -> str:
    """As it can be typed again."""
    program = Path(sys.argv[0])
    words = [program.name]
    if program.name == "__main__.py":
        words = ["python", "-m", program.parent.name]
    elif program.suffix == ".py":
        words = ["python", sys.argv[0]]
    return shlex.join([*words, *sys.argv[1:]])


def own_commit() -> str | None:
    """Of this package, where it is used from its repository; an installed one may lie in somebody else's."""
    file = Path(ggm_lightning.__file__)
    return commit_of(file.parent) if _git(file.parent, "ls-files", "--error-unmatch", file.name) else None


def commit_of(folder: Path) -> str | None:
    """Of the repository around `folder`, with a word where files differ from it; None where there is none."""
    commit = _git(folder, "rev-parse", "--short=12", "HEAD")
    if commit is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}, with changes that are not committed" if changed else commit


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=_PATIENCE, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def data_of(datamodule: Any) -> str:
    """The class, the rows of each split, and a fingerprint of them: equal data have equal ones."""
    name = type(datamodule).__name__
    if not isinstance(datamodule, HasRows):
        return name
    parts = []
    for split, kind in (("train", "training"), ("val", "held-out")):
        rows = datamodule.rows(split)
        fingerprint = rows_fingerprint(rows)
        told = f" (fingerprint {fingerprint[:12]})" if fingerprint else ""  # none of rows that differ at every reading
        parts.append(f"{len(rows):,} {kind} rows{told}")
    return f"{name}: {', '.join(parts)}"


def hardware(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_cpu_name()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    return name if trainer.world_size == 1 else f"{trainer.world_size} x {name}"


def _cpu_name() -> str:
    table = Path("/proc/cpuinfo")  # Linux; elsewhere the platform's name has to do
    lines = table.read_text().splitlines() if table.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
