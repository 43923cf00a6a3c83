"""The data sets that `lightning evaluate` measures on: from the user's files, or as a checkpoint describes its own.

A checkpoint may be a stranger's. Its section builds trusted classes only (rundir/building.py), and reading it prepares
nothing but what `make_ready` names: for the rest, the command that prepares it is printed. All that reading leaves in a
folder of prepared data, if it is the user's own, is which blocks were compared with their checksums (data/verified.py).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from ggm_lightning.cli import config as config_files
from ggm_lightning.cli import own_code, packaged
from ggm_lightning.data.base import Benchmark, DiscreteData
from ggm_lightning.data.header import HEADER
from ggm_lightning.data.prepared import PreparedData
from ggm_lightning.data.rows import check_labels
from ggm_lightning.models.base import Family
from ggm_lightning.networks.labels import labels_known
from ggm_lightning.rundir import building

Section = dict[str, Any]  # `data:` of a configuration: class_path and init_args


@dataclass(frozen=True)
class EvaluationSet:
    """A data set to measure on.

    Attributes:
        name: for the table and the names of files.
        section: its configuration, with every default in it.
        split: val or test; of a benchmark its own part.
        command: what prepares it.
    """

    name: str
    section: Section
    data: DiscreteData
    split: str
    command: str


@dataclass(frozen=True)
class Source:
    """Where a section comes from: `file` of the user's, None: the command line or the checkpoint."""

    section: Section
    file: str | None
    users_own: bool


def sections(
    files: list[str] | None, section: Section | None, trained: Any, overrides: Section, ckpt_path: str
) -> dict[str, Source]:
    """The data sections by name. A file that names no class is merged over the training's section; one that does
    stands for itself, since folders and files of the training are not its own."""
    trained = trained if isinstance(trained, dict) else {}
    base = config_files.merge(trained, section or {})
    named: dict[str, Source] = {}
    patterns = [path for given in files or [] for path in packaged.expand(given)]
    for file in map(packaged.find_data, patterns):
        if Path(file).is_file() and Path(file).suffix not in (".yaml", ".yml"):
            raise ValueError(f"--data {file}: is no .yaml; a text of your own: --data text_file --data.train {file}")
        found = config_files.without_appends(config_files.load_file(file)).get("data")
        if not isinstance(found, dict):
            raise ValueError(f"--data {file}: no section `data` in it; give class_path and init_args below data:")
        name = Path(file).stem if Path(file).stem not in named else file
        own = "class_path" in found
        named[name] = Source(found if own else config_files.merge(base, found), file, own)
    if not named:
        if not isinstance(base.get("class_path"), str):
            raise ValueError(f"{ckpt_path} does not say on which data it was trained; give --data FILE")
        own = not trained or trained.get("class_path") != base["class_path"]
        named = {base["class_path"].rpartition(".")[2]: Source(base, None, own)}
    for name, one in named.items():
        merged = config_files.merge(one.section, overrides)
        config_files.check_sections({"data": merged})
        named[name] = Source(merged, one.file, one.users_own)
    return named


def opened(name: str, source: Source, model: Family, split: str, seed: Any, trust: Sequence[str]) -> EvaluationSet:
    """The data set of a section, completed from the model; nothing is read or written yet."""
    section, data = _own(source.section, seed) if source.users_own else _checkpoints(source.section, seed, trust)
    command = _command(source)
    if isinstance(data, Benchmark):
        data.complete(model.codec, model.shape)
        split, command = data.part, ""  # what the model completed is not in the file: it is prepared here
    theirs, ours = tuple(data.shape), tuple(model.shape)
    if theirs != ours:  # known before hours of preparation
        raise ValueError(f"{name}: shape mismatch: the data has {theirs}, the model {ours}; make the data agree")
    return EvaluationSet(re.sub(r"[^\w.-]", "_", name), section, data, split, command)


def _own(section: Section, seed: Any) -> tuple[Section, DiscreteData]:
    """A section that is the user's from one end to the other."""
    own_code.open_folder(own_code.dotted_names(section))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DiscreteData, "data", required=True)
    given = {**section, "init_args": {**(section.get("init_args") or {}), "seed": seed}}  # as a fit links it
    config = parser.parse_object({"data": given})
    config_files.check_nulls(config.data, "data")
    return config.data.as_dict(), parser.instantiate_classes(config).data


def _checkpoints(section: Section, seed: Any, trust: Sequence[str]) -> tuple[Section, DiscreteData]:
    try:
        return section, building.build(section, DiscreteData, trust, seed=seed)
    except building.Refused as error:
        raise ValueError(f"the checkpoint's data section is refused, {error}; or give --data FILE") from None


def _command(source: Source) -> str:
    """`lightning prepare` for a section, as it can be typed."""
    if source.file is not None and source.users_own:
        return f"lightning prepare --config {shlex.quote(source.file)}"
    given = {name: value for name, value in (source.section.get("init_args") or {}).items() if value is not None}
    words = [f"--data.{name}={value}" for name, value in given.items()]
    return shlex.join(["lightning", "prepare", f"--data={source.section.get('class_path')}", *words])


def make_ready(one: EvaluationSet, prepare: bool) -> None:
    """Prepared data are read. Those that come with the packages are made, in a new folder below runs/; any others only
    where `prepare` says so. A folder that holds other data is never touched.

    Raises:
        ValueError: what is missing, and the command that makes it.
    """
    try:
        reason = one.data.unprepared()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{one.name}: {error}") from error
    if reason is None:
        return
    if isinstance(one.data, PreparedData):
        one.data.refuse_other_owner()
        if (one.data.folder / HEADER).exists():
            raise ValueError(
                f"{one.name}: {one.data.folder} holds other data ({reason}), which are left as they are; name another "
                "folder by --data.folder, or prepare them yourself"
            )
        if one.data.embedded and _is_new_run_folder(one.data.folder):
            prepare = True
    if not prepare:
        where = one.data.folder if isinstance(one.data, PreparedData) else one.name
        how = f"`{one.command}` prepares it, or --prepare true here" if one.command else "--prepare true prepares it"
        raise ValueError(f"{one.name}: {where} is not prepared ({reason}); {how}")
    one.data.prepare_data()


def _is_new_run_folder(folder: Path) -> bool:
    empty = not folder.exists() or not any(folder.iterdir())
    return empty and folder.resolve().is_relative_to(Path("runs").resolve())


def check(one: EvaluationSet, model: Family) -> None:
    """All that can be wrong with a prepared set is found here, before anything is measured: another tokenizer,
    vocabulary or shape, missing files, labels that the network does not know."""
    _refuse_other_data(model, one.data, one.name)
    rows = one.data.rows(rows_of(one))
    rows.check_model(model)
    known = labels_known(model.network)
    if known:
        check_labels(rows, known, one.split)
    _ = one.data.characters_per_token


def rows_of(one: EvaluationSet) -> str:
    return "test" if isinstance(one.data, Benchmark) else one.split


def _refuse_other_data(model: Family, data: DiscreteData, name: str) -> None:
    """Equal ids of another tokenizer mean something else, and a bound on them means nothing."""
    codec = model.codec
    if codec is not None:
        own = f"{type(codec).__name__} of {codec.num_classes} ids"
        try:
            data.load_state_dict({"codec": own, "tokenizer_hash": codec.tokenizer_hash})
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if data.num_classes != model.num_classes:
        raise ValueError(
            f"{name}: vocabulary mismatch: the data has {data.num_classes}, the model {model.num_classes}; make the "
            "data agree"
        )
