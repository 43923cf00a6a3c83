"""The table of infilling on docs/exactness.md: total variation to the exact conditional law, by family and setting.

`python -m tests.models.infilling_table` prints it (a minute or two).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from ggm_lightning.exact import chains, latent, particles, states
from ggm_lightning.exact.states import total_variation
from ggm_lightning.models.base import Family
from tests.models import infilling_law as models
from tests.models.infilling_law import GIVEN, KNOWN, TARGET, VALUES, cell, filled

DRAWS = 20_000
# what the last column says
EXACT, VANISHES, FLOOR = "exact", "falls with {}", "floor"


@dataclass(frozen=True)
class Case:
    """One setting of one sampler.

    Attributes:
        model: builds it. num_steps: as `sample` takes them.
        law: the exact law of what the model fills in; None: it is drawn, DRAWS times.
        options: of the sampler.
    """

    model: Callable[[], Family]
    num_steps: int
    law: Callable[[Family], Tensor] | None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A line of the table: one sampler and its settings, the coarsest first."""

    family: str
    sampler: str
    setting: str
    error: str
    cases: tuple[Case, ...]

    def drawn(self, case: Case, num_samples: int = DRAWS) -> Tensor:
        return drawn_law(case.model(), case.num_steps, num_samples, sampler=self.sampler, seed=1, **case.options)

    def measured(self, case: Case) -> float:
        law = self.drawn(case) if case.law is None else case.law(case.model())
        return total_variation(law, TARGET)

    @property
    def head(self) -> str:
        """The part before the figures."""
        return f"| {self.family} | `{self.sampler}` | {self.setting} |"

    def written(self) -> str:
        figures = ", ".join(f"{self.measured(case):.3f}" for case in self.cases)
        return f"{self.head} {figures} | {self.error} |"


def floor(num_samples: int) -> float:
    """Mean total variation between TARGET and the frequencies of that many exact draws from it."""
    return states.floor(TARGET, num_samples)


def enumerated(chain: Callable[..., Tensor], model: Family, **options: Any) -> Tensor:
    """Float64[9], of a chain of exact/ that fills in."""
    return filled(chain(model, known=GIVEN, **options))


def drawn_law(model: Family, num_steps: int, num_samples: int, **options: object) -> Tensor:
    """The frequencies of `sample`."""
    x = model.sample(num_samples, num_steps, clamp=(VALUES, KNOWN), **options).x
    assert bool((x[:, KNOWN] == VALUES[KNOWN]).all())
    return cell(x).bincount(minlength=len(TARGET)).double() / num_samples


def _md4(family: str, model: Callable[[], Family], coarse: int, fine: int) -> Line:
    cases = tuple(Case(model, T, partial(enumerated, chains.masked, num_steps=T)) for T in (coarse, fine))
    return Line(family, "ancestral", f"T = {coarse}, {fine}", VANISHES.format("T"), cases)


def _drawn(sampler: str, setting: str, options: Mapping[str, Any]) -> Line:
    """Of MD4, by draws."""
    cases = tuple(Case(models.md4, T, None, options) for T in (10, 100))
    return Line("MD4", sampler, f"{setting}, T = 10, 100 ({DRAWS:,} draws)", VANISHES.format("T"), cases)


def _ggm_case(sampler: str, num_sweeps: int, redenoise: int, hide: str = "own") -> Case:
    """With sampler parallel all four sites are one block."""
    size = models.N if sampler == "parallel" else 1
    model = partial(models.ggm, num_sweeps=num_sweeps, redenoise=redenoise, hide=hide)
    return Case(model, num_sweeps, partial(enumerated, chains.sweeps, sampler=sampler, size=size))


def _ggm(sampler: str, note: str, error: str, redenoise: int = 4, hide: str = "own") -> Line:
    cases = tuple(_ggm_case(sampler, R, redenoise, hide) for R in (4, 32))
    return Line("GGM", sampler, f"R = 4, 32{note}", error, cases)


def _fuji(kind: str) -> Line:
    enumerable = kind == "ddpm"  # ddim moves a latent without noise, so that its values depend on the whole path
    law = {T: partial(enumerated, latent.law_of_ddpm, num_steps=T) if enumerable else None for T in (16, 64)}
    cases = tuple(Case(models.fuji, T, law[T]) for T in (16, 64))
    note = "" if enumerable else f" ({DRAWS:,} draws)"
    return Line("FUJI", kind, f"T = 16, 64{note}", VANISHES.format("T"), cases)


def _latent_first(family: str, sampler: str, build: Callable[[int], Family]) -> Line:
    kind = sampler.removeprefix("seq_")
    law = partial(enumerated, latent.law_of_latent_first, kind=kind, num_steps=32)
    cases = tuple(Case(partial(build, K), 32, law) for K in (1, 16, 64))
    return Line(family, sampler, "K = 1, 16, 64", VANISHES.format("K and latent steps"), cases)


def _hitting(family: str, build: Callable[[int], Family]) -> Line:
    law = partial(enumerated, latent.law_one_by_one, kind="ddim")
    cases = tuple(Case(partial(build, K), 1, law) for K in (1, 16, 64))
    return Line(family, "first_hitting", "K = 1, 16, 64", VANISHES.format("K and latent steps"), cases)


