"""`lightning evaluate`: the bound of a checkpoint on one or several data sets, on any device, without a trainer.

A row's estimate is a function of (seed, its number in the data set): batch size and limit change nothing but
rounding. With the defaults it is what `lightning validate` calls val/nelbo.
"""

from __future__ import annotations

import inspect
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor
from tqdm import tqdm

from ggm_lightning.cli import config as config_files
from ggm_lightning.cli import protocols
from ggm_lightning.cli.bound_files import Bound, BoundFile
from ggm_lightning.cli.evaluation_sets import (
    EvaluationSet,
    Section,
    Source,
    check,
    make_ready,
    opened,
    rows_of,
    sections,
)
from ggm_lightning.cli.loading import Loaded, load_family, trusted_names
from ggm_lightning.cli.results import folder_name
from ggm_lightning.core import noise
from ggm_lightning.data.base import Benchmark
from ggm_lightning.data.rows import RowSource
from ggm_lightning.models.base import Family
from ggm_lightning.sampling.arguments import check_estimator

_PLAIN_SECONDS = 30.0  # between two lines where the output is no terminal and has no bar
_COLUMNS = (
    ("nats_per_token", ".4f"),
    ("bpd", ".4f"),
    ("ppl", ".3f"),
    ("bits_per_character", ".4f"),
    ("ppl_word", ".2f"),
)


@dataclass(frozen=True)
class Settings:
    """How the bound is estimated: see `evaluate`."""

    split: str
    num_samples: int
    seed: int
    batch_size: int
    limit: int | None
    estimator: str = "times"
    protocol: str | None = None

    def __post_init__(self) -> None:
        if self.split not in ("val", "test"):
            raise ValueError(f"--split is {self.split!r}; choose val or test")
        counts = {"num_samples": self.num_samples, "batch_size": self.batch_size, "limit": self.limit}
        for key, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"--{key} is {value}; it must be at least 1")


