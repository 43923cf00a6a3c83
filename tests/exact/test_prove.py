"""Every family of the package is proved; what is drawn there is little in the fast tests, and much in the slow one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from ggm_lightning import models as families
from ggm_lightning.core.schedules import Cosine, Linear
from ggm_lightning.exact import Disproved, Equal, JointLaw, latent, prove
from ggm_lightning.exact.proof import EQUATIONS, OF_BOUND, OF_SAMPLERS
from ggm_lightning.exact.records import Check, Proof
from ggm_lightning.models.autoregressive import AutoregressiveModel
from ggm_lightning.models.base import Family
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.diladd import DiLADD
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.lddm_stages import Recipe
from ggm_lightning.models.markov import MarkovDiffusion
from ggm_lightning.models.md4 import MD4
from tests.extend import pages
from tests.models import infilling_law

V = 3


class Levels(Equal):
    levels = True


def of(kind: type[Family], n: int = 3, network: type[Equal] = Equal, **options: Any) -> Family:
    return kind(network(V), num_classes=V, shape=(n,), **options)


def with_latent(build: Callable[..., Family], **options: Any) -> Family:
    law = JointLaw.random(2, 2)
    return build(law, latent.linear_code(law), recipe=Recipe(stage1_steps=0), **options)


def order_agnostic() -> Family:
    space: dict[str, Any] = {"__name__": "agnostic"}
    exec(pages.files_of("family.md")["agnostic.py"], space)
    return of(space["OrderAgnostic"])


MODELS: dict[str, Callable[[], Family]] = {
    "MD4": partial(of, MD4),
    "MD4, eps 0": partial(of, MD4, schedule=Cosine(0.0)),
    "MD4, finite time": partial(of, MD4, schedule=Linear(), num_timesteps=5),
    "GenMD4": partial(of, GenMD4, initial_exponent=1.7),
    "GGM": partial(of, GGM, noise_law=[0.5, 0.3, 0.2]),
    "GGM, permuted": partial(of, GGM, loss="ce_x0", order="permuted", order_seed=3, num_sweeps=3),
    "GGM, random": partial(of, GGM, 2, order="random", num_sweeps=2),
    "GGM, levels": partial(of, GGM, 2, Levels, order="random", num_sweeps=2, levels=True),
    "AutoregressiveModel": partial(of, AutoregressiveModel),
    "Blackout": partial(of, Blackout, 2, num_timesteps=50),
    "Blackout, distribution": partial(
        of, Blackout, 2, output="distribution", loss="cross_entropy", bound="posterior", num_timesteps=5
    ),
    "MarkovDiffusion": partial(of, MarkovDiffusion, 2, num_timesteps=8),
    "MarkovDiffusion, gaussian": partial(of, MarkovDiffusion, 2, process="gaussian", num_timesteps=5),
    "MarkovDiffusion, absorbing": partial(
        of, MarkovDiffusion, process="absorbing", num_timesteps=6, parametrisation="posterior"
    ),
    "FUJI": partial(with_latent, latent.fuji),
    "FUJI, independent clocks": partial(with_latent, latent.fuji, independent_clocks=True),
    "SEQ": partial(with_latent, latent.seq),
    "the family of docs/extend/family.md": order_agnostic,
}
# one of each kind of noise and of network; the others in the slow test
QUICK = [
    *("MD4", "MD4, finite time", "GGM", "GGM, levels", "AutoregressiveModel", "Blackout, distribution"),
    *("MarkovDiffusion", "FUJI", "the family of docs/extend/family.md"),
]


def test_every_family_is_here() -> None:
    for module in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
        importlib.import_module(module.name)
    todo, kinds = [Family], set()
    while todo:
        children = todo.pop().__subclasses__()
        todo += children
        kinds |= {kind for kind in children if kind.__module__.startswith(families.__name__)}
    concrete = {kind for kind in kinds if not inspect.isabstract(kind)}
    assert len(concrete) >= 8
    # Di-LADD holds a family of its own for its codes: tests/models/test_diladd_exact.py enumerates both
    with pytest.raises(ValueError, match="DiLADD holds a family of its own"):
        prove(infilling_law.diladd())
    assert concrete - {DiLADD} <= {type(build()) for build in MODELS.values()}


@pytest.mark.parametrize("name", QUICK)
def test_equations_and_bound(name: str) -> None:
    proof = prove(MODELS[name](), only=(*EQUATIONS, *OF_BOUND), num_samples=1_000)
    assert {"bound", "equal"} <= {check.name for check in proof}


@pytest.mark.parametrize("name", ["MD4, eps 0", "GGM, random", "AutoregressiveModel"])
def test_a_law_with_zeros(name: str) -> None:
    model = MODELS[name]()
    law = JointLaw.random(model.num_sites, V, seed=2, zeros=0.3)
    assert int((law.p == 0).sum()) == int(0.3 * len(law.p))
    assert prove(model, law, only=(*EQUATIONS, *OF_BOUND), num_samples=1_000).passed


def test_samplers() -> None:
    """Of one that is exact and one whose error vanishes; all others in the slow test."""
    model = MODELS["MD4"]()
    model.samplers = {name: model.samplers[name] for name in ("ancestral", "first_hitting")}
    proof = prove(model, only=OF_SAMPLERS, num_samples=1_000)
    assert {check.name.split(": ")[1] for check in proof} == {*OF_SAMPLERS, "infilling draws"}


@pytest.mark.parametrize("shape", [(1,), (2, 2)])
@pytest.mark.parametrize("kind", [MD4, GenMD4, GGM, Blackout])
def test_one_site_and_two_axes(kind: type[Family], shape: tuple[int, ...]) -> None:
    """The chains are enumerated in rows of n sites, and the model takes rows of its shape."""
    model = kind(Equal(2), num_classes=2, shape=shape)
    name = next(iter(model.samplers))
    model.samplers = {name: model.samplers[name]}
    proof = prove(model, only=("shown", "terms", "reverse_law", "draws", "known", "infilling"), num_samples=500)
    assert {f"sampler {name}: {what}" for what in ("draws", "known", "infilling draws")} <= {one.name for one in proof}


@pytest.mark.parametrize("num_classes", [4, 5])
def test_several_births_in_a_short_step_are_no_rate(num_classes: int) -> None:
    """Their probability is less than float64 tells from 0 beside 1 from four classes on."""
    model = Blackout(Equal(num_classes), num_classes, (2,))
    proof = prove(model, only=("terms", "reverse_law"))
    assert proof["terms"].deviation < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [4, 5, 8])
def test_all_of_blackout_with_more_classes(num_classes: int) -> None:
    assert prove(Blackout(Equal(num_classes), num_classes, (2,))).passed


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1,), (2, 1)])
@pytest.mark.parametrize("build", [latent.fuji, latent.seq])
def test_one_site_and_two_axes_beside_a_latent(build: Callable[..., Family], shape: tuple[int, ...]) -> None:
    model = build(JointLaw.random(len(shape), 2), latent.linear_code(JointLaw.random(len(shape), 2)))
    model.shape = shape
    proof = prove(model, only=("bound", "draws", "law"), num_samples=500)
    assert any(one.name.endswith(": draws") for one in proof)


@pytest.mark.slow
@pytest.mark.parametrize("zeros", [0.0, 0.3])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_all_of_it(name: str, zeros: float) -> None:
    model = MODELS[name]()
    law = JointLaw.random(model.num_sites, model.num_classes, seed=1, zeros=zeros)
    assert prove(model, law).passed


def test_what_cannot_be_proved_is_refused_in_one_line() -> None:
    small = of(MD4)
    for call, message in (
        (lambda: prove(MD4(Equal(9), 9, (7,))), "4.78e.06 states, all of which are enumerated"),
        (lambda: prove(small, JointLaw.random(2, V)), "the law has 3 classes at 2 sites, the model 3 at 3"),
        (lambda: prove(torch.nn.Identity()), "a Identity came; give a model of a class derived from Family"),
        (lambda: prove(small, only=("term",)), "only names term; there are shown"),
        (lambda: prove(small, only=()), "MD4 .3 classes, 3 sites. has nothing of no names to look at"),
        (lambda: prove(small, only=("hidden",), report=True), "has nothing of hidden to look at; give other names"),
        (lambda: prove(small, equal="all"), "equal is 'all'; give each, mean or above"),
        (lambda: JointLaw([[0.1, -0.2], [0.3, 0.4]]), "holds no probabilities"),
        (lambda: JointLaw([[0.1, 0.2, 0.3], [0.3, 0.4, 0.1]]), "shape .2, 3.; give V numbers"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_names_of_which_there_is_nothing_are_told() -> None:
    proof = prove(of(MD4), only=("terms", "hidden", "levels"), report=True, samplers=(), num_samples=200)
    assert proof.missing == ("hidden",)
    assert "not looked at, as there is nothing of it here: hidden" in str(proof)
    assert not prove(of(MD4), only=("terms",)).missing


def test_the_models_own_network_stays_as_it_is() -> None:
    model = of(MD4)
    before = model.network
    prove(model, only=("terms",))
    assert model.network is before
    assert model.network_calls == 0


def test_a_record_says_what_where_and_how_much() -> None:
    right, wrong = Check("one", "a = b", 1e-9, 1e-6), Check("two", "c = d", float("nan"), 1.0, "x = (0, 1)", "a sign")
    proof = Proof("Mine", (right, wrong))
    assert (proof.passed, proof.failed, proof["two"]) == (False, [wrong], wrong)
    assert str(Disproved(proof)) == "Mine: two: c = d: off by nan, allowed 1, at x = (0, 1); a sign"
    table = str(proof).splitlines()
    assert table[0] == "Mine: 1 of 2 hold"
    assert [line.split()[0] for line in table[1:3]] == ["ok", "FAILS"]
    with pytest.raises(KeyError, match="three: no such check; there are one, two"):
        proof["three"]
