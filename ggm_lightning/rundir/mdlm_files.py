"""Published weights of MDLM (arXiv 2406.07524) and of what builds on its code, in the two forms in which they go round:

    a folder of the hub   config.json (model_type mdlm) and model.safetensors, keys backbone.*
    a .ckpt of Lightning  state_dict with the same keys; their averages in ema.shadow_params, a list in the order of the
                          parameters; the configuration and the tokenizer as pickled objects

Both are read without executing anything. A pickle names classes by their import paths; for those of the libraries that
such a file is known to name, an empty class stands in, and nothing is imported. Whatever else is named is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ggm_lightning.rundir import checkpoint as checkpoint_files
from ggm_lightning.rundir import exported, restore

NETWORK = "ggm_lightning.networks.dit.DiT"
PREFIX = "backbone."
_BUFFER = "rotary_emb.inv_freq"  # follows from the features per head
_HEAD = 64  # features per head of all that were published
_LIBRARIES = ("omegaconf.", "transformers.", "tokenizers.", "typing.")
_HARMLESS = (
    "collections.defaultdict",
    *(f"builtins.{name}" for name in ("dict", "list", "int", "float", "str", "bool")),
)
# of config.json, and those of networks/dit.py
_SIZES = {"n_blocks": "num_layers", "n_heads": "num_heads", "cond_dim": "cond_dim", "dropout": "dropout"}


class _Unread:
    """Stands in for a class of another library, and keeps nothing."""

    def __new__(cls, *_: Any) -> _Unread:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


@dataclass(frozen=True)
class Published:
    """What such a file or folder holds.

    Attributes:
        weights: of the network, under its own keys.
        network: class_path and init_args of networks/dit.py.
        length: tokens of a row, None where the file does not say.
        step: optimiser steps, None where it does not say.
        averaged: whether the weights are averages; None where it does not say.
    """

    weights: dict[str, Tensor]
    network: dict[str, Any]
    length: int | None
    step: int | None
    averaged: bool | None

    @property
    def num_classes(self) -> int:
        return self.network["init_args"]["num_classes"]


def read(path: Path, num_heads: int | None = None, time_conditioning: bool | None = None) -> Published:
    """The weights and the network that they are of.

    Args:
        path: the folder or the .ckpt.
        num_heads: of a .ckpt, which does not say it; None: one for each 64 features.
        time_conditioning: whether the network is told the noise; None: what config.json says, of a .ckpt no.

    Raises:
        ValueError: in one line: no such file, one of something else, missing, unexpected or misshapen weights.
    """
    if path.is_dir():
        return _of_folder(path, num_heads, time_conditioning)
    return _of_checkpoint(path, num_heads, bool(time_conditioning))


def _of_folder(folder: Path, num_heads: int | None, time_conditioning: bool | None) -> Published:
    for name in (exported.CONFIG, exported.WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: holds no {name}; give the folder of a model of MDLM, or a .ckpt of its code")
    config = exported.read_json(folder / exported.CONFIG)
    if config.get("model_type") != "mdlm":
        raise ValueError(f"{folder / exported.CONFIG}: model_type is {config.get('model_type')!r}, not 'mdlm'")
    weights = _stripped(exported.tensors(folder / exported.WEIGHTS), folder / exported.WEIGHTS)
    given = {ours: config[theirs] for theirs, ours in _SIZES.items() if theirs in config}
    given |= {} if num_heads is None else {"num_heads": num_heads}
    told = config.get("time_conditioning", False) if time_conditioning is None else time_conditioning
    network = _network(weights, given | {"time_conditioning": told}, folder)
    wanted = {"vocab_size": network["init_args"]["num_classes"] + 1}
    for name, value in wanted.items():
        if config.get(name, value) != value:
            raise ValueError(f"{folder}: {name} is {config[name]}, its weights are of {value}; get both files again")
    _check(weights, network, folder)
    return Published(weights, network, config.get("model_length"), None, None)


def _of_checkpoint(path: Path, num_heads: int | None, time_conditioning: bool) -> Published:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the folder of a model of MDLM, or a .ckpt of its code")
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError, EOFError, OSError):
        named = []  # the reader says what is wrong with the file
    harmless = [name for name in named if name.startswith(_LIBRARIES) or name in _HARMLESS]
    with torch.serialization.safe_globals([(_Unread, name) for name in harmless]):
        checkpoint = checkpoint_files.read(path)
    weights = _stripped(checkpoint["state_dict"], path)
    network = _network(weights, {"num_heads": num_heads, "time_conditioning": time_conditioning}, path)
    names = _check(weights, network, path)
    averages = _averages(checkpoint.get("ema"), weights, names, path)
    step = checkpoint_files.step_of(checkpoint)
    return Published(averages or weights, network, None, step, averages is not None)


def _stripped(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Without the prefix and the buffer, in float32. Raises ValueError for keys of something else."""
    foreign = [name for name in state if not name.startswith(PREFIX)]
    if foreign or not state:
        raise ValueError(
            f"{path}: its weights are not those of MDLM ({foreign[0] if foreign else 'none'} beside {PREFIX}*); give "
            "weights of that code"
        )
    plain = {name.removeprefix(PREFIX): value for name, value in state.items()}
    plain.pop(_BUFFER, None)
    return {name: value.float() for name, value in plain.items()}


