"""The last lines of a fit: how it ended, where its page lies, and what to do next, as commands that can be typed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from ggm_lightning.cli import resume
from ggm_lightning.models.base import Family
from ggm_lightning.report import ending
from ggm_lightning.report.figures import closing_line
from ggm_lightning.report.protocols import Reconstructs
from ggm_lightning.report.story import read_run
from ggm_lightning.rundir import building
from ggm_lightning.rundir import checkpoint as checkpoint_files


def last_words(folder: Path, trainer: Trainer, model: LightningModule) -> str:
    """Of the run in `folder`, once its fit is over."""
    about = checkpoint_files.describe(model)
    path = shlex.quote(str(folder / "last.ckpt"))
    after = f"lightning sample --ckpt_path {path}{_trust(about)}"
    if isinstance(model, Reconstructs):
        after = f"lightning inspect {path}"
    try:
        run = read_run(folder)
    except (ValueError, OSError) as error:
        return f"{folder}: {error}; next: {after}"
    page = folder / "report.html"
    where = f"report: {page}" if page.is_file() else "no report could be written"
    if run.story.state == "stopped":
        is_out_of_time = run.story.said == ending.BY_TIME
        after += f", or go on: the same command with {later_end(trainer, about['config'] or {}, is_out_of_time)}"
    # what is no model of data has no bound
    measuring = f"lightning evaluate --ckpt_path {path}{_trust(about, 'data')}" if isinstance(model, Family) else ""
    return f"{closing_line(run, measuring)}\n{where}; next: {after}"


def _trust(about: dict[str, Any], *sections: str) -> str:
    """For the classes that the checkpoint names: of the model, its codec, and those sections of its configuration."""
    config = about["config"] or {}
    return building.trust_option([about["model"], about["codec"], *(config.get(name) for name in sections)])


def later_end(trainer: Trainer, config: dict[str, Any], is_out_of_time: bool) -> str:
    """What the command needs for a stopped run to go on."""
    if not is_out_of_time or (config.get("trainer") or {}).get("max_time") is None:
        return "a later end and --ckpt_path last"
    limit, used = resume.time_of(trainer)
    limit = max(limit, 1.0)
    # as much again; more than that where a validation has gone far beyond the limit
    longer = limit * (1 + max(1, round(used / limit)))
    return f"--ckpt_path last --trainer.max_time {resume.as_max_time(longer)}"
