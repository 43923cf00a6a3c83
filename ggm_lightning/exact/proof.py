"""prove(model): a family's equations and samplers, by enumeration of a tiny law."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import nn

from ggm_lightning.exact import equations, samplers
from ggm_lightning.exact import subject as subjects
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.noise import Noise
from ggm_lightning.exact.records import Check, Disproved, Proof
from ggm_lightning.exact.subject import Subject
from ggm_lightning.models.base import Family

EQUATIONS = ("shown", "hidden", "corrupt", "start", "terms", "reverse_law")
OF_BOUND = ("bound", "equal", "each", "estimator", "error", "loss")
OF_SAMPLERS = ("draws", "law", "levels", "known", "infilling")


def prove(
    model: Family,
    law: JointLaw | None = None,
    report: bool = False,
    only: Sequence[str] | None = None,
    samplers: Iterable[Any] = (),
    noise: Noise | None = None,
    network: nn.Module | None = None,
    equal: str | None = None,
    num_samples: int = 20_000,
    seed: int = 0,
) -> Proof:
    """Puts the exact denoiser of a law into a copy of the model, and compares with what follows from the law alone.

    Enumerated where it can be: terms and reverse_law at a few times, the bound of every x; drawn: corrupt,
    prior_sample, nelbo, every sampler and what it fills in. The equations: exact/equations.py and exact/samplers.py.

    Args:
        model: of a class derived from Family, built tiny (num_classes=3, shape=(3,)). Its network does not matter.
        law: of the data; None is a random one.
        report: give the table (str(proof)) whatever it says, instead of raising at what fails.
        only: names of equations, as "terms" or "law"; None: all. The table says of which there was nothing to look at.
        samplers: of your own, beside the family's: objects, classes, or paths of classes.
        noise: how the model corrupts, where that is not known (exact/noise.py): families whose noise masks, and those
            of this package, need none.
        network: an exact network of the model for this law, where it asks in a way of its own.
        equal: what you say of the bound with the exact network: "each" (it is -log p(x) for every x), "mean" (the mean
            is the entropy) or "above"; None is what is known of the family.
        num_samples: rows of each draw. seed: of all draws.

    Raises:
        Disproved: a ValueError that names the first equation that fails, with the largest deviation, where it is and
            what it usually is; `error.proof` has all of them.
        ValueError: not a family, too large, or nothing is known of its noise; an unknown name in `only`, or names of
            which this family has none.
    """
    known = (*EQUATIONS, *OF_BOUND, *OF_SAMPLERS)
    unknown = [name for name in only or () if name not in known]
    if unknown:
        raise ValueError(f"prove: only names {', '.join(unknown)}; there are {', '.join(known)}")
    if equal not in (None, "each", "mean", "above"):
        raise ValueError(f"prove: equal is {equal!r}; give each, mean or above, or leave it out")
    subject = subjects.of(model, law, noise, network, num_samples, seed)

    def wanted(name: str) -> bool:
        return only is None or name in only

    with subject.model.evaluating():
        checks = tuple(_all(subject, wanted, samplers, equal))
    missing = tuple(name for name in only or () if not any(check.is_of(name) for check in checks))
    if not checks:
        raise ValueError(
            f"prove: {subject.name} has nothing of {', '.join(only or ()) or 'no names'} to look at; give other names "
            "in only, or leave it out"
        )
    proof = Proof(subject.name, checks, missing)
    if proof.failed and not report:
        raise Disproved(proof)
    return proof


def _all(subject: Subject, wanted: Callable[[str], bool], more: Iterable[Any], equal: str | None) -> Iterator[Check]:
    for name in EQUATIONS:
        if wanted(name):
            yield from _guarded(name, partial(getattr(equations, name), subject))
    if any(map(wanted, OF_BOUND)):
        yield from _guarded("bound", partial(equations.of_bound, subject, wanted, equal))
    if any(map(wanted, OF_SAMPLERS)):
        for named in samplers.all_of(subject, more):
            yield from _guarded(f"sampler {named.name}", partial(samplers.checks, subject, named, wanted))


def _guarded(name: str, checks: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """What raises is a failed check: the others are made all the same."""
    try:
        yield from checks()
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        yield Check(name, "can be computed", float("inf"), 0.0, said)
