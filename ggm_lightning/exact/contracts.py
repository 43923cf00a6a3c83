"""What a class of one's own is asked by the package, and what came: one line for each question.

A family and a sampler are proved besides (exact/proof.py); so are MD4 with a schedule and MarkovDiffusion with rates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.core import rates as core_rates
from ggm_lightning.core import schedule_checks
from ggm_lightning.core.rates import Rates
from ggm_lightning.core.schedules import Schedule
from ggm_lightning.data.base import DiscreteData
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.networks import Equal, HollowMasked
from ggm_lightning.exact.proof import EQUATIONS, OF_BOUND, OF_SAMPLERS, prove
from ggm_lightning.exact.samplers import FINE
from ggm_lightning.exact.states import floor, frequencies, total_variation
from ggm_lightning.metrics.samples import SampleMetric
from ggm_lightning.models.base import Family
from ggm_lightning.models.markov import MarkovDiffusion
from ggm_lightning.models.md4 import MD4
from ggm_lightning.rundir import codecs
from ggm_lightning.sampling.sampler import Sampler

ROWS = 4
_DRAWS = 20_000
_NEARER = 0.9  # of the distance with equal logits: sites drawn as if they were independent come to .76
_CHECKED = (
    "checked are networks (nn.Module), families (Family), samplers (Sampler or Plan), schedules (Schedule), rates "
    "(Rates), codecs (Codec) and data sets (DiscreteData)"
)


@dataclass(frozen=True)
class Answer:
    """One question.

    Attributes:
        asked: what has to be so. came: what is. passed: whether it is so; None where it is only told.
    """

    asked: str
    came: str
    passed: bool | None = True


Answers = Iterator[Answer]


def kind_of(made: Any) -> str:
    """What an object or a class is to the package: family, sampler, schedule, rates, codec, data set or network.

    Raises ValueError for anything else.
    """
    cls = made if isinstance(made, type) else type(made)
    if issubclass(cls, SampleMetric | Metric):
        raise ValueError(f"check: {cls.__name__} is a metric, and metrics are not checked; {_CHECKED}")
    kinds = {
        Family: "family",
        Sampler: "sampler",
        Schedule: "schedule",
        Rates: "rates",
        Codec: "codec",
        DiscreteData: "data set",
        nn.Module: "network",
    }
    for kind, name in kinds.items():
        if issubclass(cls, kind):
            return name
    raise ValueError(f"check: {cls.__name__} is not of a kind that is checked; {_CHECKED}")


def answers(
    made: Any,
    family: Callable[..., Family] = MD4,
    texts: tuple[str, ...] = (),
    num_classes: int | None = None,
    shape: tuple[int, ...] | None = None,
    t_end: float = 10.0,
) -> list[Answer]:
    """Of an object, by its kind: family, sampler, schedule, rates, codec, data set, or else a network.

    Args:
        family: of a network: whose call it is to answer, called with (network, num_classes, shape).
        texts: of a codec: what is encoded besides.
        num_classes, shape: of a network: with which it was built; None: what it says of itself, else 3 and (5,). Of
            rates: num_classes, else 3.
        t_end: of rates.

    Raises ValueError for anything else. What a question raises is its answer.
    """
    asks: dict[str, Callable[[], Answers]] = {
        "family": lambda: _of_family(made),
        "sampler": lambda: _of_sampler(made),
        "schedule": lambda: _of_schedule(made),
        "rates": lambda: _of_rates(made, num_classes or 3, t_end),
        "codec": lambda: _of_codec(made, texts),
        "data set": lambda: _of_data(made),
        "network": lambda: _of_network(made, family, num_classes, shape),
    }
    kind = kind_of(made)
    remedy = f"; {_called_by(family)}" if kind == "network" else ""
    return list(_guarded(asks[kind], remedy))


def _guarded(asks: Callable[[], Answers], remedy: str) -> Answers:
    try:
        yield from asks()
    except Exception as error:
        yield Answer("nothing is raised", f"{type(error).__name__}: {' '.join(str(error).split())}{remedy}", False)


def _called_by(family: Callable[..., Family]) -> str:
    name = getattr(family, "__name__", "the family")
    return (
        f"it was called as {name} calls it: --family names another family (--family GGM), and --NAME VALUE an argument "
        "of its own (--visited_bits false)"
    )


def _proved(proof: Any) -> Answers:
    for check in proof:
        came = f"off by {check.deviation:.2g}, allowed {check.tolerance:.2g}; {check.equation}"
        if not check.passed:
            came = "; ".join(text for text in (came, check.where, check.often) if text)
        yield Answer(check.name, came, check.passed)


def _of_family(model: Family) -> Answers:
    yield from _proved(prove(model, report=True))


def _of_sampler(sampler: Sampler) -> Answers:
    """With MD4 and an exact network, on three sites of three classes."""
    law = JointLaw.random(3, 3)
    model = MD4(HollowMasked(law), 3, (3,))
    model.samplers = {}
    rows = torch.tensor([1, 3])
    together = model.sample(5, 4, sampler=sampler, seed=1).x
    alone = torch.cat([model.sample(1, 4, sampler=sampler, seed=1, row=row[None]).x for row in rows])
    same = torch.equal(alone, together[rows])
    came = "it is" if same else "it is another: draw by run.uniform"
    yield Answer("a row drawn alone is the row in a batch", came, same)
    for answer in _proved(prove(model, law, True, OF_SAMPLERS, [sampler])):
        told = answer.asked.endswith((": law", ": infilling"))  # an error that its docstring may state
        yield Answer(answer.asked, answer.came, None if told and not answer.passed else answer.passed)
    yield _hears(law, model, sampler)
    yield Answer("it states its law", (type(sampler).__doc__ or "no docstring").strip().split("\n")[0], None)


def _hears(law: JointLaw, model: MD4, sampler: Sampler) -> Answer:
    """Whether it draws what the network says: its error may be large, but less than beside equal logits."""
    ignorant = MD4(Equal(law.num_classes), law.num_classes, (law.num_sites,))
    drawn = [one.sample(_DRAWS, FINE, sampler=sampler, seed=0).x for one in (model, ignorant)]
    near, away = (total_variation(frequencies(x, law.num_classes), law.p) for x in drawn)
    asked = "its law is nearer to p with an exact network than with equal logits"
    came = f"total variation {near:.3f} in {FINE} steps, with equal logits {away:.3f}"
    heard = near < _NEARER * away - 3 * floor(law.p, _DRAWS)
    return Answer(asked, came if heard else f"{came}: it does not draw what the network says", heard)


def _of_schedule(schedule: Schedule) -> Answers:
    """Times in [0, 1], against the differences of alpha."""
    try:
        schedule_checks.checked(schedule)
        yield Answer("alpha falls from 1 to 0; masked_fraction, dalpha and inverse belong to it", "they do")
    except ValueError as error:
        yield Answer("alpha falls from 1 to 0; masked_fraction, dalpha and inverse belong to it", str(error), False)
        return
    ends = schedule.alpha(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)).tolist()
    yield Answer("alpha(0), alpha(1/2), alpha(1)", ", ".join(f"{end:.4g}" for end in ends), None)
    law = JointLaw.random(3, 3)
    only = ("corrupt", "start", "terms", "reverse_law", "bound", "equal", "each", "estimator")
    yield from _proved(prove(MD4(HollowMasked(law), 3, (3,), schedule), law, True, only, num_samples=5_000))


def _of_rates(rates: Rates, num_classes: int, t_end: float) -> Answers:
    """As MarkovDiffusion takes them, on two sites."""
    asked = "a square matrix, none negative, [a, b] the rate b -> a; elapsed rises from 0"
    try:
        process = core_rates.process_of(rates, num_classes, t_end)
        yield Answer(asked, f"{process.num_states} states for {num_classes} classes up to t_end = {t_end:g}")
    except ValueError as error:
        yield Answer(asked, str(error), False)
        return
    model = MarkovDiffusion(Equal(num_classes), num_classes, (2,), process=rates, t_end=t_end, num_timesteps=5)
    yield from _proved(prove(model, report=True, only=(*EQUATIONS, *OF_BOUND), num_samples=5_000))


def _of_codec(codec: Codec, texts: tuple[str, ...]) -> Answers:
    V = codec.num_classes
    yield Answer("num_classes is a whole number of at least 1", str(V), isinstance(V, int) and V >= 1)
    again = codecs_again(codec)
    same = again.tokenizer_hash == codec.tokenizer_hash
    yield Answer("to_dict describes it: the codec made from it has the same identity", str(same), same)
    ids = np.arange(min(V, 64))[None]
    shown = codec.decode(ids)
    yield Answer("decode takes ids 0..V-1", f"{_short(shown[0])} of the first {ids.size}", len(shown) == 1)
    try:
        blank = codec.decode(np.array([[0, V]]))
        yield Answer("decode shows the mask, id V, as a blank", _short(blank[0]), True)
    except Exception as error:
        yield Answer("decode shows the mask, id V, as a blank", str(error), False)
    for text in texts:
        back = codec.decode(codec.encode_array(text)[None])[0]
        yield Answer(f"{_short(text)} decodes to itself", _short(back), str(back) == text)


def codecs_again(codec: Codec) -> Codec:
    """From its description alone."""
    described = codec.to_dict()
    return codecs.codec_from_dict(described, trust=(described["class_path"],))


def _of_data(data: DiscreteData) -> Answers:
    """Prepares and reads it, as a fit would."""
    V, shape = data.num_classes, tuple(data.shape)
    yield Answer("num_classes and shape are known before anything is read", f"{V}, {shape}")
    data.prepare_data()
    data.setup("fit")
    for split in data.splits:
        rows = data.rows(split)
        batch = rows[list(range(min(ROWS, len(rows))))]
        x = batch["x"]
        right = x.dtype == torch.int64 and tuple(x.shape[1:]) == shape
        yield Answer(f"{split}: x is Int64[b, {', '.join(map(str, shape))}]", f"{x.dtype}, {tuple(x.shape)}", right)
        lowest, highest = int(x.min()), int(x.max())
        inside = lowest >= 0 and highest < V
        came = f"{lowest}..{highest} in {len(x)} of {len(rows):,} rows"
        yield Answer(f"{split}: ids lie in 0..{V - 1}", came, inside)
        again = rows[list(range(min(ROWS, len(rows))))]["x"]
        yield Answer(f"{split}: a row is the same when it is read again", "", torch.equal(x, again))
        yield Answer(f"{split}: decode(x)", _short(data.decode(x)[0]), None)


def _of_network(
    network: nn.Module, family: Callable[..., Family], num_classes: int | None, shape: tuple[int, ...] | None
) -> Answers:
    """As the family calls it, in a loss, a bound and a draw."""
    V = num_classes or getattr(network, "num_classes", None) or 3
    model = family(network, V, shape or getattr(network, "shape", None) or (5,))
    x = torch.arange(ROWS * model.num_sites).reshape(ROWS, *model.shape) % model.num_classes
    yield Answer(f"{type(model).__name__} takes it", f"{model.num_classes} classes, shape {model.shape}")
    loss = model.loss(x)
    yield Answer("loss(x) is a finite number", f"{float(loss):.4g} {model.loss_name}", bool(torch.isfinite(loss)))
    loss.backward()
    still = [name for name, p in model.network.named_parameters() if p.requires_grad and not _learns(p)]
    yield Answer("every parameter gets a gradient", f"none: {', '.join(still[:4])}" if still else "it does", not still)
    nats, other = (model.nelbo(x, num_samples=8, seed=seed) for seed in (0, 0))
    yield Answer("nelbo(x) is finite, nats", f"{float(nats.mean()):.4g}, N ln V is {_start(model):.4g}", _finite(nats))
    yield Answer("the same call gives the same numbers: no dropout or draw in a bound", "", torch.equal(nats, other))
    alone = model.nelbo(x[:1], num_samples=8, seed=0)
    apart = float((alone - nats[:1]).abs().max())
    yield Answer("a row alone has the numbers of the row in a batch", f"{apart:.2g} nats apart", apart < 1e-3)
    drawn = model.sample(2, 4, seed=0)
    yield Answer("sample draws ids", f"{tuple(drawn.x.shape)}, {drawn.network_calls} calls of the network")


def _learns(parameter: Tensor) -> bool:
    return parameter.grad is not None


def _finite(nats: Tensor) -> bool:
    return bool(torch.isfinite(nats).all())


def _start(model: Family) -> float:
    return model.num_sites * float(np.log(model.num_classes))


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray | Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."