def evaluate(
    ckpt_path: str,
    data: list[str] | None = None,
    split: str = "val",
    num_samples: int | None = None,
    seed: int | None = None,
    batch_size: int = 64,
    limit: int | None = None,
    estimator: str = "times",
    protocol: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    out: str | None = None,
    prepare: bool = False,
    again: bool = False,
    trust: str | None = None,
    section: Section | None = None,
    overrides: Section | None = None,
    named: Sequence[str] = (),
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
        seed: of times and corruption; the default is the model's eval_seed, that of validation. Of several sets each
            has a seed of its own, made from this one and the set's name: their errors are independent of each other.
        batch_size: rows at once.
        limit: only the first rows.
        estimator: times, or counts, whose noise within a row is a fraction of it at the same cost and whose mean is the
            same: MD4 in continuous time (core/counts.py).
        protocol: of zero-shot sets sedd (their default) or mdlm; words for perplexity per word. See cli/protocols.py.
        device: auto, cpu, cuda, ...
        precision: of the network's products: 32, bf16, or auto, on cuda that of the training, else 32.
        out: folder for the figures, a file for each set; default evaluation-<settings>/ beside the checkpoint.
        prepare: prepare what is not prepared, in a folder that is not there yet; else its command is named.
        again: measure again what was measured already.
        trust: packages or classes of your own that the checkpoint may build, separated by commas.
        section: (library) the data where `data` is not given.
        overrides: (library) merged over every data section; on the command line --data.init_args.KEY VALUE.
        named: (library) more trusted names.
    """
    trusted = (*trusted_names(trust, {"data": section, "overrides": overrides}), *named)
    loaded = load_family(ckpt_path, device, trusted, precision)
    settings = _settings(loaded.model, split, num_samples, seed, batch_size, limit, estimator, protocol)
    sources = sections(data, section, loaded.config.get("data"), overrides or {}, ckpt_path)
    sets = _ready(loaded, protocols.applied(sources, protocol), settings, trusted, prepare)
    folder = Path(out) if out else loaded.results / _folder(loaded, settings)
    found = _measured(loaded, sets, settings, folder, again)
    print(table(found, f"{type(loaded.model).__name__} of {ckpt_path}", settings, loaded.model.exact))
    return found


def _settings(
    model: Family,
    split: str,
    num_samples: int | None,
    seed: int | None,
    batch_size: int,
    limit: int | None,
    estimator: str,
    protocol: str | None,
) -> Settings:
    num_samples = model.eval_samples if num_samples is None else num_samples
    seed = model.eval_seed if seed is None else seed
    settings = Settings(split, num_samples, seed, batch_size, limit, estimator, protocol)
    protocols.check(protocol)
    try:
        check_estimator(model, estimator)
    except ValueError as error:
        raise ValueError(f"--{error}") from None
    if estimator != "times" and "estimator" not in inspect.signature(model.nelbo).parameters:
        raise ValueError(f"--estimator {estimator}: {type(model).__name__}.nelbo takes no `estimator`; leave it out")
    return settings


def _ready(
    loaded: Loaded, sources: Mapping[str, Source], settings: Settings, trusted: Sequence[str], prepare: bool
) -> list[EvaluationSet]:
    """The sets, prepared and checked: all that can be wrong with any of them is found before one is measured."""
    seed = loaded.config.get("seed_everything", 0)
    sets = [opened(name, one, loaded.model, settings.split, seed, trusted) for name, one in sources.items()]
    for one in sets:
        protocols.check_set(one, settings.protocol)
    for one in sets:
        make_ready(one, prepare)
    for one in sets:
        check(one, loaded.model)
    return sets


def _measured(loaded: Loaded, sets: list[EvaluationSet], settings: Settings, folder: Path, again: bool) -> list[Bound]:
    """The bounds on all sets, each written when it is finished, or read where it was measured before."""
    about: dict[str, Any] = {"checkpoint_identity": loaded.identity, "step": loaded.step, **loaded.noted}
    about |= {"model": loaded.about.get("model"), **asdict(settings)}
    about.pop("batch_size")  # it changes nothing but rounding
    seeds = seeds_of_sets(settings.seed, [one.name for one in sets])
    of_sets = [{"set_seed": seeds[one.name], "protocol": protocols.of_set(one, settings.protocol)} for one in sets]
    files = [BoundFile.of(folder, one, about | own) for one, own in zip(sets, of_sets, strict=True)]
    how = _how(loaded)
    found = []
    for one, file in zip(sets, files, strict=True):
        if losses := one.data.losses():
            print(f"{one.name}: {losses}", file=sys.stderr)
        bound = None if again else file.read(loaded.model)
        if bound is None:
            with loaded.computing():
                bound = _measure(loaded.model, one, replace(settings, seed=seeds[one.name]))
            file.write(bound, how)
            print(f"figures: {file.path}", file=sys.stderr)
        else:
            print(f"measured already: {file.path}; --again true does it again", file=sys.stderr)
            if one.data.characters_per_token is None:  # older versions gave figures per character in any case
                bound = replace(bound, characters_per_token=None)
        found.append(bound)
    return found


def seeds_of_sets(seed: int, names: Sequence[str]) -> dict[str, int]:
    """The seed of each set. One alone has `seed` itself, as in validation. Of several, row 0 of one set would have the
    noise of row 0 of the others, and all their errors one sign: each has a seed of its own, whatever the others are."""
    if len(names) == 1:
        return {names[0]: seed}
    return {name: noise.integer_seed(f"evaluate {name}", seed=seed, step=0) for name in names}


def _how(loaded: Loaded) -> dict[str, str]:
    """What a figure depends on up to rounding, or should not depend on: for the reader of its file."""
    model = loaded.model
    return {
        "checkpoint": str(loaded.path),
        "weights": "average" if loaded.averaged else "raw",
        "device": str(model.device),
        "precision": loaded.precision,
    }


def _folder(loaded: Loaded, settings: Settings) -> str:
    return folder_name(
        "evaluation",
        loaded.step,
        ("", settings.split, ""),
        ("", settings.num_samples, "samples"),
        ("", None if settings.estimator == "times" else settings.estimator, ""),
        ("", settings.protocol, ""),
        ("seed", settings.seed, ""),
        ("limit", settings.limit, ""),
        ("", loaded.noted.get("precision"), ""),
    )


def run(experiment: dict[str, Any], args: list[str]) -> None:
    """Parses the command's arguments: several files behind one --data, and --data.KEY for what is in them."""
    args, overrides = _take_overrides(_joined(args))
    parser = ArgumentParser(
        prog="lightning evaluate",
        description=evaluate.__doc__.split("\n")[0],
        exit_on_error=False,
        allow_abbrev=False,  # type: ignore[union-attr]
    )
    parser.add_function_arguments(evaluate, as_group=False, skip={"section", "overrides", "named"})
    given = parser.parse_args(args)
    named = trusted_names(None, experiment)
    section = config_files.without_appends(experiment).get("data")
    evaluate(**given.as_dict(), section=section, overrides=overrides, named=named)


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


def _measure(model: Family, one: EvaluationSet, settings: Settings) -> Bound:
    rows = one.data.rows(rows_of(one))
    begin = time.monotonic()
    variances: list[Tensor] = []
    nats = nats_of_rows(model, rows, settings, one.name, variances)
    seconds = time.monotonic() - begin
    departures = protocols.departures(one, settings.protocol, settings.num_samples, settings.estimator)
    of_test = settings.split == "test" and "test" in one.data.splits and not isinstance(one.data, Benchmark)
    return Bound(
        one.name,
        one.section,
        one.split,
        nats,
        model.num_sites,
        text=len(model.shape) == 1,
        of_rows=len(rows),
        characters_per_token=None if of_test else one.data.characters_per_token,  # known of the validation split alone
        seconds=seconds,
        words=protocols.words(one, rows, len(nats)) if settings.protocol == "words" else None,
        departures=tuple(departures),
        masks_stderr=float(torch.cat(variances).sum().sqrt()) / len(nats) if variances else None,
    )


def nats_of_rows(
    model: Family, rows: RowSource, settings: Settings, name: str = "", variances: list[Tensor] | None = None
) -> Tensor:
    """Float64[rows], nats: the bound of each of the first `limit` rows, with the noise of its own number. Where the
    family tells them, the variances of these estimates are added to `variances`."""
    count = min(len(rows), settings.limit or len(rows))
    step = settings.batch_size
    parts = []
    # a family of the user's need not know of these
    options: dict[str, Any] = {} if settings.estimator == "times" else {"estimator": settings.estimator}
    if "variances" in inspect.signature(model.nelbo).parameters:
        options["variances"] = variances
    options["seed"] = settings.seed
    begin = shown = time.monotonic()
    with tqdm(total=count, unit="row", desc=name, dynamic_ncols=True, disable=None) as bar:
        for start in range(0, count, step):
            index = np.arange(start, min(start + step, count))
            batch = {key: value.to(model.device) for key, value in rows[index].items()}
            row = torch.from_numpy(index).to(model.device)
            found = model.nelbo(batch["x"], batch.get("label"), settings.num_samples, row=row, **options)
            parts.append(found.detach().double().cpu())
            bar.update(len(index))
            now = time.monotonic()
            if bar.disable and start + step < count and now - shown >= _PLAIN_SECONDS:
                shown, done = now, start + step
                left = (now - begin) / done * (count - done)
                print(f"{name}: {done:,} of {count:,} rows, {left:.0f} s left", file=sys.stderr, flush=True)
    return torch.cat(parts)


def table(found: list[Bound], title: str, settings: Settings, exact: bool = False) -> str:
    """What the command prints. exact: -log p itself, which no samples are needed for."""
    several = any(not one.text for one in found)
    unit = "dimension" if several else "token"
    states = f"{settings.num_samples} sample{'s' * (settings.num_samples != 1)} per row, seed {settings.seed}"
    states += " and the set's name" * (len(found) > 1)
    if settings.estimator != "times":
        states += f", by {settings.estimator}"
    what = "-log p, exact" if exact else f"upper bounds on -log p, {states}"
    head = ["set", "split", "rows", f"{unit}s", f"nats/{unit}", f"bits/{'dim' if several else 'token'}"]
    head += ["perplexity", "bits/character", "perplexity/word", f"nats/{unit}: ± of rows, of masks"]
    lines = [head]
    for one in found:
        figures = one.figures()
        part = f" of {one.of_rows:,}" if len(one.nats) < one.of_rows else ""
        line = [one.name, one.split, f"{len(one.nats):,}{part}", f"{len(one.nats) * one.num_sites:,}"]
        lines.append([*line, *(_with_error(figures, figure, form) for figure, form in _COLUMNS), _split(figures)])
    used = [column for column in range(len(head)) if any(line[column] for line in lines[1:])]
    widths = {column: max(len(line[column]) for line in lines) for column in used}
    rows = ["  ".join(line[column].ljust(widths[column]) for column in used).rstrip() for line in lines]
    return "\n".join([f"{title}: {what}", *rows, *_notes(found)])


def _with_error(figures: dict[str, float | None], name: str, form: str) -> str:
    value, error = figures.get(name), figures.get(f"{name}_stderr")
    if value is None:
        return ""
    return f"{value:{form}}" if error is None else f"{value:{form}} ± {error:{form}}"


def _split(figures: dict[str, float | None]) -> str:
    rows, masks = (figures.get(f"nats_per_token_stderr_{source}") for source in ("rows", "masks"))
    return "" if rows is None or masks is None else f"± {rows:.4f} ± {masks:.4f}"


def _notes(found: list[Bound]) -> list[str]:
    """In what the sets depart from their protocols, each departure once."""
    named: dict[str, list[str]] = {}
    for one in found:
        for departure in one.departures:
            named.setdefault(departure, []).append(one.name)
    return [f"departs from {departure} ({', '.join(names)})" for departure, names in named.items()]
