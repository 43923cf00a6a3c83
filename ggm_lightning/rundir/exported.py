"""A model to hand on: a folder without pickle, in the form of the Hugging Face hub.

    model.safetensors   the weights, averaged where there are averages
    config.json         what they are of: model, codec with its tokenizer, data, versions; model_type: ggm_lightning
    SHA256SUMS          of these two, as `sha256sum -c` reads it
    README.md           the model card, which may be changed at will

Nothing in it is executed: weights are numbers with names, the rest is JSON, and the classes that it names are built
under the rules of rundir/building.py. Other files of the folder are never opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

WEIGHTS, CONFIG, SUMS, CARD = "model.safetensors", "config.json", "SHA256SUMS", "README.md"
MODEL_TYPE = "ggm_lightning"
HUB = "hub:"
_SUMMED = (WEIGHTS, CONFIG)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_GET = "give a folder that `lightning export` wrote"


def local(path: str | Path) -> Path:
    """The path on this machine: of hub:OWNER/NAME the copy in the hub's cache, which is fetched if it is not there
    (hub:OWNER/NAME@REVISION fetches one revision); of the weights in a folder the folder.

    Raises:
        ValueError: no network, or no such model.
    """
    text = str(path)
    if not text.startswith(HUB):
        found = Path(path)
        return found.parent if found.name == WEIGHTS else found
    return fetched(text, [WEIGHTS, CONFIG, SUMS, CARD])


def fetched(given: str, files: list[str]) -> Path:
    """The folder with these files of the model hub:OWNER/NAME, in the hub's cache. ValueError in one line."""
    name, _, revision = given.removeprefix(HUB).partition("@")
    try:
        from huggingface_hub import snapshot_download  # it comes with datasets

        return Path(snapshot_download(name, revision=revision or None, allow_patterns=files))
    except Exception as error:  # the hub's client raises many kinds, some of many lines
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{given}: {reason}; check the name and the network, or download the folder by hand and give its path"
        ) from None


def is_exported(path: Path) -> bool:
    """Whether the folder looks like one; `read` says what is wrong with it."""
    return (path / WEIGHTS).is_file() or (path / CONFIG).is_file()


def results_folder(path: str | Path) -> Path:
    """Below which folder a command puts its results: that of a checkpoint file; of a model that was handed on runs/NAME
    (its folder, or the hub's cache, is to hold the model alone)."""
    text = str(path)
    if text.startswith(HUB):
        return Path("runs") / text.removeprefix(HUB).partition("@")[0].rpartition("/")[2]
    place = local(path)
    return Path("runs") / place.resolve().name if place.is_dir() else place.parent


def write(folder: Path, weights: dict[str, Tensor], config: dict[str, Any], card: str) -> None:
    """Writes the folder as a whole, or nothing of it.

    Args:
        folder: a new or empty one.
        weights: a state dict.
        config: plain JSON.
        card: the text of README.md.

    Raises:
        ValueError: the folder holds something, or a weight is no dense tensor. OSError: it cannot be written.
    """
    from safetensors.torch import save_file

    refuse_occupied(folder)
    # a copy of each: safetensors takes no views of shared memory
    plain = {name: value.detach().cpu().clone().contiguous() for name, value in weights.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as temporary:
        place = Path(temporary) / folder.name
        place.mkdir()
        save_file(plain, place / WEIGHTS, metadata={"format": "pt"})
        text = json.dumps({"model_type": MODEL_TYPE, **config}, indent=2, ensure_ascii=False)
        (place / CONFIG).write_text(f"{text}\n", encoding="utf-8")
        sums = [f"{_sha256(place / name)}  {name}\n" for name in _SUMMED]
        (place / SUMS).write_text("".join(sums), encoding="utf-8")
        (place / CARD).write_text(card, encoding="utf-8")
        for file in place.iterdir():
            file.chmod(0o644)  # safetensors would leave the weights to their owner alone
        if folder.is_dir():
            folder.rmdir()  # an empty one
        os.replace(place, folder)


def refuse_occupied(folder: Path) -> None:
    """ValueError where something would be overwritten."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--out {folder}: something is there; name a new folder")
    free = shutil.disk_usage(next(parent for parent in folder.absolute().parents if parent.is_dir())).free
    if free < 2**20:
        raise OSError(f"--out {folder}: no space is left there; free some")


def read(folder: Path, map_location: Any = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(state dict, config.json) of a folder, compared with its checksums.

    Raises:
        ValueError: in one line: no such folder, a missing or changed file, a pickle in the place of the weights.
    """
    if not (folder / WEIGHTS).is_file():
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
        held = f", but {pickles[0]}, a pickle, which could execute code" if pickles else ""
        raise ValueError(f"{folder}: holds no {WEIGHTS}{held}; {_GET}, or a checkpoint file")
    for name in (CONFIG, SUMS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: holds no {name}; {_GET}{_foreign_hint(folder)}")
    _compare(folder)
    config = read_json(folder / CONFIG)
    if config.get("model_type") != MODEL_TYPE:
        raise ValueError(
            f"{folder / CONFIG}: model_type is {config.get('model_type')!r}; {_GET}{_foreign_hint(folder)}"
        )
    return tensors(folder / WEIGHTS, map_location), config


def identity(folder: Path) -> str:
    """16 digits that tell this model from any other."""
    return _sha256(folder / SUMS)[:16]


def tensors(path: Path, map_location: Any = "cpu") -> dict[str, Tensor]:
    """What a safetensors file holds. On device meta, names and sizes alone. Raises ValueError for other files."""
    from safetensors import SafetensorError, safe_open

    meta = str(map_location) == "meta"
    device = "cpu" if meta else str(map_location)
    try:
        with safe_open(path, framework="pt", device=device) as file:
            if not meta:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return {name: file.get_tensor(name).to("meta") for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: not a whole safetensors file ({reason}); get it again, a pickle is not read"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """Raises ValueError for anything but an object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({' '.join(str(error).split())}); get it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds no object; get it again")
    return found


def _foreign_hint(folder: Path) -> str:
    """Of the models of others, as they lie on the hub."""
    try:
        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
    return f"; weights of MDLM: lightning import --from mdlm {folder} --out DIR" if kind == "mdlm" else ""


def _compare(folder: Path) -> None:
    lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    wanted = {name.strip(" *"): digest for digest, _, name in (line.partition(" ") for line in lines)}
    for name in _SUMMED:
        if name not in wanted:
            raise ValueError(f"{folder / SUMS}: does not name {name}; {_GET}")
        if _sha256(folder / name) != wanted[name]:
            raise ValueError(f"{folder / name}: is not the file that {SUMS} was made of; get the folder again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
