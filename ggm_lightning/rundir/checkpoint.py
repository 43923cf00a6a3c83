"""Checkpoint files: written so that nothing is lost, and read so that nothing is executed.

Writing goes to a temporary file in the same folder, which is flushed to the disk and then renamed over the old one:
whatever happens in between (a full disk, a kill), the old file stays whole. Lightning 2.6.6 moves the new file from
the system's temporary folder instead, often another disk; when that move ran out of space the old file was destroyed.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import LightningModule

from ggm_lightning import moved
from ggm_lightning.rundir import exported
from ggm_lightning.rundir.sharing import once_per_node

KEY = "ggm_lightning"
FORMAT = 2  # of what `describe` says; 1, without a number, was written until version 0.1.0


@runtime_checkable
class Configured(Protocol):
    """A model that the command line made: it knows from which configuration."""

    resolved_config: dict[str, Any] | None


@runtime_checkable
class Started(Protocol):
    """A model that knows from which weights its run started (rundir/start.py), None where from none."""

    started_from: dict[str, Any] | None


@runtime_checkable
class OfData(Protocol):
    """A model, or a codec of pictures, that says what one example looks like."""

    num_classes: int
    shape: tuple[int, ...]


@runtime_checkable
class HasCodec(Protocol):
    """A data module, or a loaded model, with a codec (codecs/codec.py); None where there is none."""

    @property
    def codec(self) -> Any: ...


class AtomicCheckpointIO(CheckpointIO):
    """Saves and loads whole files in a local folder; see the module's text. Lightning calls it on rank zero to save and
    to remove, on every rank to load: the file is read once on each node (rundir/sharing.py).

    Args:
        known: (path, content) of a file that was read before it was to be loaded.
    """

    def __init__(self, known: tuple[Path, dict[str, Any]] | None = None) -> None:
        self._known = known

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Replaces `path` by `checkpoint`, or leaves it as it was.

        Raises:
            OSError: the file could not be written (full disk, read-only folder).
            ValueError: the checkpoint holds objects that could not be loaded again without executing code.
        """
        if storage_options is not None:
            raise ValueError("save_checkpoint: storage_options are not used by AtomicCheckpointIO; leave them out")
        path = _local(path)
        try:
            self._replace(checkpoint, path)
        except OSError as error:
            before = "the file of before is whole: free some space and continue from it" if path.exists() else "retry"
            told = OSError(f"{path}: cannot be written ({error.strerror or error}); {before}")
            told.errno = error.errno
            raise told from error

    @staticmethod
    def _replace(checkpoint: dict[str, Any], path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The name is the same at every try, so that a killed run leaves at most one behind, which the next one
        # replaces; the leading dot hides it from Lightning's search for last*.ckpt.
        partial = path.with_name(f".{path.name}.partial")
        try:
            _write(checkpoint, partial)
            _refuse_code(partial, path)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        _sync_folder(path.parent)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """See `read`. `weights_only=False` is refused: loading never executes code from the file."""
        if weights_only is False:
            raise ValueError(f"{path}: weights_only=False would execute code from the file; leave it out")
        known, self._known = self._known, None
        if known is not None and known[0] == Path(path):
            return once_per_node(lambda: known[1])
        return once_per_node(lambda: read(path, map_location))

    def remove_checkpoint(self, path: str | Path) -> None:
        path = _local(path)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _local(path: str | Path) -> Path:
    if "://" in str(path):
        raise ValueError(f"{path}: checkpoints are written to local folders only; set trainer.default_root_dir to one")
    return Path(path)


def _write(checkpoint: dict[str, Any], partial: Path) -> None:
    with partial.open("wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            # torch's zip writer hides the file's own error (no space left) behind one about positions
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """The new name itself must reach the disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_code(partial: Path, path: Path) -> None:
    """Better an error at the first save than a checkpoint that cannot be resumed. Reads the pickle's names only."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(partial)
    if names:
        raise ValueError(
            f"{path.name}: not saved, the checkpoint holds objects of {', '.join(sorted(names)[:3])}, which cannot be "
            "loaded without executing code; let state_dict() and on_save_checkpoint return tensors, numbers, texts, "
            "lists and dicts only"
        )


def read(path: str | Path, map_location: Any | None = "cpu") -> dict[str, Any]:
    """The dict in a checkpoint file, without executing anything from it; of a model that was handed on
    (rundir/exported.py: a folder, or hub:OWNER/NAME) the same as far as there is any.

    The file's checksums are compared first (torch.load ignores them: a flipped bit would go unnoticed into a weight).

    Raises:
        ValueError: missing, truncated or altered file, not a checkpoint, of a later format, or holding objects that
            need code to be loaded, packed parts, or tensors that are larger than their numbers.
    """
    path = exported.local(path)
    if path.is_dir():
        return _handed_on(path, map_location)
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint file; check --ckpt_path{_siblings(path)}")
    try:
        with zipfile.ZipFile(path) as archive:
            # torch packs nothing; a packed part of a stranger's file may be a thousand times as large as the file
            packed = [part.filename for part in archive.infolist() if part.compress_type != zipfile.ZIP_STORED]
            damaged = None if packed else archive.testzip()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path}: truncated, altered or not a checkpoint ({_line(error)}); use another checkpoint of the run"
        ) from None
    if packed:
        raise ValueError(f"{path}: not a checkpoint, its part {packed[0]!r} is packed; give a file of `lightning fit`")
    if damaged is not None:
        raise ValueError(f"{path}: altered on disk (checksum of '{damaged}'); use another checkpoint of the run")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        what = f"an object of {name[1]}" if name else f"more than plain data ({_line(error)})"
        raise ValueError(
            f"{path}: refused, it holds {what}, and loading that executes code; use a file that `lightning fit` wrote"
        ) from None
    except (RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not a checkpoint ({_line(error)}); give a file that `lightning fit` wrote") from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(f"{path}: not a checkpoint (no state_dict in it); give a file that `lightning fit` wrote")
    _check_weights(checkpoint["state_dict"], path)
    _check_format(checkpoint, path)
    return checkpoint


def _handed_on(folder: Path, map_location: Any) -> dict[str, Any]:
    """As a checkpoint file would hold it; a run's own folder is named by its file."""
    if not exported.is_exported(folder) and (folder / "last.ckpt").is_file():
        raise ValueError(f"{folder}: is a run's folder; give {folder / 'last.ckpt'}")
    weights, config = exported.read(folder, map_location)
    about = {key: value for key, value in config.items() if key != "model_type"}
    checkpoint = {"state_dict": weights, "global_step": config.get("step"), KEY: about}
    # Lightning asks for it where a bound is validated
    checkpoint["pytorch-lightning_version"] = str(lightning.__version__)
    _check_format(checkpoint, folder)
    return checkpoint


def outline(path: str | Path) -> dict[str, Any]:
    """`read` of what is no tensor: those are left on the disk, unread and unchecked."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # type: ignore[no-any-return]
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        raise ValueError(f"{path}: not a checkpoint ({_line(error)}); give a file that `lightning fit` wrote") from None


def _check_weights(weights: dict[Any, Any], path: Path) -> None:
    """Plain tensors with a number for each of their elements: a view may claim billions of elements of one number."""
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise ValueError(
                f"{path}: not a checkpoint, {name!r} in its state_dict is no dense tensor; give another file"
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(
                f"{path}: refused, {name!r} claims {list(value.shape)} elements and holds fewer numbers; use a file "
                "that `lightning fit` wrote"
            )


def _check_format(checkpoint: dict[str, Any], path: Path) -> None:
    found = format_of(checkpoint)
    if not isinstance(found, int) or not 1 <= found <= FORMAT:
        raise ValueError(
            f"{path}: of format {found!r}, this version reads 1 to {FORMAT}; pip install --upgrade ggm-lightning"
        )


def about(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What `describe` said of the model, its classes under today's names; empty where the file was not written through
    the command line."""
    found = checkpoint.get(KEY)
    return moved.current(found) if isinstance(found, dict) else {}


def format_of(checkpoint: dict[str, Any]) -> Any:
    return about(checkpoint).get("format", 1)


def step_of(checkpoint: dict[str, Any]) -> int | None:
    """Optimiser steps, None where the file does not say: a text there could name a folder anywhere on the disk."""
    step = checkpoint.get("global_step")
    return step if type(step) is int and step >= 0 else None


def averaged(checkpoint: dict[str, Any]) -> bool:
    """Whether the weights are averages, as callbacks.ema keeps them; else those of the last step."""
    # the raw weights lie beside averaged ones only; a model that was handed on has none and says it
    return "current_model_state" in checkpoint or about(checkpoint).get("averaged") is True


def identity(path: str | Path) -> str:
    """16 digits that tell a checkpoint's content from another's: of the names and checksums of its parts, which are
    read from the end of the file alone."""
    path = exported.local(path)
    if path.is_dir():
        return exported.identity(path)
    with zipfile.ZipFile(path) as archive:
        parts = [(part.filename.partition("/")[2], part.CRC, part.file_size) for part in archive.infolist()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _line(error: Exception) -> str:
    """An error's whole text on one line: of several lines the cause is often the last."""
    return " ".join(str(error).split()) or type(error).__name__


def _siblings(path: Path) -> str:
    found = sorted(p.name for p in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
    return f" (the folder has {', '.join(found[:4])})" if found else ""


def describe(model: LightningModule) -> dict[str, Any]:
    """What a checkpoint says of itself, as JSON-able values, so that `load` can build the model again.

    Without `model.resolved_config`, which the command line sets, the model's constructor arguments are not known:
    "model" is then None.
    """
    from ggm_lightning import __version__

    config = model.resolved_config if isinstance(model, Configured) else None
    codec = _codec(model)
    return {
        "format": FORMAT,
        "version": __version__,
        "torch": str(torch.__version__),
        "config": config,
        "model": None if config is None else _model_spec(model, config["model"]),
        "codec": None if codec is None else codec.to_dict(),
        "started_from": model.started_from if isinstance(model, Started) else None,
    }


def _codec(model: LightningModule) -> Any:
    """That of the data the model is trained on, or the one it was loaded with."""
    trainer = model._trainer  # `model.trainer` raises without one
    datamodule = None if trainer is None else vars(trainer).get("datamodule")
    for owner in (datamodule, model):
        if isinstance(owner, HasCodec) and owner.codec is not None:
            return owner.codec
    return None


def _model_spec(model: LightningModule, spec: dict[str, Any]) -> dict[str, Any]:
    """The configuration's model section, with what the command line linked from the data filled in."""
    class_path = spec.get("class_path", f"{type(model).__module__}.{type(model).__qualname__}")
    init_args = dict(spec.get("init_args", {} if "class_path" in spec else spec))
    linked: dict[str, Any] = {}
    if isinstance(model, OfData):
        linked = {"num_classes": model.num_classes, "shape": model.shape}
    init_args |= _filled(type(model), init_args, linked)
    init_args |= getattr(model, "carried_arguments", dict)()  # a LightningModule of the user's own may not have it
    for name, value in init_args.items():
        part = model._modules.get(name)
        if isinstance(value, dict) and "class_path" in value and part is not None:
            nested = dict(value.get("init_args") or {})
            init_args[name] = {**value, "init_args": nested | _filled(type(part), nested, linked)}
    return {"class_path": class_path, "init_args": init_args}


def _filled(kind: type, init_args: dict[str, Any], linked: dict[str, Any]) -> dict[str, Any]:
    """Those linked values that the constructor takes and the configuration leaves open."""
    taken = inspect.signature(kind).parameters
    known = {name: value for name, value in linked.items() if value is not None and init_args.get(name) is None}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in known.items() if name in taken}
