"""What all families share is written once: their constructors' common arguments, and the classes between."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule
from torch import nn

from ggm_lightning import GGM, MD4, Blackout, DiLADD, FujiLDDM, GenMD4, MarkovDiffusion, SeqLDDM
from ggm_lightning.models.base import Family
from ggm_lightning.models.trained import Optimizer
from ggm_lightning.rundir.building import parameters_of
from tests.models.every_family import FAMILIES, small

CLASSES = [MD4, GenMD4, GGM, FujiLDDM, SeqLDDM, DiLADD, Blackout, MarkovDiffusion]
COMMON = {"optimizer": Optimizer, "label_dropout": float, "eval_samples": int, "seed": int, "eval_seed": int}


def classes_between(family: type[Family]) -> list[type]:
    """From the family, itself counted, up to LightningModule, not counted: those of this package."""
    chain = inspect.getmro(family)
    above = chain[: chain.index(LightningModule)]
    return [kind for kind in above if kind.__module__.startswith("ggm_lightning")]


@pytest.mark.parametrize("family", CLASSES)
def test_few_classes_stand_between_lightning_and_a_family(family: type[Family]) -> None:
    assert len(classes_between(family)) <= (4 if family in (FujiLDDM, SeqLDDM, DiLADD) else 3)


def test_each_class_between_is_counted() -> None:
    """Control."""

    class Deeper(FujiLDDM):
        __module__ = "ggm_lightning.models.deeper"

    assert len(classes_between(Deeper)) == 1 + len(classes_between(FujiLDDM))


@pytest.mark.parametrize("family", CLASSES)
def test_the_common_arguments_stand_in_one_signature(family: type[Family]) -> None:
    own = inspect.signature(family.__init__).parameters
    assert not COMMON.keys() & own.keys()
    assert own["family"].kind == inspect.Parameter.VAR_KEYWORD


@pytest.mark.parametrize("family", CLASSES)
def test_the_command_line_and_checkpoints_know_them_all(family: type[Family]) -> None:
    known = parameters_of(family)
    assert {name: known[name] for name in COMMON} == COMMON
    assert {"network", "num_classes", "shape"} <= known.keys()
    assert "family" not in known
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(family, "model")
    defaults: Any = parser.get_defaults().model
    assert (defaults.label_dropout, defaults.eval_samples, defaults.seed, defaults.eval_seed) == (0.0, 1, 0, 0)
    assert defaults.optimizer.lr == Optimizer().lr
    # the same names on both ways in
    assert {name.split(".")[0] for name in vars(defaults)} == known.keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_wrong_argument_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises((TypeError, ValueError), match="label_drop_out") as caught:
        small(name, label_drop_out=0.5)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_of_them_arrives(name: str) -> None:
    given = {"label_dropout": 0.25, "eval_samples": 3, "seed": 5, "eval_seed": 7}
    model = small(name, optimizer=Optimizer(lr=0.5), **given)
    assert {argument: getattr(model, argument) for argument in given} == given
    assert model.optimizer.lr == 0.5


class Says(nn.Module):
    """A network with an attribute of the test's choice."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, z: Any, t: Any, label: Any = None) -> Any:
        """Not called."""


class Stops(Says):
    def features(self, z: Any, t: Any, label: Any = None) -> Any:
        """Not called."""


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Says(num_labels="3"), r"MD4: network Says\.num_labels is '3'; give a whole number"),
        (Says(num_classes=7.0), r"Says\.num_classes is 7\.0; give a whole number"),
        (Says(takes_sites=1), r"Says\.takes_sites is 1; give True or False"),
        (Stops(), "network Stops has `features` but no `head`"),
        (Says(num_classes=8), "the data has 7 classes, the network 8"),
    ],
)
def test_what_a_network_says_of_itself_is_checked_when_the_model_is_built(network: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        MD4(network, 7, (5,))
    assert "\n" not in str(caught.value)


def test_nothing_need_be_said() -> None:
    """Control: and what is right passes."""
    MD4(Says(), 7, (5,))
    MD4(Says(num_classes=7, num_labels=None, takes_sites=False), 7, (5,))
    MD4(Stops(head=nn.Linear(11, 7)), 7, (5,))
