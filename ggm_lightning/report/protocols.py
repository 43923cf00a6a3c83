"""What callbacks and the report ask of a model and of a data module, beyond what Lightning's own classes have.

The models and data modules of this package have all of it where it makes sense; of anybody else's what is not there is
left out of the report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from lightning.pytorch import Trainer
from torch import Tensor

from ggm_lightning.rundir.checkpoint import HasCodec


@runtime_checkable
class HasShape(Protocol):
    """A model or data module that says what one example looks like."""

    shape: tuple[int, ...]


@runtime_checkable
class HasSamplers(Protocol):
    """A model that names its samplers."""

    samplers: tuple[str, ...]


@runtime_checkable
class HasLikelihood(Protocol):
    """A model that says something of -log p(x)."""

    exact: bool  # whether its nelbo is -log p(x) itself, not a bound on it


@runtime_checkable
class HasStages(Protocol):
    """A model whose latent is trained in two stages."""

    recipe: Any  # with stage1_steps


@runtime_checkable
class DrawsSamples(Protocol):
    """A callback that draws samples into the run folder, as callbacks/samples.py does."""

    every_n_validations: int
    num_samples: int


@runtime_checkable
class Infills(Protocol):
    """A model that draws the rest where some sites are known."""

    fills_beginnings_only: bool  # whether these have to come before all others


@runtime_checkable
class HasExponents(Protocol):
    """A model whose schedule has a learned exponent for each class."""

    def exponents(self) -> Tensor:
        """Float64[v]."""


@runtime_checkable
class Reconstructs(Protocol):
    """A model that draws nothing, but gives back what it is given: an autoencoder. It has no bound."""

    loss_name: str
    measure: tuple[str, str]  # a name below val/ and its title: on the learning curve
    results: tuple[tuple[str, str, str], ...]  # (name below val/ and test/, title or unit, format), to be printed

    def reconstruct(self, x: Tensor) -> Tensor:
        """x Int[b, *shape] once more."""


@runtime_checkable
class Decodes(Protocol):
    """Data that are shown as texts or pictures."""

    def decode(self, x: Tensor) -> list[str] | np.ndarray:
        """A text or a picture per row."""


@runtime_checkable
class ShowsPieces(Protocol):
    """A codec that has a text for a single id."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """One per id; ValueError where single ids have none, as those of pixels."""


@runtime_checkable
class HasRows(Protocol):
    """Data whose examples can be asked for by number."""

    def rows(self, split: str) -> Any:
        """data/rows.py's RowSource."""


@runtime_checkable
class HasOriginals(Protocol):
    """Data whose rows are codes of pictures."""

    @property
    def originals(self) -> np.ndarray | None:
        """UInt8[k, height, width, 3]: those behind the first k held-out rows; None where rows are no codes."""


@runtime_checkable
class CountsCharacters(Protocol):
    """Text."""

    @property
    def characters_per_token(self) -> float | None:
        """Of the validation split; None where the data are no text."""


@runtime_checkable
class HasReferences(Protocol):
    """Data that know levels to compare with."""

    def references(self) -> dict[str, float]:
        """Name -> bits per dimension."""


@runtime_checkable
class Judges(Protocol):
    """Data that can say something of sampled texts."""

    judgement: str  # the table's heading

    def judge(self, texts: list[str]) -> dict[str, float]:
        """Name -> number."""


@runtime_checkable
class Compares(Protocol):
    """Data that can say more of sampled texts: tables in which each set of samples stands beside what it is to be
    compared with. Taken in place of `judge` where both are there."""

    def compare(self, drawn: Mapping[str, list[str]]) -> dict[str, dict[str, float]]:
        """Name of a set of samples -> its texts; heading -> row -> number."""


@runtime_checkable
class SetsTasks(Protocol):
    """Data of which a part of a row can be asked for, and the answer is right or wrong."""

    task: str  # what is asked, as the heading of a section

    def tasks(self, count: int) -> tuple[Tensor, Tensor]:
        """(solutions Int64[count, *shape], which sites are given Bool[count, *shape]) of held-out rows, or fewer."""

    def right(self, x: Tensor, solution: Tensor) -> Tensor:
        """Bool[b]: whether the completed rows x Int64[b, *shape] are right."""

    def guessed(self, solution: Tensor, known: Tensor) -> Tensor:
        """Int64[b, *shape]: the rows completed by chance, without a model."""


def is_exact(model: object) -> bool:
    """Whether its figures are -log p(x) itself; a model that does not say has bounds."""
    return isinstance(model, HasLikelihood) and model.exact


def fills_gaps(model: object) -> bool:
    """Whether any sites may be known, not only a beginning; so it is where a model does not say."""
    return not (isinstance(model, Infills) and model.fills_beginnings_only)


def datamodule_of(trainer: Trainer) -> Any:
    """The trainer's data module, None where it was given loaders."""
    return vars(trainer).get("datamodule")


def originals_of(datamodule: Any) -> np.ndarray | None:
    """See HasOriginals."""
    return datamodule.originals if isinstance(datamodule, HasOriginals) else None


def pieces_of(datamodule: Any) -> Callable[[Sequence[int]], list[str]] | None:
    """Gives single ids their texts; None where the data know of none."""
    codec = datamodule.codec if isinstance(datamodule, HasCodec) else None
    return codec.pieces if isinstance(codec, ShowsPieces) else None


def tables_of(datamodule: Any, drawn: Mapping[str, list[str]]) -> dict[str, dict[str, float]]:
    """What the data say of sets of texts, heading -> row -> number; `judge` is asked about the first set alone."""
    if isinstance(datamodule, Compares):
        return datamodule.compare(drawn)
    if isinstance(datamodule, Judges):
        return {datamodule.judgement: datamodule.judge(next(iter(drawn.values())))}
    return {}
