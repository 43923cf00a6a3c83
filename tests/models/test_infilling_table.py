"""Infilling: how far each sampler is from the exact conditional law, and that docs/exactness.md says so.

Exact networks, a law of four sites of three classes of which two are known (infilling_law.py). Laws are enumerated
(ggm_lightning/exact/) or, in two lines, drawn. Total variation throughout.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import pkgutil
import re
from pathlib import Path

import pytest
import torch

from ggm_lightning import models as families
from ggm_lightning.exact.latent import law_of_latent_first, resampled
from ggm_lightning.exact.states import total_variation
from ggm_lightning.models.base import Family
from ggm_lightning.models.md4 import MD4
from ggm_lightning.sampling.plans import OF_MASKED
from tests.models.infilling_law import IGNORANT, INDEPENDENT, LAW, TARGET, N, V, seq
from tests.models.infilling_table import DRAWS, EXACT, FLOOR, LINES, Line, enumerated, floor

PAGE = (Path(__file__).parents[2] / "docs" / "exactness.md").read_text(encoding="utf-8")
HEADS = [line.head.strip("| ") for line in LINES]
every_line = pytest.mark.parametrize("line", LINES, ids=HEADS)
ROUNDING = 6e-4  # of three decimals; the draws are a function of their seed


def subclasses(cls: type) -> set[type]:
    return {cls}.union(*(subclasses(child) for child in cls.__subclasses__()))


def shipped_families() -> set[type[Family]]:
    """Every family of the package that fills gaps."""
    for module in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
        importlib.import_module(module.name)
    own = {cls for cls in subclasses(Family) if cls.__module__.startswith(families.__name__)}
    return {cls for cls in own if not inspect.isabstract(cls) and not cls.fills_beginnings_only}


def without_a_line(classes: set[type[Family]]) -> set[str]:
    """Families and samplers of which the table says nothing; some samplers are known to instances alone. A plan that
    asks nothing but the denoiser has one line for all families, MD4's."""
    told = {(type(case.model()), line.sampler) for line in LINES for case in line.cases[:1]}
    asked = {(cls, sampler) for cls in classes for sampler in cls.samplers}
    for case in (line.cases[0] for line in LINES):
        model = case.model()
        asked |= {(type(model), sampler) for sampler in model.samplers}
    of_all = {line.sampler for line in LINES if line.sampler in OF_MASKED} - {"ancestral", "first_hitting"}
    return {f"{cls.__name__} {sampler}" for cls, sampler in asked - told if sampler not in of_all}


def test_every_sampler_of_every_family_has_a_line() -> None:
    shipped = shipped_families()
    assert len(shipped) >= 7
    assert without_a_line(shipped) == set()

    class New(MD4):
        samplers = (*MD4.samplers, "faster")

    assert without_a_line({New}) == {"New ancestral", "New first_hitting", "New faster"}


def on_page(line: Line) -> list[float]:
    found = [text for text in PAGE.splitlines() if text.startswith(line.head)]
    assert len(found) == 1, f"docs: {len(found)} lines begin with {line.head}"
    figures, error = found[0].removeprefix(line.head).strip(" |").split(" | ")
    assert error == line.error
    return [float(figure) for figure in figures.split(", ")]


# FUJI's latent-first samplers are SEQ's loop with the same exact networks, and of `ddpm` and `ddim` one is enough: left
# to the slow test
QUICK = [line for line in LINES if not line.sampler.startswith(("seq_", "ddim"))]


@pytest.mark.parametrize("line", QUICK, ids=[line.head.strip("| ") for line in QUICK])
def test_the_page_has_the_coarsest_figure(line: Line) -> None:
    figures = on_page(line)
    assert len(figures) == len(line.cases)
    assert line.measured(line.cases[0]) == pytest.approx(figures[0], abs=ROUNDING)


