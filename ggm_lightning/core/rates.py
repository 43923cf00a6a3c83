"""Which rates a finite Markov process has: by name, as numbers, from a .npy file, or from a class of one's own.

Source: the general part of Blackout diffusion, arXiv 2305.11089; `MaskAndReplace` is that of VQ-Diffusion, arXiv
2111.14822, in continuous time. Time runs from 0 to t_end, [a, b] is the rate b -> a. Rates that change are these:

    L(time) = beta(time) L_j,  j the number of the piece that time lies in                                       (1)
              [0, t_end] has num_pieces equal pieces; L_j are the rates in the middle of the j-th
    K_{s->t} = exp(L_k (B(t) - B(e_k))) ... exp(L_j (B(e_{j+1}) - B(s))),  B the integral of beta               (2)
              for s in piece j, t in piece k; e_k where piece k begins

Every bound and sampler uses (2), and is exact for the process (1). Rates that change smoothly are another process than
(1): what it does by time t differs by O(1/num_pieces^2), see `Rates`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from ggm_lightning.core import markov
from ggm_lightning.core.markov import Chain, Pieces, Process

NAMES = ("uniform", "absorbing", "gaussian")
_MOST_BYTES = 1 << 30  # of the matrices of all pieces


class Rates(ABC):
    """The rates of a process. A subclass gives `rates`, and where they change with time says how:

        class Ring(Rates):
            def rates(self, num_classes, time):
                step = torch.eye(num_classes, dtype=torch.float64)
                return step.roll(1, 0) + step.roll(-1, 0)

    Three cases, the first two exact:

        constant          `rates` alone.
        beta(time) L      the same matrix, faster or slower: `rates` and `elapsed`, the integral of beta.
        any L(time)       num_pieces above 1: constant in each of so many equal pieces, eq. (1). Exact for rates that
                          are so; else an approximation of second order: twice the pieces, a quarter of the error (two
                          random L of 5 states with rates up to 4, turned into each other over a time of 2: the
                          transitions are off by 2e-3, 2e-5, 2e-7 with 10, 100, 1000 pieces).

    Attributes:
        num_pieces: pieces of [0, t_end] in which the rates are taken as constant.
        needs_order: whether states are amounts, such as levels of grey; data whose classes are names are then refused.
    """

    num_pieces: int = 1
    needs_order: bool = False

    @abstractmethod
    def rates(self, num_classes: int, time: float) -> Float64[Tensor, "v w"]:
        """[a, b] the rate b -> a at this time, S x S with S >= num_classes: states 0..num_classes-1 are the classes,
        others are the process's own, such as a mask. The diagonal is 0, or minus the rest of its column."""

    def elapsed(self, time: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
        """The integral of beta from 0 to `time`, 0 at 0 and not falling; beta = 1 unless given."""
        return time


class MaskAndReplace(Rates):
    """Every token is masked at rate 1 and replaced by a uniform one at a rate that falls from `replaced` to 0 at time
    `until`: the noise is mostly masks, and what is drawn early may still be corrected late in sampling.

    Args:
        replaced: rate of replacements at time 0.
        until: time of the process (up to t_end) after which nothing is replaced any more.
        num_pieces: see Rates; exact from one end of a piece to another (masks and replacements commute), if `until` is
            one, too.
    """

    def __init__(self, replaced: float = 0.5, until: float = 2.0, num_pieces: int = 100) -> None:
        for name, value in (("replaced", replaced), ("until", until)):
            if not 0 < value < float("inf"):
                raise ValueError(f"MaskAndReplace: {name} is {value}; it must be positive and finite")
        self.replaced, self.until, self.num_pieces = replaced, until, num_pieces

    def rates(self, num_classes: int, time: float) -> Float64[Tensor, "v w"]:
        rate = self.replaced * max(0.0, 1 - time / self.until)
        matrix = torch.full((num_classes + 1, num_classes + 1), rate / num_classes, dtype=torch.float64)
        matrix[-1], matrix[:, -1] = 1.0, 0.0
        return matrix.fill_diagonal_(0.0)


class Numbers(Rates):
    """One matrix, for all times."""

    def __init__(self, L: Float64[Tensor, "v w"], needs_order: bool = False) -> None:
        self.L, self.needs_order = L, needs_order

    def rates(self, num_classes: int, time: float) -> Float64[Tensor, "v w"]:
        return self.L


def of(process: str | Rates | list[list[float]], num_classes: int, width: float) -> Rates:
    """What a model was given: a name of NAMES (`width` is that of gaussian), the matrix or a class.

    Raises:
        ValueError: in one line: an unknown name; see `markov.from_rates`.
    """
    if isinstance(process, Rates):
        return process
    if isinstance(process, str):
        return Numbers(_of_name(process, num_classes, width), needs_order=process == "gaussian")
    return Numbers(generator(process, "process", uses_diagonal=False))


def _of_name(name: str, num_classes: int, width: float) -> Float64[Tensor, "v w"]:
    if name == "gaussian":
        return markov.discretised_gaussian(num_classes, width)
    if name == "uniform":
        return markov.uniform(num_classes)
    if name == "absorbing":
        return markov.absorbing(num_classes)
    raise ValueError(
        f"process '{name}' is unknown; choose one of {', '.join(NAMES)}, or give the rates: a .npy file, the numbers, "
        "or class_path and init_args of a class derived from ggm_lightning.core.rates.Rates"
    )


def is_file(process: Any) -> TypeGuard[str]:
    """Whether a model's `process` names a .npy file."""
    return isinstance(process, str) and process.endswith(".npy")


def from_file(path: str) -> list[list[float]]:
    """The matrix in a .npy file. Nothing but numbers is read: a file of objects would have to execute code.

    Raises:
        ValueError: no such file, no .npy of real numbers, or not the rates of a process.
    """
    what = f"process: {path}"
    if not Path(path).is_file():
        raise ValueError(f"{what}: there is no such file; give the path of a .npy (a checkpoint needs none)")
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        holds_objects = "Object arrays" in str(error) or "Python objects" in str(error)
        reason = "it holds objects" if holds_objects else " ".join(str(error).split())
        raise ValueError(f"{what}: not read as numbers ({reason}); write the matrix with numpy.save") from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu":
        kind = getattr(found, "dtype", "several arrays")
        raise ValueError(f"{what}: holds {kind}; write one matrix of real numbers with numpy.save")
    return generator(np.array(found, dtype=np.float64), what).tolist()


def generator(rates: Any, what: str, uses_diagonal: bool = True) -> Float64[Tensor, "v w"]:
    """L, whose columns sum to 0, from rates [a, b] of b -> a.

    Raises:
        ValueError: no square matrix of finite numbers, a negative rate, or a diagonal that is neither 0 nor minus the
            rest of its column (of the rest of its row: the matrix is to be transposed), if it is used.
    """
    try:
        given = torch.as_tensor(rates, dtype=torch.float64, device="cpu").detach()
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{what}: no matrix of numbers ({' '.join(str(error).split())})") from None
    if given.dim() != 2 or given.shape[0] != given.shape[1] or not len(given):
        raise ValueError(f"{what}: has the shape {list(given.shape)}; it must be square, [a, b] the rate b -> a")
    try:
        L = markov.from_rates(given)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    diagonal, scale = given.diagonal(), max(float(given.abs().max()), 1e-300)
    if uses_diagonal and bool((diagonal != 0).any()) and float((diagonal - L.diagonal()).abs().max()) > 1e-9 * scale:
        by_rows = float(given.sum(1).abs().max()) <= 1e-9 * scale
        remedy = "transpose it" if by_rows else "leave the diagonal 0, it follows from the rest"
        said = "its rows sum to 0, not its columns" if by_rows else "its columns do not sum to 0"
        raise ValueError(f"{what}: [a, b] is the rate b -> a, and {said}; {remedy}")
    return L


def process_of(rates: Rates, num_classes: int, t_end: float) -> Chain:
    """The process of a class of rates, eqs. (1) and (2), its time being that of `elapsed`.

    Raises:
        ValueError: in one line, naming the class: see `generator`; fewer states than classes, or another number at
            another time; rates that change in a single piece; `elapsed` that is not one; num_pieces that are not.
    """
    what, count = f"process {type(rates).__name__}", rates.num_pieces
    if type(count) is not int or not 1 <= count <= 100_000:
        raise ValueError(f"{what}: num_pieces is {count!r}; it must be a whole number from 1 to 100,000")
    edges = torch.linspace(0, t_end, count + 1, dtype=torch.float64)
    matrices = [_matrix(rates, what, num_classes, float(time)) for time in (edges[1:] + edges[:-1]) / 2]
    sizes = sorted({len(L) for L in matrices})
    if len(sizes) > 1:
        raise ValueError(f"{what}: has {sizes[0]} states at one time and {sizes[-1]} at another; keep their number")
    elapsed = _elapsed(rates, what, edges)
    if count > 1:
        return Pieces(torch.stack(matrices), elapsed)
    for time in (0.0, t_end / 3, t_end):
        if not torch.equal(_matrix(rates, what, num_classes, time), matrices[0]):
            raise ValueError(
                f"{what}: its rates change with time and num_pieces is 1; set num_pieces to the number of pieces in "
                "which they may be taken as constant"
            )
    return Process(matrices[0])


def _matrix(rates: Rates, what: str, num_classes: int, time: float) -> Tensor:
    L = generator(rates.rates(num_classes, time), f"{what} at time {time:.4g}")
    if len(L) < num_classes:
        raise ValueError(f"{what}: has {len(L)} states for {num_classes} classes; give a rate for every class")
    if rates.num_pieces * L.numel() * L.element_size() > _MOST_BYTES:
        raise ValueError(
            f"{what}: {rates.num_pieces} pieces of {len(L)} states take more than {_MOST_BYTES >> 20} MB; set "
            "num_pieces lower"
        )
    return L


def _elapsed(rates: Rates, what: str, edges: Tensor) -> Tensor:
    found = rates.elapsed(edges)
    if not isinstance(found, Tensor) or found.dtype != torch.float64 or found.shape != edges.shape:
        raise ValueError(f"{what}: elapsed(time) must return one float64 number for each time")
    fine = torch.linspace(0, float(edges[-1]), 1025, dtype=torch.float64)
    values = rates.elapsed(fine)
    if float(values[0]) != 0 or not bool(torch.isfinite(values).all()) or bool((values.diff() < 0).any()):
        raise ValueError(f"{what}: elapsed(time) must be 0 at time 0, finite, and not fall up to t_end")
    if not float(values[-1]) > 0:
        raise ValueError(f"{what}: elapsed(t_end) is 0, so nothing ever happens")
    return found.detach()
