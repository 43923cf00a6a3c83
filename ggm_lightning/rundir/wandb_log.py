"""wandb: one run of theirs for one run folder, however often it is stopped and resumed.

wandb.init gives every start of the program a run of its own; a training that was resumed twice would lie in three
pieces. Here the id of the first start is kept in the run folder, and later starts of the fit go on under it.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from ggm_lightning.rundir.folder import write_whole

ID_FILE = "wandb_id.txt"
_PATIENCE = 30.0  # seconds for wandb's server to answer; its own default is 90
_OWN_STEP = ("WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM")  # wandb takes at most one of these


class WandbLog(WandbLogger):
    """Lightning's logger on wandb.init(**options). The x axis trainer/global_step is the number of optimiser steps
    taken, as in metrics.csv. No step is given to wandb itself, which would drop rows below the last one: after a
    resume its own counter goes on, and rows repeated since the checkpoint are added."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._trainer: Trainer | None = None

    @rank_zero_only
    def log_graph(self, model: LightningModule, input_array: Any = None) -> None:  # type: ignore[override]
        """The Trainer hands over the module here when it starts."""
        self._trainer = model.trainer

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._trainer is not None:
            step = self._trainer.global_step
        super().log_metrics(metrics, step)


def wandb_logger(folder: Path, offline: bool, fitting: bool) -> WandbLog:
    """wandb, offline where its server cannot be reached (or knows no key): `wandb sync` uploads such a run later.

    A fit goes on with the wandb run whose id stands in <folder>/wandb_id.txt, and writes that file where there is none.
    Offline, each start has a folder of its own that ends in this id: `wandb sync` uploads them one after the other into
    one run. What the training had logged after the checkpoint from which it is resumed remains in wandb's history
    (nothing can be taken out of it): these few steps are shown twice. A run that was deleted on the server cannot be
    continued there: the training goes on offline; delete wandb_id.txt to begin a new wandb run.

    validate, test and predict get a run of their own each time, of job type "evaluation": their steps are not those of
    the training, whose curves they must not disturb.

    What stands in the environment (WANDB_PROJECT, WANDB_ENTITY, WANDB_NAME, WANDB_RUN_ID, WANDB_RUN_GROUP, WANDB_TAGS,
    WANDB_MODE, WANDB_DIR, WANDB_RESUME, ...) goes before our defaults: project ggm_lightning, the name and the place of
    the run folder. Exceptions: the logger `wandb_offline` stays offline with WANDB_MODE=online, and an evaluation never
    takes the id of the training.

    Raises:
        ValueError: wandb_id.txt holds no id.
    """
    options = _options(folder, fitting)
    mode = "offline" if offline and os.environ.get("WANDB_MODE") != "disabled" else None
    logger = WandbLog(mode=mode, **options)
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return logger
    _finish_earlier_run()
    try:
        run: Any = logger.experiment  # connects
    except Exception as error:  # wandb has a dozen kinds of its own
        if offline:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        rank_zero_warn(
            f"wandb cannot be reached ({reason}); the run is logged offline: upload it with "
            f"`wandb sync {options['save_dir']}/wandb/offline-run-*`"
        )
        logger = WandbLog(mode="offline", **options)
        run = logger.experiment
    _started.append(run)
    if fitting and not run.disabled:
        _keep_id(folder / ID_FILE, run.id)
    return logger


_started: list[Any] = []  # the run of this process, which Lightning would go on using for the next run folder


def _finish_earlier_run() -> None:
    """A run that the user has started is left alone; Lightning logs into it."""
    import wandb

    while _started:
        run = _started.pop()
        if run is wandb.run:
            run.finish()


def _options(folder: Path, fitting: bool) -> dict[str, Any]:
    """What wandb.init is given; arguments beat the environment there, so what the user has set is passed on or left
    out."""
    import wandb

    given = os.environ
    folder.mkdir(parents=True, exist_ok=True)
    kept = _kept_id(folder / ID_FILE) if rank_zero_only.rank == 0 else None  # type: ignore[attr-defined]
    options: dict[str, Any] = {
        "project": given.get("WANDB_PROJECT") or "ggm_lightning",
        "name": given.get("WANDB_NAME") or folder.name,
        "save_dir": given.get("WANDB_DIR") or str(folder),
        "id": given.get("WANDB_RUN_ID") or kept,
        "resume": None if any(given.get(name) for name in _OWN_STEP) else "allow",
    }
    if not given.get("WANDB_INIT_TIMEOUT"):
        options["settings"] = wandb.Settings(init_timeout=_PATIENCE)
    if fitting:
        return options
    own_id = given.get("WANDB_RUN_ID")
    options["id"] = own_id if own_id and own_id != kept else secrets.token_hex(4)
    options["job_type"] = given.get("WANDB_JOB_TYPE") or "evaluation"
    return options


def _kept_id(file: Path) -> str | None:
    if not file.is_file():
        return None
    text = file.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"[^:;,#?/'\x00-\x1f]+", text):  # what wandb itself allows
        raise ValueError(f"{file}: holds no id of a wandb run; delete it, and a new wandb run begins")
    return text


def _keep_id(file: Path, run_id: str) -> None:
    """Written whole or not at all, and never over another id."""
    if file.exists():
        return
    try:
        write_whole(file, f"{run_id}\n".encode())
    except OSError as error:
        rank_zero_warn(
            f"{file}: cannot be written ({error.strerror or error}); training goes on, but a resumed run will be a "
            "new one for wandb: free some space"
        )
