"""`lightning evaluate`: its words parsed. Without --measures the bound alone, cli/evaluate.py; with them measures.py.

A measure's options are the fields of its class, and stand on the command line as they are called there: no two measures
may have an option of the same name. A new measure is a class of its own, in MEASURES.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from jsonargparse import ArgumentParser

from ggm_lightning.cli import config as config_files
from ggm_lightning.cli import ranks, several_values
from ggm_lightning.cli.evaluate import evaluate
from ggm_lightning.cli.evaluation_arguments import joined, take_overrides
from ggm_lightning.cli.loading import trusted_names
from ggm_lightning.cli.measure import Measure, Sampling
from ggm_lightning.cli.measure_image import Image
from ggm_lightning.cli.measure_infill import Infill
from ggm_lightning.cli.measure_likelihood import Likelihood
from ggm_lightning.cli.measure_oracle import Oracle
from ggm_lightning.cli.measure_speed import Speed
from ggm_lightning.cli.measure_text import Text
from ggm_lightning.cli.measures import evaluate_measures

MEASURES: dict[str, type[Measure]] = {one.name: one for one in (Likelihood, Text, Image, Infill, Oracle, Speed)}
_LISTS: dict[str, Callable[[str], str]] = {
    "measures": str,
    "patterns": str,
    "shares": str,
    "sampler": json.dumps,
    "num_steps": str,
    "temperature": str,
    "top_p": str,
}
LIBRARY: set[str | int] = {"section", "overrides", "named", "options"}  # arguments that only Python gives


def run(experiment: dict[str, Any], args: list[str], options: Mapping[str, str]) -> None:
    """Parses the arguments: several files behind one --data, --data.KEY for what is in them, and the options of
    the measures and of the samplers."""
    args, overrides = take_overrides(joined(args))
    args, names = _take_measures(args)
    given = _parsed(several_values.joined(args, _LISTS))
    of_evaluation = {name: given.pop(name) for name in config_files.parameters(evaluate) if name in given}
    of_evaluation |= {"section": config_files.without_appends(experiment).get("data"), "overrides": overrides}
    of_evaluation["named"] = trusted_names(None, experiment)
    sampling = Sampling(**{name: given.pop(name) for name in _names(Sampling) if name in given}, options=options)
    _refuse_unused(given, names or ["likelihood"])
    if not names:
        if sampling != Sampling():
            raise ValueError(
                "--sampler and its like are for --measures that look at samples; name one, or leave them out"
            )
        evaluate(**of_evaluation)
        return
    measures = [MEASURES[name](**{key: given[key] for key in _names(MEASURES[name])}) for name in names]
    evaluate_measures(measures=measures, sampling=sampling, **of_evaluation)


def keys_of_measures() -> list[str]:
    """How samples are drawn, and the options of all measures."""
    kinds: list[type] = [Sampling, *MEASURES.values()]
    return list(dict.fromkeys(name for kind in kinds for name in _names(kind)))


def _take_measures(args: list[str]) -> tuple[list[str], list[str]]:
    """--measures [likelihood, text], --measures likelihood,text or --measures likelihood text out of the arguments."""
    rest: list[str] = []
    given: list[str] | None = None
    taking = False
    for word in args:
        key, equals, value = word.partition("=")
        if key == "--measures":
            taking, given = not equals, [value] if equals else []
        elif taking and given is not None and not word.startswith("--"):
            given.append(word)
        else:
            taking = False
            rest.append(word)
    if given is None:
        return rest, []
    names = [name.strip(" []'\"") for name in " ".join(given).replace(",", " ").split()]
    names = [name for name in names if name]
    unknown = [name for name in names if name not in MEASURES]
    if unknown or not names or len(set(names)) < len(names):
        said = f"'{unknown[0]}' is unknown" if unknown else "give each measure once"
        raise ValueError(f"--measures {' '.join(given)}: {said}; there are {', '.join(MEASURES)}")
    return rest, names


def _parsed(args: list[str]) -> dict[str, Any]:
    parser = ArgumentParser(
        prog="lightning evaluate",
        description=(evaluate.__doc__ or "").split("\n")[0],
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_function_arguments(evaluate, as_group=False, skip=LIBRARY)
    parser.add_argument("--measures", help=f"several of {', '.join(MEASURES)}; without it the bound alone")
    parser.add_class_arguments(Sampling, as_group=False, skip=LIBRARY)
    for measure in MEASURES.values():
        parser.add_class_arguments(measure, as_group=False)
    ranks.add_option(parser)
    given = ranks.without_option(parser.parse_args(args).as_dict())
    given.pop("measures")
    return given


def _names(cls: type) -> list[str]:
    return [one.name for one in fields(cls)]


def _refuse_unused(given: Mapping[str, Any], names: list[str]) -> None:
    """An option of a measure that was not asked for would say nothing."""
    for name, measure in MEASURES.items():
        plain = measure()
        for key in _names(measure):
            if name not in names and given[key] != plain.__dict__[key]:
                raise ValueError(f"--{key} is of the measure {name}; add it to --measures, or leave the option out")
