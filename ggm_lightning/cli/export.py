"""`lightning export`: a checkpoint as a folder to hand on, without pickle (rundir/exported.py)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ggm_lightning.cli import model_card
from ggm_lightning.cli.loading import trusted_names
from ggm_lightning.rundir import building, exported, restore
from ggm_lightning.rundir import checkpoint as checkpoint_files

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def export(ckpt_path: str, out: str, licence: str, trust: str | None = None, named: Sequence[str] = ()) -> None:
    """Write a model as a folder to hand on: weights without pickle, configuration, tokenizer, model card, checksums.

    Args:
        ckpt_path: file written by `lightning fit`; its averaged weights are taken.
        out: the new folder. Every --ckpt_path and --init_from takes it, and ggm_lightning.load.
        licence: of the weights, as the Hugging Face hub writes it (mit, apache-2.0, cc-by-4.0, other, ...): the model
            card says it. It is yours to choose, within what the licence of the data allows.
        trust: packages or classes of your own that the checkpoint may build, separated by commas.
        named: (library) more such names.
    """
    check_licence(licence)
    folder = Path(out)
    exported.refuse_occupied(folder)
    trusted = (*trusted_names(trust, {}), *named)
    path = exported.local(ckpt_path)
    checkpoint = checkpoint_files.read(path)
    model = restore.restored(checkpoint, ckpt_path, "cpu", trusted)
    config = _config(checkpoint)
    figures = model_card.figures_of(exported.results_folder(ckpt_path), checkpoint_files.identity(path))
    if not config["averaged"]:
        print("the checkpoint holds no averages: these are the weights of its last step")
    hand_on(folder, checkpoint["state_dict"], config, licence, sum(p.numel() for p in model.parameters()), figures)
    _compare(folder, model, trusted)


def check_licence(licence: str) -> None:
    if not _LICENCE.fullmatch(licence):
        raise ValueError(
            f"--licence {licence!r}: write it as the hub does, in small letters without spaces: mit, apache-2.0, "
            "cc-by-4.0, other, ..."
        )


def hand_on(
    folder: Path,
    weights: dict[str, torch.Tensor],
    config: dict[str, Any],
    licence: str,
    parameters: int,
    figures: model_card.Figures,
) -> None:
    """Writes the folder with its model card, and says so."""
    card = model_card.card(folder.resolve().name, licence, config, parameters, figures)
    exported.write(folder, weights, config, card)
    size = (folder / exported.WEIGHTS).stat().st_size / 1e6
    print(
        f"written: {folder}/ ({exported.WEIGHTS} {size:,.2f} MB, {exported.CONFIG}, {exported.CARD}, {exported.SUMS})"
    )
    measured = "no figures: `lightning evaluate` before gives some"
    if len(figures):
        measured = f"figures of {len(figures)} evaluation{'s' if len(figures) > 1 else ''}"
    print(f"model card: licence {licence}, {measured}")
    print(f"use it: ggm_lightning.load({str(folder)!r}), or {folder} where a command wants a checkpoint")


def _config(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What config.json says: enough to build the model and to find its data; nothing of the folders of the training."""
    about = checkpoint_files.about(checkpoint)
    training = about.get("config") or {}
    kept = {key: training[key] for key in ("data", "seed_everything") if key in training}
    precision = (training.get("trainer") or {}).get("precision")
    if precision is not None:
        kept["trainer"] = {"precision": precision}
    return {
        "format": checkpoint_files.format_of(checkpoint),
        "version": about.get("version"),
        "torch": about.get("torch"),
        "step": checkpoint_files.step_of(checkpoint),
        "averaged": checkpoint_files.averaged(checkpoint),
        "needs": sorted(
            {name.partition(".")[0] for name in building.foreign([about.get("model"), about.get("codec")])}
        ),
        "model": about.get("model"),
        "codec": about.get("codec"),
        "config": kept,
    }


def _compare(folder: Path, model: torch.nn.Module, trusted: Sequence[str]) -> None:
    """What was written is the model, bit for bit; else nothing is left of it."""
    again = restore.load(folder, trust=trusted).state_dict()
    ours = model.state_dict()
    wrong = [name for name, value in ours.items() if not torch.equal(value, again[name])]
    if wrong:
        raise RuntimeError(f"{folder}: {wrong[0]} is not what was written; the disk may be failing, remove the folder")
