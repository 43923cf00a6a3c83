"""The autoregressive model of the papers' tables (AR in arXiv 2406.07524 and 2406.04329): one token after the other,
each given all those before it. No diffusion: what diffusion models are compared with, and an exact judge of samples.

    log p(x) = sum_i log p(x_i | x_1 .. x_{i-1})                                                              eq. (1)
    loss     = -log p(x), in bits per dimension: all n conditionals come out of one call of a causal network

Read from top to bottom: moved  ->  terms, loss, nelbo (which here is -log p(x) itself)  ->  reverse_law
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ggm_lightning.core import losses
from ggm_lightning.core.categorical import PLAIN, Sharpening
from ggm_lightning.core.masked_sites import MaskedSites
from ggm_lightning.core.noise import StepNoise
from ggm_lightning.models import contract, declared
from ggm_lightning.models.base import Family
from ggm_lightning.models.readout import MaskedTerms, Readout
from ggm_lightning.sampling import arguments
from ggm_lightning.sampling.left_to_right import LeftToRight


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
        network, num_classes, shape: see Family.
        family: optimizer, label_dropout, eval_samples, seed, eval_seed (see Family); eval_samples changes nothing, as
            -log p(x) is computed and not estimated.
    """

    samplers = MappingProxyType({"ancestral": LeftToRight})
    exact = True
    fills_beginnings_only = True
    grids = ()

    def __init__(self, network: nn.Module, num_classes: int, shape: tuple[int, ...], **family: Any) -> None:
        super().__init__(network, num_classes, shape, **family)
        if not declared.by(network).causal:  # a class of the user's own need not say; it is looked at anyway
            raise ValueError(
                f"AutoregressiveModel: the network {declared.name_of(network)} sees the very tokens that it is to "
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

        calls, rows = self.network_calls, self.rows_sent
        contract.look_ahead(self, z, values)
        self.network_calls, self.rows_sent = calls, rows

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
        loss, _ = self._minus_log_p(x, label).loss()
        return loss.mean() / (self.num_sites * math.log(2))

    def _minus_log_p(self, x: Tensor, label: Tensor | None) -> MaskedTerms:
        """Eq. (1): every site counts, each once."""
        flat = x.flatten(1)
        everywhere = MaskedSites(torch.ones_like(flat, dtype=torch.bool), count=flat.numel())
        return self.answer(x, label).terms(flat, everywhere, lambda nats: nats)

    def nelbo(
        self, x: Tensor, label: Tensor | None = None, num_samples: int = 1, seed: int = 0, row: Tensor | None = None
    ) -> Tensor:
        """Float64[b], nats: -log p(x) itself, eq. (1), from one call of the network; num_samples, seed and row change
        nothing."""
        x, label, row = arguments.of_bound(self, x, label, row, num_samples, seed)
        with self.evaluating():
            return self._minus_log_p(x, label).rows().double()

    def said_of_sites(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(-log p(x_i | x_1 .. x_{i-1}), Float64[b, n], the terms of eq. (1) each by itself; whether no symbol is more
        probable there, Bool[b, n])."""
        logits, flat = self.answer(x, label)(), x.flatten()
        nats = losses.cross_entropy(logits, flat).double()
        first = logits.gather(-1, flat[:, None])[:, 0] >= logits.amax(-1)
        return nats.reshape(len(x), -1), first.reshape(len(x), -1)

    def last_features(self, x: Tensor) -> Tensor | None:
        """Float[b, d], the network's features where it predicts the last token of x Int64[b, *shape]; None where it
        has none."""
        if not declared.has(self.network, "features"):
            return None
        z = self.moved(x)
        network: Any = self.network
        with self.evaluating():
            t, label = self._network_inputs(z, self._no_time(len(z)), None)
            found = network.features(z, t, label)
        return found.reshape(len(x), self.num_sites, -1)[:, -1]

    # ------------------------------------------------------------------ sampling

    def prior_sample(self, num_samples: int, uniform: Callable[[str], Tensor] | None = None) -> Tensor:
        """Nothing drawn: V everywhere."""
        return torch.full((num_samples, *self.shape), self.begin_id, device=self.device)

    def new_cache(self) -> Any:
        """For `reverse_law`, empty: what a network with `new_cache` and `extend` will have read (networks/causal.py);
        None for any other."""
        if not declared.has(self.network, "new_cache"):
            return None
        network: Any = self.network
        return network.new_cache(self.num_sites)

    def reverse_law(
        self,
        zt: Tensor,
        t: Tensor,
        s: Tensor,
        label: Tensor | None = None,
        sharpening: Sharpening = PLAIN,
        cache: Any = None,
    ) -> NextLaw:
        """The law of z_s given z_t: that of the next token, at site n - t (counted from 0). t Int64[b] in 1..n, and
        s = t - 1. `cache`, of `new_cache`: what the network has read, so that it reads what is new alone. Then all rows
        have the same t, and t falls by one from call to call."""
        arguments.check_law(self, zt, t, s, label, sharpening)
        if self._may_look and not torch.equal(s, t - 1):
            raise ValueError("an autoregressive model draws one token at a time; give s = t - 1")
        return self._next_law(zt, self._first_unknown(t), label, sharpening, cache)

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
        sharpening: Sharpening = PLAIN,
        cache: Any = None,
    ) -> NextLaw:
        answer = self.answer(zt, label, site) if cache is None else self._read_on(zt, site, label, cache)
        return NextLaw(zt.flatten(1), site[:, 0], answer(), sharpening)

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


@dataclass
class NextLaw:
    """The law of one token of each row.

    Attributes:
        zt: Int64[b, n], the state.
        site: Int64[b], where the token stands.
        logits: Float[b, V].
        sharpening: of the law.
    """

    zt: Tensor
    site: Tensor
    logits: Tensor
    sharpening: Sharpening = PLAIN

    def log_probs(self) -> Tensor:
        """Float64[b, V], of the token at `site`."""
        return self.sharpening.log_probabilities(self.logits)

    def draw(self, uniform: Callable[[str], Tensor]) -> Tensor:
        """Int64[b, n]: the state with the token in its place; `uniform("value")` is Float64[b, 1]."""
        place = torch.arange(len(self.zt), device=self.zt.device), self.site
        values = self.sharpening.draw(self.logits, uniform("value")[:, 0], place)
        return self.zt.index_put(place, values)
