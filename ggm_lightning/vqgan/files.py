"""VQGANs on disk (arXiv 2012.09841): the released ones, and those of our own runs; read without executing code.

Released: a folder with `configs/model.yaml` and `ckpts/last.ckpt`, or `x.ckpt` with `x.yaml` beside it. Its keys are
encoder.*, decoder.*, quantize.embedding.weight, quant_conv.*, post_quant_conv.*, and loss.* (the judges of its
training, left aside). Own: any .ckpt that `lightning fit` wrote of vqgan/training.py, or the folder that `lightning
export` made of it; the averaged weights are taken.

A released file was written by an old pytorch_lightning, which used the *class* ModelCheckpoint as a key for what that
callback remembered. A pickle names a class by its import path, and weights-only loading refuses all but tensors and
plain data; so an empty class stands in for exactly this one, and nothing is imported. Whatever else a file names is
refused.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from ggm_lightning.rundir import checkpoint as checkpoint_files
from ggm_lightning.rundir import exported, restore
from ggm_lightning.vqgan.network import Autoencoder

CONFIG, WEIGHTS = "configs/model.yaml", "ckpts/last.ckpt"
TARGET = "taming.models.vqgan.VQModel"
_NETWORK = "ggm_lightning.vqgan.network.Autoencoder"
_HARMLESS = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)
_PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
_GET = (
    f"put a released model's {CONFIG} and {WEIGHTS} there (taming-transformers names where they are), or give a "
    "checkpoint of `lightning fit --config experiments/vqgan_digits.yaml`"
)
# the YAML's names and the network's
_NAMES = {
    "ch": "width",
    "ch_mult": "multipliers",
    "num_res_blocks": "num_blocks",
    "attn_resolutions": "attention_at",
    "z_channels": "latent_dim",
    "dropout": "dropout",
}
_FURTHER = ("double_z", "resolution", "in_channels", "out_ch")


class _OldCallback:
    """Stands in for a class that a released file uses as a key."""


class VQGANFile(NamedTuple):
    """Where a VQGAN's weights are, and how its network is built.

    Attributes:
        weights: the checkpoint; it need not be there yet.
        arguments: of vqgan/network.py's Autoencoder.
        prefix: of the network's keys in the checkpoint.
    """

    weights: Path
    arguments: dict[str, Any]
    prefix: str

    @property
    def num_codes(self) -> int:
        return self.arguments["num_codes"]

    @property
    def picture(self) -> tuple[int, int, int]:
        """(channels, side, side)."""
        channels, height, width = self.arguments["shape"]
        return channels, height, width

    @property
    def grid(self) -> tuple[int, int]:
        side = self.picture[1] // 2 ** (len(self.arguments.get("multipliers", (1, 1, 2, 2, 4))) - 1)
        return side, side


def find(path: str | Path) -> VQGANFile:
    """From the YAML alone where there is one, so that sizes are known before 1 GB is read.

    Raises:
        FileNotFoundError: says which file to put where. ValueError: a YAML or a checkpoint of something else.
    """
    place = Path(path).expanduser()
    if place.is_dir() and (place / exported.WEIGHTS).is_file():
        place = place / exported.WEIGHTS  # which the run folder's reader takes for the whole folder
    if place.is_dir():
        if not (place / CONFIG).is_file():
            raise FileNotFoundError(f"data.vqgan: '{place}' has no {CONFIG}; {_GET}")
        return VQGANFile(place / WEIGHTS, _released(place / CONFIG), "")
    if place.with_suffix(".yaml").is_file():
        return VQGANFile(place, _released(place.with_suffix(".yaml")), "")
    if not place.is_file():
        raise FileNotFoundError(f"data.vqgan: there is no '{place}'; {_GET}")
    return VQGANFile(place, _own(place, *_stamp(place)), "network.")


def _released(path: Path) -> dict[str, Any]:
    try:
        params = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
        target, params = params["target"], params["params"]
        found, num_codes, code_dim = dict(params["ddconfig"]), params["n_embed"], params["embed_dim"]
        sizes = {ours: found.pop(theirs) for theirs, ours in _NAMES.items()}
        double, side, channels, out = (found.pop(name) for name in _FURTHER)
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{path}: not the YAML of a VQGAN ({what}); get it again beside its checkpoint") from None
    if target != TARGET or params.get("remap") or double or channels != out or found:
        wrong = f"{target}, double_z {double}, remap {params.get('remap')}, {channels} to {out} channels, {found or ''}"
        raise ValueError(f"{path}: describes another model ({wrong.strip(', ')}); only {TARGET} as released is known")
    return {"shape": (channels, side, side), "num_codes": num_codes, "code_dim": code_dim, **sizes}


def _stamp(path: Path) -> tuple[int, int]:
    """Tells a file from its successor under the same name, without reading it."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=4)
