"""From what a user names to a sampler: a family's short name, the path of a class of one's own, a class, or an object.

    model.sample(8, 64, sampler="ancestral")
    model.sample(8, 64, sampler="my.Sampler", eta=0.02)
    model.sample(8, 64, sampler=Sampler(eta=0.02))

Options that the sampler's constructor does not take go to the model's `denoiser`, if the sampler asks it and it has
them; else they are an error.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, cast

from ggm_lightning.core.arguments import shown
from ggm_lightning.core.categorical import Sharpening
from ggm_lightning.sampling import arguments
from ggm_lightning.sampling.contract import Denoises
from ggm_lightning.sampling.sampler import Sampler

Maker = Callable[..., Any]  # what a short name stands for: a class of samplers, or a partial of one
# what messages call an option whose name alone does not say it
_CALLED = {"latent_steps": "steps of a latent"}


def sharpening(options: dict[str, Any]) -> Sharpening:
    """Taken out of the options."""
    return Sharpening(**{field.name: options.pop(field.name) for field in fields(Sharpening) if field.name in options})


def chosen(model: Denoises, sampler: Any, options: Mapping[str, Any]) -> tuple[Sampler, dict[str, Any]]:
    """(the sampler, the options of the model's denoiser).

    Args:
        model: that is sampled.
        sampler: as in the module's docstring; None is the family's first.
        options: of the sampler's constructor and of the denoiser.

    Raises ValueError with one line for what cannot be meant, before anything is computed.
    """
    left = dict(options)
    if isinstance(sampler, Sampler):
        made = sampler
    else:
        make = maker(model, sampler)
        made = _made(make, {name: left.pop(name) for name in parameters(make) if name in left})
        if sampler is None or sampler in model.samplers:
            made.name = next(iter(model.samplers)) if sampler is None else sampler
    made.check(model)
    return made, _of_denoiser(model, made, left)


def maker(model: Denoises, sampler: Any) -> Maker:
    """What makes a sampler of this name: called with its options."""
    family = type(model).__name__
    if sampler is None:
        return next(iter(model.samplers.values()))
    if isinstance(sampler, type) and issubclass(sampler, Sampler):
        return sampler
    if not isinstance(sampler, str):
        raise ValueError(
            f"sampler is {shown(sampler)}; give its name, the path of its class or an object of a class of "
            "sampling.sampler.Sampler, or None for the family's first"
        )
    if sampler in model.samplers:
        return model.samplers[sampler]
    if sampler in model.refused_samplers:
        raise ValueError(f"sampler '{sampler}' is refused: {model.refused_samplers[sampler]}")
    if "." in sampler:
        return imported(sampler)
    raise ValueError(f"sampler '{sampler}' is unknown to {family}; {arguments.choice(model.samplers)}")


def imported(path: str) -> type[Sampler]:
    """The class of this name, 'package.module.Class'."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        remedy = "give package.module.Class"
        if isinstance(error, ModuleNotFoundError) and Path(f"{module.split('.')[0]}.py").is_file():
            remedy = f"files of this folder are imported only where they are trusted: --trust {module.split('.')[0]}"
        raise ValueError(f"sampler '{path}' is not found ({error}); {remedy}") from None
    if not (isinstance(found, type) and issubclass(found, Sampler)):
        raise ValueError(f"sampler '{path}' is no sampler; derive it from ggm_lightning.sampling.plan.Plan")
    return found


def parameters(make: Maker) -> list[str]:
    """Names of the options that its constructor takes."""
    return [name for name, p in inspect.signature(make).parameters.items() if p.kind != inspect.Parameter.VAR_KEYWORD]


def _made(make: Maker, given: Mapping[str, Any]) -> Sampler:
    try:
        inspect.signature(make).bind(**given)
    except TypeError as error:
        raise ValueError(f"sampler {class_of(make).__name__}: {error}; give it as an option of the sampler") from None
    return make(**given)


def _of_denoiser(model: Denoises, sampler: Sampler, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the denoiser: those that the sampler settles and those that are given."""
    settled = dict(sampler.denoiser_options)
    for name, value in given.items():
        if value is None:
            continue
        if name not in model.denoiser_options or not sampler.asks_denoiser:
            raise ValueError(
                f"{name} is {shown(value)}, but {type(model).__name__}'s '{sampler.name}' has no "
                f"{_CALLED.get(name, name)}; {_meant(sampler, name) or _who_has(model, name)}"
            )
        if name in settled and value != settled[name]:
            raise ValueError(f"{name} is {shown(value)}, but sampler '{sampler.name}' settles it; leave it out")
        settled[name] = model.denoiser_options[name](name, value)
    return settled


def _meant(sampler: Sampler, option: str) -> str:
    """A name near to one that is mistyped."""
    close = difflib.get_close_matches(option, parameters(type(sampler)), n=1)
    return f"did you mean {close[0]}?" if close else ""


def _who_has(model: Denoises, option: str) -> str:
    names: Iterable[str] = [name for name, make in model.samplers.items() if option in parameters(make)]
    if option in model.denoiser_options:
        names = [name for name, make in model.samplers.items() if _asks(make)]
    return f"take sampler {' or '.join(names)}" if names else "leave it out"


def _asks(make: Maker) -> bool:
    """Whether what it makes asks the denoiser."""
    return class_of(make).asks_denoiser


def class_of(make: Maker) -> type[Sampler]:
    """The class whose constructor it calls."""
    return cast(type[Sampler], make.func if isinstance(make, partial) else make)
