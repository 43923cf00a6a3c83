"""Rates from a class or a file: transitions against scipy's integrator and against fractions; what is refused."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from ggm_lightning.core import markov, rates
from ggm_lightning.core.markov import Pieces, Process
from ggm_lightning.core.rates import MaskAndReplace, Rates

V = 5
rng = np.random.RandomState(0)
FIRST, SECOND = (torch.from_numpy(rng.uniform(0, 4, size=(V, V))).fill_diagonal_(0.0) for _ in range(2))
UNIT = torch.eye(V).double()


def at(*t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


class Turning(Rates):
    """From FIRST at time 0 to SECOND at time 2: matrices that do not commute."""

    def __init__(self, num_pieces: int) -> None:
        self.num_pieces = num_pieces

    def rates(self, num_classes: int, time: float) -> Tensor:
        return FIRST + (SECOND - FIRST) * (time / 2)


class Switched(Turning):
    """FIRST before time 1, SECOND from then on."""

    def rates(self, num_classes: int, time: float) -> Tensor:
        return FIRST if time < 1 else SECOND


class Warped(Rates):
    """beta(time) = 3 time^2."""

    def rates(self, num_classes: int, time: float) -> Tensor:
        return FIRST

    def elapsed(self, time: Tensor) -> Tensor:
        return time**3


def integrated(kind: Rates, beta, t: float, s: float = 0.0) -> np.ndarray:
    """P(x_t | x_s) by an eighth-order method with a tolerance of 1e-13, from the rates as they change."""

    def slope(time: float, K: np.ndarray) -> np.ndarray:
        L = rates.generator(kind.rates(V, time), "").numpy()
        return (beta(time) * L @ K.reshape(V, V)).ravel()

    solved = solve_ivp(slope, (s, t), np.eye(V).ravel(), method="DOP853", rtol=1e-13, atol=1e-15)
    return solved.y[:, -1].reshape(V, V)


def test_beta_times_one_matrix_is_exact() -> None:
    """To 1e-11 against the integrator, with beta inside. Control: without it."""
    kind = Warped()
    process = rates.process_of(kind, V, t_end=1.3)
    assert isinstance(process, Process)
    expected = integrated(kind, lambda time: 3 * time**2, 0.9)
    found = process.transition(kind.elapsed(at(0.9)))[0].numpy()
    assert np.abs(found - expected).max() < 1e-11
    assert np.abs(process.transition(at(0.9))[0].numpy() - expected).max() > 1e-4
    between = process.between(kind.elapsed(at(0.9)), kind.elapsed(at(0.4)))[0].numpy()
    assert np.abs(between - integrated(kind, lambda time: 3 * time**2, 0.9, 0.4)).max() < 1e-11


def test_pieces_are_exact_for_rates_that_are_constant_in_each() -> None:
    """Within, at and across the border, to 1e-12 against matrix_exp. Control: the factors in the other order."""
    process = rates.process_of(Switched(4), V, t_end=2.0)
    assert isinstance(process, Pieces)
    one, two = (markov.from_rates(m) for m in (FIRST, SECOND))
    t = at(0.0, 0.3, 0.5, 1.0, 1.2, 2.0)
    expected = torch.stack(
        [
            torch.linalg.matrix_exp(two * max(0.0, float(x) - 1)) @ torch.linalg.matrix_exp(one * min(1.0, float(x)))
            for x in t
        ]
    )
    assert (process.transition(t) - expected).abs().max() < 1e-12
    backwards = torch.linalg.matrix_exp(one) @ torch.linalg.matrix_exp(two * 0.2)
    assert (expected[4] - backwards).abs().max() > 1e-2
    for s, later in ((0.1, 0.3), (0.0, 2.0), (0.5, 1.0), (0.3, 1.7), (1.0, 1.0), (1.2, 2.0), (1.9, 2.0)):
        K = process.between(at(later), at(s))[0]
        assert (K @ process.transition(at(s))[0] - process.transition(at(later))[0]).abs().max() < 1e-13
        assert (K.sum(0) - 1).abs().max() < 1e-13
        assert bool((K >= 0).all())


def test_one_matrix_in_many_pieces_is_one_process() -> None:
    """Rows in any order and repeated, as a sampler asks."""
    L = markov.from_rates(FIRST)
    whole, pieces = Process(L), Pieces(L.expand(7, V, V), torch.linspace(0, 2, 8, dtype=torch.float64))
    t, s = at(1.9, 0.4, 2.0, 1.9, 0.6, 2.3), at(0.2, 0.4, 0.0, 0.2, 0.59, 2.1)
    for a, b in ((whole.transition(t), pieces.transition(t)), (whole.between(t, s), pieces.between(t, s))):
        assert (a - b).abs().max() < 1e-13
    p0 = torch.full((V,), 1 / V, dtype=torch.float64)
    assert (whole.reverse_map(p0, t, s) - pieces.reverse_map(p0, t, s)).abs().max() < 1e-13
    assert (whole.bridge(t, s) - pieces.bridge(t, s)).abs().max() < 1e-12
    assert pieces.to(torch.device("cpu")) is pieces
    with pytest.raises(ValueError, match="run forward"):
        pieces.between(at(0.1), at(0.2))


@pytest.mark.parametrize(("num_pieces", "most"), [(10, 3e-3), (100, 3e-5), (1000, 3e-7)])
def test_the_error_of_pieces_is_what_the_docstring_says(num_pieces: int, most: float) -> None:
    """And of second order: never below a half of it, so that two thirds of the pieces break it."""
    kind = Turning(num_pieces)
    found = rates.process_of(kind, V, t_end=2.0).transition(at(2.0))[0].numpy()
    error = np.abs(found - integrated(kind, lambda time: 1.0, 2.0)).max()
    assert 0.5 * most < error < most


def test_small_entries_of_a_product_keep_their_digits() -> None:
    """Twenty deaths at rates that change from piece to piece, in a time of 1e-3: p = prod of (1 - q_j) survives, and
    (1 - p)^20 is 1e-60. By fractions of 1 - p = -expm1(-integral)."""
    death = markov.pure_death(21)
    scale = torch.tensor([1.0, 3.0, 0.5, 2.0], dtype=torch.float64)
    process = Pieces(scale[:, None, None] * death, torch.linspace(0, 1e-3, 5, dtype=torch.float64))
    integral = float(sum(Fraction(x) for x in scale.tolist()) * Fraction(1e-3) / 4)
    K = process.transition(at(1e-3))[0]
    assert float(K[0, 20]) == pytest.approx((-math.expm1(-integral)) ** 20, rel=1e-10)
    assert float(K[0, 20]) < 1e-55


def test_mask_and_replace() -> None:
    """P(no mask by time t) = e^-t, P(no replacement) = exp(-r (t - t^2 / 2u)): both clocks run by themselves."""
    kind = MaskAndReplace(replaced=0.7, until=2.0, num_pieces=30)
    process = rates.process_of(kind, V, t_end=3.0)
    for t in (0.1, 0.9, 2.0, 2.8):  # ends of pieces
        kept = math.exp(-0.7 * (min(t, 2.0) - min(t, 2.0) ** 2 / 4))
        classes = math.exp(-t) * (kept * UNIT + (1 - kept) / V)
        K = process.transition(at(t))[0]
        assert (K[:V, :V] - classes).abs().max() < 1e-13
        assert (K[V] - torch.cat([at(1 - math.exp(-t)).expand(V), at(1.0)])).abs().max() < 1e-13
        assert (K[:V, :V] - math.exp(-t) * UNIT).abs().max() > 1e-2  # control: masks alone


class Given(Rates):
    """Rates as they come."""

    def __init__(self, matrix: object, num_pieces: object = 1, **methods: object) -> None:
        self.matrix, self.num_pieces = matrix, num_pieces
        for name, method in methods.items():
            setattr(self, name, method)

    def rates(self, num_classes: int, time: float) -> Tensor:
        return self.matrix


L3 = [[-1.0, 2.0, 0.0], [1.0, -2.0, 0.5], [0.0, 0.0, -0.5]]
WRONG_MATRICES = {
    "not square": (np.ones((3, 4)), "square"),
    "of one dimension": (np.ones(9), "square"),
    "empty": (np.ones((0, 0)), "square"),
    "a negative rate": ([[0.0, 1.0, 1.0], [1.0, 0.0, -0.5], [1.0, 1.0, 0.0]], "negative or not finite"),
    "infinite": ([[0.0, math.inf, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]], "negative or not finite"),
    "NaN": ([[0.0, math.nan, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]], "negative or not finite"),
    "transposed": (np.array(L3).T, "its rows sum to 0, not its columns; transpose it"),
    "a diagonal that fits neither": (np.array(L3) + np.eye(3), "its columns do not sum to 0; leave the diagonal 0"),
}


@pytest.mark.parametrize("name", WRONG_MATRICES)
@pytest.mark.parametrize("source", ["class", "file"])
def test_a_matrix_that_is_none_is_refused_in_one_line(name: str, source: str, tmp_path: Path) -> None:
    matrix, message = WRONG_MATRICES[name]
    path = tmp_path / "rates.npy"
    np.save(path, np.array(matrix))
    with pytest.raises(ValueError, match=message) as caught:
        rates.from_file(str(path)) if source == "file" else rates.process_of(Given(matrix), 3, 1.0)
    assert "\n" not in str(caught.value)
    assert ("Given" if source == "class" else str(path)) in str(caught.value)


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "uint8", "float16"])
def test_a_file_of_numbers_is_read(dtype: str, tmp_path: Path) -> None:
    """Of any precision; with a diagonal of 0 or with the right one."""
    matrix = np.array([[0, 2, 0], [1, 0, 5], [0, 0, 0]], dtype=dtype)
    path = str(tmp_path / "rates.npy")
    np.save(path, np.asfortranarray(matrix))
    expected = markov.from_rates(torch.from_numpy(matrix.astype(float)))
    assert rates.from_file(path) == expected.tolist()
    np.save(path, expected.numpy())
    assert rates.from_file(path) == expected.tolist()


DONE: list[int] = []


class Harm:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return harm, (1,)


def harm(number: int) -> int:
    DONE.append(number)
    return number


def test_a_file_of_something_else_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "rates.npy"
    with pytest.raises(ValueError, match=r"rates\.npy: there is no such file"):
        rates.from_file(str(path))
    np.save(path, np.array([[Harm(), 1], [1, 1]], dtype=object), allow_pickle=True)
    DONE.clear()
    with pytest.raises(ValueError, match="it holds objects"):
        rates.from_file(str(path))
    assert DONE == []
    np.load(path, allow_pickle=True)
    assert DONE == [1]  # control: the file does hold code
    for content in (b"", b"no array at all", b"\x93NUMPY\x01\x00v\x00{'descr'", b"\x80\x04N."):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not read as numbers") as caught:
            rates.from_file(str(path))
        assert "\n" not in str(caught.value)
    for array in (
        np.ones((3, 3), complex),
        np.ones((3, 3), bool),
        np.full((3, 3), "a"),
        np.zeros((3, 3), [("a", int)]),
    ):
        np.save(path, array)
        with pytest.raises(ValueError, match="one matrix of real numbers"):
            rates.from_file(str(path))
    with path.open("wb") as file:
        np.savez(file, a=np.ones((3, 3)))
    with pytest.raises(ValueError, match="one matrix of real numbers"):
        rates.from_file(str(path))


M3 = torch.ones(3, 3, dtype=torch.float64).fill_diagonal_(0.0)
WRONG_CLASSES = {
    "too few states": (Given(M3[:2, :2]), "has 2 states for 3 classes"),
    "no matrix": (Given("fast"), "at time 0.5: no matrix of numbers"),
    "ragged": (Given([[0.0, 1.0], [1.0]]), "at time 0.5: no matrix of numbers"),
    "changing in one piece": (Given(M3, rates=lambda v, t: t * M3), "change with time and num_pieces is 1"),
    "changing late": (Given(M3, rates=lambda v, t: M3 if t < 0.6 else 2 * M3), "change with time"),
    "no pieces": (Given(M3, 0), "num_pieces is 0"),
    "half a piece": (Given(M3, 2.5), "num_pieces is 2.5"),
    "another size later": (
        Given(M3, 3, rates=lambda v, t: M3 if t < 0.5 else torch.ones(4, 4).fill_diagonal_(0)),
        "3 states at one time and 4",
    ),
    "too many pieces": (Given(torch.zeros(300, 300), 2000), "take more than 1024 MB; set num_pieces lower"),
    "time that falls": (Given(M3, elapsed=lambda t: t * (0.8 - t)), "not fall"),
    "time that begins late": (Given(M3, elapsed=lambda t: t + 0.1), "0 at time 0"),
    "time that is infinite": (Given(M3, elapsed=lambda t: t / (1 - t)), "finite"),
    "time that stands still": (Given(M3, elapsed=lambda t: 0 * t), "nothing ever happens"),
    "time in float32": (Given(M3, elapsed=lambda t: t.float()), "one float64 number"),
    "time in one number": (Given(M3, elapsed=lambda t: t.sum()), "one float64 number"),
}


@pytest.mark.parametrize("name", WRONG_CLASSES)
def test_a_class_that_is_wrong_is_refused_in_one_line(name: str) -> None:
    kind, message = WRONG_CLASSES[name]
    with pytest.raises(ValueError, match=rf"^process Given.*{message}") as caught:
        rates.process_of(kind, 3, 1.0)
    assert "\n" not in str(caught.value)
    assert isinstance(rates.process_of(Given(M3), 3, 1.0), Process)  # control


def test_any_kind_of_numbers_is_taken() -> None:
    expected = markov.from_rates(M3)
    for matrix in (M3.tolist(), M3.numpy(), M3.float(), M3.long(), M3.numpy().T):
        assert torch.equal(rates.process_of(Given(matrix), 2, 1.0).L, expected)


@pytest.mark.parametrize("bad", [{"replaced": 0.0}, {"replaced": math.inf}, {"until": -1.0}])
def test_arguments_of_mask_and_replace(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive and finite"):
        MaskAndReplace(**bad)
