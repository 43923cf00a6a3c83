"""Laws that are none never become tokens: what a sampler draws from is looked at, and what it has drawn.

A row of logits is a law unless it holds NaN or +inf, or is -inf everywhere. The first fault of a run is kept on the
device with its step, row and site; a legal value stands in its place until the host looks, which ends the run. On a CPU
the host looks at once. On other devices it looks every `EVERY` steps and at the end: no step waits for the device.

Draws happen many calls below the loop that counts the steps. So the watch is not handed down through every law: the
sampler opens one by `watching`, says by `at` where it is, and whoever draws tells it. Without one, a fault is an error
at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

EVERY = 32  # steps between two looks on a GPU

# the k True sites of Bool[b, n] in row-major order; or (row Int64[k], site Int64[k]); None: all sites of all rows
Sites = Bool[Tensor, "b n"] | tuple[Tensor, Tensor] | None

_REMEDY = {
    "logits": "look at the network's weights and at what it does with this input (half precision overflows first)",
    "deaths": "the network has to say a finite number >= 0; look at its weights, or take output: softplus",
    "latent": "look at the weights of the network that denoises the latent",
    "token": "this is a mistake of the sampler or of its law",
}
# code - 1 -> (what a place is called, what is wrong there, kind of remedy); core/draw_kernels.py knows the first three
_FAULTS = (
    ("site", "the network's logits are NaN", "logits"),
    ("site", "the network's logits are +inf", "logits"),
    ("site", "the network's logits are all -inf: no class is possible", "logits"),
    ("site", "the expected number of deaths is NaN", "deaths"),
    ("site", "the expected number of deaths is negative", "deaths"),
    ("site", "the expected number of deaths is infinite", "deaths"),
    ("latent", "the denoised latent is NaN or infinite", "latent"),
    ("site", "what was drawn is none of the classes", "token"),
)
_NAN, _INFINITE, _NO_CLASS, _DEATHS_NAN, _DEATHS_NEGATIVE, _DEATHS_INFINITE, _LATENT, _TOKEN = range(1, 9)


class Watch:
    """The first fault of one run of a sampler.

    Args:
        row: Int64[b], the numbers of the rows, by which a fault is reported.
    """

    def __init__(self, row: Int64[Tensor, " b"]) -> None:
        self._all_rows = self._row = row
        self.at_once = row.device.type == "cpu"  # whether the host looks as soon as something was drawn
        self._step, self._unit = 0, "step"
        self._first: Tensor | None = None  # Int64[4]: code (0: none), step, row, place

    def at(self, step: int, row: Tensor | None, unit: str) -> None:
        if unit != self._unit or step % EVERY == 0:
            self.look()
        self._step, self._unit = step, unit
        self._row = self._all_rows if row is None else row

    def narrow(self, rows: Tensor) -> None:
        self._row = self._all_rows[rows]

    def keep(self, codes: Int64[Tensor, " k"], sites: Sites) -> None:
        """The first code that is not 0, unless there was one before."""
        if not codes.numel():
            return
        code, row, place = _first(codes, sites, len(self._row))
        found = torch.cat([code, torch.full_like(code, self._step), self._row.gather(0, row), place])
        self._first = found if self._first is None else torch.where(self._first[0] > 0, self._first, found)
        if self.at_once:
            self.look()

    def look(self) -> None:
        """The only place where the host waits. Raises ValueError: step, row, site and what is wrong there."""
        if self._first is None:
            return
        code, step, row, place = self._first.tolist()
        if code:
            raise ValueError(f"{self._unit} {step}, row {row}{_said(code, place)}")


def _first(codes: Tensor, sites: Sites, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """(code, row, place) of the first code that is not 0, each Int64[1]."""
    if isinstance(sites, Tensor):
        codes = torch.zeros(sites.shape, dtype=codes.dtype, device=codes.device).masked_scatter(sites, codes).flatten()
    first = (codes > 0).long().argmax(keepdim=True)
    code = codes.gather(0, first)
    if isinstance(sites, tuple):
        return code, sites[0].gather(0, first), sites[1].gather(0, first)
    num_sites = max(1, len(codes) // num_rows)
    return code, first // num_sites, first % num_sites


def _said(code: int, place: int | None) -> str:
    name, wrong, remedy = _FAULTS[code - 1]
    where = "" if place is None else f", {name} {place}"
    return f"{where}: {wrong}; {_REMEDY[remedy]}"


_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watching(row: Int64[Tensor, " b"]) -> Iterator[None]:
    """One run of a sampler over the rows with these numbers. Raises ValueError at its end at the latest."""
    watch = Watch(row)
    token = _watch.set(watch)
    try:
        yield
        watch.look()
    finally:
        _watch.reset(token)


def at(step: int, row: Tensor | None = None, unit: str = "step") -> None:
    """Says where the sampler is. `row`: the numbers of the rows that are drawn from now on, where they are others than
    those of the run."""
    watch = _watch.get()
    if watch is not None:
        watch.at(step, row, unit)


def narrow(rows: Int64[Tensor, " m"]) -> None:
    """From now on, until the next `at`, what is told is of these rows of the run's batch alone."""
    watch = _watch.get()
    if watch is not None:
        watch.narrow(rows)


