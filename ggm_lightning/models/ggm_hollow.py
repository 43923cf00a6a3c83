"""GGM with order: random and a hollow network (arXiv 2405.17035): every site of a row learns from one call, and a bound
takes n of its terms from one. Equations as numbered in core/hollow.py; models/ggm.py calls what stands here.

What the network is told of the chain stands in models/ggm_levels.py. What a hollow network returns at site i it makes
of all sites but i. That is looked at, in a model's first call in
training, in a bound and in sampling: a network that leaks would learn to copy and report a bound below -log p.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from ggm_lightning.core import glauber, hollow, losses, noise, products, times, watch
from ggm_lightning.core.categorical import PLAIN, Sharpening
from ggm_lightning.core.glauber import SiteLaw
from ggm_lightning.core.noise import StepNoise
from ggm_lightning.models import ggm_levels
from ggm_lightning.models.contract import Checked
from ggm_lightning.models.ggm_levels import Levelled
from ggm_lightning.models.readout import Readout

_CHUNK_ENTRIES = 1 << 24  # logits of a bound formed at once: 128 MB in float64
_LAW_ENTRIES = 1 << 25  # probabilities that a sampler forms at once: 256 MB in float64


class CheckedHollow(Checked, Protocol):
    """A model whose network is looked at for leaks.

    Attributes:
        network_calls, rows_sent: so far; the look is not counted.
    """

    network_calls: int
    rows_sent: int

    def evaluating(self, use: str = "bound") -> AbstractContextManager[None]: ...

    def readout(
        self, zt: Tensor, t: Tensor, label: Tensor | None, sites: Tensor | None = None, **inputs: Tensor
    ) -> Readout: ...


class AllSites(CheckedHollow, Levelled, Protocol):
    """GGM with order: random, as this file sees it."""

    objective: str
    noise_draws: int
    fused: bool | None

    @property
    def log_pi(self) -> Tensor: ...

    def log_conditional(self, logits: Tensor, a: Tensor) -> Tensor: ...


# ------------------------------------------------------------------ is it hollow?


@torch.compiler.disable
def check_network(model: CheckedHollow, zt: Tensor, given: dict[str, Tensor], label: Tensor | None) -> None:
    """ValueError if the output at a site moves with the site's own token and bit, or level; looked at in one site of
    each row. `given`: of ggm_levels.inputs.

    Done with once another site's output has moved: a network that starts by saying nothing is looked at again.
    """
    key = ("hollow", str(model.network_use))
    if key in model.looked_at:
        return
    site, changed = hollow.another_token(zt.flatten(1), model.num_classes)
    row = torch.arange(len(zt), device=zt.device)
    calls, rows = model.network_calls, model.rows_sent
    with model.evaluating(model.network_use or "bound"):
        base = model.readout(zt, label=label, **given).values
        other_given = ggm_levels.changed_at(given, row, site)
        other = model.readout(changed.reshape(zt.shape), label=label, **other_given).values
    model.network_calls, model.rows_sent = calls, rows
    at, others = hollow.moved(base, other, site)
    if at is not None:
        raise ValueError(
            f"GGM: order random needs a hollow network, and what {type(model.network).__name__} returned at site {at} "
            f"moved with the token of site {at}; take networks.hollow.HollowTransformer, or order: raster or permuted"
        )
    if others:
        model.looked_at.add(key)


# ------------------------------------------------------------------ loss


def training_loss(model: AllSites, x: Tensor, label: Tensor | None, draws: StepNoise) -> Tensor:
    """Nats per site, mean over rows and sites, eqs. (9) to (11); loss bound: eq. (12) without the prior, per site.

    A known site counts like the others: what is asked there does not depend on its own level, and its label is drawn at
    a_r whatever the input holds.
    """
    with model.at_sweeps(ggm_levels.sweeps_of_step(model, draws)):
        return _loss_of_step(model, x, label, draws, ggm_levels.known_sites(model, draws))


def _loss_of_step(model: AllSites, x: Tensor, label: Tensor | None, draws: StepNoise, known: Tensor | None) -> Tensor:
    uniform = partial(draws.uniform, num_sites=model.num_sites)
    r, visited, zt = draw_state(model, x, times.of_step(draws), uniform)
    if known is not None:
        zt = torch.where(known.reshape(x.shape), x, zt)
    given = ggm_levels.inputs(model, r, visited, known)
    check_network(model, zt, given, label)
    answer, x0 = model.readout(zt, label=label, **given), x.flatten(1)
    if model.objective == "ce_x0":
        return answer.mean_cross_entropy(x0, model.log_pi)
    return site_losses(model, answer, x0, r, uniform, _shared_classes(model, draws)).mean()


def site_losses(
    model: AllSites, answer: Readout, x0: Tensor, r: Tensor, uniform: Callable[[str], Tensor], classes: Tensor | None
) -> Tensor:
    """Float[b, n], nats, of what the network answered for sweep r Int64[b] and clean tokens x0 Int64[b, n].

    classes: Int64[K] drawn from pi, over which bce takes its sums; None: over all V.
    """
    if model.objective == "bce":
        return _summed_label(model, answer, x0, r, classes)
    if model.objective == "bce_sampled":
        return _sampled_label(model, answer, x0, r, uniform)
    if model.objective == "ce_x0":
        logits = losses.at_least_float32(answer())
        return losses.cross_entropy(logits + model.log_pi.to(logits.dtype), x0.flatten()).reshape(x0.shape)
    nats = [part for part, _ in site_nats(model, answer, x0, r)]
    return model.sweeps.num_sweeps * torch.cat(nats, 1)


def _shared_classes(model: AllSites, draws: StepNoise) -> Tensor | None:
    """The `noise_draws` classes of eq. (11), the same in all rows of a step; None where all V are few enough."""
    if model.objective != "bce" or model.num_classes <= model.noise_draws:
        return None
    first = torch.zeros(1, dtype=torch.int64, device=model.device)
    u = noise.uniform("classes", seed=draws.seed, step=draws.step, row=first, num_sites=model.noise_draws)
    return hollow.draw_classes(model.log_pi.exp(), u[0])


def draw_state(
    model: AllSites, x: Tensor, u: Tensor, uniform: Callable[[str], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """(r Int64[b], visited Bool[b, n], state Int64[b, *shape]) of eq. (9); u Float64[b] in [0, 1)."""
    r, visited = hollow.draw_visits(u, model.sweeps.num_sweeps, uniform("visited"))
    survival = model.sweeps.survival[r[:, None] + visited]
    zt = glauber.corrupt(x.flatten(1), survival, model.log_pi.exp(), uniform)
    return r, visited, zt.reshape(x.shape)


def _summed_label(model: AllSites, answer: Readout, x0: Tensor, r: Tensor, classes: Tensor | None) -> Tensor:
    """Eq. (10), with eq. (11) where there are `classes`."""
    tokens = x0.flatten()
    if classes is None:
        logits, weight = losses.at_least_float32(answer()), model.log_pi.exp()
        at_x0 = logits.gather(1, tokens[:, None])[:, 0]
    else:
        logits, at_x0 = _some_logits(answer, classes, tokens)
        weight = torch.full((len(classes),), 1 / len(classes), dtype=torch.float64, device=x0.device)
    a, keep, log_odds = (part[r].repeat_interleave(x0.shape[1]).to(logits.dtype) for part in _of_sweep(model))
    return hollow.label_nats(logits + log_odds[:, None], weight, at_x0 + log_odds, a, keep).reshape(x0.shape)


def _sampled_label(model: AllSites, answer: Readout, x0: Tensor, r: Tensor, uniform: Callable[[str], Tensor]) -> Tensor:
    """The paper's loss to the letter: one label for each site, and one logit."""
    a, keep, log_odds = (part[r] for part in _of_sweep(model))
    observed, signal = hollow.draw_labels(x0, a, keep, model.log_pi.exp(), uniform)
    o = answer.of_tokens(observed.flatten(), fuse=model.fused is not False).reshape(x0.shape)
    return glauber.signal_cross_entropy(o + log_odds[:, None].to(o.dtype), signal)