def _network(weights: dict[str, Tensor], given: dict[str, Any], path: Path) -> dict[str, Any]:
    """Sizes out of the weights; what they do not show as it is given."""
    table, condition = weights.get("vocab_embed.embedding"), weights.get("sigma_map.mlp.2.bias")
    if table is None or condition is None or table.dim() != 2 or condition.dim() != 1:
        raise ValueError(
            f"{path}: its weights are not those of MDLM (no vocab_embed.embedding or sigma_map.mlp.2.bias)"
        )
    width = table.shape[1]
    heads = given.get("num_heads") or max(1, width // _HEAD)
    if not isinstance(heads, int) or heads < 1 or width % (2 * heads):
        raise ValueError(f"{path}: {heads!r} heads do not divide its {width} features into pairs; give --num_heads")
    blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    sizes = {"num_layers": len(blocks), "cond_dim": len(condition), **given}
    sizes |= {"num_heads": heads, "feature_dim": width // heads, "num_classes": len(table) - 1}
    return {"class_path": NETWORK, "init_args": sizes}


def _check(weights: dict[str, Tensor], network: dict[str, Any], path: Path) -> list[str]:
    """The names of the parameters in their order, or ValueError where the weights are not exactly those."""
    try:
        with torch.device("meta"):  # sizes alone
            outline = restore.outline(network, nn.Module, len(weights))
        wanted = {name: tuple(value.shape) for name, value in outline.named_parameters()}
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path}: describes a network that cannot be ({' '.join(str(error).split())})") from None
    for name, shape in wanted.items():
        if name not in weights:
            raise ValueError(f"{path}: lacks {PREFIX}{name}; get the file again")
        if tuple(weights[name].shape) != shape:
            found = tuple(weights[name].shape)
            raise ValueError(f"{path}: {PREFIX}{name} is {found}, not {shape}; get the file again")
    unexpected = [name for name in weights if name not in wanted]
    if unexpected:
        raise ValueError(f"{path}: holds {PREFIX}{unexpected[0]}, which the network does not have; get the file again")
    return list(wanted)


def _averages(ema: Any, weights: dict[str, Tensor], names: list[str], path: Path) -> dict[str, Tensor] | None:
    """Their averages by name, None where there are none."""
    shadows = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not shadows:
        return None
    if not isinstance(shadows, list) or len(shadows) != len(names):
        raise ValueError(
            f"{path}: ema.shadow_params holds {len(shadows)} tensors, the network has {len(names)} parameters; it is "
            "not known which is which"
        )
    for name, value in zip(names, shadows, strict=True):
        if not isinstance(value, Tensor) or value.shape != weights[name].shape:
            raise ValueError(f"{path}: ema.shadow_params does not follow the parameters ({name} has another shape)")
    return {name: value.float() for name, value in zip(names, shadows, strict=True)}
