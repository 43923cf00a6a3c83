"""A page of docs/extend as a stranger follows it: its files in an empty folder, its commands in new processes.

A block whose first line is a comment with a file name (`# doubles.py`) is that file; a block `sh` is a command line.
The package is found as it is installed; the folder is where the stranger works.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from ggm_lightning.cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "extend"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w./-]+\.\w+)\n")
# sizes alone: nothing that the page is about
QUICK = (
    *("--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=2"),
    *("--trainer.accelerator=cpu", "--data.global_batch_size=8"),
)


def files_of(page: str) -> dict[str, str]:
    """Name -> text, of the files that the page shows."""
    found = {}
    for _, text in _BLOCK.findall((PAGES / page).read_text(encoding="utf-8")):
        named = _FILE.match(text)
        if named:
            found[named[1]] = text
    return found


def commands_of(page: str) -> list[str]:
    """The command lines that the page shows, in order."""
    blocks = [text for kind, text in _BLOCK.findall((PAGES / page).read_text(encoding="utf-8")) if kind == "sh"]
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def write(page: str, folder: Path) -> None:
    for name, text in files_of(page).items():
        (folder / name).write_text(text, encoding="utf-8")


def _words(command: str, more: tuple[str, ...]) -> list[str]:
    words = [str(ROOT / word) if word.startswith("experiments/") else word for word in shlex.split(command)]
    assert words[0] == "lightning"
    return [*words[1:], *more]


def run_here(command: str, folder: Path, *more: str) -> str:
    """The command in this process, which spares some seconds of imports, in that folder. What it printed."""
    home, path, printed = Path.cwd(), list(sys.path), io.StringIO()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            main(_words(command, more))
    except SystemExit as error:
        if error.code:
            raise AssertionError(printed.getvalue()) from None
    finally:
        os.chdir(home)
        sys.path[:] = path
        for file in folder.glob("*.py"):
            sys.modules.pop(file.stem, None)
    return printed.getvalue()


def run(command: str, folder: Path, *more: str) -> str:
    """The command in a new process, as the page writes it; `lightning` is `python -m ggm_lightning`. What it printed.

    Raises AssertionError with that text where it failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "ggm_lightning", *_words(command, more)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    return printed