# ------------------------------------------------------------------ what is looked at


def faults_of(logits: Float[Tensor, "k v"]) -> Int64[Tensor, " k"]:
    """The code of each row, 0 where it is a law: NaN, +inf and all -inf show in its largest logit."""
    top = logits.amax(-1)
    codes = torch.where(top == torch.inf, _INFINITE, 0)
    codes = torch.where(top == -torch.inf, _NO_CLASS, codes)
    return torch.where(torch.isnan(top), _NAN, codes)


def note(codes: Int64[Tensor, " k"], sites: Sites = None) -> None:
    """Keeps the first fault for the watch that is on; without one it is an error at once."""
    watch = _watch.get()
    if watch is not None:
        watch.keep(codes, sites)
    elif codes.numel() and bool(codes.any()):
        code, row, place = (int(part) for part in _first(codes, sites, len(codes)))
        raise ValueError(f"row {row}{_said(code, None if sites is None else place)}")


def logits(given: Float[Tensor, "k v"], sites: Sites = None) -> None:
    """What a network says within the run of a sampler; elsewhere it is not looked at, as each look costs a pass."""
    if _watch.get() is not None:
        note(faults_of(given), sites)


def deaths(y: Float64[Tensor, "b n"]) -> Float64[Tensor, "b n"]:
    """Expected deaths, 0 where they are none: NaN, negative or infinite."""
    codes = torch.where(y == torch.inf, _DEATHS_INFINITE, 0)
    codes = torch.where(y < 0, _DEATHS_NEGATIVE, codes)
    codes = torch.where(torch.isnan(y), _DEATHS_NAN, codes)
    rows = torch.arange(len(y), device=y.device)[:, None].expand(y.shape)
    sites = torch.arange(y.shape[1], device=y.device).expand(y.shape)
    note(codes.flatten(), (rows.flatten(), sites.flatten()))
    return torch.where(codes > 0, 0.0, y)


def latent(z: Float[Tensor, "b s c"]) -> None:
    """A denoised latent."""
    codes = torch.where(torch.isfinite(z).all(-1), 0, _LATENT)
    rows = torch.arange(len(z), device=z.device)[:, None].expand(codes.shape)
    places = torch.arange(z.shape[1], device=z.device).expand(codes.shape)
    note(codes.flatten(), (rows.flatten(), places.flatten()))


def tokens(x: Int64[Tensor, " b *s"], num_classes: int) -> None:
    """What a sampler returns."""
    note(torch.where((x < 0) | (x >= num_classes), _TOKEN, 0).flatten())