def _blackout(sampler: str) -> Line:
    model = partial(models.blackout, sampler == "posterior")
    cases = tuple(Case(model, T, partial(enumerated, chains.deaths, sampler=sampler, num_steps=T)) for T in (50, 400))
    return Line("Blackout", sampler, "T = 50, 400", FLOOR, cases)


def _markov(process: str) -> Line:
    model = partial(models.markov, process)
    cases = tuple(Case(model, T, partial(enumerated, chains.markov, num_steps=T)) for T in (50, 400))
    return Line("MarkovDiffusion", "ancestral", f"{process}, T = 50, 400", FLOOR, cases)


def _of_particles(chain: Callable[..., particles.Chain], law: Callable[..., Tensor], *more: Any) -> Any:
    """A law of exact/particles.py, as a case has it."""
    return lambda model: law(chain(model, *more, GIVEN))


def _particles(line: Line, chain: Callable[..., particles.Chain], *more: Any) -> Line:
    """K = 1, as the line has it, 2, and 16 by draws; `more`: arguments of the chain."""
    first, model = line.cases[0], line.cases[0].model
    two = Case(model, 50, _of_particles(chain, particles.law_of_two, *more), {"particles": 2})
    cases = first, two, Case(model, 50, None, {"particles": 16})
    setting = f"{line.setting.removesuffix(', 400')}, particles: 1, 2, 16 ({DRAWS:,} draws of 16)"
    return Line(line.family, line.sampler, setting, VANISHES.format("K and T"), cases)


def _many_particles() -> Line:
    """64 are drawn where draws are compared."""
    laws = {T: _of_particles(particles.deaths, particles.law_of_many, "capped", T) for T in (10, 20, 50)}
    cases = tuple(Case(models.blackout, T, law, {"particles": 64}) for T, law in laws.items())
    return Line("Blackout", "capped", "T = 10, 20, 50, particles: the limit", VANISHES.format("T"), cases)


def _corrections() -> Line:
    """From one step, in which the unknown sites are independent given the known ones."""
    cases = tuple(Case(models.md4_hollow, 1, None, {"corrections": count}) for count in (0, 1))
    setting = f"T = 1, corrections: 0, 1 ({DRAWS:,} draws)"
    return Line("MD4", "corrected", setting, VANISHES.format("the corrections"), cases)


def _rounds() -> Line:
    cases = tuple(_ggm_case("gated", 32, rounds) for rounds in (4, 16, 64))
    return Line("GGM", "gated", "R = 32, redenoise: 4, 16, 64", VANISHES.format("the rounds"), cases)


_ABSORBING = (Case(partial(models.markov, "absorbing"), 1, None),)
LINES = (
    Line("MD4", "first_hitting", f"any ({DRAWS:,} draws)", EXACT, (Case(models.md4, 1, None),)),
    _md4("MD4", models.md4, 10, 100),
    Line("MD4", "ordered", f"k = 1 ({DRAWS:,} draws)", EXACT, (Case(models.md4, models.N, None),)),
    _drawn("remasking", "rule: rate, eta: 1", {}),
    _drawn("blocks", "whole rows", {}),
    _corrections(),
    _md4("GenMD4", models.genmd4, 20, 200),
    _ggm("heat_bath", "", VANISHES.format("R")),
    _ggm("gated", ", redenoise: 0", FLOOR, redenoise=0),
    _rounds(),
    _ggm("parallel", ", `hide: own`, one block, redenoise: 0", FLOOR, redenoise=0),
    _ggm("parallel", ", `hide: block`, one block", FLOOR, hide="block"),
    *(_fuji(kind) for kind in ("ddim", "ddpm")),
    *(_latent_first("FUJI", sampler, models.fuji) for sampler in ("seq_ddim", "seq_ddpm")),
    *(_latent_first("SEQ", sampler, models.seq) for sampler in ("ddim", "ddpm")),
    _hitting("FUJI", models.fuji),
    _hitting("SEQ", models.seq),
    _latent_first("Di-LADD", "ancestral", models.diladd),
    _hitting("Di-LADD", models.diladd),
    *(_blackout(sampler) for sampler in ("capped", "poisson", "stochastic", "posterior", "rounded")),
    _particles(_blackout("capped"), particles.deaths, "capped", 50),
    _many_particles(),
    *(_markov(process) for process in ("uniform", "absorbing", "gaussian")),
    _particles(_markov("uniform"), particles.markov, 50),
    Line("MarkovDiffusion", "first_hitting", f"absorbing ({DRAWS:,} draws)", EXACT, _ABSORBING),
)

if __name__ == "__main__":
    ignorant, independent = (total_variation(law, TARGET) for law in (models.IGNORANT, models.INDEPENDENT))
    print(f"floor of {DRAWS:,} draws {floor(DRAWS):.3f}; {ignorant:.3f} if what is known is")
    print(f"ignored, {independent:.3f} if the unknown sites are drawn independently given it")
    print("| family | sampler | setting | total variation | the error |\n|---|---|---|---|---|")
    for line in LINES:
        print(line.written(), flush=True)
