"""Any Markov process on finitely many states, given by its rates, and its exact reversal.

Source: the general part of Blackout diffusion, arXiv 2305.11089 (any discrete-state Markov process), derivations in our
own equation numbers. Columns are where the process comes from: L[a, b] is the rate b -> a, each column sums to 0.

    forward       dp_t/dt = L p_t,  K_{s->t} = exp(L (t - s))                                                    (1)
    reverse rate  b -> a:  R_t[a, b] = L[b, a] p_t(a) / p_t(b)                                                   (2)
    reverse map   P(x_s = a | x_t = b) = K_{s->t}[b, a] p_s(a) / p_t(b), exact for any s < t                     (3)
    bridge        P(x_s = a | x_t = b, x_0 = o) = K_{s->t}[b, a] K_{0->s}[a, o] / K_{0->t}[b, o]                 (4)

Rates and maps given x_t alone are averages of those given x_0 = o over p(o | x_t), which is what a network learns. What
training and bounds need of them is kept as logarithms (`Step`): laws may hold classes of probability e^-760.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ggm_lightning.core import logs

_TABLE_BYTES = 1 << 29  # of all matrices of a grid; a larger grid makes them anew where they are asked for
_TAYLOR = 20  # terms; the argument has norm at most 1, so that the rest is below 1e-19


def checked(L: Float64[Tensor, "v w"]) -> Float64[Tensor, "v v"]:
    """L itself, if it is a matrix of rates."""
    if L.dim() != 2 or L.shape[0] != L.shape[1]:
        raise ValueError(f"rates: the matrix has shape {tuple(L.shape)}; it must be square, one row for each state")
    scale = max(float(L.abs().max()), 1e-300)
    off = L - torch.diag(L.diagonal())
    if not bool(torch.isfinite(L).all()) or bool((off < 0).any()):
        raise ValueError("rates: an entry off the diagonal is negative or not finite; L[a, b] >= 0 is the rate b -> a")
    worst = float(L.sum(0).abs().max())
    if worst > 1e-9 * scale:
        raise ValueError(
            f"rates: a column sums to {worst:.2g}; make L[b, b] minus the rest of it (transpose L if rows sum to 0)"
        )
    return L


def from_rates(rates: Float64[Tensor, "v v"]) -> Float64[Tensor, "v v"]:
    """L from rates[a, b] of b -> a; their diagonal is not used."""
    off = rates - torch.diag(rates.diagonal())
    return checked(off - torch.diag(off.sum(0)))


def uniform(num_states: int) -> Float64[Tensor, "v v"]:
    """At rate 1 the state is replaced by one drawn uniformly from all."""
    return from_rates(torch.full((num_states, num_states), 1 / num_states, dtype=torch.float64))


def birth_death(birth: Float64[Tensor, " v"], death: Float64[Tensor, " v"]) -> Float64[Tensor, "v v"]:
    """x -> x + 1 at rate birth[x], x -> x - 1 at death[x]; the last birth and the first death cannot happen."""
    return from_rates(torch.diag(birth[:-1], -1) + torch.diag(death[1:], 1))


def pure_death(num_states: int) -> Float64[Tensor, "v v"]:
    """x -> x - 1 at rate x: core/death.py."""
    x = torch.arange(num_states, dtype=torch.float64)
    return birth_death(torch.zeros_like(x), x)


def absorbing(num_classes: int) -> Float64[Tensor, "v v"]:
    """Every class -> the mask, state V, at rate 1: core/masking.py with alpha = e^-t."""
    rates = torch.zeros(num_classes + 1, num_classes + 1, dtype=torch.float64)
    rates[-1, :-1] = 1
    return from_rates(rates)


def discretised_gaussian(num_states: int, width: float = 1.0) -> Float64[Tensor, "v v"]:
    """b -> a at a rate proportional to exp(-(a - b)^2 / (2 width^2)), total 1 from the middle: symmetric, so that the
    uniform law is stationary; near states are alike (the continuous-time analogue of D3PM's, arXiv 2107.03006)."""
    if not 0 < width < math.inf:
        raise ValueError(f"discretised_gaussian: width is {width}; it must be positive and finite")
    x = torch.arange(num_states, dtype=torch.float64)
    rates = torch.exp(-((x[:, None] - x) ** 2) / (2 * width**2)).fill_diagonal_(0.0)
    largest = rates.sum(0).max()
    return from_rates(rates / torch.where(largest > 0, largest, 1.0))  # 0: a single state, which stays


def lattice(drift: Float64[Tensor, " v"], diffusion: float, spacing: float) -> Float64[Tensor, "v v"]:
    """Jumps of a lattice of `spacing` h at rates D/h^2 +- f/(2h): dx = f dt + sqrt(2 D) dW as h goes to 0."""
    jump, bias = diffusion / spacing**2, drift / (2 * spacing)
    if bool((bias.abs() > jump).any()):
        raise ValueError(
            f"lattice: the drift {float(drift.abs().max()):.3g} is too large for spacing {spacing}; "
            f"it must be at most 2 D/h = {2 * diffusion / spacing:.3g}, take a finer lattice"
        )
    return birth_death(jump + bias, jump - bias)


def _exponential(L: Tensor, t: Tensor) -> Tensor:
    """exp(L t) [b, v, v] of one L [v, v] or one for each t [b, v, v]. With c the largest total rate, L + c is
    non-negative and so is every term of e^{-ct} times the series of exp((L + c) t): small entries are as accurate as
    large ones."""
    c = -L.diagonal(dim1=-2, dim2=-1).amin(-1)[..., None, None]
    identity = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
    halvings = max(0, math.ceil(math.log2(max(float((c * t.detach()[:, None, None]).max()), 1e-300))) + 1)
    x = t[:, None, None] / 2**halvings
    A = (L + c * identity) * x
    K = term = identity.expand_as(A)
    for j in range(1, _TAYLOR + 1):
        term = A @ term / j
        K = K + term
    K = K * torch.exp(-c * x)
    for _ in range(halvings):
        K = K @ K
        # errors double with each squaring; a column is a law, so most of them can be taken out
        K = K / K.sum(1, keepdim=True)
    return K


class Chain(ABC):
    """A process by its transitions, and what its reversal needs. Times are Float64[b], s < t; laws are Float64[v]."""

    num_states: int

    @abstractmethod
    def to(self, device: torch.device) -> Chain: ...

    @abstractmethod
    def transition(self, t: Float64[Tensor, " b"]) -> Float64[Tensor, "b v v"]:
        """K_t[a, b] = P(x_t = a | x_0 = b), made once for each distinct time. Asks the device for numbers: a training
        step looks its matrices up instead, see Grid."""

    @abstractmethod
    def between(self, t: Float64[Tensor, " b"], s: Float64[Tensor, " b"]) -> Float64[Tensor, "b v v"]:
        """P(x_t = a | x_s = b) [b, a, b]."""

    def step(self, t: Float64[Tensor, " b"], s: Float64[Tensor, " b"]) -> Step:
        """What a reverse step from t to s needs."""
        return Step(self.transition(s).log(), self.transition(t).log(), self.between(t, s).log())

    def marginal(self, p0: Float64[Tensor, " v"], t: Float64[Tensor, " b"]) -> Float64[Tensor, "b v"]:
        """p_t for x_0 ~ p0."""
        return self.transition(t) @ p0

    def reverse_map(
        self, p0: Float64[Tensor, " v"], t: Float64[Tensor, " b"], s: Float64[Tensor, " b"]
    ) -> Float64[Tensor, "b v v"]:
        """P(x_s = a | x_t = b) [b, a, b] for x_0 ~ p0, eq. (3). A state of probability 0 has a column of zeros."""
        p_s = self.marginal(p0, s)
        joint = self.between(t, s).transpose(1, 2) * p_s[:, :, None]
        total = joint.sum(1, keepdim=True)
        return joint / torch.where(total > 0, total, 1.0)

    def bridge(self, t: Float64[Tensor, " b"], s: Float64[Tensor, " b"]) -> Float64[Tensor, "b v v v"]:
        """P(x_s = a | x_t = c, x_0 = o) [b, a, c, o], eq. (4); zeros where (c, o) cannot happen."""
        step, before = self.between(t, s), self.transition(s)
        joint = step.transpose(1, 2)[:, :, :, None] * before[:, :, None, :]
        total = joint.sum(1, keepdim=True)
        return joint / torch.where(total > 0, total, 1.0)


class Process(Chain):
    """The process of rates L that do not change.

    Args:
        L: Float64[v, v], rates as in eq. (1).
    """

    def __init__(self, L: Float64[Tensor, "v w"]) -> None:
        self.L = checked(L)
        self.num_states = len(L)

    def to(self, device: torch.device) -> Process:
        """The same process there, not checked again: a look at values would wait for the device."""
        if self.L.device == device:
            return self
        moved = copy.copy(self)
        moved.L = self.L.to(device)
        return moved

    def transition(self, t: Float64[Tensor, " b"]) -> Float64[Tensor, "b v v"]:
        _refuse_backwards(t)
        if t.requires_grad:
            return _exponential(self.L, t)
        distinct, which = torch.unique(t, return_inverse=True)
        return _exponential(self.L, distinct)[which]

    def between(self, t: Float64[Tensor, " b"], s: Float64[Tensor, " b"]) -> Float64[Tensor, "b v v"]:
        return self.transition(t - s)

    def reverse_rates(self, p_t: Float64[Tensor, "b v"]) -> Float64[Tensor, "b v v"]:
        """R_t of eq. (2) where the state is distributed as p_t, with its diagonal. States of probability 0 do not move.

        With p_t a column of K_t it is the rate given x_0, which a bound compares with.
        """
        ratio = p_t[:, :, None] / torch.where(p_t > 0, p_t, 1.0)[:, None, :]
        R = torch.where(p_t[:, None, :] > 0, self.L.T * ratio, 0.0)
        R = R - torch.diag_embed(R.diagonal(dim1=1, dim2=2))
        return R - torch.diag_embed(R.sum(1))

    def posterior_mean_rates(
        self, posterior: Float64[Tensor, "b v"], t: Float64[Tensor, " b"], state: Tensor
    ) -> Float64[Tensor, "b v"]:
        """R_t[a, x_t] for every a, from p(o | x_t) and x_t = state Int64[b]: eq. (2) averaged over o. 0 at x_t."""
        K = self.transition(t)
        at = K.gather(1, state[:, None, None].expand(-1, 1, self.num_states))  # p_t(x_t | o), [b, 1, o]
        ratio = torch.where(at > 0, K / torch.where(at > 0, at, 1.0), 0.0)
        rates = self.L[state] * (ratio @ posterior[:, :, None])[:, :, 0]
        return rates.scatter(1, state[:, None], 0.0)


class Pieces(Chain):
    """The process of rates that are constant within each piece of time, and others in the next:

        K_{s->t} = exp(L_k (t - e_k)) exp(L_{k-1} (e_k - e_{k-1})) ... exp(L_j (e_{j+1} - s))

    for s in piece j, t in a later piece k. All factors are non-negative, so that small entries are as accurate as large
    ones.

    Args:
        L: Float64[p, v, v], rates of each piece.
        edges: Float64[p + 1], 0 = e_0 <= ... <= e_p; the last piece goes on for ever.
    """

    def __init__(self, L: Float64[Tensor, "p v w"], edges: Float64[Tensor, " e"]) -> None:
        self.L, self.edges = torch.stack([checked(piece) for piece in L]), edges
        self.num_states = L.shape[-1]
        self._whole = _exponential(self.L, edges.diff())
        to_edges = [torch.eye(self.num_states, dtype=L.dtype, device=L.device)]
        for piece in self._whole[:-1]:
            to_edges.append(piece @ to_edges[-1])
        self._to_edges = torch.stack(to_edges)  # K from 0 to the beginning of each piece

    def to(self, device: torch.device) -> Pieces:
        return self if self.L.device == device else Pieces(self.L.to(device), self.edges.to(device))

    def _piece(self, t: Tensor) -> Tensor:
        """Int64[b]: the piece that begins at t or before."""
        return (torch.searchsorted(self.edges, t.contiguous(), right=True) - 1).clamp(0, len(self.L) - 1)

    def transition(self, t: Float64[Tensor, " b"]) -> Float64[Tensor, "b v v"]:
        _refuse_backwards(t)
        distinct, which = torch.unique(t, return_inverse=True)
        piece = self._piece(distinct)
        return (_exponential(self.L[piece], distinct - self.edges[piece]) @ self._to_edges[piece])[which]

    def between(self, t: Float64[Tensor, " b"], s: Float64[Tensor, " b"]) -> Float64[Tensor, "b v v"]:
        _refuse_backwards(t - s)
        pairs, which = torch.unique(torch.stack([s, t]), dim=1, return_inverse=True)
        s, t = pairs
        j, k = self._piece(pairs)
        first = _exponential(self.L[j], torch.where(j == k, t, self.edges[j + 1]) - s)
        last = _exponential(self.L[k], t - torch.where(j == k, t, self.edges[k]))
        found = []
        for K, after, begin, end in zip(first, last, j.tolist(), k.tolist(), strict=True):
            for piece in self._whole[begin + 1 : end]:
                K = piece @ K
            found.append(after @ K)
        return torch.stack(found)[which]


def _refuse_backwards(t: Tensor) -> None:
    if bool((t < 0).any()):
        raise ValueError(f"transition: a time is {float(t.min()):.3g}; times run forward from 0, give s <= t")


@dataclass
class Step:
    """One reverse step, from time t to s, of b rows: the logarithms of three matrices, each Float64[b, v, v].

    Attributes:
        before: log P(x_s = a | x_0 = o) [a, o].
        at: log P(x_t = c | x_0 = o) [c, o].
        between: log P(x_t = c | x_s = a) [c, a].
    """

    before: Float64[Tensor, "b v v"]
    at: Float64[Tensor, "b v v"]
    between: Float64[Tensor, "b v v"]

    def reach(self, zt: Int64[Tensor, "b n"], num_classes: int) -> Float64[Tensor, "b n o"]:
        """log P(x_t | x_0 = o) for o = 0..num_classes-1."""
        return self.at[..., :num_classes].take_along_dim(zt[..., None], 1)

    def bridge(self, zt: Int64[Tensor, "b n"], x0: Int64[Tensor, "b n"]) -> Float64[Tensor, "b n v"]:
        """log P(x_s | x_t, x_0), eq. (4)."""
        from_x0 = self.before.transpose(1, 2).take_along_dim(x0[..., None], 1)
        return logs.log_normalised(self.between.take_along_dim(zt[..., None], 1) + from_x0)

    def mixed(self, zt: Int64[Tensor, "b n"], log_posterior: Float64[Tensor, "b n o"]) -> Float64[Tensor, "b n v"]:
        """log P(x_s | x_t), eq. (4) averaged over log p(x_0 | x_t). -inf everywhere where no x_0 is possible."""
        o = log_posterior.shape[-1]
        reach = self.reach(zt, o)
        # p(o | x_t) / P(x_t | o); what cannot be reached has probability 0 in both
        share = torch.where(reach > -torch.inf, log_posterior - reach, -torch.inf)
        to_state = self.between.take_along_dim(zt[..., None], 1)
        return logs.log_normalised(to_state + logs.log_matmul(share, self.before[..., :o].contiguous()))


class Grid:
    """The matrices of a process between fixed times, made once: a step that looks them up asks the device for nothing.

    Args:
        process: whose matrices.
        times: Float64[T + 1], 0 = t_0 < ... < t_T.
    """

    def __init__(self, process: Chain, times: Float64[Tensor, " t"]) -> None:
        self.process, self.times = process, times
        self._tables: list[Tensor] | None = None
        if 2 * len(times) * process.num_states**2 * 8 <= _TABLE_BYTES:
            self._tables = [process.transition(times), process.between(times[1:], times[:-1])]

    def to(self, device: torch.device) -> Grid:
        if self.times.device == device:
            return self
        moved = copy.copy(self)
        moved.process, moved.times = self.process.to(device), self.times.to(device)
        if self._tables is not None:
            moved._tables = [table.to(device) for table in self._tables]
        return moved

    def transition(self, k: Int64[Tensor, " b"]) -> Float64[Tensor, "b v v"]:
        """P(x_{t_k} = a | x_0 = b) [b, a, b]."""
        return self.process.transition(self.times[k]) if self._tables is None else self._tables[0][k]

    def step(self, k: Int64[Tensor, " b"]) -> Step:
        """From t_k to t_{k-1}; k in 1..T."""
        if self._tables is None:
            between = self.process.between(self.times[k], self.times[k - 1])
        else:
            between = self._tables[1][k - 1]
        return Step(self.transition(k - 1).log(), self.transition(k).log(), between.log())
