"""One torch thread (two make tiny models far slower), shapes checked by jaxtyping and beartype, real data if there."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

# before anything imports the package; not the networks, whose blocks torch.compile could not trace then
install_import_hook("ggm_lightning.core", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

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
