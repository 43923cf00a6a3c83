"""Loggers made by one word, and kept from ending a run: the training matters more than its curves."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ggm_lightning.rundir.csv_log import CSVLog

LOGGERS = ("csv", "tensorboard", "wandb", "wandb_offline")
_PATIENCE = 30.0  # seconds for wandb's server to answer; its own default is 90
_METHODS = ("log_metrics", "log_hyperparams", "log_graph", "log_image", "log_text", "save", "finalize")


def make_logger(name: str, folder: Path) -> Logger:
    """The logger called `name`, writing into the run folder.

    Raises:
        ValueError: unknown name.
    """
    if name == "csv":
        return CSVLog(str(folder))
    if name == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        return forgiving(TensorBoardLogger(save_dir=str(folder), name="", version="tensorboard"), name)
    if name in ("wandb", "wandb_offline"):
        return forgiving(_wandb(folder, offline=name == "wandb_offline"), "wandb")
    raise ValueError(f"logger '{name}' is unknown; choose any of {', '.join(LOGGERS)}")


def _wandb(folder: Path, offline: bool) -> Logger:
    """wandb, offline where its server cannot be reached (or knows no key): `wandb sync` uploads such a run later."""
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    folder.mkdir(parents=True, exist_ok=True)
    seconds = float(os.environ.get("WANDB_INIT_TIMEOUT", _PATIENCE))
    options: dict[str, Any] = {"name": folder.name, "save_dir": str(folder), "project": "ggm_lightning"}
    options["settings"] = wandb.Settings(init_timeout=seconds)
    logger = WandbLogger(offline=offline, **options)
    try:
        _ = logger.experiment  # connects
    except Exception as error:  # wandb has a dozen kinds of its own
        if offline:
            raise
        rank_zero_warn(
            f"wandb cannot be reached ({_first_line(error)}); the run is logged offline: upload it with "
            f"`wandb sync {folder}/wandb/offline-run-*`"
        )
        logger = WandbLogger(offline=True, mode="offline", **options)
    return logger


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