@pytest.mark.slow
@every_line
def test_the_page_has_all_figures_and_they_are_what_it_calls_them(line: Line) -> None:
    measured = [line.measured(case) for case in line.cases]
    assert measured == pytest.approx(on_page(line), abs=ROUNDING)
    if line.error == EXACT:
        assert max(measured) < 1.5 * floor(DRAWS)
    elif line.error == FLOOR:
        assert measured[-1] > 0.05
    else:
        assert all(fine < 0.75 * coarse for coarse, fine in itertools.pairwise(measured))


def test_the_page_has_the_scale() -> None:
    scale = [floor(DRAWS), total_variation(IGNORANT, TARGET), total_variation(INDEPENDENT, TARGET)]
    words = re.search(
        r"draws from it are ([\d.]+)\D+ignored are ([\d.]+)\D+given them (0[.]\d+)", " ".join(PAGE.split())
    )
    assert words is not None
    assert [float(figure) for figure in words.groups()] == pytest.approx(scale, abs=ROUNDING)


# the others, of thousands of matrix exponentials or latents, by `make test-slow`
FAST = {"MD4 ancestral", "GenMD4 ancestral", "GGM heat_bath", "GGM gated", "Blackout capped"}


def marks_of(line: Line) -> list[pytest.MarkDecorator]:
    quick = f"{line.family} {line.sampler}" in FAST and "particles" not in line.setting
    return [] if quick else [pytest.mark.slow]


OF_DRAWS = [
    pytest.param(line, id=line.head.strip("| "), marks=marks_of(line))
    for line in LINES
    if line.cases[0].law is not None
]


@pytest.mark.parametrize("line", OF_DRAWS)
def test_sample_draws_the_enumerated_law(line: Line) -> None:
    """20,000 draws are .0066 from their law in the mean, with a deviation of .002; 5,000 are .013."""
    case, draws = line.cases[0], DRAWS
    if len(line.cases) == 3:  # the middle one: a single candidate or particle, the first, is not resampled
        case, draws = line.cases[1], 5_000
    law, drawn = case.law(case.model()), line.drawn(case, draws)
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-9)
    assert total_variation(drawn, law) < 2 * floor(draws)
    assert total_variation(drawn, law.roll(1)) > 10 * floor(draws)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddim", "ddpm"])
def test_the_steps_of_the_latent_count_too(kind: str) -> None:
    """With 64 candidates: .046, .034, .027 (ddim) and .023, .016, .014 (ddpm)."""
    errors = [
        total_variation(enumerated(law_of_latent_first, seq(64), kind=kind, num_steps=32, latent_steps=steps), TARGET)
        for steps in (32, 64, 128)
    ]
    assert all(fine < 0.9 * coarse for coarse, fine in itertools.pairwise(errors))


# ------------------------------------------------------------------ the enumeration itself


def test_resampling_among_candidates_by_brute_force() -> None:
    """K = 3 candidates of a law of four latents: all 64 triples against the integral."""
    mass = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
    weight = torch.tensor([0.9, 0.02, 0.3, 1e-7], dtype=torch.float64)
    expected = torch.zeros(4, dtype=torch.float64)
    for triple in itertools.product(range(4), repeat=3):
        w = weight[list(triple)]
        expected.index_add_(0, torch.tensor(triple), mass[list(triple)].prod() * w / w.sum())
    assert (resampled(mass, weight, 3) - expected).abs().max() < 1e-9
    assert torch.equal(resampled(mass, weight, 1), mass)
    many = resampled(mass, weight, 100_000)
    assert (many - mass * weight / (mass @ weight)).abs().max() < 1e-4
    assert (expected - mass * weight / (mass @ weight)).abs().max() > 0.1


def test_both_readings_of_a_networks_logits_are_one_posterior() -> None:
    """own=False leaves out what a family then adds: log P(x_t | x_0) of the site itself."""
    reach = torch.rand(11, N, V, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole, others = LAW.posterior(reach).log(), LAW.posterior(reach, own=False).log()
    added = torch.log_softmax(others + reach.log(), -1)
    assert (added - whole).abs().max() < 1e-12
    assert (others - whole).abs().max() > 0.1
    assert len(LAW.x) == V**N
