"""The command line: fit, validate, test, predict by LightningCLI; sample, infill, evaluate from a checkpoint alone.

    lightning fit --config md4_demo [--trainer.max_steps 100 ...]

An error ends in one line (errors.py; GGM_DEBUG=1 shows the traceback). Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import sys
import tempfile
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import yaml

import ggm_lightning
from ggm_lightning.cli import config as config_files
from ggm_lightning.cli import errors, launcher, own_code, packaged, ranks, together
from ggm_lightning.rundir.endings import Stopped
from ggm_lightning.rundir.hub import Apart

_TRAINER_COMMANDS = {
    "fit": "train: writes checkpoints, metrics.csv, curve.png and report.html into runs/<name>/",
    "validate": "bound on the validation split",
    "test": "bound on the test split",
    "predict": "bound of every validation example, written to runs/<name>/bounds.csv",
}
_PACKAGE_COMMANDS = {
    "list": "the experiments and data sets that come with this package",
    "copy": "an experiment and the pieces that it includes, as files of your own: copy md4_demo [FOLDER]",
}
_RUN_COMMANDS = {
    "report": "the page of a run from its folder; of several, one that compares them: report runs/x runs/y",
    "check": "a class of your own: what it is asked and what came; a checkpoint: what its samplers fill in",
}
_PREPARE = {"prepare": "write what an experiment's data needs on the disk, ahead of time; --verify true checks it"}
_CHECKPOINT_COMMANDS = {
    "sample": "draw from a checkpoint: text or pictures, integers, and the denoising step by step",
    "infill": "fill the blanks of a text, a picture or an array, leaving the rest untouched",
    "evaluate": "bound of a checkpoint on one or several data sets, such as configs/data/zeroshot_*.yaml",
    "sweep": "quality against budget: steps x sampler x temperature on one or several checkpoints, with plots",
    "export": "a checkpoint as a folder to hand on: no pickle, with tokenizer, model card and checksums",
    "import": "weights that others published, as such a folder: import --from mdlm PATH --out DIR",
    "inspect": "what a checkpoint holds and whose classes it needs; builds and imports nothing",
}


def main(args: list[str] | None = None) -> None:
    """Entry point of `lightning`, `ggm-lightning` and `python -m ggm_lightning`.

    Exits with 2 after a mistake in the command, its files or their place, with 1 after a failure in other code.
    """
    args = sys.argv[1:] if args is None else args
    _let_threads_sleep()
    errors.set_run_folder(None)
    try:
        _dispatch(args)
    except KeyboardInterrupt:
        _leave("stopped by Ctrl-C", 130)
    except SystemExit as error:
        # before training begins, Lightning turns Ctrl-C into an exit of its own
        if isinstance(error.__context__, KeyboardInterrupt):
            _leave("stopped by Ctrl-C before training began; nothing was to be saved", 130)
        raise
    except Stopped as stopped:
        if stopped.goes_back:
            print(stopped, file=sys.stderr, flush=True)  # before SLURM ends this process
            together.put_back(stopped.is_preempted, stopped.exit_code)
        _leave(str(stopped), stopped.exit_code)
    except Exception as error:
        sys.exit(_reported(error, args))
    finally:
        ranks.end()
        together.close_session()


def _reported(error: Exception, args: list[str]) -> int:
    """The exit code, once the one line is said: of several ranks by one of them."""
    session = together.session()
    if isinstance(error, Apart) and (str(error) or session is None or not session.is_of_another()):
        errors.say(str(error))
        return 1
    if session is not None and session.is_of_another():
        errors.say(session.last_line())
        return 1
    if os.environ.get("GGM_DEBUG") == "1":
        if session is not None:
            session.chosen(f"{type(error).__name__}: {error}")  # else the others would wait for this rank
        raise error
    if session is None and isinstance(error, launcher.Mismatch) and launcher.place().rank > 0:
        return 2
    chosen = None if session is None else session.chosen
    return errors.report(error, args, partial(_parsing_message, args), chosen)


def _let_threads_sleep() -> None:
    """OpenMP's threads wait for one another by spinning. Where another program has one of the cores, all spin for as
    long as that one is late, and a step takes several times as long: let them sleep instead. OpenMP reads this once,
    when torch is loaded, so it is set before that; a setting of the user's stays."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "0"


def _leave(message: str, exit_code: int) -> NoReturn:
    if message:
        print(message, file=sys.stderr)
    sys.exit(exit_code)


def _parsing_message(args: list[str], message: str) -> str:
    """The parser's words in one line; the classes of the --config files say which keys there are."""
    command = args[0]
    if command in _TRAINER_COMMANDS:
        return config_files.one_line(message, experiment=_experiment(args[1:])[0])
    if command in _PREPARE:
        return config_files.one_line(message, ("data", "verify"), _experiment(args[1:])[0])
    if command in _RUN_COMMANDS:
        return config_files.one_line(message, ("folders", "out") if command == "report" else ())
    if command in _PACKAGE_COMMANDS:
        return config_files.one_line(message, ("name", "folder") if command == "copy" else ())
    from ggm_lightning.cli import commands as checkpoint_commands

    return config_files.one_line(message, checkpoint_commands.keys_of(command))


