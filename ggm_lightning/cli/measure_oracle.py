"""Samples against the law of the data, where it is known: metrics/oracle.py as a measure of `lightning evaluate`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from ggm_lightning.cli import drawn
from ggm_lightning.cli.evaluation_sets import EvaluationSet
from ggm_lightning.cli.measure import Cell, Context, Measure, Plan
from ggm_lightning.codecs.codec import dict_hash
from ggm_lightning.core.known_law import KnownLaw
from ggm_lightning.data.fingerprints import hash_of_ids
from ggm_lightning.metrics import oracle
from ggm_lightning.models import exact_denoiser
from ggm_lightning.report.evaluation_rows import REAL, Key, Row, finite

DENOISERS = ("network", "exact")
_FEW = 8  # rows by which a law is told from others
_WHAT = (
    "nats per example: excess = -log p(samples) - entropy = KL(samples || law) + (entropy of the samples - entropy); "
    "the KL is at least `kl_at_least`, the entropy gap at most `gap_at_most`, by the law `by`"
)
_NOTES = {
    "law": "nothing fits these rows better than the law itself, so that no more than KL >= 0 is known",
    "model": "KL and gap by what the model says of the rows",
}


@dataclass(frozen=True)
class Oracle(Measure):
    """Samples against the law that the data are drawn from (Markov chain, sawtooth, dictionary; `law()` of your own):
    -log p of samples less the entropy, which is KL(samples || law) and the entropy gap, and what is known of both.

    Args:
        denoiser: network; or exact, which draws once more with the exact posterior in the place of the network: what
            is wrong with those samples is the sampler's alone, what the others have besides was not learned.
    """

    denoiser: str = "network"
    name: ClassVar[str] = "oracle"

    @property
    def draws(self) -> bool:
        return True

    def check(self, context: Context) -> None:
        if self.denoiser not in DENOISERS:
            raise ValueError(f"--denoiser {self.denoiser}: choose {' or '.join(DENOISERS)}")
        if context.draws.num_samples < 4:
            raise ValueError(f"--num_drawn is {context.draws.num_samples}; the measure oracle needs at least 4")
        if all(one.data.law() is None for one in context.sets):
            names = ", ".join(one.name for one in context.sets)
            raise ValueError(
                f"--measures oracle: the law of {names} is not known; leave it out, or give data with a `law()`"
            )
        for one in _known(context):
            reason = exact_denoiser.refusal(context.loaded.model, one.data.law(), one.name)
            if self.denoiser == "exact" and reason is not None:
                raise ValueError(f"--denoiser exact: {reason}")

    def cells(self, context: Context) -> list[Cell]:
        found = []
        for one in _known(context):
            section: dict[str, Any] = {"set": one.name, "section": one.section, "split": one.split}
            section |= {"states": context.settings.num_samples}
            # code may have changed what the same section means
            section["law"] = _fingerprint(_law(one), context.real(one)[:_FEW])
            rows = {"rows": hash_of_ids(_compared(context, one)), "seed": context.settings.seed}
            found.append(Cell(f"{one.name} {REAL}", section | rows, _of_real(context, one)))
            for plan in context.plans:
                depends = section | {"plan": context.depends_on(plan)}
                work = _of_samples(context, one, plan)
                found.append(Cell(f"{one.name} {plan.label}", depends, work, samples=plan))
                if self.denoiser == "exact":
                    name = f"{one.name} {plan.label} exact"
                    depends = depends | {"denoiser": "exact"}
                    found.append(Cell(name, depends, _of_exact_denoiser(context, one, plan, section["law"])))
        return found


def _known(context: Context) -> list[EvaluationSet]:
    return [one for one in context.sets if one.data.law() is not None]


def _law(one: EvaluationSet) -> KnownLaw:
    law = one.data.law()
    assert law is not None
    return law


def _fingerprint(law: KnownLaw, x: Int64[Tensor, "b n"]) -> str:
    """Of a law by what it says: its entropy and log p of some rows, to 6 digits."""
    return dict_hash([f"{nats:.5e}" for nats in (law.entropy()[0], *law.log_prob(x).tolist())])


def _compared(context: Context, one: EvaluationSet) -> Int64[Tensor, " b *s"]:
    """The held-out rows, as many as samples."""
    return context.real(one)[: context.draws.num_samples]


def _of_real(context: Context, one: EvaluationSet) -> Callable[[], list[Row]]:
    """Of held-out rows the excess is 0 but for chance, and the model's bound less the entropy at least KL(law ||
    model)."""

    def compute() -> list[Row]:
        x = _compared(context, one)
        minus_log_model = _minus_log_model(context, x)
        found = oracle.against(_law(one), x, minus_log_model)
        learned = minus_log_model - found.entropy
        figures = dict(oracle.named(found)) | {
            "oracle_bound_excess": float(learned.mean()),
            "oracle_bound_excess_stderr": float(learned.std()) / len(learned) ** 0.5,
        }
        about: dict[str, Any] = {"what": f"{_WHAT}; bound_excess: the model's bound on these rows less the entropy"}
        about |= {"seed": context.settings.seed, "reference_hash": hash_of_ids(x)}
        return [_row(Key(one.name, REAL), figures, about)]

    return compute


def _of_samples(context: Context, one: EvaluationSet, plan: Plan) -> Callable[[], list[Row]]:
    def compute() -> list[Row]:
        samples = context.drawn(plan)
        found = oracle.against(_law(one), samples.x, _minus_log_model(context, samples.x))
        about = {"what": _WHAT, "denoiser": "network", **context.about(plan, samples)}
        return [_row(context.key(one, plan), dict(oracle.named(found)), about)]

    return compute


def _of_exact_denoiser(context: Context, one: EvaluationSet, plan: Plan, fingerprint: str) -> Callable[[], list[Row]]:
    def compute() -> list[Row]:
        law = _law(one)
        # another law is another folder
        own = context.folder / "draws" / f"exact-{one.name}-{dict_hash([one.section, fingerprint])[:8]}"
        with exact_denoiser.put_in(context.loaded.model, law, one.name):
            samples = drawn.drawn(plan, context.draws, own)
        key = context.key(one, plan)
        key = Key(key.set, f"{key.sampler} (exact denoiser)", key.num_steps, key.temperature, key.top_p)
        about = {"what": _WHAT, "denoiser": "exact", **context.about(plan, samples)}
        return [_row(key, dict(oracle.named(oracle.against(law, samples.x))), about)]

    return compute


def _minus_log_model(context: Context, x: Int64[Tensor, " b *s"]) -> Tensor:
    """What the model says of these rows, nats: a bound, or -log p itself."""
    model, settings = context.loaded.model, context.settings
    parts = []
    with context.loaded.computing():
        for row in torch.arange(len(x)).split(settings.batch_size):
            part, own = x[row].to(model.device), row.to(model.device)
            parts.append(model.nelbo(part, None, settings.num_samples, seed=settings.seed, row=own).double().cpu())
    return torch.cat(parts)


def _row(key: Key, figures: dict[str, Any], about: dict[str, Any]) -> Row:
    """Whose law stands for the samples' own is no number."""
    by, rows = figures.pop("oracle_by"), figures.pop("oracle_rows")
    share = figures["oracle_excluded"]
    notes = [_NOTES.get(by, f"KL and gap by a model of {by}, counted on the other half of the rows")]
    if share:
        notes.append(f"{share:.1%} of {rows} rows cannot come from the law: with them the KL is infinite")
    if math.isnan(figures["oracle_excess"]):
        notes = notes[1:]
    figures = finite(figures)
    return Row(key, figures, about | {"rows": rows, "by": by, "notes": notes})
