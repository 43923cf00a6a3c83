"""`lightning evaluate`: the bound of a checkpoint on one or several data sets, on any device, without a trainer.

A row's estimate is a function of (seed, its number in the data set): batch size and limit change nothing but
rounding. With the defaults it is what `lightning validate` calls val/nelbo.
"""

from __future__ import annotations

import inspect
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ggm_lightning.cli import protocols, ranks
from ggm_lightning.cli.bound_files import Bound, BoundFile, Settings
from ggm_lightning.cli.bound_table import table
from ggm_lightning.cli.evaluation_sets import (
    EvaluationSet,
    Section,
    check,
    make_ready,
    opened,
    rows_of,
    sections,
)
from ggm_lightning.cli.loading import Loaded, load_family, trusted_names
from ggm_lightning.cli.parts import Parts, batches, divided
from ggm_lightning.cli.results import folder_name
from ggm_lightning.core import noise
from ggm_lightning.data.base import Benchmark
from ggm_lightning.data.rows import RowSource
from ggm_lightning.metrics.likelihood import error_of_states
from ggm_lightning.models.base import Family
from ggm_lightning.sampling.arguments import check_estimator

_PLAIN_SECONDS = 30.0  # between two lines where the output is no terminal and has no bar


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
    settings = checked_settings(loaded.model, split, num_samples, seed, batch_size, limit, estimator, protocol)
    sets = ready(loaded, settings, data, section, overrides, prepare, trusted)
    files = files_of_sets(loaded, sets, settings, Path(out) if out else default_folder(loaded, settings))
    bounds = [bound_of(loaded, one, settings, file, again) for one, file in zip(sets, files, strict=True)]
    found = [bound for bound in bounds if bound is not None]
    if ranks.current().is_first:
        print(table(found, f"{type(loaded.model).__name__} of {ckpt_path}", settings, loaded.model.exact))
    return found


