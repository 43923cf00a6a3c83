"""A bound on -log p(some sites | others), of every model that fills in by a plan (sampling/plan.py).

Masked sites are filled one at a time in random order; the law of what is filled in is a mixture over the orders, so by
convexity the mean over the orders bounds its -log from above. With l of the m asked sites masked (LLaDA's form of the
masking bound, arXiv 2502.09992; core/counts.py):

    -log p(x_A | x_K) <= mean over l in 1..m of (m / l) E[ sum over the l masked of -log mu_i(x_i | others) ]  eq. (1)

A the asked sites, K the known ones. Sites that are neither stay masked all along and count for nothing: they are
summed out. The network is told the time at which as many sites are masked as are, as sampler "ordered" tells it. With
the exact network it is -log p(x_A | x_K) itself, for every x. For any other it belongs to the law that is drawn by
filling in one site after the other, which need not be the conditional law of what the model draws without a clamp.

What a family draws beside its tokens (the latent of LDDM) is drawn by `denoiser` given the known sites: the law is a
mixture over it too, and the mean of the bounds still a bound, though a loose one. An autoregressive model needs none:
its -log p(x_A | x_K) is exact, for known sites that are a beginning and asked ones right behind it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol, cast

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ggm_lightning.core import counts, losses, noise, times
from ggm_lightning.sampling import arguments
from ggm_lightning.sampling.contract import Denoiser, Denoises
from ggm_lightning.sampling.left_to_right import refuse_gaps
from ggm_lightning.sampling.request import checked


class Infills(Denoises, Protocol):
    """A model as it is asked here.

    Attributes:
        fills_beginnings_only: whether it goes from left to right; then it has `said_of_sites`.
    """

    fills_beginnings_only: bool

    def evaluating(self, use: str = "bound") -> AbstractContextManager[None]: ...


class LeftToRight(Infills, Protocol):
    def said_of_sites(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(-log p(x_i | x_1 .. x_{i-1}) Float64[b, n], whether no symbol is more probable there Bool[b, n])."""


def lacking(model: Denoises) -> str | None:
    """Why the model has no such bound; None where it has one."""
    name = type(model).__name__
    if cast(Infills, model).fills_beginnings_only:
        return None
    if model.mask_id is None:
        return f"{name} has no bound given known sites: its states are noisy everywhere, known sites too"
    if model.schedule is None:
        return f"{name} has no bound given known sites: which sites are masked tells of their values"
    if "first_hitting" in model.refused_samplers:
        return f"{name} has no bound given known sites: {model.refused_samplers['first_hitting']}"
    return None


def bound(
    model: Denoises,
    x: Int64[Tensor, " b *s"],
    known: Bool[Tensor, " b *s"],
    asked: Bool[Tensor, " b *s"] | None = None,
    label: Tensor | None = None,
    num_samples: int = 1,
    seed: int = 0,
    row: Tensor | None = None,
) -> Float64[Tensor, " b"]:
    """Nats per row: an unbiased estimate of eq. (1), or -log p(x_A | x_K) itself of an autoregressive model.

    Args:
        known: K. asked: A, at least one site of each row and none of K; None: all but K.
        num_samples: states per row; l is stratified over a row's own.
        seed, row: the noise is a function of (seed, row, site), whatever the batch.

    Raises ValueError where the model has none, see `lacking`.
    """
    x, label, row = arguments.of_bound(model, x, label, row, num_samples, seed)
    known, asked = known.flatten(1), (~known if asked is None else asked).flatten(1)
    _check_sites(known, asked)
    if cast(Infills, model).fills_beginnings_only:
        return _exactly(cast(LeftToRight, model), x, known, asked, label)
    if (reason := lacking(model)) is not None:
        raise ValueError(reason)
    nats = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    t_all = times.stratified_per_row(seed=seed, row=row, num_samples=num_samples)
    with cast(Infills, model).evaluating():
        for j, t in enumerate(t_all):
            u = noise.uniform("infill mask", seed=seed, step=j, row=row, num_sites=model.num_sites)
            masked = some_of(asked, counts.stratified(t, asked.sum(1)), u)
            # what is drawn beside the tokens is drawn anew for each state
            own = noise.integer_seed("infill denoiser", seed=seed, step=j)
            clamp = x, known.reshape(x.shape)
            denoiser = model.denoiser(checked(model, len(x), 1, label, clamp, own, row=row))
            nats += terms(model, denoiser, x, asked, masked | ~(known | asked), label)
    return nats / num_samples


