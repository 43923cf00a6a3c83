"""The README.md of a model that is handed on: what it is, what was measured, and how it is used."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ggm_lightning.cli import measure_files
from ggm_lightning.report.evaluation_rows import Row, said, tables
from ggm_lightning.rundir.exported import WEIGHTS
from ggm_lightning.rundir.terminal import visible

_UNITS = (("bpd", "bits per token or dimension"), ("ppl", "perplexity"), ("nelbo", "nats per example"))
_REQUIRED = {"name", "split", "rows", "nelbo"}
_LONGEST = 300


@dataclass(frozen=True)
class Figures:
    """What `lightning evaluate` measured of a checkpoint.

    Attributes:
        bounds: contents of the bounds' files.
        evaluations: name of the folder -> the rows of the other measures in it.
    """

    bounds: Sequence[dict[str, Any]] = ()
    evaluations: dict[str, list[Row]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.bounds) + len(self.evaluations)


def card(name: str, licence: str, config: dict[str, Any], parameters: int, figures: Figures) -> str:
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


def figures_of(folder: Path, identity: str) -> Figures:
    """What `lightning evaluate` measured of this very checkpoint, from its files below the folder."""
    bounds = []
    for path in sorted(folder.glob("evaluation-*/*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and content.get("checkpoint_identity") == identity and content.keys() >= _REQUIRED:
            bounds.append(content)
    evaluations = {}
    for path in sorted(folder.glob(f"evaluation/*/{measure_files.WHOLE}")):
        rows = measure_files.whole_of(path.parent, identity)
        own = [row for row in rows if row.measure != "likelihood"]  # whose figures are in the bounds' files
        if own:
            evaluations[path.parent.name] = own
    return Figures(bounds, evaluations)


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


def _measured(figures: Figures) -> str:
    parts = [_bounds(figures.bounds)] if figures.bounds else []
    parts += [_evaluation(name, rows) for name, rows in figures.evaluations.items()]
    return "\n".join(["## Figures\n", *(parts or ["Nothing was measured when this folder was written.\n"])])


def _bounds(bounds: Sequence[dict[str, Any]]) -> str:
    units = [unit for unit, _ in _UNITS if any(one.get(unit) is not None for one in bounds)]
    rows = [["data", "split", "rows", *(text for unit, text in _UNITS if unit in units)]]
    rows += [[one["name"], one["split"], f"{one['rows']:,}", *(_figure(one, unit) for unit in units)] for one in bounds]
    told = [_protocol(one) for one in bounds]
    if any(told):
        rows = [[*row, text] for row, text in zip(rows, ["protocol", *told], strict=True)]
    exact = "Upper bounds on -log p (for an AutoregressiveModel -log p itself), with their standard errors:"
    return f"{exact}\n\n{_table(rows)}"


def _protocol(one: dict[str, Any]) -> str:
    """Of a bound, where it is not the usual one."""
    estimator = one.get("estimator") or "times"
    named = [one.get("protocol"), None if estimator == "times" else f"estimator {estimator}"]
    return ", ".join(text for text in named if text)


def _evaluation(name: str, rows: Sequence[Row]) -> str:
    """A table for each set and measure, and below them what was done."""
    parts = [f"`evaluation/{name}`, with standard errors:\n"]
    for table in tables(rows):
        lines = [[f"{table.set}: {table.measure}", *table.columns]]
        lines += [[title, *own] for title, own in table.lines]
        parts.append(_table([[text.replace("|", "/") for text in line] for line in lines]))
    told = [f"{row.measure}: {row.about['protocol']}" for row in rows if row.about.get("protocol")]
    said_of_all = [*dict.fromkeys(told), *(f"departs from the protocol: {text}" for text in said(rows, "departures"))]
    return "\n".join([*parts, *(f"- {line}" for line in said_of_all)]) + "\n"


def _figure(one: dict[str, Any], unit: str) -> str:
    value, error = one.get(unit), one.get(f"{unit}_stderr")
    if value is None:
        return ""
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def _table(rows: Sequence[Sequence[Any]]) -> str:
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
