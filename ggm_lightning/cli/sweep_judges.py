"""Who judges the samples of a sweep, and on which real text: found and checked before anything is drawn."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ggm_lightning.cli import ranks
from ggm_lightning.cli.evaluation_sets import EvaluationSet, check, make_ready, opened, rows_of, sections
from ggm_lightning.cli.loading import Loaded, load_family
from ggm_lightning.codecs.text import Bytes, Characters
from ggm_lightning.metrics.order_k import OrderK
from ggm_lightning.models.autoregressive import AutoregressiveModel
from ggm_lightning.models.base import Family

_MOST_CLASSES = 256  # of a vocabulary whose runs of k tokens a held-out text can tell of


class Judge(Protocol):
    """Attributes: key, in the names of files; title, for a person; identity: what its figures depend on."""

    @property
    def key(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def identity(self) -> dict[str, Any]: ...

    def bits(self, x: Int64[Tensor, "b n"]) -> Float64[Tensor, " b"]:
        """-log2 p per token of each row."""


@dataclass(frozen=True)
class Autoregressive:
    """-log p of an AutoregressiveModel, computed and not estimated."""

    loaded: Loaded
    batch_size: int

    @property
    def key(self) -> str:
        return f"ar-{self.loaded.identity[:8]}"

    @property
    def title(self) -> str:
        return f"the autoregressive model {self.loaded.path}"

    @property
    def identity(self) -> dict[str, Any]:
        return {"judge": "autoregressive", "checkpoint_identity": self.loaded.identity}

    def bits(self, x: Int64[Tensor, "b n"]) -> Float64[Tensor, " b"]:
        model = self.loaded.model
        parts = [model.nelbo(rows.to(model.device)).cpu() for rows in x.split(self.batch_size)]
        return torch.cat(parts).double() / model.num_sites / math.log(2)


@dataclass(frozen=True)
class Counted:
    """A model of order k of held-out rows."""

    model: OrderK
    rows: str  # hash of what it counted

    @property
    def key(self) -> str:
        return f"order{self.model.order}-{self.rows[:8]}"

    @property
    def title(self) -> str:
        return f"a model of order {self.model.order} of the held-out text"

    @property
    def identity(self) -> dict[str, Any]:
        return {"judge": "order", "order": self.model.order, "counted": self.rows}

    def bits(self, x: Int64[Tensor, "b n"]) -> Float64[Tensor, " b"]:
        return torch.from_numpy(self.model.bits(x.numpy()).mean(1))


@dataclass(frozen=True)
class Court:
    """A judge and the real rows that it is tried on.

    Attributes:
        judge: of all cells.
        real: Int64[r, n], held-out rows, evenly spaced; none of them was counted by the judge.
    """

    judge: Judge
    real: Tensor

    @property
    def identity(self) -> dict[str, Any]:
        """What figures depend on, besides the samples."""
        return {"format": 1, **self.judge.identity, "real": hash_of(self.real)}


def refuse_unlike(checkpoints: Mapping[str, Loaded]) -> None:
    """ValueError unless all are models of token sequences of one kind."""
    first_name, first = next(iter(checkpoints.items()))
    for name, loaded in checkpoints.items():
        shape = tuple(loaded.model.shape)
        if len(shape) != 1:
            raise ValueError(
                f"{name}: examples of shape {shape} are no sequences of tokens, and what a sweep measures (n-grams, "
                "entropy of tokens) says nothing of them; draw with `lightning sample`"
            )
        _refuse_other_text(first.model, first_name, loaded.model, name)


def _refuse_other_text(model: Family, name: str, other: Family, called: str) -> None:
    """Equal ids that mean other text cannot be compared."""
    ours, theirs = _kind(model), _kind(other)
    if ours != theirs:
        raise ValueError(
            f"{called} is a model of {_told(other)}, {name} of {_told(model)}; compare models of the same data"
        )


def _kind(model: Family) -> tuple[Any, ...]:
    return model.num_classes, tuple(model.shape), model.codec.tokenizer_hash if model.codec else None


def _told(model: Family) -> str:
    codec = type(model.codec).__name__ if model.codec else "ids"
    digits = f" ({model.codec.tokenizer_hash[:8]})" if model.codec else ""
    return f"{model.shape[0]} tokens of {codec}{digits} with {model.num_classes} classes"


def judge_of(path: str, device: str, trust: tuple[str, ...], model: Family, name: str, batch_size: int) -> Judge:
    """The judge of a checkpoint, of the same text as `model`."""
    loaded = load_family(path, device, trust)
    if not isinstance(loaded.model, AutoregressiveModel):
        raise ValueError(
            f"--judge {path}: holds a {type(loaded.model).__name__}; give an AutoregressiveModel, whose -log p is "
            "exact, or leave it out for a model of order k"
        )
    _refuse_other_text(model, name, loaded.model, f"--judge {path}")
    return Autoregressive(loaded, batch_size)


def refuse_many_classes(model: Family) -> None:
    """ValueError where counting says little: before the data are prepared."""
    known = isinstance(model.codec, Characters | Bytes) or model.num_classes <= _MOST_CLASSES
    if not known:
        raise ValueError(
            f"{_told(model)}: too many to be judged by counting runs of tokens; give --judge, the checkpoint of an "
            "AutoregressiveModel on the same data"
        )


def held_out(
    loaded: Loaded, data: list[str] | None, prepare: bool, trust: tuple[str, ...]
) -> tuple[EvaluationSet, Int64[Tensor, "rows n"]]:
    """The validation split of the checkpoint's data, or of those of --data, checked against the model."""
    sources = sections(data, None, loaded.config.get("data"), {}, str(loaded.path))
    if len(sources) > 1:
        raise ValueError(f"--data names {len(sources)} data sets; a sweep has one")
    (name, source), *_ = sources.items()
    one = opened(name, source, loaded.model, "val", loaded.config.get("seed_everything", 0), trust)
    ranks.first_alone(lambda: make_ready(one, prepare))
    check(one, loaded.model)
    rows = one.data.rows(rows_of(one))
    return one, rows[np.arange(len(rows))]["x"].long().cpu()


def counted(rows: Int64[Tensor, "rows n"], num_classes: int, order: int, most: int) -> Court:
    """The judge counts every other row, the real ones are evenly spaced among the rest, at most so many."""
    if len(rows) < 4:
        raise ValueError(
            f"the held-out data have {len(rows)} rows; a judge of order {order} needs at least 4: give --judge"
        )
    own = rows[1::2]
    return Court(Counted(OrderK(own.numpy(), num_classes, order), hash_of(own)), spaced(rows[::2], most))


def spaced(rows: Int64[Tensor, "rows n"], most: int) -> Int64[Tensor, "r n"]:
    """At most so many of them, evenly spaced."""
    index = torch.linspace(0, len(rows) - 1, min(most, len(rows)), dtype=torch.float64).round().long()
    return rows[index]


def hash_of(rows: Tensor) -> str:
    return hashlib.sha256(str(tuple(rows.shape)).encode() + rows.numpy().tobytes()).hexdigest()
