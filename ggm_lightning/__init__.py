"""Discrete diffusion on PyTorch Lightning: MD4, GenMD4, GGM, LDDM and Blackout.

Names are imported on first use, so that `import ggm_lightning` is cheap.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "MD4": "ggm_lightning.models.md4",
    "load": "ggm_lightning.rundir.checkpoint",
}
__all__ = ["MD4", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ggm_lightning' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")
    return getattr(importlib.import_module(_HOME[name]), name)
