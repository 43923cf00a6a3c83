"""`lightning evaluate`: the bound of a checkpoint on one or several data sets, on any device, without a trainer.

A row's estimate is a function of (seed, its number in the data set): batch size and limit change nothing but
rounding. With the defaults it is what `lightning validate` calls val/nelbo.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor
from tqdm import tqdm

from ggm_lightning import __version__
from ggm_lightning import config as config_files
from ggm_lightning.data.base import DiscreteData
from ggm_lightning.data.rows import RowSource, check_labels
from ggm_lightning.data.zeroshot import ZeroShotText
from ggm_lightning.loading import load_family
from ggm_lightning.metrics.likelihood import Likelihood
from ggm_lightning.models.base import Family
from ggm_lightning.rundir import checkpoint as checkpoint_files

_PLAIN_SECONDS = 30.0  # between two lines where the output is no terminal and has no bar
Section = dict[str, Any]  # `data:` of a configuration: class_path and init_args


@dataclass(frozen=True)
class Settings:
    """How the bound is estimated: see `evaluate`."""

    split: str
    num_samples: int
    seed: int
    batch_size: int
    limit: int | None

    def __post_init__(self) -> None:
        if self.split not in ("val", "test"):
            raise ValueError(f"--split is {self.split!r}; choose val or test")
        for key in ("num_samples", "batch_size", "limit"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"--{key} is {value}; it must be at least 1")


@dataclass(frozen=True)
class Bound:
    """What was measured on one set.

    Attributes:
        nats: Float64[rows], the upper bound on -log p of each row.
        num_sites: tokens (or pixels x channels) of a row.
        split: val or test; of a zero-shot set its own part.
        of_rows: how many rows the split has.
        characters_per_token: of text, where the data knows it.
        seconds: for the bounds, without the preparation of the data.
    """

    name: str
    section: Section
    split: str
    nats: Tensor
    num_sites: int
    text: bool
    of_rows: int
    characters_per_token: float | None
    seconds: float

    def figures(self) -> dict[str, float | None]:
        """Mean and standard error in every unit; None where one row alone gives no error, or a unit means nothing."""
        likelihood = Likelihood(self.num_sites, self.text)
        likelihood.update(self.nats)
        plain = {name: float(value) for name, value in likelihood.compute().items()}
        for end in ("", "_stderr"):
            plain[f"nats_per_token{end}"] = plain[f"bpd{end}"] * math.log(2)
            if self.characters_per_token:
                plain[f"bits_per_character{end}"] = plain[f"bpd{end}"] / self.characters_per_token
        found: dict[str, float | None] = dict(plain)
        if len(self.nats) == 1:
            found |= {name: None for name in found if name.endswith("_stderr")}
        return found


def evaluate(
    ckpt_path: str,
    data: list[str] | None = None,
    split: str = "val",
    num_samples: int | None = None,
    seed: int | None = None,
    batch_size: int = 64,
    limit: int | None = None,
    device: str = "auto",
    out: str | None = None,
    section: Section | None = None,
    overrides: Section | None = None,
) -> list[Bound]:
    """Upper bound on -log p of a checkpoint's averaged weights, dropout off, on one or several data sets.

    Args:
        ckpt_path: file written by `lightning fit`.
        data: files with a section `data`, such as configs/data/zeroshot_ptb.yaml, one behind the other; without them
            the data of --config, or else that of the training.
        split: val, or test for the test split where the data has one.
        num_samples: corrupted states per row; the default is the model's eval_samples (1 unless it was set). The
            standard error contains their noise: per row its variance falls as 1 / num_samples, and the more rows, the
            less there is to gain. (SEDD's published figures took 1,000.)
        seed: of times and corruption; the default is the model's eval_seed, that of validation.
        batch_size: rows at once.
        limit: only the first rows.
        device: auto, cpu, cuda, ...
        out: file for the figures; default evaluation.json beside the checkpoint.
        section: (library) the data section to use where `data` is not given.
        overrides: (library) merged over every data section; on the command line --data.init_args.KEY VALUE.
    """
    model = load_family(ckpt_path, device)
    checkpoint = checkpoint_files.read(ckpt_path)
    about = checkpoint.get(checkpoint_files.KEY) or {}
    trained = about.get("config") or {}
    settings = Settings(
        split,
        num_samples=model.eval_samples if num_samples is None else num_samples,
        seed=model.eval_seed if seed is None else seed,
        batch_size=batch_size,
        limit=limit,
    )
    found = []
    for name, one in _sections(data, section, trained.get("data"), overrides or {}, ckpt_path).items():
        resolved, built = _build(one, trained.get("seed_everything", 0))
        found.append(_measure(model, name, resolved, built, settings))
    path = Path(out) if out else Path(ckpt_path).parent / "evaluation.json"
    what = {"checkpoint": str(ckpt_path), "step": checkpoint.get("global_step"), "model": about.get("model")}
    _write(path, found, {**what, **asdict(settings), "device": str(model.device)})
    print(table(found, f"{type(model).__name__} of {ckpt_path}", settings))
    print(f"figures: {path}", file=sys.stderr)
    return found


def run(experiment: dict[str, Any], args: list[str]) -> None:
    """Parses the command's arguments: several files behind one --data, and --data.KEY for what is in them."""
    args, overrides = _take_overrides(_joined(args))
    parser = ArgumentParser(
        prog="lightning evaluate",
        description=evaluate.__doc__.split("\n")[0],
        exit_on_error=False,
        allow_abbrev=False,  # type: ignore[union-attr]
    )
    parser.add_function_arguments(evaluate, as_group=False, skip={"section", "overrides"})
    given = parser.parse_args(args)
    evaluate(**given.as_dict(), section=config_files.settled(experiment).get("data"), overrides=overrides)


def _joined(args: list[str]) -> list[str]:
    """['--data', 'a', 'b', '--seed', '1'] as ['--data=["a", "b"]', '--seed', '1']."""
    rest: list[str] = []
    files: list[str] = []
    taking = False
    for argument in args:
        if argument == "--data" or argument.startswith("--data="):
            taking = argument == "--data"
            files += [] if taking else [argument.removeprefix("--data=")]
        elif taking and not argument.startswith("--"):
            files.append(argument)
        else:
            taking = False
            rest.append(argument)
    if not files and any(argument == "--data" for argument in args):
        raise ValueError("--data needs at least one file behind it, such as configs/data/zeroshot_ptb.yaml")
    return [*rest, f"--data={json.dumps(files)}"] if files else rest


def _take_overrides(args: list[str]) -> tuple[list[str], Section]:
    """--data.init_args.length 128 (or =128) out of the arguments, as nested sections."""
    rest: list[str] = []
    found: Section = {}
    waiting = iter(args)
    for argument in waiting:
        if not argument.startswith("--data."):
            rest.append(argument)
            continue
        key, equals, value = argument.removeprefix("--data.").partition("=")
        value = value if equals else next(waiting, None)  # type: ignore[assignment]
        if value is None:
            raise ValueError(f"--data.{key} needs a value behind it")
        nested: Any = yaml.safe_load(value)
        parts = key.split(".")
        for part in reversed(parts if parts[0] in ("init_args", "class_path") else ["init_args", *parts]):
            nested = {part: nested}
        found = config_files.merge(found, nested)
    return rest, found


def _sections(
    files: list[str] | None, section: Section | None, trained: Section | None, overrides: Section, ckpt_path: str
) -> dict[str, Section]:
    """The data sections by name. A file that names no class is merged over the training's section; one that does
    stands for itself, since folders and files of the training are not its own."""
    base = config_files.merge(trained or {}, section or {})
    named: dict[str, Section] = {}
    for file in files or []:
        found = config_files.settled(config_files.load_file(file)).get("data")
        if not isinstance(found, dict):
            raise ValueError(f"--data {file}: no section `data` in it; give class_path and init_args below data:")
        name = Path(file).stem if Path(file).stem not in named else file
        named[name] = found if "class_path" in found else config_files.merge(base, found)
    if not named:
        if "class_path" not in base:
            raise ValueError(f"{ckpt_path} does not say on which data it was trained; give --data FILE")
        named = {base["class_path"].rpartition(".")[2]: base}
    named = {name: config_files.merge(one, overrides) for name, one in named.items()}
    for one in named.values():
        config_files.check_sections({"data": one})
    return named


def _build(section: Section, seed: int) -> tuple[Section, DiscreteData]:
    """The section with every default in it, and what it describes."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DiscreteData, "data", required=True)
    given = {**section, "init_args": {**(section.get("init_args") or {}), "seed": seed}}  # as a fit links it
    config = parser.parse_object({"data": given})
    config_files.check_nulls(config.data, "data")
    return config.data.as_dict(), parser.instantiate_classes(config).data


def _measure(model: Family, name: str, section: Section, data: DiscreteData, settings: Settings) -> Bound:
    if isinstance(data, ZeroShotText):
        data.complete(getattr(model, "codec", None), model.shape)
    _refuse_other_data(model, data, name)
    data.prepare_data()
    rows = data.rows(settings.split)
    known = getattr(model.network, "num_labels", None)
    if known:
        check_labels(rows, known, settings.split)
    begin = time.monotonic()
    nats = bounds(model, rows, settings, name)
    of_test = settings.split == "test" and "test" in data.splits and not isinstance(data, ZeroShotText)
    return Bound(
        name,
        section,
        data.part if isinstance(data, ZeroShotText) else settings.split,
        nats,
        model.num_sites,
        text=len(model.shape) == 1,
        of_rows=len(rows),
        characters_per_token=None if of_test else data.characters_per_token,  # known of the validation split alone
        seconds=time.monotonic() - begin,
    )


def _refuse_other_data(model: Family, data: DiscreteData, name: str) -> None:
    """Equal ids of another tokenizer mean something else, and a bound on them means nothing."""
    codec = getattr(model, "codec", None)
    if codec is not None:
        own = f"{type(codec).__name__} of {codec.num_classes} ids"
        try:
            data.load_state_dict({"codec": own, "tokenizer_hash": codec.tokenizer_hash})
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    for what, theirs, ours in (
        ("vocabulary", data.num_classes, model.num_classes),
        ("shape", tuple(data.shape), tuple(model.shape)),
    ):
        if theirs != ours:
            raise ValueError(f"{name}: {what} mismatch: the data has {theirs}, the model {ours}; make the data agree")


def bounds(model: Family, rows: RowSource, settings: Settings, name: str = "") -> Tensor:
    """Float64[rows], nats: the bound of each of the first `limit` rows, with the noise of its own number."""
    count = min(len(rows), settings.limit or len(rows))
    step = settings.batch_size
    parts = []
    begin = shown = time.monotonic()
    with tqdm(total=count, unit="row", desc=name, dynamic_ncols=True, disable=None) as bar:
        for start in range(0, count, step):
            index = np.arange(start, min(start + step, count))
            batch = {key: value.to(model.device) for key, value in rows[index].items()}
            row = torch.from_numpy(index).to(model.device)
            found = model.nelbo(batch["x"], batch.get("label"), settings.num_samples, seed=settings.seed, row=row)
            parts.append(found.detach().double().cpu())
            bar.update(len(index))
            now = time.monotonic()
            if bar.disable and start + step < count and now - shown >= _PLAIN_SECONDS:
                shown, done = now, start + step
                left = (now - begin) / done * (count - done)
                print(f"{name}: {done:,} of {count:,} rows, {left:.0f} s left", file=sys.stderr, flush=True)
    return torch.cat(parts)


def table(found: list[Bound], title: str, settings: Settings) -> str:
    """What the command prints."""
    several = any(not one.text for one in found)
    unit = "dimension" if several else "token"
    states = f"{settings.num_samples} sample{'s' * (settings.num_samples != 1)} per row"
    head = ["set", "split", "rows", f"{unit}s", f"nats/{unit}", f"bits/{'dim' if several else 'token'}"]
    head += ["perplexity", "bits/character"]
    lines = [head]
    for one in found:
        figures = one.figures()
        part = f" of {one.of_rows:,}" if len(one.nats) < one.of_rows else ""
        line = [one.name, one.split, f"{len(one.nats):,}{part}", f"{len(one.nats) * one.num_sites:,}"]
        units = (("nats_per_token", ".4f"), ("bpd", ".4f"), ("ppl", ".3f"), ("bits_per_character", ".4f"))
        lines.append([*line, *(_with_error(figures, unit, form) for unit, form in units)])
    used = [column for column in range(len(head)) if any(line[column] for line in lines[1:])]
    widths = {column: max(len(line[column]) for line in lines) for column in used}
    rows = ["  ".join(line[column].ljust(widths[column]) for column in used).rstrip() for line in lines]
    return "\n".join([f"{title}: upper bounds on -log p, {states}, seed {settings.seed}", *rows])


def _with_error(figures: dict[str, float | None], name: str, form: str) -> str:
    value, error = figures.get(name), figures.get(f"{name}_stderr")
    if value is None:
        return ""
    return f"{value:{form}}" if error is None else f"{value:{form}} ± {error:{form}}"


def _write(path: Path, found: list[Bound], about: dict[str, Any]) -> None:
    """Replaces the file as a whole, or leaves it as it was."""
    sets = [
        {
            "name": one.name,
            "data": one.section,
            "split": one.split,
            "rows": len(one.nats),
            "of_rows": one.of_rows,
            "sites_per_row": one.num_sites,
            "tokens": len(one.nats) * one.num_sites,
            "characters_per_token": one.characters_per_token,
            **one.figures(),
            "seconds": round(one.seconds, 3),
        }
        for one in found
    ]
    content = {
        "what": "upper bounds on -log p; nelbo in nats per example, bpd in bits per token or dimension",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        **about,
        "sets": sets,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=1, default=str) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
