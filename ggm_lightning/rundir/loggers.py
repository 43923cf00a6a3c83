"""Loggers made by one word, and kept from ending a run: the training matters more than its curves."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ggm_lightning.rundir.csv_log import CSVLog
from ggm_lightning.rundir.tensorboard_log import TensorBoardLog
from ggm_lightning.rundir.wandb_log import wandb_logger

LOGGERS = ("csv", "tensorboard", "wandb", "wandb_offline")
_METHODS = ("log_metrics", "log_hyperparams", "log_graph", "log_image", "log_text", "save", "finalize")


def make_logger(name: str, folder: Path, fitting: bool = True) -> Logger:
    """The logger called `name`, writing into the run folder; `fitting` tells the fit from an evaluation of its result.

    Raises:
        ValueError: unknown name.
    """
    if name == "csv":
        return CSVLog(str(folder))
    if name == "tensorboard":
        return forgiving(TensorBoardLog(folder, fitting), name)
    if name in ("wandb", "wandb_offline"):
        return forgiving(wandb_logger(folder, offline=name == "wandb_offline", fitting=fitting), "wandb")
    raise ValueError(f"logger '{name}' is unknown; choose any of {', '.join(LOGGERS)}")


def forgiving(logger: Logger, name: str) -> Logger:
    """The same logger, which after its first failure says so once and is silent from then on."""
    state = {"failed": False}

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if state["failed"]:
                return None
            try:
                return method(*args, **kwargs)
            except Exception as error:  # whatever a foreign logger raises must not end the training
                state["failed"] = True
                rank_zero_warn(f"logger '{name}' failed ({_first_line(error)}) and is left out; training goes on")
                return None

        return call

    for method in _METHODS:
        if hasattr(logger, method):
            setattr(logger, method, guarded(getattr(logger, method)))
    return logger


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
