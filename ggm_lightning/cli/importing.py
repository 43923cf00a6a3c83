"""`lightning import`: weights that others published, as a folder of ours (rundir/exported.py)."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
import yaml

from ggm_lightning import __version__
from ggm_lightning.cli.export import check_licence, hand_on
from ggm_lightning.cli.model_card import Figures
from ggm_lightning.codecs.text import Subwords
from ggm_lightning.data.hub import HUB, hub_tokenizer
from ggm_lightning.rundir import checkpoint as checkpoint_files
from ggm_lightning.rundir import exported, mdlm_files, restore

_LENGTH = 1024
# So near 0 that the bound's two ends cost nothing (2e-6 ln V nats a token); docs/models.md.
_SCHEDULE = {"class_path": "ggm_lightning.core.schedules.Linear", "init_args": {"eps": 1e-6}}


def import_model(
    path: str,
    out: str,
    source: str = "mdlm",
    tokenizer: str = "hub:gpt2",
    licence: str | None = None,
    length: int | None = None,
    num_heads: int | None = None,
    time_conditioning: bool | None = None,
) -> None:
    """Turn published weights into a folder that every --ckpt_path and --init_from takes.

    Args:
        path: weights of MDLM's code: the folder of a hub's model (or hub:OWNER/NAME), or a .ckpt of Lightning, of which
            the averages are taken.
        out: the new folder.
        source: (--from) whose form they have; mdlm.
        tokenizer: their tokenizer.json, GPT-2's by default. Its tokens come first, and the mask behind them.
        licence: of the weights, for the model card; by default what the folder's README.md says.
        length: tokens of a row; by default what the folder's config.json says, else 1024.
        num_heads: of a .ckpt, which does not say it; by default one for each 64 features.
        time_conditioning: whether the network is told the noise; by default what config.json says, of a .ckpt false.
    """
    if source != "mdlm":
        raise ValueError(f"--from {source}: known is mdlm (arXiv 2406.07524 and what builds on its code)")
    folder = Path(out)
    exported.refuse_occupied(folder)
    place = Path(path)
    if path.startswith(HUB):
        place = exported.fetched(path, [exported.WEIGHTS, exported.CONFIG, exported.CARD])
    licence = licence or _licence_of(place)
    check_licence(licence)
    published = mdlm_files.read(place, num_heads, time_conditioning)
    codec = _codec(tokenizer, published.num_classes)
    length = length or published.length or _LENGTH
    config = _config(published, codec, length, _named(path, place))
    weights = {f"network.{name}": value for name, value in published.weights.items()}
    # built and compared before anything is written
    checkpoint = {"state_dict": weights, checkpoint_files.KEY: config}
    model = restore.restored(checkpoint, path)
    _say(published, length, codec)
    hand_on(folder, weights, config, licence, sum(p.numel() for p in model.parameters()), Figures())


def _config(published: mdlm_files.Published, codec: Subwords, length: int, origin: str) -> dict[str, Any]:
    arguments = {"network": published.network, "num_classes": published.num_classes, "shape": [length]}
    return {
        "format": checkpoint_files.FORMAT,
        "version": __version__,
        "torch": str(torch.__version__),
        "step": published.step,
        "averaged": published.averaged,
        "needs": [],
        "source": f"MDLM (arXiv 2406.07524), {origin}",
        "model": {"class_path": "ggm_lightning.models.md4.MD4", "init_args": {**arguments, "schedule": _SCHEDULE}},
        "codec": codec.to_dict(),
        "config": {},
    }


def _codec(tokenizer: str, num_classes: int) -> Subwords:
    place = hub_tokenizer(tokenizer) if tokenizer.startswith(HUB) else Path(tokenizer)
    if not place.is_file():
        raise ValueError(f"--tokenizer {tokenizer}: there is no such file; give a tokenizer.json, or hub:gpt2")
    try:
        codec = Subwords(place.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"--tokenizer {tokenizer}: {' '.join(str(error).split())}") from None
    if codec.num_classes != num_classes:
        raise ValueError(
            f"--tokenizer {tokenizer}: has {codec.num_classes:,} tokens, the weights have {num_classes:,} and the mask "
            "behind them; give the tokenizer they were trained with, and one whose mask is not the last token is not "
            "known here"
        )
    return codec


def _licence_of(place: Path) -> str:
    """What the folder's model card says; unknown where it does not."""
    try:
        head = re.match(r"---\n(.*?)\n---", (place / exported.CARD).read_text(encoding="utf-8"), re.DOTALL)
        found = yaml.safe_load(head[1]).get("license") if head else None
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        found = None
    return found if isinstance(found, str) else "unknown"


def _named(given: str, place: Path) -> str:
    """The origin without the folders of this machine."""
    weights = place / exported.WEIGHTS if place.is_dir() else place
    if not weights.is_file():
        return given
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    name = given if given.startswith(HUB) else place.resolve().name
    return f"{name} (sha256 {digest})"


def _say(published: mdlm_files.Published, length: int, codec: Subwords) -> None:
    arguments = published.network["init_args"]
    kind = {
        True: "averages",
        False: "weights of the last step: the file holds no averages",
        None: "weights as they are",
    }
    print(
        f"taken: {kind[published.averaged]}; {arguments['num_layers']} blocks of {arguments['num_heads']} heads of "
        f"{arguments['feature_dim']}, {codec.num_classes:,} tokens and the mask, rows of {length:,}; "
        + ("told the noise" if arguments["time_conditioning"] else "not told the noise")
    )
