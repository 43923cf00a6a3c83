"""The command line: fit, validate, test, predict by LightningCLI; sample, infill, evaluate from a checkpoint alone.

    lightning fit --config experiments/md4_demo.yaml [--trainer.max_steps 100 ...]

An error ends in one line (errors.py; GGM_DEBUG=1 shows the traceback). Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import difflib
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ggm_lightning.cli import config as config_files
from ggm_lightning.cli import errors

_TRAINER_COMMANDS = {
    "fit": "train: writes checkpoints, metrics.csv, curve.png and report.html into runs/<name>/",
    "validate": "bound on the validation split",
    "test": "bound on the test split",
    "predict": "bound of every validation example, written to runs/<name>/bounds.csv",
}
_PREPARE = {"prepare": "write what an experiment's data needs on the disk, ahead of time; --verify true checks it"}
_CHECKPOINT_COMMANDS = {
    "sample": "draw from a checkpoint: text or pictures, integers, and the denoising step by step",
    "infill": "fill the blanks of a text, a picture or an array, leaving the rest untouched",
    "evaluate": "bound of a checkpoint on one or several data sets, such as configs/data/zeroshot_*.yaml",
    "inspect": "what a checkpoint holds and whose classes it needs; builds and imports nothing",
}


def main(args: list[str] | None = None) -> None:
    """Entry point of `lightning` and `python -m ggm_lightning`.

    Exits with 2 after a mistake in the command, its files or their place, with 1 after a failure in other code.
    """
    args = sys.argv[1:] if args is None else args
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
    except Exception as error:
        if type(error).__name__ == "Stopped":  # callbacks/stop.py
            _leave(str(error), error.exit_code)  # type: ignore[attr-defined]
        if os.environ.get("GGM_DEBUG") == "1":
            raise
        sys.exit(errors.report(error, args, partial(_parsing_message, args[0])))


def _leave(message: str, exit_code: int) -> NoReturn:
    if message:
        print(message, file=sys.stderr)
    sys.exit(exit_code)


def _parsing_message(command: str, message: str) -> str:
    if command in _TRAINER_COMMANDS:
        return config_files.one_line(message)
    if command in _PREPARE:
        return config_files.one_line(message, ("data", "verify"))
    from ggm_lightning.cli import commands as checkpoint_commands

    return config_files.one_line(message, config_files.parameters(checkpoint_commands.COMMANDS[command]))


def _dispatch(args: list[str]) -> None:
    commands = {**_PREPARE, **_TRAINER_COMMANDS, **_CHECKPOINT_COMMANDS}
    if not args or args[0] in ("-h", "--help"):
        print("usage: lightning COMMAND [--config FILE] [--key value ...]\n")
        for name, text in commands.items():
            print(f"  {name:<9} {text}")
        print("\n`lightning COMMAND --help` lists the keys; GGM_DEBUG=1 shows tracebacks.")
        return
    command = args[0]
    if command not in commands:
        close = difflib.get_close_matches(command, commands, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known commands: {', '.join(commands)}"
        raise ValueError(f"unknown command '{command}'; {hint}")
    paths, rest = config_files.take_config_arguments(args[1:])
    merged: dict[str, Any] = {}
    for path in paths:
        merged = config_files.merge(merged, config_files.load_file(path))
    merged = config_files.settled(merged)
    config_files.check_sections(merged)
    if command in _PREPARE:
        from ggm_lightning.cli import prepare as preparation

        preparation.run(merged, rest)
        return
    if command in _CHECKPOINT_COMMANDS:
        from ggm_lightning.cli import commands as checkpoint_commands

        checkpoint_commands.run(command, merged, rest)
        return
    if paths:
        merged.setdefault("name", Path(paths[-1]).stem)
    _run_trainer_command(command, merged, rest)


def _run_trainer_command(command: str, merged: dict[str, Any], rest: list[str]) -> None:
    for name in (argument.split("=")[0] for argument in rest):
        if name.replace(".init_args", "") in ("--model.seed", "--data.seed"):
            raise ValueError(f"{name} is given, but it is taken from --seed_everything; leave it out")
    from ggm_lightning.cli.fit import build

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "experiment.yaml"
        file.write_text(yaml.safe_dump(merged, sort_keys=False), encoding="utf-8")
        argv = [command, *(["--config", str(file)] if merged else []), *rest]
        build(command, argv)


if __name__ == "__main__":
    main()
