"""Text as a measure of `lightning evaluate`: a judge, how varied samples are, and how far from held-out text.

No figure stands alone. A judge and an entropy can both be pleased by nonsense (arXiv 2604.02718, 2606.08417): one real
row that is drawn again and again has a normal entropy and a fine judge, and is seen by the distances and the
duplicates. So each figure is given for real held-out text, too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from ggm_lightning.cli import foreign_samples, text_judges
from ggm_lightning.cli.drawn import Drawn
from ggm_lightning.cli.evaluation_sets import EvaluationSet, rows_of
from ggm_lightning.cli.measure import Cell, Context, Measure, Plan
from ggm_lightning.cli.text_judges import TextJudge
from ggm_lightning.data.base import Benchmark
from ggm_lightning.data.fingerprints import hash_of_ids
from ggm_lightning.data.latents import rows_hash
from ggm_lightning.data.text import TextData
from ggm_lightning.data.tokens import TokenShards
from ggm_lightning.data.zeroshot import ZeroShotText
from ggm_lightning.metrics import diversity, mauve
from ggm_lightning.metrics.jensen_shannon import jensen_shannon
from ggm_lightning.metrics.text_judge import RULES, Scores
from ggm_lightning.models.base import Family
from ggm_lightning.report.evaluation_rows import REAL, Key, Row

_LENGTHS = (1, 2, 3, 4)  # of runs of tokens
_MAUVE = 5000  # samples of published ones (ReMDM)
_TOGETHER = 4096  # rows of the training that are compared at once
_Pairs = list[tuple[str, tuple[float, float]]]


@dataclass(frozen=True)
class Text(Measure):
    """Samples of text, drawn or from elsewhere: judge, entropy, variety, copies, and distances from held-out text.

    Args:
        judge: a checkpoint of an AutoregressiveModel on the same data (a file, a folder of `lightning export` or
            hub:OWNER/NAME), or a causal language model of `transformers`, by its folder or by a name such as
            gpt2-large. Without one there is neither gen-ppl nor MAUVE.
        judge_rule: which tokens count for a judge of transformers: mdlm, as published, or all.
        stride: for texts that are longer than such a judge reads, tokens by which its window is moved on; default: the
            rest is cut.
        samples: a file or folder of samples from elsewhere, in the place of drawn ones: .jsonl, .txt, a JSON with
            `generated_seqs`, or the folder of `lightning sample`.
    """

    judge: str | None = None
    judge_rule: str = "mdlm"
    stride: int | None = None
    samples: str | None = None
    name: ClassVar[str] = "text"

    @property
    def draws(self) -> bool:
        return self.samples is None

    def check(self, context: Context) -> None:
        self._trials(context)

    def cells(self, context: Context) -> list[Cell]:
        found = []
        for trial in self._trials(context):
            real = trial.sets_key(REAL)
            found.append(Cell(f"{real.set}, real rows", trial.depends, _real(trial, real)))
            if trial.foreign is not None:
                key = trial.sets_key(str(self.samples))
                depends = {**trial.depends, "samples": hash_of_ids(trial.foreign.x)}
                found.append(Cell(f"{key.set}, {Path(str(self.samples)).name}", depends, _foreign(trial, key)))
            for plan in context.plans if self.draws else ():
                depends = {**trial.depends, "samples": context.depends_on(plan)}
                found.append(
                    Cell(f"{trial.one.name}, {plan.label}", depends, _plan(trial, context, plan), samples=plan)
                )
        return found

    def _trials(self, context: Context) -> list[Trial]:
        """One for each set. All that can be wrong is found here."""
        model = context.loaded.model
        if len(model.shape) != 1 or model.codec is None:
            raise ValueError(
                f"--measures text: examples of shape {tuple(model.shape)} without text say nothing to it; leave it out"
            )
        if self.judge_rule not in RULES:
            raise ValueError(f"--judge_rule is {self.judge_rule!r}; choose {' or '.join(RULES)}")
        if self.judge is None and (self.judge_rule, self.stride) != ("mdlm", None):
            raise ValueError("--judge_rule and --stride are given without a --judge; leave them out, or name one")
        lossy = any(map(_loses_characters, context.sets))
        foreign = foreign_samples.read(self.samples, model, lossy) if self.samples else None
        judge = None if self.judge is None else self._judge(context, self.judge)
        if foreign is not None and isinstance(judge, text_judges.OfCheckpoint) and foreign.x.shape[1] < model.shape[0]:
            raise ValueError(
                f"--samples {self.samples}: {foreign.told[-1]}, and a checkpoint as judge reads whole rows only; give "
                "a judge of transformers"
            )
        count = len(foreign.x) if foreign is not None else context.draws.num_samples
        length = foreign.x.shape[1] if foreign is not None else model.shape[0]
        return [_trial(context, one, judge, foreign, count, length) for one in context.sets]

    def _judge(self, context: Context, judge: str) -> TextJudge:
        loaded = context.loaded
        sizes = (context.settings.batch_size, context.device, context.trusted)
        return text_judges.find(judge, loaded.model, str(loaded.path), self.judge_rule, self.stride, *sizes)


@dataclass(frozen=True)
class Trial:
    """What samples of one set are measured by.

    Attributes:
        model: whose codec decodes.
        reference: Int64[m, n], held-out rows, every other one.
        real: Int64[m, n], as many others.
        judge: None where there is none.
        depends: all of this, as plain JSON.
        notes: what a reader must know of all figures.
        kept: scores of rows that were judged already.
    """

    one: EvaluationSet
    model: Family
    reference: Int64[Tensor, "m n"]
    real: Int64[Tensor, "m n"]
    judge: TextJudge | None
    foreign: foreign_samples.Foreign | None
    depends: dict[str, Any]
    notes: list[str]
    kept: dict[str, Scores] = field(default_factory=dict)

    def sets_key(self, sampler: str) -> Key:
        return Key(self.one.name, sampler)

    def scores(self, x: Int64[Tensor, "b n"]) -> Scores:
        """By the judge, once for the same rows."""
        assert self.judge is not None
        name = hash_of_ids(x)
        if name not in self.kept:
            self.kept[name] = self.judge.scores(x, self.model.codec.decode(x))
        return self.kept[name]


def _loses_characters(one: EvaluationSet) -> bool:
    """Whether the tokens of these data do not stand for all of their text."""
    if not isinstance(one.data, TextData | ZeroShotText):
        return False
    loss = TokenShards(one.data.folder).loss
    return loss is not None and loss.lost > 0


def _trial(
    context: Context,
    one: EvaluationSet,
    judge: TextJudge | None,
    foreign: foreign_samples.Foreign | None,
    count: int,
    length: int,
) -> Trial:
    rows = one.data.rows(rows_of(one))
    half = min(len(rows), context.settings.limit or len(rows)) // 2
    compared = min(count, half)
    if compared < 2:
        raise ValueError(
            f"{one.name}: the reference of the samples and the real rows beside them are halves of the held-out rows; "
            f"of {len(rows)} and --limit {context.settings.limit} there are too few, at least 4 are needed"
        )
    index = 2 * np.linspace(0, half - 1, compared).round().astype(np.int64)
    reference, real = (rows[number]["x"].long().cpu()[:, :length] for number in (index, index + 1))
    notes = list(foreign.told) if foreign is not None else []
    if compared < count:
        notes.append(f"shares and distances of the first {compared:,} of {count:,} samples: so many rows are held out")
    if judge is None:
        notes.append("no judge, so neither gen-ppl nor MAUVE: give --judge, a checkpoint or a model of transformers")
    elif compared < mauve.LEAST:
        notes.append(f"MAUVE of {compared:,} texts; its authors advise {mauve.LEAST:,} or more")
    depends: dict[str, Any] = {"reference": hash_of_ids(reference), "real": hash_of_ids(real), "count": count}
    depends["judge"] = None if judge is None else judge.identity
    depends["train"] = None if isinstance(one.data, Benchmark) else rows_hash(one.data.rows("train"))
    return Trial(one, context.loaded.model, reference, real, judge, foreign, depends, notes)


def _real(trial: Trial, key: Key) -> Callable[[], list[Row]]:
    return lambda: [_row(trial, key, trial.real, {"sampler": "real held-out rows", "samples": len(trial.real)})]


def _foreign(trial: Trial, key: Key) -> Callable[[], list[Row]]:
    def rows() -> list[Row]:
        assert trial.foreign is not None
        x = trial.foreign.x
        return [_row(trial, key, x, {"sampler": "drawn elsewhere", "samples": len(x), "samples_hash": hash_of_ids(x)})]

    return rows


def _plan(trial: Trial, context: Context, plan: Plan) -> Callable[[], list[Row]]:
    def rows() -> list[Row]:
        samples: Drawn = context.drawn(plan)
        return [_row(trial, context.key(trial.one, plan), samples.x, context.about(plan, samples))]

    return rows


def _row(trial: Trial, key: Key, x: Int64[Tensor, "b n"], about: dict[str, Any]) -> Row:
    first = x[: len(trial.reference)]
    found = [*_judged(trial, x), *_of_rows(x), *_of_sets(trial, first)]
    figures: dict[str, float | None] = {}
    for name, (value, error) in found:
        figures |= {name: value} if math.isnan(error) else {name: value, f"{name}_stderr": error}
    figures |= _mauve(trial, x)
    judge = "no judge" if trial.judge is None else f"judge {trial.judge.title}"
    about = {
        **about,
        "protocol": f"{judge}; MAUVE: {mauve.SETTINGS}",
        "samples_hash": hash_of_ids(x),
        "reference_hash": hash_of_ids(trial.reference),
        "compared": len(first),
        "tokens_per_row": x.shape[1],
        "notes": list(trial.notes),
    }
    if trial.judge is not None:
        cut = trial.scores(x).cut
        departures = trial.judge.departures(x.shape[1])
        if "mauve" in figures and len(first) != _MAUVE:
            departures.append(f"MAUVE of {len(first):,} samples, published {_MAUVE:,}")
        about |= {"judge": trial.judge.identity, "departures": departures, "judge_tokens_cut": cut}
        if cut:
            about["notes"].append(f"{cut:,} tokens behind those that the judge reads are cut")
        if trial.scores(x).characters is None:
            about["notes"].append("no bits per character: the judge's tokenizer does not say how much text is cut")
    return Row(key, figures, about)


def _judged(trial: Trial, x: Int64[Tensor, "b n"]) -> _Pairs:
    if trial.judge is None:
        return []
    scores = trial.scores(x)
    nats, error = scores.per_token()
    found = [
        ("gen_ppl", (math.exp(min(nats, 700.0)), math.exp(min(nats, 700.0)) * error)),
        ("judge_nats_per_token", (nats, error)),
    ]
    if scores.characters is not None:
        per_character = int(scores.counted.sum()) / max(scores.characters, 1) / math.log(2)
        found.append(("judge_bits_per_character", (nats * per_character, error * per_character)))
    return found


def _of_rows(x: Int64[Tensor, "b n"]) -> _Pairs:
    nats, error = diversity.mean_and_error(diversity.entropies(x))
    found = [("entropy_nats", (nats, error)), ("entropy_bits", (nats / math.log(2), error / math.log(2)))]
    if x.shape[1] >= 4:
        found.append(("repeated_4_grams", diversity.mean_and_error(diversity.repeated_grams(x))))
    return found


def _of_sets(trial: Trial, x: Int64[Tensor, "m n"]) -> _Pairs:
    lengths = [length for length in _LENGTHS if length <= x.shape[1]]
    found = [(f"distinct_{length}", diversity.distinct_share(diversity.gram_numbers(x, length))) for length in lengths]
    share, error = diversity.distinct_share(diversity.row_numbers(x))
    found.append(("duplicates", (1 - share, error)))
    if not isinstance(trial.one.data, Benchmark):
        found.append(("training_rows", diversity.share_and_error(_copies(trial, x))))
    return found + [(f"js_{length}", jensen_shannon(x, trial.reference, length)) for length in lengths]


def _copies(trial: Trial, x: Int64[Tensor, "m n"]) -> Tensor:
    """Bool[m], which samples are rows of the training."""
    rows, copies = trial.one.data.rows("train"), diversity.Copies(x)
    for start in range(0, len(rows), _TOGETHER):
        copies.add(rows[np.arange(start, min(start + _TOGETHER, len(rows)))]["x"].long().cpu()[:, : x.shape[1]])
    return copies.found


def _mauve(trial: Trial, x: Int64[Tensor, "m n"]) -> dict[str, float | None]:
    """Mean and range over the seeds of k-means."""
    if trial.judge is None:
        return {}
    features, reference = trial.scores(x).features, trial.scores(trial.reference).features
    if features is None or reference is None:
        print("MAUVE is left out: the judge has no features", file=sys.stderr)
        return {}
    values = mauve.mauve(features[: len(reference)].numpy(), reference.numpy())
    return {"mauve": float(np.mean(values)), "mauve_lowest": min(values), "mauve_highest": max(values)}
