"""The samplers of LDDM (arXiv 2510.18114): tokens and latent together, or the latent first and then any plan.

Samples are a function of (seed, row): step i draws from noise.uniform and noise.normal(stream, seed, step=i, row).

Filling in with the latent first. The exact law given known tokens is p(z | known) p(rest | known, z). Here K candidates
z_1, .. z_K are drawn from p(z) and one is kept with probability proportional to p(known | z_k): self-normalised
importance resampling. What is approximate: K is finite (the latent of a rare context may not be among them), and
p(known | z) is computed in `_GROUPS` groups of known tokens in random order, those of one group as independent given
the groups before: up to K x _GROUPS calls of the joint network, and the latents' calls on K times the batch. The tokens
that are left then follow as in infilling with masked diffusion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ggm_lightning.core import gaussian, losses, noise, times, watch
from ggm_lightning.core.arguments import shown, whole_number
from ggm_lightning.core.categorical import Sharpening
from ggm_lightning.core.gaussian import GaussianLaw, LatentClock
from ggm_lightning.core.schedules import Schedule
from ggm_lightning.sampling.contract import Denoiser, Denoises
from ggm_lightning.sampling.plan import Ancestral
from ggm_lightning.sampling.request import Request
from ggm_lightning.sampling.sampler import Run, Sampler

LATENT_STEPS = 32  # where the user does not say: coarser grids distort laws that are not symmetric
_GROUPS = 4


class HasLatent(Denoises, Protocol):
    """A model of tokens and a latent Float[b, S, d]."""

    latent_shape: tuple[int, int]
    latent_schedule: Schedule
    clock: LatentClock
    infill_latents: int

    def predict(
        self, zt: Tensor, t: Tensor, latent: Tensor, latent_time: Tensor, label: Tensor | None
    ) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """(logits Float[k, V] at sites, z_0 Float[b, S, d]) from one call of the joint network."""

    def predict_latent(
        self, zt: Tensor, t: Tensor, latent: Tensor, latent_time: Tensor, label: Tensor | None
    ) -> Tensor:
        """z_0 Float[b, S, d]."""


class _Together(HasLatent, Protocol):
    def joint_law(
        self,
        zt: Tensor,
        t: Tensor,
        s: Tensor,
        label: Tensor | None,
        sharpening: Sharpening,
        *,
        latent: Tensor,
        sampler: str,
    ) -> Any: ...


# ------------------------------------------------------------------ samplers


class AfterLatent(Ancestral):
    """Tokens by the plan `ancestral`, given a latent that `denoiser` has drawn first by "ddim" or "ddpm".

    Args:
        kind: of the latent's steps; their number is the option `latent_steps`.
    """

    only_where_offered = True

    def __init__(self, kind: str) -> None:
        self.denoiser_options = MappingProxyType({"latent_sampler": kind})


class Together(Sampler):
    """Both parts on one grid, one network call per step; rows whose tokens are all revealed are not sent any more.

    Args:
        kind: of the latent's steps, "ddim" or "ddpm".
    """

    only_where_offered = True

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def start(self, run: Run) -> Tensor:
        model = cast(_Together, run.model)
        self._latent = _normal(model, run.request, "latent prior", 0)
        return super().start(run)

    def move(self, run: Run) -> None:
        model, request = cast(_Together, run.model), run.request
        rows = torch.nonzero(run.masked.any(1))[:, 0]
        if not len(rows):
            return
        watch.narrow(rows)
        law = model.joint_law(
            run.shaped(run.z[rows]),
            run.t[rows],
            run.s[rows],
            request.labels(rows),
            request.sharpening,
            latent=self._latent[rows],
            sampler=self.kind,
        )
        tokens = law.tokens.draw(partial(run.uniform, rows=rows))
        run.put(run.z.index_copy(0, rows, tokens))
        moved = law.latent.draw(_normal(model, request, "latent", run.step, row=request.row[rows]))
        self._latent = self._latent.index_copy(0, rows, moved)

    def finish(self, run: Run) -> Tensor:
        request = run.request
        uniform = partial(request.uniform(run.model.num_sites), step=run.step)
        denoiser = given(cast(HasLatent, run.model), self._latent)
        return run.model.finish(run.shaped(run.z), request.label, uniform, request.sharpening, denoiser)


# ------------------------------------------------------------------ the latent first


def _checked_kind(name: str, value: Any) -> str:
    if value not in gaussian.STEPS:
        raise ValueError(f"{name} is {shown(value)}; choose {' or '.join(gaussian.STEPS)}")
    return value


def _checked_steps(name: str, value: Any) -> int:
    return whole_number(name, value, 1)


# of `denoiser`: how the latent is drawn ("ddim" where nothing is said), and in how many steps (LATENT_STEPS)
OPTIONS: Mapping[str, Callable[[str, Any], Any]] = MappingProxyType(
    {"latent_sampler": _checked_kind, "latent_steps": _checked_steps}
)


def given(model: HasLatent, latent: Tensor) -> Denoiser:
    """The denoiser of tokens beside these latents, Float[b, S, d] at their cleanest level."""

    def logits(zt: Tensor, t: Tensor, label: Tensor | None, sites: Tensor, rows: Tensor) -> Tensor:
        return model.predict(zt, t, latent[rows], torch.zeros_like(t), label)[0](sites)

    return logits


def latents(model: HasLatent, request: Request) -> Tensor:
    """The latent of each row, Float64[b, S, d] at its cleanest level; with a clamp one that explains what is known."""
    kind = request.options.get("latent_sampler", "ddim")
    known = None if request.clamp is None else request.clamp[1].flatten(1)
    if known is None or not bool(known.any()):
        return draw_latents(model, request, kind)
    candidates = draw_latents(model, request, kind, model.infill_latents)
    z = request.clamped(model.prior_sample(request.num_samples))
    return explaining(model, request, candidates, z.flatten(1), known)


def latent_step(
    model: HasLatent, masked: Tensor, latent: Tensor, t: Tensor, s: Tensor, label: Tensor | None, kind: str
) -> GaussianLaw:
    """p(z_s | z_t) with all tokens masked; t and s are the clock's."""
    z0 = model.predict_latent(masked, torch.ones_like(t), latent, t, label).double()
    return gaussian.step(kind, model.latent_schedule, latent.double(), z0, model.clock.time(t), model.clock.time(s))


