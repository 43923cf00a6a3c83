"""The autoregressive model of the papers' tables (AR in arXiv 2406.07524 and 2406.04329): one token after the other,
each given all those before it. No diffusion: what diffusion models are compared with, and an exact judge of samples.

    log p(x) = sum_i log p(x_i | x_1 .. x_{i-1})                                                              eq. (1)
    loss     = -log p(x), in bits per dimension: all n conditionals come out of one call of a causal network

Read from top to bottom: moved  ->  terms, loss, nelbo (which here is -log p(x) itself)  ->  reverse_law  ->  draw
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ggm_lightning.core import categorical, watch
from ggm_lightning.core.noise import StepNoise
from ggm_lightning.models import contract
from ggm_lightning.models.base import Family
from ggm_lightning.models.readout import Readout
from ggm_lightning.models.trained import Optimizer
from ggm_lightning.sampling import arguments
from ggm_lightning.sampling.request import Request, Samples, Trace


class AutoregressiveModel(Family):
    """p(x) as a product over the sites in their order, eq. (1); pictures row by row.

    The network is called as network(z, t, label=None) with z Int64[b, *shape] in 0..V, which is x moved by one site: V,
    which stands for the beginning, then x_1 .. x_{n-1}; and t Float[b], always 0 (there is no time). It returns logits
    over the V classes, Float[b, n, V] or Float[b, *shape, V], those at site i being the law of x_i. It has to be
    causal: what it says at a site depends on z up to this site alone, so on the x before it. Transformer is so with
    causal: true, and with time_features: none has no parameters for a time. A network that looks ahead is refused when
    that is first seen, in training, in a bound and in sampling.

    A state z_t, for `terms`, `reverse_law` and the trace, is x with V at the last t sites, those still to be drawn:
    t Int64[b] in 0..n, from n (nothing drawn) to 0 (x).

    Sampling takes n network calls, one for each token, whatever num_steps says; with a network that keeps what it has
    read (`new_cache` and `extend`, as Transformer does) the call costs one site, else n.

    Infilling: what is known has to be a beginning of the row, which is then exact (draws from p(rest | beginning)).
    Known sites behind unknown ones are refused.

    Args:
        network, num_classes, shape, optimizer, label_dropout, seed, eval_seed: see Family.
        eval_samples: changes nothing, as -log p(x) is computed and not estimated.
    """

    exact = True
    fills_beginnings_only = True
    grids = ()

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        shape: tuple[int, ...],
        optimizer: Optimizer = Optimizer(),
        label_dropout: float = 0.0,
        eval_samples: int = 1,
        seed: int = 0,
        eval_seed: int = 0,
    ) -> None:
        super().__init__(network, num_classes, shape, optimizer, label_dropout, eval_samples, seed, eval_seed)
        if getattr(network, "causal", True) is False:  # a class of the user's own need not say; it is looked at anyway
            raise ValueError(
                f"AutoregressiveModel: the network {type(network).__name__} sees the very tokens that it is to "
                "predict; set its causal: true"
            )
        self.begin_id = num_classes
        self.calls_by_use: Counter[str] = Counter()  # of contract.look_ahead

    # ------------------------------------------------------------------ what the network is asked

    def moved(self, x: Tensor) -> Tensor:
        """z Int64[b, *shape]: V, x_1, .., x_{n-1}."""
        flat = x.flatten(1)
        begin = torch.full_like(flat[:, :1], self.begin_id)
        return torch.cat([begin, flat[:, :-1]], 1).reshape(x.shape)

    def answer(self, x: Tensor, label: Tensor | None, sites: Tensor | None = None) -> Readout:
        """What the network says of all sites, or of `sites` Int64[b, m]."""
        z = self.moved(x)
        found = self.readout(z, self._no_time(len(z)), label, sites)
        self._look_ahead(z, label)
        return found

    def _look_ahead(self, z: Tensor, label: Tensor | None) -> None:
        """Whether the network is causal, with calls of its own that are not counted."""

        def values(rows: Tensor) -> Tensor:
            own = None if label is None else label[:1].expand(len(rows))
            return self.readout(rows, self._no_time(len(rows)), own).values

        before = self.network_calls
        contract.look_ahead(self, z, values)
        self.network_calls = before

    def _no_time(self, b: int) -> Tensor:
        return torch.zeros(b, dtype=torch.float64, device=self.device)

    # ------------------------------------------------------------------ loss and -log p

    def terms(self, x: Tensor, zt: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Float[b], nats: -n log p(x_i | z_t) at the first site that is not drawn, i = n - t (counted from 0), t
        Int64[b] in 1..n. Its mean over t uniform in 1..n, z_t being x with V at the last t sites, is -log p(x)."""
        arguments.check_terms(self, x, zt, t, label)
        site = self._first_unknown(t)
        nats = -self._next_law(zt, site, label).log_probs()
        return self.num_sites * nats.gather(1, x.flatten(1).gather(1, site))[:, 0]

    def training_loss(self, x: Tensor, label: Tensor | None, draws: StepNoise) -> Tensor:
        """Bits per dimension, mean over the rows: -log2 p(x) / n. Nothing is drawn."""
        answer, flat = self.answer(x, label), x.flatten(1)
        everywhere = torch.ones_like(flat, dtype=torch.bool)
        if answer.fuse:
            share = torch.full((len(x),), 1 / len(x), dtype=torch.float64, device=x.device)
            nats = answer.weighted_nats(flat, everywhere, share).loss
        else:
            nats = answer.nats(flat, everywhere).mean()
        return nats / (self.num_sites * math.log(2))

    def nelbo(
        self, x: Tensor, label: Tensor | None = None, num_samples: int = 1, seed: int = 0, row: Tensor | None = None
    ) -> Tensor:
        """Float64[b], nats: -log p(x) itself, eq. (1), from one call of the network; num_samples, seed and row change
        nothing."""
        x, label, row = arguments.of_bound(self, x, label, row, num_samples, seed)
        with self.evaluating():
            flat = x.flatten(1)
            return self.answer(x, label).nats(flat, torch.ones_like(flat, dtype=torch.bool)).double()

    # ------------------------------------------------------------------ sampling

    def prior_sample(self, num_samples: int) -> Tensor:
        """Nothing drawn: V everywhere."""
        return torch.full((num_samples, *self.shape), self.begin_id, device=self.device)

    def reverse_law(
        self,
        zt: Tensor,
        t: Tensor,
        s: Tensor,
        label: Tensor | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        cache: Any = None,
    ) -> NextLaw:
        """The law of z_s given z_t: that of the next token, at site n - t (counted from 0). t Int64[b] in 1..n, and
        s = t - 1. `cache`, of a network's `new_cache`: what it has read, so that it reads what is new alone. Then
        all rows have the same t, and t falls by one from call to call."""
        arguments.check_law(self, zt, t, s, label, temperature, top_p)
        if self._may_look and not torch.equal(s, t - 1):
            raise ValueError("an autoregressive model draws one token at a time; give s = t - 1")
        return self._next_law(zt, self._first_unknown(t), label, temperature, top_p, cache)

    def _first_unknown(self, t: Tensor) -> Tensor:
        """Int64[b, 1], counted from 0."""
        outside = (t < 1) | (t > self.num_sites)
        if self._may_look and bool(outside.any()):
            raise ValueError(f"t counts the sites still to be drawn, 1..{self.num_sites}; {t[outside][0].item()} came")
        return (self.num_sites - t.long())[:, None]

    @property
    def _may_look(self) -> bool:
        """Whether looking at values costs nothing; elsewhere each step of a sampler would wait for the device."""
        return self.device.type == "cpu"

    def _next_law(
        self,
        zt: Tensor,
        site: Tensor,
        label: Tensor | None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        cache: Any = None,
    ) -> NextLaw:
        answer = self.answer(zt, label, site) if cache is None else self._read_on(zt, site, label, cache)
        return NextLaw(zt.flatten(1), site[:, 0], answer(), temperature, top_p)

    def _read_on(self, zt: Tensor, site: Tensor, label: Tensor | None, cache: Any) -> Readout:
        """What `answer` gives at the one site of each row, by a network that reads what is new alone."""
        z, begin = self.moved(zt), cache.length
        if begin == 0:
            self._look_ahead(z, label)
        end = begin + 1 if begin else int(site[0]) + 1  # a known beginning is read at once
        if self._may_look and bool((site != end - 1).any()):
            raise ValueError(f"the cache has read {begin} sites; ask about the next one in all rows, or give no cache")
        new = z.flatten(1)[:, begin:end]
        t, known = self._network_inputs(new, self._no_time(len(new)), label)
        network: Any = self.network
        found = contract.features(self, network.extend(new, t, known, cache), network.head, *new.shape)
        answer = Readout(found[:, -1:], network.head, False, site)
        contract.look(self, answer)
        return answer

    def draw(self, request: Request) -> Samples:
        """Site after site, each from the law given all before: as many network calls as there are sites unknown in some
        row. num_steps is not used; there is one order, so no grid.

        A network with `new_cache` and `extend` reads each token once (networks/causal.py), any other the whole row in
        each call. Both draw the same, given equal logits.
        """
        n, b, before = self.num_sites, request.num_samples, self.network_calls
        z = request.clamped(self.prior_sample(b)).flatten(1)
        known = z != self.begin_id
        _refuse_gaps(known)
        first = int(known.sum(1).min())
        cache = self.network.new_cache(n) if hasattr(self.network, "new_cache") else None  # type: ignore[operator]
        alone, trace = request.uniform(1), Trace(request, n - first)
        trace.add(0, z.reshape(b, *self.shape))
        for i in request.bar(range(first, n), n - first):
            watch.at(i - first)
            t = torch.full((b,), n - i, device=z.device)
            state = z.reshape(b, *self.shape)
            law = self.reverse_law(state, t, t - 1, request.label, request.temperature, request.top_p, cache)
            drawn = law.draw(lambda stream, step=i: alone(stream, step=step))  # type: ignore[misc]
            z = torch.where(known, z, drawn)
            trace.add(i - first + 1, z.reshape(b, *self.shape))
        return Samples(z.reshape(b, *self.shape), self.network_calls - before, trace.states)


