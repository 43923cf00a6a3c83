"""config.yaml of a run folder, and what changed when a run was continued with another configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from ggm_lightning import moved
from ggm_lightning.rundir.sections import differences

# of one start of the run, not of what it computes
_OF_THE_START = ("ckpt_path", "allow_fresh", "name", "runs", "init_from")


class SaveConfig(Callback):
    """config.yaml, complete enough to repeat the run; a changed one is written beside it, never over it."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder, self.text = folder, text

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        ours, latest = _settings(self.text), None
        numbered = [self.folder / "config.yaml", *(self.folder / f"config-{i}.yaml" for i in range(2, 1000))]
        for file in numbered:
            if not file.exists():
                file.write_text(self.text, encoding="utf-8")
                if latest is not None:
                    changed = [found.removeprefix("config.") for found in differences(ours, latest, "config")]
                    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
                    rank_zero_info(f"configuration changed ({'; '.join(changed[:3])}{more}): {file}")
                return
            latest = _settings(file.read_text(encoding="utf-8"))
            if latest == ours:
                return


def _settings(text: str) -> dict[str, Any]:
    settings = {key: value for key, value in moved.current(yaml.safe_load(text)).items() if key not in _OF_THE_START}
    settings["trainer"] = {**settings["trainer"], "default_root_dir": None}  # follows from name and runs
    return settings