def _of_sweep(model: AllSites) -> tuple[Tensor, Tensor, Tensor]:
    """a_r, Pi_r(phi) and their log odds, Float64[R] each."""
    chain = model.sweeps
    return chain.survival[:-1], chain.keep, chain.log_odds


def _some_logits(answer: Readout, classes: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(logits of all sites at `classes` Int64[K], at a token each): no row of V logits where there is a linear head."""
    values, head = answer.values.flatten(0, 1), answer.head
    if not isinstance(head, nn.Linear):
        logits = losses.at_least_float32(answer())
        return logits[:, classes], logits.gather(1, tokens[:, None])[:, 0]
    bias = None if head.bias is None else head.bias[classes]
    logits = products.linear(values, head.weight[classes], bias)
    return losses.at_least_float32(logits), answer.of_tokens(tokens, fuse=True)


# ------------------------------------------------------------------ bound


def site_nats(model: AllSites, answer: Readout, x0: Tensor, r: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(step_nats(r, S \\ {i}, i), deviation of the self-normalisation, eq. (4)), each Float[b, m], of all sites, m at a
    time: only so many rows of V numbers stand in memory."""
    b, n = x0.shape
    size = max(1, _CHUNK_ENTRIES // (b * model.num_classes))
    for sites in torch.arange(n, device=x0.device).split(size):
        part = replace(answer, values=answer.values[:, sites], sites=sites.expand(b, -1))
        logits = losses.at_least_float32(part())
        if not torch.is_grad_enabled():
            logits = logits.double()
        a, keep, log_odds = (part[r].repeat_interleave(len(sites)).to(logits.dtype) for part in _of_sweep(model))
        log_pi = model.log_pi.to(logits.dtype)
        law = model.log_conditional(logits, a)
        nats = glauber.step_nats(law, x0[:, sites].flatten(), log_pi, a, keep)
        deviations = glauber.log_mass(logits + log_odds[:, None], log_pi, log_odds)
        yield nats.reshape(b, -1), deviations.reshape(b, -1)


def terms(
    model: AllSites, x: Tensor, zt: Tensor, r: Tensor, visited: Tensor | None, label: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(R sum_i step_nats(r, S \\ {i}, i) Float64[b], eq. (12), deviations Float64[b, n]), one call of the network."""
    if visited is None:
        raise ValueError(
            "terms: with order: random give visited, Bool[b, n]: the sites that sweep (t - 1) // n visited"
        )
    given = ggm_levels.inputs(model, r, visited)
    check_network(model, zt, given, label)
    answer = model.readout(zt, label=label, **given)
    nats, deviations = zip(*site_nats(model, answer, x.flatten(1), r), strict=True)
    return model.sweeps.num_sweeps * torch.cat(nats, 1).sum(1), torch.cat(deviations, 1)


# ------------------------------------------------------------------ reverse step


def survival_at(model: AllSites, t: Tensor, order: Tensor) -> Tensor:
    """a_i(t) Float64[b, n] where the sweep that t Int64[b] falls in goes by order Int64[b, n]."""
    n = model.num_sites
    return model.sweeps.survival[(t // n)[:, None] + hollow.first_in_order(order, t % n)]


def block(
    model: AllSites, s: Tensor, size: int, order: Tensor | None, known: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(r Int64[b], visited Bool[b, n] after, sites Int64[b, size]) of the visits s..s + size - 1; sites `known`
    Bool[b, *shape] are never visited."""
    if order is None:
        raise ValueError("reverse_law: with order: random give order, Int64[b, n]: that of the sweep of s, row by row")
    n = model.num_sites
    k = s % n
    sites = order.gather(1, k[:, None] + torch.arange(size, device=order.device))
    visited = hollow.first_in_order(order, k + size)
    if known is not None:
        visited = visited & ~known.flatten(1)
    return s // n, visited, sites


@dataclass
class BlockLaw:
    """The laws of m sites in each row, formed for a few rows at a time: all of them may not fit into memory.

    Attributes:
        zt: Int64[b, n], the state.
        size: rows at a time.
        of_rows: (first, last) -> SiteLaw of zt in which the sites of rows first..last - 1 alone move.
    """

    zt: Tensor
    size: int
    of_rows: Callable[[int, int], SiteLaw]

    def draw(self, uniform: Callable[[str], Tensor]) -> Tensor:
        """Int64[b, n]; see SiteLaw."""
        x = self.zt
        for first, last in self._parts():
            x = replace(self.of_rows(first, last), x=x).draw(uniform)
        return x

    def probs(self) -> Tensor:
        """Float64[b, n, V]; see SiteLaw."""
        return torch.cat([self.of_rows(first, last).probs()[first:last] for first, last in self._parts()])

    def _parts(self) -> list[tuple[int, int]]:
        b = len(self.zt)
        return [(first, min(first + self.size, b)) for first in range(0, b, self.size)]


def block_law(
    model: AllSites,
    zt: Tensor,
    r: Tensor,
    visited: Tensor,
    sites: Tensor,
    label: Tensor | None = None,
    sharpening: Sharpening = PLAIN,
    gated: bool = True,
    known: Tensor | None = None,
) -> BlockLaw:
    """The law of `sites` Int64[b, m] before sweep r visited them, from one call: each given all other tokens of zt.

    visited: Bool[b, n], what sweep r has visited before the state zt, `sites` among them. With all m = 1 the chain is
    exact; of more the gated kernel has an error of order 1/R, and the heat bath one that stays. A network that takes
    levels is told that sites `known` Bool[b, *shape] are clean.
    """
    given = ggm_levels.inputs(model, r, visited, known)
    check_network(model, zt, given, label)
    answer, m = model.readout(zt, label=label, sites=sites, **given), sites.shape[1]

    def of_rows(first: int, last: int) -> SiteLaw:
        row = torch.arange(first, last, device=zt.device).repeat_interleave(m)
        site, values = sites[first:last].flatten(), answer.values[first:last].flatten(0, 1)
        logits = values if answer.head is None else answer.head(values)
        watch.logits(logits, (row, site))
        a, _, log_odds = (part[r[row]] for part in _of_sweep(model))
        law = glauber.sharpened(model.log_conditional(logits.double(), a), model.log_pi, a, sharpening)
        return SiteLaw(zt.flatten(1), row, site, law, model.log_pi, log_odds, gated)

    return BlockLaw(zt.flatten(1), max(1, _LAW_ENTRIES // (m * model.num_classes)), of_rows)


def gibbs_law(
    model: AllSites,
    z: Tensor,
    sites: Tensor,
    label: Tensor | None = None,
    sharpening: Sharpening = PLAIN,
) -> BlockLaw:
    """`sites` Int64[b, m] of clean rows z, each drawn anew given all others: the network's law before sweep 0 visits.

    With m = 1 data of the model's law keep it (Gibbs sampling); with more they do so up to what the sites drawn at once
    say of each other, the less the fewer they are. Correctors: arXiv 2407.21243.
    """
    r = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    unvisited = torch.zeros(len(z), model.num_sites, dtype=torch.bool, device=z.device)
    return block_law(model, z, r, unvisited, sites, label, sharpening, gated=False)