def _normal(
    model: HasLatent, request: Request, stream: str, step: int, candidates: int = 1, row: Tensor | None = None
) -> Tensor:
    """Float64[b candidates, S, d] of the rows with these numbers (None: all); the first candidate's numbers do not
    depend on how many there are."""
    s, d = model.latent_shape
    row = request.row if row is None else row
    e = noise.normal(stream, seed=request.seed, step=step, row=row, num_sites=candidates * s * d)
    return e.reshape(-1, s, d)


def draw_latents(model: HasLatent, request: Request, kind: str, candidates: int = 1) -> Tensor:
    """Float64[b candidates, S, d] at the cleanest level, the candidates of a row next to each other."""
    latent = _normal(model, request, "latent prior", 0, candidates)
    rows, row = len(latent), request.row.repeat_interleave(candidates)
    masked = model.prior_sample(rows)
    label = None if request.label is None else request.label.repeat_interleave(candidates)
    steps = request.options.get("latent_steps", LATENT_STEPS)
    grid = pairwise(times.sampling_grid(steps, "uniform"))
    with request.bar(steps, unit="latent step") as bar:
        for i, when in enumerate(grid):
            watch.at(i, row, "latent step")
            t, s = (latent.new_full((rows,), value) for value in when)
            law = latent_step(model, masked, latent, t, s, label, kind)
            latent = law.draw(_normal(model, request, "latent", i, candidates))
            bar.update()
    return latent


def explaining(model: HasLatent, request: Request, latents: Tensor, z: Tensor, known: Tensor) -> Tensor:
    """One of each row's candidates, drawn with probability proportional to p(known tokens | latent)."""
    b = request.num_samples
    latents = latents.reshape(b, -1, *model.latent_shape)
    watch.at(0)
    order = noise.uniform("infill order", seed=request.seed, step=0, row=request.row, num_sites=model.num_sites)
    rank = torch.where(known, order, 2.0).argsort(1).argsort(1)  # known sites first, in random order
    group = rank * _GROUPS // known.sum(1, keepdim=True).clamp(min=1)
    weights = torch.stack([_log_known(model, request, latent, z, known, group) for latent in latents.unbind(1)], 1)
    p = (weights - weights.amax(1, keepdim=True)).exp()
    u = noise.uniform("candidate", seed=request.seed, step=0, row=request.row, num_sites=1)
    mass = p.cumsum(1)
    chosen = (mass <= u * mass[:, -1:]).sum(1).clamp(max=latents.shape[1] - 1)
    chosen = torch.where(known.any(1), chosen, 0)  # where nothing is known: as without a clamp
    return latents[torch.arange(b, device=chosen.device), chosen]


def _log_known(model: HasLatent, request: Request, latent: Tensor, z: Tensor, known: Tensor, group: Tensor) -> Tensor:
    """Float64[b], nats: sum over groups of log p(group's known tokens | groups before, latent)."""
    total = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    for g in range(_GROUPS):
        asked = known & (group == g)
        if not bool(asked.any()):
            continue
        rows = torch.nonzero(asked.any(1))[:, 0]
        watch.narrow(rows)
        state = torch.where(known & (group < g), z, model.mask_id)[rows]
        t = model.schedule.inverse((state == model.mask_id).double().mean(1))
        shaped, label = state.reshape(-1, *model.shape), request.labels(rows)
        logits = model.predict(shaped, t, latent[rows], torch.zeros_like(t), label)[0](asked[rows])
        nats = losses.masked_cross_entropy(logits, z[rows], asked[rows]).double()
        total = total.index_add(0, rows, -nats)
    return total
