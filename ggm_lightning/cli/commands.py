"""The commands that work from a checkpoint alone, each in a file of its own: their words parsed, the command called."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser

from ggm_lightning.cli import config as config_files
from ggm_lightning.cli import ranks
from ggm_lightning.cli.evaluate import evaluate
from ggm_lightning.cli.evaluation_command import LIBRARY, keys_of_measures
from ggm_lightning.cli.evaluation_command import run as run_evaluation
from ggm_lightning.cli.export import export
from ggm_lightning.cli.importing import import_model
from ggm_lightning.cli.infill import infill
from ggm_lightning.cli.inspect import inspect
from ggm_lightning.cli.loading import trusted_names
from ggm_lightning.cli.sample import sample
from ggm_lightning.cli.sweep import run as run_sweep
from ggm_lightning.cli.sweep import sweep
from ggm_lightning.rundir import checkpoint as checkpoint_files
from ggm_lightning.rundir import restore
from ggm_lightning.rundir.sections import differences


def run(command: str, experiment: dict[str, Any], args: list[str]) -> None:
    """Parses the command's own arguments. An experiment file may be named too: its model must be the checkpoint's, and
    the classes that it names may be built."""
    given = [a for i, a in enumerate(args) if (i and args[i - 1] == "--ckpt_path") or a.startswith("--ckpt_path=")]
    if experiment.get("model") and given:
        _refuse_another_model(experiment["model"], given[0].removeprefix("--ckpt_path="))
    if command == "evaluate":
        args, options = _without_options(args)
        run_evaluation(experiment, args, options)
        return
    if command == "sweep":
        args, options = _without_options(args)
        run_sweep(args, trusted_names(None, experiment), options)
        return
    if command in ("sample", "infill"):
        _refuse_another_length(command, args)
    if command == "inspect" and args and not args[0].startswith("-"):
        args = ["--ckpt_path", *args]  # the file alone is enough
    if command == "import":
        args = _named_path(args)
    parser = ArgumentParser(
        prog=f"lightning {command}", description=(COMMANDS[command].__doc__ or "").split("\n")[0], **_STRICT
    )
    parser.add_function_arguments(COMMANDS[command], as_group=False, skip=LIBRARY)
    further: dict[str, Any] = {}
    if command not in ("inspect", "import"):  # which build nothing but classes of this package
        further = {"named": trusted_names(None, experiment)}
    if command in ("sample", "infill"):
        args, further["options"] = _without_options(args)
    if command in ranks.DIVIDED:
        ranks.add_option(parser)
    COMMANDS[command](**ranks.without_option(parser.parse_args(args).as_dict()), **further)


def keys_of(command: str) -> list[str]:
    """What may be given to it."""
    known = config_files.parameters(COMMANDS[command])
    if command == "evaluate":
        known = ["measures", *known, *keys_of_measures()]
    return [name for name in known if name not in LIBRARY]


def _refuse_another_length(command: str, args: list[str]) -> None:
    """ValueError for what other programs call the number of tokens, or the text to go on with."""
    for name in (argument.partition("=")[0] for argument in args):
        if name in _LENGTHS:
            raise ValueError(
                f"{name}: a model draws rows as long as those of its training (`lightning inspect` says how long); "
                "leave it out, or train with another data.length"
            )
        if name in _BEGINNINGS and command == "sample":
            raise ValueError(
                f"{name}: sample draws from nothing; for a text that is known in part: lightning infill --text 'The "
                "____ statement' --ckpt_path ..."
            )


_LENGTHS = ("--length", "--seq_len", "--max_length", "--max_new_tokens", "--num_tokens")
_BEGINNINGS = ("--text", "--prompt", "--prefix")


def _named_path(args: list[str]) -> list[str]:
    """`import --from mdlm PATH`, with the names that a function's arguments may have: --source, --path."""
    named = [re.sub("^--from(?==|$)", "--source", word) for word in args]
    for i, word in enumerate(named):
        behind_option = i > 0 and named[i - 1].startswith("--") and "=" not in named[i - 1]
        if not word.startswith("-") and not behind_option:
            return [*named[:i], "--path", *named[i:]]
    return named


def _without_options(args: list[str]) -> tuple[list[str], dict[str, str]]:
    """(the other arguments, the options of the sampler): --sampler.NAME VALUE or --sampler.NAME=VALUE."""
    rest, options, waiting = [], {}, list(args)
    while waiting:
        word = waiting.pop(0)
        name, given, value = word.partition("=")
        if not name.startswith(_OPTION) and name not in _OPTIONS_BY_NAME:
            rest.append(word)
            continue
        if not given and not waiting:
            raise ValueError(f"{name} is the last word; give its value")
        options[name.removeprefix(_OPTION).removeprefix("--")] = value if given else waiting.pop(0)
    return rest, options


_OPTION = "--sampler."
_OPTIONS_BY_NAME = ("--latent_steps", "--particles")  # those that need no --sampler. before them


_STRICT: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}


def _refuse_another_model(section: dict[str, Any], path: str) -> None:
    theirs = restore.model_section(checkpoint_files.read(path)) or {}
    found = [text for text in differences(section, theirs) if not text.split(" is ")[1].startswith("None")]
    if found:
        raise ValueError(f"--config and --ckpt_path {path} disagree: {'; '.join(found[:3])}; leave --config out")


COMMANDS: dict[str, Callable[..., Any]] = {
    "sample": sample,
    "infill": infill,
    "evaluate": evaluate,
    "sweep": sweep,
    "inspect": inspect,
    "export": export,
    "import": import_model,
}
