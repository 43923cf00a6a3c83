"""Discrete diffusion on PyTorch Lightning: MD4, GenMD4, GGM, LDDM and Blackout.

Names are imported on first use, so that `import ggm_lightning` is cheap.
"""

from __future__ import annotations

import importlib
from typing import Any

from ggm_lightning import moved

moved.install()
__version__ = "0.1.0"

_HOME = {
    "GGM": "ggm_lightning.models.ggm",
    "MD4": "ggm_lightning.models.md4",
    "AutoregressiveModel": "ggm_lightning.models.autoregressive",
    "Blackout": "ggm_lightning.models.blackout",
    "DiLADD": "ggm_lightning.models.diladd",
    "FujiLDDM": "ggm_lightning.models.lddm",
    "GenMD4": "ggm_lightning.models.genmd4",
    "MarkovDiffusion": "ggm_lightning.models.markov",
    "SeqLDDM": "ggm_lightning.models.lddm",
    "load": "ggm_lightning.rundir.restore",
}
__all__ = [
    "GGM",
    "MD4",
    "AutoregressiveModel",
    "Blackout",
    "DiLADD",
    "FujiLDDM",
    "GenMD4",
    "MarkovDiffusion",
    "SeqLDDM",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ggm_lightning' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")
    return getattr(importlib.import_module(_HOME[name]), name)