def _own(path: Path, *stamp: int) -> dict[str, Any]:
    checkpoint = read(path)
    about = checkpoint_files.about(checkpoint)
    network = ((about.get("model") or {}).get("init_args") or {}).get("network") or {}
    if network.get("class_path") != _NETWORK:
        kind = (about.get("model") or {}).get("class_path", "something else")
        raise ValueError(f"{path}: holds {kind}, not a VQGAN (a released one needs its YAML beside it); {_GET}")
    return _checked(dict(network.get("init_args") or {}), len(checkpoint["state_dict"]), path)


def _checked(arguments: dict[str, Any], held: int, path: Path) -> dict[str, Any]:
    """Arguments out of a checkpoint, which may be a stranger's: plain values that the network takes, or ValueError."""
    try:
        with torch.device("meta"):  # sizes alone
            restore.outline({"class_path": _NETWORK, "init_args": arguments}, torch.nn.Module, held)
        channels, height, width = arguments["shape"]
        if min(channels, height, width, arguments["num_codes"]) < 1:
            raise ValueError(f"shape {arguments['shape']}, num_codes {arguments['num_codes']}")
    except (ValueError, TypeError, KeyError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{path}: describes a VQGAN that cannot be ({error}); {_GET}") from None
    return arguments


def read(path: Path) -> dict[str, Any]:
    """The checkpoint's dict; of old Lightning's files too.

    Raises:
        ValueError: missing, damaged, or naming any code but the harmless classes; in one line, nothing is executed.
    """
    with torch.serialization.safe_globals([(_OldCallback, name) for name in _HARMLESS]):
        return checkpoint_files.read(path)  # the run folder's own reader: checksums, weights only, one line


def weights_hash(file: VQGANFile) -> str:
    """sha256 of the checkpoint file (a second per gigabyte, once)."""
    if not file.weights.is_file():
        raise FileNotFoundError(f"data.vqgan: there is no '{file.weights}'; {_GET}")
    return _sha256(file.weights, *_stamp(file.weights))


@lru_cache(maxsize=16)
def _sha256(path: Path, *stamp: int) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def load(file: VQGANFile, device: str | torch.device = "cpu") -> torch.nn.Module:
    """The network, ready to encode and decode; kept in memory until another one is asked for.

    Raises:
        ValueError: see `read`; or weights that are not those of its description.
    """
    if not file.weights.is_file():
        raise FileNotFoundError(f"data.vqgan: there is no '{file.weights}'; {_GET}")
    arguments = tuple(sorted((name, _frozen(value)) for name, value in file.arguments.items()))
    return _network(file.weights, file.prefix, arguments, str(device), *_stamp(file.weights))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@lru_cache(maxsize=1)
def _network(path: Path, prefix: str, arguments: tuple[tuple[str, Any], ...], device: str, *stamp: int) -> Any:
    with torch.device("meta"):  # no time is lost on random weights
        network = Autoencoder(**dict(arguments))
    stored = read(path)["state_dict"]
    weights = {
        name.removeprefix(prefix): value
        for name, value in stored.items()
        if name.startswith(tuple(prefix + part for part in _PARTS))
    }
    wanted = network.state_dict()
    faults = [f"lacks {name}" for name in wanted if name not in weights]
    faults += [f"has {name}, which is not of it" for name in weights if name not in wanted]
    faults += [
        f"{name} is {list(weights[name].shape)}, not {list(value.shape)}"
        for name, value in wanted.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ValueError(f"{path}: does not fit its description: {faults[0]}{more}; get both files of one model")
    network.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    return network.to(device).eval().requires_grad_(False)