def _dispatch(args: list[str]) -> None:
    commands = {**_PACKAGE_COMMANDS, **_PREPARE, **_TRAINER_COMMANDS, **_RUN_COMMANDS, **_CHECKPOINT_COMMANDS}
    if not args or args[0] in ("-h", "--help"):
        print("usage: lightning COMMAND [--config FILE] [--key value ...]\n")
        for name, text in commands.items():
            print(f"  {name:<9} {text}")
        print("\n`lightning COMMAND --help` lists the keys, --version the versions; GGM_DEBUG=1 shows tracebacks.")
        return
    command = args[0]
    if command == "--version":
        print(_versions())
        return
    if command not in commands:
        close = difflib.get_close_matches(command, commands, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known commands: {', '.join(commands)}"
        raise ValueError(f"unknown command '{command}'; {hint}")
    if command in _CHECKPOINT_COMMANDS:
        args = [command, *ranks.begin(launcher.place(), args)]
    if command in _PACKAGE_COMMANDS or command in _RUN_COMMANDS:
        importlib.import_module(f"ggm_lightning.cli.{command}").run(args[1:])
        return
    merged, files, rest = _experiment(args[1:], tell=True)
    config_files.check_sections(merged)
    if command in _CHECKPOINT_COMMANDS:
        from ggm_lightning.cli import commands as checkpoint_commands
        from ggm_lightning.cli.loading import trusted_names

        if command != "inspect":  # which builds nothing
            own_code.open_folder(trusted_names(_behind_trust(rest), merged))
        checkpoint_commands.run(command, merged, rest)
        return
    own_code.open_folder(own_code.dotted_names([merged, rest]))
    if command in _PREPARE:
        from ggm_lightning.cli import prepare as preparation

        preparation.run(merged, rest)
        return
    if files:
        merged.setdefault("name", files[-1].stem)
    _run_trainer_command(command, merged, rest)


def _experiment(args: list[str], tell: bool = False) -> tuple[dict[str, Any], list[Path], list[str]]:
    """The --config files merged, where they were found, and the other arguments."""
    paths, rest = config_files.take_config_arguments(args)
    merged: dict[str, Any] = {}
    files = []
    for path in paths:
        merged = config_files.merge(merged, config_files.load_file(path))
        files.append(packaged.find(path))
        note = packaged.note(path, files[-1])
        if note and tell:
            print(note, file=sys.stderr)
    return config_files.without_appends(merged), files, rest


def _behind_trust(rest: list[str]) -> str:
    """The names that the user trusts, separated by commas, as the command's own parser will read them."""
    given = [value for option, value in pairwise(rest) if option == "--trust"]
    given += [option.removeprefix("--trust=") for option in rest if option.startswith("--trust=")]
    return ",".join(given)


def _versions() -> str:
    """Of this package and the two that decide what it does; read from what is installed, without importing them."""
    others = [f"{name} {version(name)}" for name in ("torch", "lightning")]
    return ", ".join([f"ggm_lightning {ggm_lightning.__version__}", *others])


def _own_options(command: str, rest: list[str]) -> list[str]:
    """`--freeze a --freeze b` as the one list that the parser takes; ValueError where it, or --init_from, is not for
    the command. (In a --config file both may stand anywhere: a saved one serves every command.)"""
    patterns: list[str] = []
    others: list[str] = []
    arguments = iter(rest)
    for argument in arguments:
        name, given, value = argument.partition("=")
        if name in ("--freeze", "--init_from") and command != "fit":
            raise ValueError(f"{name} is for `lightning fit` alone; {command} takes the weights of --ckpt_path")
        if name != "--freeze":
            others.append(argument)
            continue
        value = value if given else next(arguments, "")
        patterns += yaml.safe_load(value) if value.startswith("[") else [value]
    return [*others, f"--freeze={json.dumps(patterns)}"] if patterns else others


def _run_trainer_command(command: str, merged: dict[str, Any], rest: list[str]) -> None:
    for name in (argument.split("=")[0] for argument in rest):
        if name.replace(".init_args", "") in ("--model.seed", "--data.seed"):
            raise ValueError(f"{name} is given, but it is taken from --seed_everything; leave it out")
    rest = _own_options(command, rest)
    merged, rest = config_files.take_nulls(merged, rest)
    place = launcher.place()
    merged, rest = launcher.fill(place, merged, rest)
    launcher.refuse(place, command, launcher.trainer_section(merged, rest))
    together.open_session(place, together.folder_of(merged, rest), fits=command == "fit")
    from ggm_lightning.cli.fit import build

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "experiment.yaml"
        file.write_text(yaml.safe_dump(merged, sort_keys=False), encoding="utf-8")
        argv = [command, *(["--config", str(file)] if merged else []), *rest]
        build(command, argv)


if __name__ == "__main__":
    main()
