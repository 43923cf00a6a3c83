"""The README.md of a model that is handed on: what it is, what was measured, and how it is used."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import yaml

from ggm_lightning.rundir.exported import WEIGHTS
from ggm_lightning.rundir.terminal import visible

_UNITS = (("bpd", "bits per token or dimension"), ("ppl", "perplexity"), ("nelbo", "nats per example"))
_REQUIRED = {"name", "split", "rows", "nelbo"}
_LONGEST = 300


def card(name: str, licence: str, config: dict[str, Any], parameters: int, figures: list[dict[str, Any]]) -> str:
    """The text.

    Args:
        name: of the folder.
        licence: of the weights, an identifier of the hub.
        config: what config.json holds.
        parameters: of the model.
        figures: of `figures_of`.
    """
    model = config.get("model") or {}
    family, network = _class(model), _class((model.get("init_args") or {}).get("network"))
    head = {"license": licence, "library_name": "ggm_lightning", "tags": ["discrete-diffusion", family.lower()]}
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {name}\n",
        f"{family} with the network {network}: {parameters:,} parameters, {_weights(config)}.\n",
        _table([("", ""), *_facts(config).items()]),
        _measured(figures),
        _use(name, config),
    ]
    return visible("\n".join(parts))


def figures_of(folder: Path, identity: str) -> list[dict[str, Any]]:
    """What `lightning evaluate` measured of this very checkpoint, from its files below the folder."""
    found = []
    for path in sorted(folder.glob("evaluation-*/*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and content.get("checkpoint_identity") == identity and content.keys() >= _REQUIRED:
            found.append(content)
    return found


def _weights(config: dict[str, Any]) -> str:
    kind = "averaged weights" if config.get("averaged") else "weights"
    step = config.get("step")
    return f"{kind} of an unknown step" if step is None else f"{kind} of step {step:,}"


def _facts(config: dict[str, Any]) -> dict[str, str]:
    arguments = (config.get("model") or {}).get("init_args") or {}
    data = (config.get("config") or {}).get("data")
    facts = {
        "classes": str(arguments.get("num_classes")),
        "shape of an example": str(arguments.get("shape")),
        "codec": _class(config.get("codec")),
        "trained on": "not said" if not data else _described(data),
        "version": f"ggm_lightning {config.get('version')}, torch {config.get('torch')}",
    }
    return facts if config.get("source") is None else facts | {"converted from": str(config["source"])}


def _described(section: dict[str, Any]) -> str:
    given = {name: value for name, value in (section.get("init_args") or {}).items() if value is not None}
    text = f"{_class(section)} ({', '.join(f'{name} {value}' for name, value in given.items())})".replace("|", "/")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _measured(figures: list[dict[str, Any]]) -> str:
    if not figures:
        return "## Figures\n\nNothing was measured when this folder was written.\n"
    units = [unit for unit, _ in _UNITS if any(one.get(unit) is not None for one in figures)]
    rows = [("data", "split", "rows", *(text for unit, text in _UNITS if unit in units))]
    rows += [
        (one["name"], one["split"], f"{one['rows']:,}", *(_figure(one, unit) for unit in units)) for one in figures
    ]
    exact = "Upper bounds on -log p (for an AutoregressiveModel -log p itself), with their standard errors:"
    return f"## Figures\n\n{exact}\n\n{_table(rows)}"


def _figure(one: dict[str, Any], unit: str) -> str:
    value, error = one.get(unit), one.get(f"{unit}_stderr")
    if value is None:
        return ""
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def _table(rows: list[tuple[Any, ...]]) -> str:
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]]) + "\n"


def _use(name: str, config: dict[str, Any]) -> str:
    foreign = config.get("needs") or []
    needs = f" It also needs code of {', '.join(foreign)}, which is not in this folder." if foreign else ""
    trust = f", trust={tuple(foreign)!r}" if foreign else ""
    option = f" --trust {','.join(foreign)}" if foreign else ""
    code = [f"model = ggm_lightning.load({name!r}{trust})"]
    quoted = shlex.quote(name)
    commands = [f"lightning inspect {quoted}"]
    if _class(config.get("model")) == "VQGAN":
        commands.append(f"lightning prepare --config vqgan --data.source pictures --data.vqgan {quoted}")
    else:
        shown = "model.codec.decode(samples.x.numpy())" if config.get("codec") else "samples.x"
        code += ["samples = model.sample(num_samples=4, num_steps=64)", f"print({shown})"]
        commands.append(f"lightning sample --ckpt_path {quoted}{option} --num_samples 4 --num_steps 64")
        commands.append(f"lightning fit --config mine.yaml --init_from {quoted}")
    return (
        f"## Use\n\nIt is loaded by the Python package ggm_lightning. `{WEIGHTS}` holds numbers alone, and no code is "
        f"executed.{needs}\n\n"
        f"```python\nimport ggm_lightning\n\n{chr(10).join(code)}\n```\n\n"
        f"```sh\n{chr(10).join(commands)}\n```\n"
    )


def _class(section: Any) -> str:
    """The bare name of the class that a section describes."""
    path = section.get("class_path") if isinstance(section, dict) else None
    return str(path).rpartition(".")[2] if path else "none"
