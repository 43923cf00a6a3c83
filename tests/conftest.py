"""One torch thread (two make tiny models far slower), shapes checked by jaxtyping and beartype, real data if there."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

# before anything imports the package; not the networks, whose blocks torch.compile could not trace then
install_import_hook("ggm_lightning.core", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

RUNS = os.path.join(Path(__file__).parents[1], "runs", "")
_writes = {"refused": True}


def refuse_runs(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook of Python's: RuntimeError for a test that writes into runs/, where the user's own runs are."""
    if event not in ("os.mkdir", "open") or not _writes["refused"]:
        return
    path = arguments[0]
    if event == "open" and not int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
        return
    if isinstance(path, str | bytes | os.PathLike) and f"{os.path.abspath(os.fsdecode(path))}{os.sep}".startswith(RUNS):
        raise RuntimeError(f"{os.fsdecode(path)}: a test writes into the user's runs/; give it tmp_path")


sys.addaudithook(refuse_runs)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Slow tests are left alone: a session of theirs may have hours to lose."""
    _writes["refused"] = item.get_closest_marker("slow") is None


ORACLES = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def oracles() -> Path:
    """Folder with numbers made by the official implementations."""
    return ORACLES


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with excerpts of the real data sets in their original formats (not part of the repository)."""
    folder = Path(os.environ.get("GGM_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set GGM_DATA; the same code is tested on generated files")
    return folder
