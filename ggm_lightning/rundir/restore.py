"""A model from its checkpoint, though the checkpoint may be a stranger's.

Nothing of the file is believed before it is checked: which classes it names (rundir/building.py), how large a model it
describes (outlined without memory first, and compared with the weights in the file), and what its codec says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ggm_lightning.rundir import building, codecs
from ggm_lightning.rundir.building import Refused
from ggm_lightning.rundir.checkpoint import OfData, about, format_of, read

_FALLBACK = "construct the model yourself and call model.load_state_dict(torch.load(path)['state_dict'])"
_SPARE_BYTES = 2**30  # tables that a model makes itself, beside four times its weights
_SPARE_PARAMETERS = 1_000
_LARGEST = 10**8


def load(path: str | Path, map_location: Any = "cpu", trust: str | Sequence[str] = ()) -> LightningModule:
    """The model of a checkpoint, with its averaged weights, in eval mode, `model.codec` beside it (or None).

    A checkpoint may name classes of this package, and those that you trust; nothing else is imported or called, so that
    a file of somebody you do not know is safe to load.

    Args:
        path: file written by `lightning fit`; or a model that was handed on: a folder that `lightning export` wrote, or
            "hub:OWNER/NAME", the same on the Hugging Face hub.
        map_location: the device.
        trust: packages, modules or classes of your own that the model is made of: ("mypackage",).

    Raises:
        ValueError: in one line; see `read` and `building.build`; no description of the model in the file; weights that
            do not fit it exactly; a codec of another vocabulary.
    """
    return restored(read(path, map_location), path, map_location, trust)


def restored(
    checkpoint: dict[str, Any], path: str | Path, map_location: Any = "cpu", trust: str | Sequence[str] = ()
) -> LightningModule:
    """`load` of what `read` has given already."""
    described, weights = about(checkpoint), checkpoint["state_dict"]
    if not described.get("model"):
        raise ValueError(f"{path}: does not say which model it is of (saved without the command line); {_FALLBACK}")
    names = (trust,) if isinstance(trust, str) else tuple(trust)
    model = _built(described, format_of(checkpoint), weights, path, names)
    # the keys have been compared with the model's own state dict, which may leave foreign frozen parts out
    model.load_state_dict(weights, strict=False)
    model.codec = _codec(described.get("codec"), model, path, names)  # type: ignore[assignment]
    return model.to(map_location).eval() if isinstance(map_location, str | torch.device) else model.eval()


def _built(
    described: dict[str, Any], format_number: int, weights: dict[str, Tensor], path: str | Path, trust: Sequence[str]
) -> LightningModule:
    spec, old = described["model"], format_number == 1
    try:
        building.check_names(spec, trust)
        if not building.foreign(spec):  # classes of the user's own need not be able to do without memory
            without_memory = outline(spec, LightningModule, len(weights), trust, old)
            _refuse_misfit(without_memory, weights, path)
            _refuse_size(without_memory, weights, path)
        model = building.build(spec, LightningModule, trust, old)
    except Refused as error:
        raise ValueError(f"{path}: refused, {error}") from None
    except (TypeError, ImportError, RuntimeError, MemoryError, OverflowError, LookupError, ArithmeticError) as error:
        raise ValueError(f"{path}: {_cannot(described, error)}") from error
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: {_cannot(described, error)}") from error
    _refuse_misfit(model, weights, path)
    return model


def model_section(checkpoint: dict[str, Any]) -> Any:
    """What a checkpoint says of its model, in today's terms, to be compared with a configuration; None where it does
    not say."""
    section = about(checkpoint).get("model")
    return building.completed(section, LightningModule) if format_of(checkpoint) == 1 and section else section


def outline(
    spec: dict[str, Any], kind: type[nn.Module], held: int, trust: Sequence[str] = (), first_format: bool = False
) -> nn.Module:
    """A module that a file describes, its parts on the meta device: sizes and no memory. Raises Refused for sizes that
    nothing has, and for more parameters than a file of `held` tensors could fill."""
    _refuse_numbers(spec)
    with _no_more_parameters(4 * held + _SPARE_PARAMETERS):
        return building.build(spec, kind, trust, first_format, outline=True)


def _cannot(described: dict[str, Any], error: Exception) -> str:
    from ggm_lightning import __version__

    reason = " ".join(str(error).split()) or type(error).__name__
    name = described["model"].get("class_path")
    saved = described.get("version")
    return f"cannot build {name}, saved by version {saved}, with version {__version__} ({reason}); {_FALLBACK}"


def _refuse_numbers(section: Any, name: str = "") -> None:
    """Tables of a family are made at once, in the size that is asked for; none of ours needs so large a one."""
    if isinstance(section, dict):
        for key, value in section.items():
            _refuse_numbers(value, str(key))
    elif isinstance(section, list | tuple):
        for value in section:
            _refuse_numbers(value, name)
    elif isinstance(section, int) and abs(section) > _LARGEST and "seed" not in name:
        raise Refused(f"{name} is {section}, and no size of a model is above {_LARGEST:,}")


@contextmanager
def _no_more_parameters(most: int) -> Iterator[None]:
    """Building stops at a billion layers as soon as there are more than the file could hold weights for."""
    count = 0

    def counted(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise Refused(f"it describes a model of more than {most:,} parameter tensors, and holds far fewer")

    handle = register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


def _refuse_misfit(model: nn.Module, weights: dict[str, Tensor], path: str | Path) -> None:
    wanted = model.state_dict()
    shapes = [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted
        if name in weights and weights[name].shape != wanted[name].shape
    ]
    faults = {
        "missing": [name for name in wanted if name not in weights],
        "unexpected": [name for name in weights if name not in wanted],
        "of another shape": shapes,
    }
    found = [f"{len(names)} {kind} ({'; '.join(names[:3])})" for kind, names in faults.items() if names]
    if found:
        raise ValueError(
            f"{path}: its weights do not fit {type(model).__name__}: {', '.join(found)}; load it with the model "
            "section it was trained with"
        )


def _refuse_size(outline: nn.Module, weights: dict[str, Tensor], path: str | Path) -> None:
    """Weights fit by now; what is left are tables that the constructor makes and a checkpoint does not hold."""
    needed = sum(
        value.numel() * value.element_size()
        for module in outline.modules()
        for part in (vars(module), module._buffers, module._parameters)
        for value in part.values()
        if isinstance(value, Tensor)
    )
    held = sum(value.numel() * value.element_size() for value in weights.values())
    if needed > 4 * held + _SPARE_BYTES:
        raise ValueError(
            f"{path}: refused, its model would take {needed / 1e9:,.0f} GB, the file holds {held / 1e9:.3f} GB of "
            f"weights; {_FALLBACK}"
        )


def _codec(described: Any, model: LightningModule, path: str | Path, trust: Sequence[str]) -> Any:
    """The codec of the file, or None. Its vocabulary is compared before anything of that size is made."""
    if described is None:
        return None
    wanted = model.num_classes if isinstance(model, OfData) else None
    try:
        section = codecs.current(described)
        foreign = bool(building.foreign(section))  # of a class of yours the arguments may mean anything
        claimed = wanted if foreign else section["init_args"].get("num_classes", wanted)
        codec = codecs.codec_from_dict(section, trust) if claimed == wanted else None
    except Refused as error:
        raise ValueError(f"{path}: its codec is refused, {error}") from None
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError, ArithmeticError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path}: its codec cannot be made ({reason}); use a file that `lightning fit` wrote"
        ) from None
    found = claimed if codec is None else codec.num_classes
    if wanted is not None and found != wanted:
        raise ValueError(f"{path}: its codec has {found!r} classes, its model {wanted}; use another checkpoint")
    if not foreign and isinstance(model, OfData) and isinstance(codec, OfData):
        sites, theirs = math.prod(model.shape), math.prod(codec.shape)
        if theirs != sites:
            raise ValueError(f"{path}: its codec has {theirs} sites, its model {sites}; use another checkpoint")
    return codec