@dataclass
class NextLaw:
    """The law of one token of each row.

    Attributes:
        zt: Int64[b, n], the state.
        site: Int64[b], where the token stands.
        logits: Float[b, V].
        temperature, top_p: see categorical.draw.
    """

    zt: Tensor
    site: Tensor
    logits: Tensor
    temperature: float = 1.0
    top_p: float = 1.0

    def log_probs(self) -> Tensor:
        """Float64[b, V], of the token at `site`."""
        return categorical.log_probabilities(self.logits, self.temperature, self.top_p)

    def draw(self, uniform: Callable[[str], Tensor]) -> Tensor:
        """Int64[b, n]: the state with the token in its place; `uniform("value")` is Float64[b, 1]."""
        place = torch.arange(len(self.zt), device=self.zt.device), self.site
        values = categorical.draw(self.logits, uniform("value")[:, 0], self.temperature, self.top_p, place)
        return self.zt.index_put(place, values)


def _refuse_gaps(known: Tensor) -> None:
    """ValueError unless the known sites of each row, Bool[b, n], come before all others."""
    behind = known & (~known).cumsum(1).bool()
    if not bool(behind.any()):
        return
    row = int(behind.any(1).nonzero()[0])
    gap, site = int((~known[row]).nonzero()[0]), int(behind[row].nonzero()[0])
    raise ValueError(
        f"clamp: in row {row} site {site} is known but site {gap} before it is not; an autoregressive model draws from "
        "left to right and can only go on from a known beginning: take MD4, GenMD4 or GGM for gaps"
    )