def some_of(asked: Bool[Tensor, "b n"], count: Int64[Tensor, " b"], u: Float64[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
    """`count` of the asked sites of each row: those of the smallest uniforms."""
    rank = torch.where(asked, u, 2.0).argsort(1).argsort(1)
    return rank < count[:, None]


def terms(
    model: Denoises,
    denoiser: Denoiser,
    x: Int64[Tensor, " b *s"],
    asked: Bool[Tensor, "b n"],
    masked: Bool[Tensor, "b n"],
    label: Tensor | None = None,
) -> Float64[Tensor, " b"]:
    """Nats: the integrand of eq. (1) at the state in which the sites `masked` are, (m / l) times the cross-entropy of
    the l that are asked among them."""
    flat, counted = x.flatten(1), asked & masked
    logits = _said(model, denoiser, torch.where(masked, model.mask_id, flat), counted, label)
    weight = asked.sum(1).double() / counted.sum(1)
    return weight * losses.masked_cross_entropy(logits, flat, counted).double()


def _said(model: Denoises, denoiser: Denoiser, z: Tensor, sites: Tensor, label: Tensor | None) -> Tensor:
    """Logits Float[k, V] at `sites` of the states z Int64[b, n], at the time at which as many sites are masked."""
    ends = model.schedule.masked_fraction(torch.tensor([0.0, 1.0], dtype=torch.float64, device=z.device))
    share = (z == model.mask_id).double().mean(1)
    t = model.schedule.inverse(share.clamp(ends[0], ends[1]))
    return denoiser(z.reshape(-1, *model.shape), t, label, sites, torch.arange(len(z), device=z.device))


def is_most_probable(
    model: Denoises,
    x: Int64[Tensor, " b *s"],
    known: Bool[Tensor, " b *s"],
    asked: Bool[Tensor, " b *s"],
    label: Tensor | None = None,
    seed: int = 0,
) -> Bool[Tensor, " b"]:
    """Whether x stands at the asked sites when they are filled in greedily: one after the other, of all that are left
    the site with the most probable value first; of an autoregressive model from left to right."""
    x, label, row = arguments.of_bound(model, x, label, None, 1, seed)
    known, asked = known.flatten(1), asked.flatten(1)
    _check_sites(known, asked)
    with cast(Infills, model).evaluating():
        if cast(Infills, model).fills_beginnings_only:
            first = cast(LeftToRight, model).said_of_sites(x, label)[1]
            return (first | ~asked).all(1)
        clamp = x, known.reshape(x.shape)
        denoiser = model.denoiser(checked(model, len(x), 1, label, clamp, seed, row=row))
        return _greedily(model, denoiser, x.flatten(1), known, asked, label)


def _greedily(
    model: Denoises, denoiser: Denoiser, x: Tensor, known: Tensor, asked: Tensor, label: Tensor | None
) -> Tensor:
    right = torch.ones(len(x), dtype=torch.bool, device=x.device)
    z = torch.where(known, x, model.mask_id)
    for _ in range(int(asked.sum(1).max())):
        left = asked & (z == model.mask_id) & right[:, None]  # a row that is wrong once is not asked any more
        if not bool(left.any()):
            break
        p, value = _said(model, denoiser, z, left, label).double().softmax(-1).max(-1)
        sure = torch.full(x.shape, -1.0, dtype=torch.float64, device=x.device).masked_scatter(left, p)
        values = torch.zeros_like(x).masked_scatter(left, value)
        site = sure.argmax(1, keepdim=True)
        chosen, truth = values.gather(1, site), x.gather(1, site)
        right = right & ((chosen == truth)[:, 0] | ~left.any(1))
        z = torch.where(left.any(1, keepdim=True), z.scatter(1, site, chosen), z)
    return right


def _exactly(model: LeftToRight, x: Tensor, known: Tensor, asked: Tensor, label: Tensor | None) -> Tensor:
    refuse_gaps(known)
    refuse_gaps(known | asked)
    with model.evaluating():
        return torch.where(asked, model.said_of_sites(x, label)[0], 0.0).sum(1)


def _check_sites(known: Tensor, asked: Tensor) -> None:
    if bool((known & asked).any()):
        raise ValueError("asked: some site is known as well; a site is either known or asked for")
    if not bool(asked.any(1).all()):
        raise ValueError(f"asked: row {int((~asked.any(1)).nonzero()[0])} asks for no site; give at least one in each")
