"""The model of a checkpoint on the device that a command was given."""

from __future__ import annotations

import torch

from ggm_lightning.models.base import Family
from ggm_lightning.rundir import checkpoint as checkpoint_files


def load_family(ckpt_path: str, device: str = "auto") -> Family:
    """With averaged weights, in eval mode; `auto` is cuda where there is one.

    Raises:
        ValueError: no such device; see `rundir.checkpoint.load`; not a model of data (a Family).
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:  # torch's words for no such device, and for a build without it
        raise ValueError(f"--device {device}: {' '.join(str(error).split())}; give auto, cpu or cuda") from None
    model = checkpoint_files.load(ckpt_path, device)
    if not isinstance(model, Family):
        raise ValueError(
            f"--ckpt_path {ckpt_path}: holds a {type(model).__name__}, which can be neither sampled nor evaluated"
        )
    return model
