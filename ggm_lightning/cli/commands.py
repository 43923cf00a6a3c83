"""`lightning sample` and `lightning infill`: from a checkpoint alone, on any device, without the trainer's settings.

`evaluate`, the third command of that kind, has a module of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from jsonargparse import ArgumentParser

from ggm_lightning.cli import drawing, infill_input
from ggm_lightning.cli import evaluate as evaluation
from ggm_lightning.cli import inspect as inspection
from ggm_lightning.cli.drawing import Asked
from ggm_lightning.cli.loading import load_family, trusted_names
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
        evaluation.run(experiment, args)
        return
    if command == "inspect" and args and not args[0].startswith("-"):
        args = ["--ckpt_path", *args]  # the file alone is enough
    parser = ArgumentParser(
        prog=f"lightning {command}", description=(COMMANDS[command].__doc__ or "").split("\n")[0], **_STRICT
    )
    parser.add_function_arguments(COMMANDS[command], as_group=False, skip={"named", "options"})
    further: dict[str, Any] = {}
    if command != "inspect":
        args, options = _without_options(args)
        further = {"named": trusted_names(None, experiment), "options": options}
    COMMANDS[command](**parser.parse_args(args).as_dict(), **further)


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
_OPTIONS_BY_NAME = ("--latent_steps",)  # those that need no --sampler. before them


_STRICT: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
evaluate = evaluation.evaluate  # here, too, as the command line looks up what a command takes
inspect = inspection.inspect


def _refuse_another_model(section: dict[str, Any], path: str) -> None:
    theirs = restore.model_section(checkpoint_files.read(path)) or {}
    found = [text for text in differences(section, theirs) if not text.split(" is ")[1].startswith("None")]
    if found:
        raise ValueError(f"--config and --ckpt_path {path} disagree: {'; '.join(found[:3])}; leave --config out")


def sample(
    ckpt_path: str,
    num_samples: int = 16,
    num_steps: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    grid: str | None = None,
    sampler: str | None = None,
    label: int | str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    out: str | None = None,
    device: str = "auto",
    again: bool = False,
    trust: str | None = None,
    named: Sequence[str] = (),
    options: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Draw samples from a checkpoint.

    Args:
        ckpt_path: file written by `lightning fit`; its averaged weights are used.
        num_samples: how many.
        num_steps: reverse steps; more is closer to the model's own law. GGM: of sampler parallel alone.
        temperature: 1 draws from the model, less sharpens.
        top_p: mass of the nucleus; 1 draws from the model.
        grid: times of the steps, cosine or uniform, for families that let you choose.
        sampler: by its name (an unknown one lists the family's, whose first is the default), or the path of a class of
            your own. Its options follow as --sampler.NAME VALUE; --latent_steps is LDDM's.
        label: class to condition on, or `each` for all of them in turn.
        seed: sample r is a function of (seed, r), whatever the batch size.
        batch_size: samples drawn at once.
        out: folder for the results; default samples-<settings>/ beside the checkpoint.
        device: auto, cpu, cuda, ...
        again: draw again what is there already.
        trust: packages or classes of your own that the checkpoint may build, separated by commas.
        named: (library) more such names.
        options: (library) of the sampler, as texts.
    """
    loaded = load_family(ckpt_path, device, (*trusted_names(trust, {}), *named))
    values = {"temperature": temperature, "top_p": top_p, **drawing.typed(loaded.model, sampler, options)}
    asked = Asked(num_samples, num_steps, grid, sampler, label, seed, values)
    drawing.draw_samples(loaded, asked, batch_size, out, again)


def infill(
    ckpt_path: str,
    text: str | None = None,
    input: str | None = None,
    mask: str | None = None,
    blank: str = "_",
    num_samples: int = 4,
    num_steps: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    grid: str | None = None,
    sampler: str | None = None,
    label: int | str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    out: str | None = None,
    device: str = "auto",
    again: bool = False,
    trust: str | None = None,
    named: Sequence[str] = (),
    options: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Fill what is missing, leaving everything else untouched.

    Args:
        ckpt_path: file written by `lightning fit`; its averaged weights are used.
        text: a text in which each blank symbol stands for one token (one character for character models).
        input: instead of text: a .txt file with such a text, a picture of the model's size (8-bit grey or RGB, each
            pixel taken to the nearest of the model's levels), or an .npz with `x` (integers, the model's shape, or a
            batch of them) and `mask` (bool, True where x is to be filled).
        mask: what to fill of a picture: a picture that is white there and black elsewhere, or left, right, top, bottom.
        blank: the symbol that marks a blank in texts.
        num_samples: fillings of each input.
        num_steps: reverse steps. GGM: of sampler parallel alone.
        temperature: 1 draws from the model, less sharpens.
        top_p: mass of the nucleus; 1 draws from the model.
        grid: times of the steps, cosine or uniform, for families that let you choose.
        sampler: by its name (an unknown one lists the family's, whose first is the default), or the path of a class of
            your own. Its options follow as --sampler.NAME VALUE; --latent_steps is LDDM's.
        label: class to condition on.
        seed: filling r is a function of (seed, r).
        batch_size: fillings drawn at once.
        out: folder for the results; default infilled-<settings>/ beside the checkpoint.
        device: auto, cpu, cuda, ...
        again: fill again what is there already.
        trust: packages or classes of your own that the checkpoint may build, separated by commas.
        named: (library) more such names.
        options: (library) of the sampler, as texts.
    """
    loaded = load_family(ckpt_path, device, (*trusted_names(trust, {}), *named))
    given = infill_input.read(loaded.model, text, input, mask, blank)
    values = {"temperature": temperature, "top_p": top_p, **drawing.typed(loaded.model, sampler, options)}
    asked = Asked(num_samples, num_steps, grid, sampler, label, seed, values)
    drawing.fill(loaded, given, asked, batch_size, out, again)


COMMANDS: dict[str, Callable[..., Any]] = {
    "sample": sample,
    "infill": infill,
    "evaluate": evaluate,
    "inspect": inspect,
}
