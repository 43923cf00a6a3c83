"""`lightning inspect`: what a checkpoint says of itself; nothing of it is built, imported or believed."""

from __future__ import annotations

import json
from typing import Any

import yaml
from torch import Tensor

from ggm_lightning.rundir import building, codecs, exported
from ggm_lightning.rundir import checkpoint as checkpoint_files
from ggm_lightning.rundir.terminal import visible

_UNKNOWN = "not said"


def inspect(ckpt_path: str) -> None:
    """Say what a checkpoint holds: family, sizes, step, data, tokenizer, versions, configuration, and whose classes it
    needs.

    Args:
        ckpt_path: any checkpoint file, or model that was handed on (a folder, hub:OWNER/NAME); it need not be yours.
    """
    path = exported.local(ckpt_path)
    checkpoint = checkpoint_files.read(path, "meta")
    facts = facts_of(checkpoint)
    file = path / exported.WEIGHTS if path.is_dir() else path
    facts["file"] = f"{ckpt_path}, {file.stat().st_size / 1e6:,.1f} MB"
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {visible(value)}")
    print(f"configuration\n{visible(_configuration(checkpoint_files.about(checkpoint).get('config')))}")


def _configuration(config: Any) -> str:
    """Of the training, as YAML."""
    if config is None:
        return f"  {_UNKNOWN}"
    try:
        plain = json.loads(json.dumps(config, default=str))
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    except (TypeError, ValueError, RecursionError) as error:
        return f"  cannot be shown ({error})"
    return "\n".join(f"  {line}" for line in text.rstrip().splitlines())


def facts_of(checkpoint: dict[str, Any]) -> dict[str, str]:
    """Lines for the terminal. What a file may claim is shown as it stands, cut where it is long."""
    about, weights = checkpoint_files.about(checkpoint), checkpoint["state_dict"]
    model, config = _section(about, "model"), _section(about, "config")
    arguments = _section(model, "init_args")
    step = checkpoint_files.step_of(checkpoint)
    facts = {
        "file": "",
        "family": _name(model),
        "network": _name(_section(arguments, "network")),
        "weights": _weights(weights),
        "vocabulary": _text(arguments.get("num_classes")),
        "shape": _text(arguments.get("shape")),
        "step": _UNKNOWN if step is None else f"{step:,}",
        "averaged": _averaged(checkpoint),
        "started from": _origin(_section(about, "started_from")),
        "data": _described(_section(config, "data")),
        "tokenizer": _codec(_section(about, "codec")),
        "versions": _versions(checkpoint, about),
        "needs": _needs(about),
    }
    return facts


def _section(of: dict[str, Any], key: str) -> dict[str, Any]:
    found = of.get(key)
    return found if isinstance(found, dict) else {}


def _name(section: dict[str, Any]) -> str:
    return _text(section.get("class_path"))


def _text(value: Any, most: int = 200) -> str:
    if value is None:
        return _UNKNOWN
    text = str(value)
    return text if len(text) <= most else f"{text[:most]} ..."


def _origin(started_from: dict[str, Any]) -> str:
    """Of a run that began with another one's weights."""
    if not started_from:
        return "new weights, as far as it says"
    return _text(f"{started_from.get('given')}, step {started_from.get('step')}, {started_from.get('identity')}")


def _weights(weights: dict[str, Tensor]) -> str:
    numbers = sum(value.numel() for value in weights.values())
    kinds = sorted({str(value.dtype).removeprefix("torch.") for value in weights.values()})
    return f"{numbers:,} numbers in {len(weights):,} tensors ({', '.join(kinds)})"


def _averaged(checkpoint: dict[str, Any]) -> str:
    if "current_model_state" in checkpoint:
        return "yes: averages in front, the raw weights beside"
    if checkpoint_files.about(checkpoint).get("averaged", False) is None:  # of a model that others published
        return _UNKNOWN
    return "yes" if checkpoint_files.averaged(checkpoint) else "no"


def _described(section: dict[str, Any]) -> str:
    """The class and those arguments that were given."""
    if not section:
        return _UNKNOWN
    given = {name: value for name, value in _section(section, "init_args").items() if value is not None}
    return _text(f"{_name(section)} ({', '.join(f'{name} {value}' for name, value in given.items())})", 600)


def _codec(described: dict[str, Any]) -> str:
    if not described:
        return _UNKNOWN
    try:
        described = codecs.current(described)
    except (ValueError, TypeError) as error:
        return _text(str(error))
    shown = {name: value for name, value in _section(described, "init_args").items() if name != "tokenizer_json"}
    return _text(f"{_name(described)} ({', '.join(f'{name} {value!r}' for name, value in shown.items())})")


def _versions(checkpoint: dict[str, Any], about: dict[str, Any]) -> str:
    return (
        f"format {_text(checkpoint_files.format_of(checkpoint))}, ggm_lightning {_text(about.get('version'))}, "
        f"torch {_text(about.get('torch'))}, lightning {_text(checkpoint.get('pytorch-lightning_version'))}"
    )


def _needs(about: dict[str, Any]) -> str:
    """Whose classes would be built: of the model, its codec and the data."""
    try:
        parts = [about.get("model"), about.get("codec"), _section(_section(about, "config"), "data")]
        foreign = building.foreign(parts)
    except building.Refused as error:
        return str(error)
    if not foreign:
        return "classes of this package alone"
    return f"{_text(', '.join(foreign), 400)}: foreign code, built only with{building.trust_option(parts)}"
