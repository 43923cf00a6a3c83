"""The tiny text network of MDLM's public code (tests/data/mdlm_oracle.npz): its state dict under its names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ggm_lightning.networks.dit import DiT

ORACLE = np.load(Path(__file__).parents[1] / "data" / "mdlm_oracle.npz")
V, N, EPS = 11, 7, 1e-3
SIZES = {"feature_dim": 8, "num_heads": 3, "num_layers": 2, "cond_dim": 16}
BUFFER = "rotary_emb.inv_freq"  # in every file of theirs; what it holds follows from its length


def weights() -> dict[str, Tensor]:
    """Their state dict, the buffer too."""
    return {name.removeprefix("param/"): torch.from_numpy(ORACLE[name]) for name in ORACLE if name.startswith("param/")}


def network(dtype: torch.dtype = torch.float32, **options: bool) -> DiT:
    """With their weights, which are taken strictly."""
    found = DiT(V, **SIZES, **options).to(dtype).eval()  # type: ignore[arg-type]
    found.load_state_dict({name: value.to(dtype) for name, value in weights().items() if name != BUFFER})
    return found


def times(sigma: np.ndarray) -> Tensor:
    """t with -ln(1 - (1 - eps) t) = sigma, Float64."""
    return -torch.expm1(-torch.from_numpy(sigma).double()) / (1 - EPS)