def checked_settings(
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


_settings = checked_settings  # as it was called


def ready(
    loaded: Loaded,
    settings: Settings,
    data: list[str] | None,
    section: Section | None,
    overrides: Section | None,
    prepare: bool,
    trusted: Sequence[str],
) -> list[EvaluationSet]:
    """The sets, prepared and checked: all that can be wrong with any of them is found before one is measured."""
    sources = sections(data, section, loaded.config.get("data"), overrides or {}, str(loaded.path))
    cut = protocols.applied(sources, settings.protocol)
    seed = loaded.config.get("seed_everything", 0)
    sets = [opened(name, one, loaded.model, settings.split, seed, trusted) for name, one in cut.items()]
    for one in sets:
        protocols.check_set(one, settings.protocol)
    for one in sets:
        ranks.first_alone(partial(make_ready, one, prepare))
    for one in sets:
        check(one, loaded.model)
    return sets


def files_of_sets(loaded: Loaded, sets: Sequence[EvaluationSet], settings: Settings, folder: Path) -> list[BoundFile]:
    """The file of each set's figures, which is there or will be. OSError where the folder cannot be written."""
    about: dict[str, Any] = {"checkpoint_identity": loaded.identity, "step": loaded.step, **loaded.noted}
    about |= {"model": loaded.about.get("model"), **asdict(settings)}
    about.pop("batch_size")  # it changes nothing but rounding
    seeds = seeds_of_sets(settings.seed, [one.name for one in sets])
    found = []
    for one in sets:
        own = {"set_seed": seeds[one.name], "protocol": protocols.of_set(one, settings.protocol)}
        found.append(BoundFile.of(folder, one, about | own))
    return found


def bound_of(loaded: Loaded, one: EvaluationSet, settings: Settings, file: BoundFile, again: bool) -> Bound | None:
    """The bounds on a set, written when they are measured, or read where they were measured before. Of several ranks
    each measures its share of the rows, and rank 0 alone has the bounds."""
    here = ranks.current()
    losses = one.data.losses()
    if losses and here.is_first:
        print(f"{one.name}: {losses}", file=sys.stderr)
    bound = None if again else file.read(loaded.model)
    if here.agree(lambda: bound is not None):
        return _measured_already(bound, one, file) if here.is_first else None
    parts = Parts(file.path.with_name(f".parts-{file.path.stem}"), json.dumps(file.what, sort_keys=True))
    if again and here.is_first:
        parts.remove()  # what a stopped command left is done again, too
    with loaded.computing():
        bound = _measure(loaded.model, one, replace(settings, seed=file.what["set_seed"]), parts)
    if bound is None:
        return None
    file.write(bound, how(loaded))
    parts.remove()
    print(f"figures: {file.path}", file=sys.stderr)
    return bound


def _measured_already(bound: Bound | None, one: EvaluationSet, file: BoundFile) -> Bound | None:
    print(f"measured already: {file.path}; --again true does it again", file=sys.stderr)
    if bound is not None and one.data.characters_per_token is None:
        return replace(bound, characters_per_token=None)  # older versions gave figures per character in any case
    return bound


def seeds_of_sets(seed: int, names: Sequence[str]) -> dict[str, int]:
    """The seed of each set. One alone has `seed` itself, as in validation. Of several, row 0 of one set would have the
    noise of row 0 of the others, and all their errors one sign: each has a seed of its own, whatever the others are."""
    if len(names) == 1:
        return {names[0]: seed}
    return {name: noise.integer_seed(f"evaluate {name}", seed=seed, step=0) for name in names}


def how(loaded: Loaded) -> dict[str, str]:
    """What a figure depends on up to rounding, or should not depend on: for the reader of its file."""
    model = loaded.model
    return {
        "checkpoint": str(loaded.path),
        "weights": "average" if loaded.averaged else "raw",
        "device": str(model.device),
        "precision": loaded.precision,
    }


def default_folder(loaded: Loaded, settings: Settings) -> Path:
    """evaluation-<settings>/ beside the checkpoint."""
    name = folder_name(
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
    return loaded.results / name


def _measure(model: Family, one: EvaluationSet, settings: Settings, parts: Parts) -> Bound | None:
    rows = one.data.rows(rows_of(one))
    begin = time.monotonic()
    states: list[Tensor] = []
    nats = nats_in_parts(model, rows, settings, one.name, states, parts)
    if nats is None:
        return None
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
        masks_stderr=error_of_states(torch.cat(states)) if states else None,
    )


def nats_of_rows(
    model: Family, rows: RowSource, settings: Settings, name: str = "", states: list[Tensor] | None = None
) -> Tensor:
    """Float64[rows], nats: the bound of each of the first `limit` rows, with the noise of its own number. Where the
    family tells it, what each state came to is added to `states`, Float64[b, num_samples]."""
    nats = nats_in_parts(model, rows, settings, name, states, None)
    assert nats is not None  # nothing is divided without files
    return nats


def nats_in_parts(
    model: Family,
    rows: RowSource,
    settings: Settings,
    name: str,
    states: list[Tensor] | None,
    parts: Parts | None,
) -> Tensor | None:
    """As nats_of_rows, batch by batch, each kept in `parts`. Of several ranks rank 0 has them, the others None."""
    count = min(len(rows), settings.limit or len(rows))
    # a family of the user's need not know of these
    options: dict[str, Any] = {} if settings.estimator == "times" else {"estimator": settings.estimator}
    tells_states = "states" in inspect.signature(model.nelbo).parameters
    progress = _Progress(name)

    def measured(start: int, stop: int) -> dict[str, np.ndarray]:
        index = np.arange(start, stop)
        batch = {key: value.to(model.device) for key, value in rows[index].items()}
        row = torch.from_numpy(index).to(model.device)
        of_batch: list[Tensor] = []
        more = {**options, "states": of_batch} if tells_states else options
        nats = model.nelbo(batch["x"], model.label_of(batch), settings.num_samples, row=row, seed=settings.seed, **more)
        progress.add(stop - start)
        arrays = {"nats": nats.detach().double().cpu().numpy()}
        if of_batch:
            arrays["states"] = torch.cat(of_batch).cpu().numpy()
        return arrays

    with progress:
        found = divided(parts, batches(count, settings.batch_size), measured, begun=progress.begin)
    if found is None:
        return None
    if states is not None:
        states += [torch.from_numpy(one["states"]) for one in found if "states" in one]
    return torch.cat([torch.from_numpy(one["nats"]) for one in found])


class _Progress:
    """A bar, or where there is no terminal a line from time to time, for the rows of this rank.

    Args:
        name: of the set.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.bar: tqdm[Any] = tqdm(unit="row", desc=name, dynamic_ncols=True, disable=None)
        self.began = self.shown = time.monotonic()
        self.done = self.of = 0

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def begin(self, spans: Sequence[tuple[int, int]]) -> None:
        self.of = sum(stop - start for start, stop in spans)
        self.bar.reset(total=self.of)
        self.began = self.shown = time.monotonic()

    def add(self, count: int) -> None:
        self.done += count
        self.bar.update(count)
        now = time.monotonic()
        if self.bar.disable and self.done < self.of and now - self.shown >= _PLAIN_SECONDS:
            self.shown = now
            left = (now - self.began) / self.done * (self.of - self.done)
            print(f"{self.name}: {self.done:,} of {self.of:,} rows, {left:.0f} s left", file=sys.stderr, flush=True)
