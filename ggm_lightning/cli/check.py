"""`lightning check X`: of a class, what it is asked and what came; of a checkpoint, what its samplers fill in."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

import ggm_lightning
from ggm_lightning.cli import own_code
from ggm_lightning.core.arguments import whole_number

_SIZES = {"num_classes": 3, "shape": (3,)}  # of what is built to be looked at, where no others are given
_OF_MODEL = {"network": ("num_classes", "shape"), "rates": ("num_classes", "t_end")}
_SIGNS = {True: "ok   ", False: "FAILS", None: "told "}


def run(args: list[str]) -> None:
    """Exits with 2 where a question of a class has a wrong answer."""
    if not args or args[0] in ("-h", "--help"):
        print(check.__doc__)
        return
    if args[0].startswith("-"):
        raise ValueError(f"check {args[0]}: name a class or a checkpoint first, as in `lightning check mynet.Tiny`")
    name, rest = args[0], args[1:]
    if name.endswith(".py"):
        module = Path(name).stem
        raise ValueError(f"check {name}: a source file; name the class in it, as in `lightning check {module}.Tiny`")
    if name.endswith(".ckpt") or Path(name).exists():
        given = [word.removeprefix("--").partition("=")[0] for word in rest if word.startswith("--")]
        _check_keys(name, [key for key in given if key != "help"], list(inspect.signature(checkpoint).parameters)[1:])
        parser = ArgumentParser(prog="lightning check CHECKPOINT", exit_on_error=False, allow_abbrev=False)
        parser.add_function_arguments(checkpoint, as_group=False, skip={"ckpt_path"})
        checkpoint(name, **parser.parse_args(rest).as_dict())
        return
    check(name, **_given(rest))


def _given(rest: list[str]) -> dict[str, Any]:
    """--NAME VALUE or --NAME=VALUE, each as YAML."""
    found, waiting = {}, list(rest)
    while waiting:
        word = waiting.pop(0)
        name, given, value = word.partition("=")
        if not name.startswith("--") or (not given and not waiting):
            raise ValueError(f"check: {word} is no option; give the constructor's arguments as --NAME VALUE")
        found[name.removeprefix("--")] = yaml.safe_load(value if given else waiting.pop(0))
    return found


def _check_keys(name: str, given: Iterable[str], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            near = f"did you mean --{close[0]}?" if close else f"there are {', '.join(f'--{one}' for one in known)}"
            raise ValueError(f"check {name}: unknown key '{key}'; {near}")


def check(name: str, family: str = "ggm_lightning.models.md4.MD4", text: Any = (), **given: Any) -> None:
    """usage: lightning check CLASS [--NAME VALUE ...]        a class: package.module.Class, or file.Class
       lightning check CHECKPOINT [--KEY VALUE ...]    a checkpoint; its keys: --row, --sites, --num_samples,
                                                       --num_steps, --split, --seed, --device, --prepare, --trust

    A class is built with these arguments and asked what the package asks of its kind: network, codec, data set,
    family, sampler, schedule, rates. num_classes and shape are 3 and (3,) where it takes them and none are given.

    Args:
        family: of a network, the class that it is called by (GGM, or package.module.Class); default MD4.
        text: of a codec, a text to be encoded.
        given: the class's own arguments; of a network num_classes and shape in any case, of rates num_classes and
            t_end: those of the model around it.
    """
    from ggm_lightning.exact import contracts

    texts = (text,) if isinstance(text, str) else tuple(text)
    found = _found(name)
    given |= _sizes(name, given)
    kind = contracts.kind_of(found)
    made, arguments = _built(found, name, given, _OF_MODEL.get(kind, ()))
    sizes = {key: value for key, value in (given | arguments).items() if key in _OF_MODEL.get(kind, ())}
    print(f"{name}: {kind if kind == 'rates' else f'a {kind}'}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of samplers that say what their error is: here it is measured
        answers = contracts.answers(made, _found(family), texts, **sizes)
    for answer in answers:
        came = f": {answer.came}" if answer.came else ""
        print(f"  {_SIGNS[answer.passed]} {answer.asked}{came}")
    failed = [answer for answer in answers if answer.passed is False]
    if failed:
        first = ": ".join(text for text in (failed[0].asked, failed[0].came) if text)
        raise ValueError(f"check {name}: {len(failed)} of {len(answers)} answers are wrong; the first: {first}")
    print("  all is as it has to be")


def _sizes(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """num_classes, and shape as a tuple, where they are given; one number is the shape of a row."""
    found: dict[str, Any] = {}
    if given.get("num_classes") is not None:
        found["num_classes"] = whole_number(f"check {name}: num_classes", given["num_classes"], 1)
    if given.get("shape") is not None:
        sides = given["shape"] if isinstance(given["shape"], list | tuple) else [given["shape"]]
        found["shape"] = tuple(whole_number(f"check {name}: a side of shape", side, 1) for side in sides)
        if not sides:
            raise ValueError(f"check {name}: shape is []; give at least one whole number, as in --shape 8")
    return found


def _found(name: str) -> Any:
    """The class of this name; one of the working folder, too."""
    module, _, last = name.rpartition(".")
    if name in ggm_lightning.__all__:
        return getattr(ggm_lightning, name)
    if not module:
        raise ValueError(f"check {name}: there is no such file, and a class has its module before it: mynet.Tiny")
    own_code.open_folder([name])
    try:
        found = getattr(importlib.import_module(module), last)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"check {name}: not found ({error}); give package.module.Class, or file.Class") from None
    if not isinstance(found, type):
        raise ValueError(f"check {name}: it is no class; name one")
    return found


def _built(kind: type, name: str, given: dict[str, Any], of_model: Iterable[str]) -> tuple[Any, dict[str, Any]]:
    """(the object, its arguments): what is given, but what only the model around it takes; the sizes, and a family's
    network, where they are needed and not given."""
    from ggm_lightning.exact.networks import Equal
    from ggm_lightning.exact.subject import OF_TWO_FAMILIES
    from ggm_lightning.models.diladd import DiLADD

    if issubclass(kind, DiLADD):
        raise ValueError(f"check {name}: {OF_TWO_FAMILIES}")
    parameters = inspect.signature(kind).parameters
    if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        _check_keys(name, given, [*dict.fromkeys((*parameters, *of_model, "family", "text"))])
    given = {key: value for key, value in given.items() if key in parameters or key not in of_model}
    arguments: dict[str, Any] = {key: value for key, value in _SIZES.items() if key in parameters} | given
    if "network" in parameters and "network" not in given:
        arguments["network"] = Equal(arguments.get("num_classes", 3))
    if "encoder" in parameters and "encoder" not in given:
        exact = _with_latent(arguments["num_classes"], arguments["shape"])
        arguments |= {key: made for key, made in exact.items() if key in parameters and key not in given}
    try:
        inspect.signature(kind).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"check {name}: {error}; give its arguments as --NAME VALUE") from None
    try:
        return kind(**arguments), arguments
    except ValueError as error:
        raise ValueError(f"check {name}: {error} (its arguments are given as --NAME VALUE)") from None


def _with_latent(num_classes: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """Networks and encoder of a family with a latent; prove() puts its own in their places."""
    from ggm_lightning.core import gaussian
    from ggm_lightning.exact import JointLaw, latent

    law = JointLaw.random(math.prod(shape), num_classes)
    return latent.networks(law, latent.linear_code(law), gaussian.Sqrt())


def checkpoint(
    ckpt_path: str,
    row: int = 0,
    sites: list[int] | None = None,
    num_samples: int = 4000,
    num_steps: int = 64,
    split: str = "val",
    seed: int = 0,
    device: str = "auto",
    prepare: bool = False,
    trust: str | None = None,
) -> None:
    """Each sampler's law at a few free sites of a held-out row, beside the model's own conditional law.

    Args:
        ckpt_path: the file.
        row: its number in the split. sites: the free ones; default: one to three in the middle of the row, by how many
            values they have.
        num_samples: draws of each sampler. num_steps: of each draw; GGM: blocks, where its sampler takes any.
        split: val or test.
        seed: of the draws.
        device: auto, cpu or cuda.
        prepare: prepare the checkpoint's data where they are not.
        trust: packages or classes of your own that the checkpoint may build, with commas.
    """
    from ggm_lightning.cli import evaluation_sets
    from ggm_lightning.cli.loading import load_family, trusted_names
    from ggm_lightning.exact import filled

    for key, value in (("num_samples", num_samples), ("num_steps", num_steps)):
        whole_number(key, value, 1)
    names = trusted_names(trust, {})
    own_code.open_folder(names)
    loaded = load_family(ckpt_path, device, names)
    model = loaded.model
    found = evaluation_sets.sections(None, None, loaded.config.get("data"), {}, ckpt_path)
    name, source = next(iter(found.items()))
    data = evaluation_sets.opened(name, source, model, split, loaded.config.get("seed_everything", 0), names)
    evaluation_sets.make_ready(data, prepare)
    rows = data.data.rows(data.split)
    if not 0 <= row < len(rows):
        raise ValueError(f"check: row is {row}; {split} has rows 0..{len(rows) - 1}")
    batch = rows[[row]]
    x = batch["x"][0].to(model.device)
    label = batch["label"].to(model.device) if "label" in batch and getattr(model.network, "num_labels", None) else None
    free = _sites(model, sites, num_samples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of samplers that say what their error is: here it is measured
        measured, own = filled.measured(model, x, free, num_samples, num_steps, seed, label)
    print(f"{type(model).__name__}, step {loaded.step}; {name}, {split}, row {row}: all sites known but", end=" ")
    print(f"{', '.join(map(str, free))}; {num_samples:,} draws of {num_steps} steps")
    beside = "the model's own conditional law" if own else "its first sampler in eight times as many steps"
    print(f"total variation from {beside}; floor: of exact draws, ± one standard deviation")
    width = max(len(one.sampler) for one in measured)
    for one in measured:
        numbers = " " * 24 if one.said else f"{one.distance:.4f}  {one.floor:.4f} ± {one.error:.4f}"
        print(f"  {one.sampler:<{width}}  {numbers}  {one.verdict}")
    if any(one.floor > 0.25 for one in measured):
        print("the floor is high: small errors do not show; give more --num_samples or fewer --sites")


def _sites(model: Any, given: list[int] | None, num_samples: int) -> list[int]:
    """The free sites: given, or neighbours in the middle of the row, which say most of each other; of models that only
    go on from beginnings the last ones."""
    from ggm_lightning.exact import filled

    n, V = model.num_sites, model.num_classes
    if given is not None:
        if not given or len(set(given)) < len(given) or not all(0 <= site < n for site in given):
            raise ValueError(f"check: sites are {given}; give different numbers in 0..{n - 1}")
        if V ** len(given) > filled.MOST:
            raise ValueError(f"check: {len(given)} sites of {V} classes are too many to enumerate; give fewer sites")
        return sorted(given)
    count = filled.number_of_sites(V, n, num_samples)
    if not count:
        raise ValueError(f"check: a single site has {V:,} classes, of which {filled.MOST:,} at most are enumerated")
    first = n - count if model.fills_beginnings_only else (n - count) // 2
    return list(range(first, first + count))
