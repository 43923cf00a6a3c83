"""The loops of LDDM: tokens and latent together, or the latent first.

Samples are a function of (seed, row): step i draws from noise.uniform and noise.normal(stream, seed, step=i, row).

Filling in with the latent first. The exact law given known tokens is p(z | known) p(rest | known, z). Here K candidates
z_1, .. z_K are drawn from p(z) and one is kept with probability proportional to p(known | z_k): self-normalised
importance resampling. What is approximate: K is finite (the latent of a rare context may not be among them), and
p(known | z) is computed in `_GROUPS` groups of known tokens in random order, those of one group as independent given
the groups before: up to K x _GROUPS calls of the joint network, and the latents' calls on K times the batch. The tokens
that are left then follow as in infilling with masked diffusion.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from ggm_lightning.core import gaussian, losses, noise, times, watch
from ggm_lightning.core.gaussian import GaussianLaw
from ggm_lightning.core.masking import MaskedLaw
from ggm_lightning.sampling.request import Request, Samples, Trace

if TYPE_CHECKING:
    from ggm_lightning.models.lddm import FujiLDDM
    from ggm_lightning.models.lddm_base import LatentFamily

LATENT_STEPS = 32  # where the user does not say: coarser grids distort laws that are not symmetric
_GROUPS = 4


def _normal(model: LatentFamily, request: Request, stream: str, step: int, candidates: int = 1) -> Tensor:
    """Float64[b candidates, S, d]; the first candidate's numbers do not depend on how many there are."""
    s, d = model.latent_shape
    e = noise.normal(stream, seed=request.seed, step=step, row=request.row, num_sites=candidates * s * d)
    return e.reshape(-1, s, d)


def token_step(
    model: LatentFamily,
    zt: Tensor,
    t: Tensor,
    s: Tensor,
    label: Tensor | None,
    temperature: float,
    top_p: float,
    latent: Tensor,
) -> MaskedLaw:
    """p(x_s | x_t, z_1); the network runs when the law is first asked for logits."""

    def logits_at(sites: Tensor) -> Tensor:
        return model.predict(zt, t, latent, torch.zeros_like(t), label)[0](sites)

    return model.token_law(zt, t, s, logits_at, temperature, top_p)


def latent_step(
    model: LatentFamily, masked: Tensor, latent: Tensor, t: Tensor, s: Tensor, label: Tensor | None, kind: str
) -> GaussianLaw:
    """p(z_s | z_t) with all tokens masked; t and s are the clock's."""
    z0 = model.predict_latent(masked, torch.ones_like(t), latent, t, label).double()
    return gaussian.step(kind, model.latent_schedule, latent.double(), z0, model.clock.time(t), model.clock.time(s))


def _say_if_untrained(model: LatentFamily) -> None:
    if model.recipe.stage1_steps and not model.is_fixed:
        rank_zero_warn(
            "the latent's denoiser is untrained: this is a model of stage 1, whose samples say little; "
            f"sample it after step {model.recipe.stage1_steps} (recipe.stage1_steps)"
        )


def joint(model: FujiLDDM, request: Request, kind: str) -> Samples:
    """Both parts on one grid, one network call per step; known tokens are put back after every step."""
    _say_if_untrained(model)
    before, steps = model.network_calls, request.num_steps
    uniform, trace = request.uniform(model.num_sites), Trace(request, steps)
    z = request.clamped(model.prior_sample(request.num_samples))
    latent = _normal(model, request, "latent prior", 0)
    trace.add(0, z)
    grid = pairwise(times.sampling_grid(steps, request.grid or model.grids[0]))
    options = (request.label, request.temperature, request.top_p)
    for i, (t, s) in enumerate(request.bar(grid, steps)):
        watch.at(i)
        here, there = request.times(t, s)
        law = model.reverse_law(z, here, there, *options, latent=latent, sampler=kind)
        z = request.clamped(law.tokens.draw(partial(uniform, step=i)).reshape(z.shape))
        latent = law.latent.draw(_normal(model, request, "latent", i))
        if i + 1 < steps:
            trace.add(i + 1, z)
    rest = partial(uniform, step=steps)
    watch.at(steps)
    x = model.finish(z, request.label, rest, request.temperature, request.top_p, latent=latent)
    trace.add(steps, x)
    return Samples(x, model.network_calls - before, trace.states)


def sequential(model: LatentFamily, request: Request, kind: str) -> Samples:
    """The latent to its cleanest level, then the tokens given it; a token step that reveals nothing costs no call."""
    _say_if_untrained(model)
    calls, latent_calls, steps = model.network_calls, model.latent_calls, request.num_steps
    uniform, trace = request.uniform(model.num_sites), Trace(request, steps)
    z = request.clamped(model.prior_sample(request.num_samples))
    known = None if request.clamp is None else request.clamp[1].flatten(1)
    if known is None or not bool(known.any()):
        latent = draw_latents(model, request, kind)
    else:
        latent = _explaining(
            model, request, draw_latents(model, request, kind, model.infill_latents), z.flatten(1), known
        )
    trace.add(0, z)
    grid = pairwise(times.sampling_grid(steps, request.grid or model.grids[0]))
    options = (request.label, request.temperature, request.top_p)
    for i, (t, s) in enumerate(request.bar(grid, steps)):
        watch.at(i)
        here, there = request.times(t, s)
        law = token_step(model, z, here, there, *options, latent)
        z = request.clamped(law.draw(partial(uniform, step=i)).reshape(z.shape))
        if i + 1 < steps:
            trace.add(i + 1, z)
    watch.at(steps)
    x = model.finish(z, request.label, partial(uniform, step=steps), request.temperature, request.top_p, latent=latent)
    trace.add(steps, x)
    return Samples(x, model.network_calls - calls, trace.states, model.latent_calls - latent_calls)


def draw_latents(model: LatentFamily, request: Request, kind: str, candidates: int = 1) -> Tensor:
    """Float64[b candidates, S, d] at the cleanest level, the candidates of a row next to each other."""
    latent = _normal(model, request, "latent prior", 0, candidates)
    rows, row = len(latent), request.row.repeat_interleave(candidates)
    masked = model.prior_sample(rows)
    label = None if request.label is None else request.label.repeat_interleave(candidates)
    steps = request.latent_steps or LATENT_STEPS
    grid = pairwise(times.sampling_grid(steps, "uniform"))
    for i, when in enumerate(request.bar(grid, steps, unit="latent step")):
        watch.at(i, row, "latent step")
        t, s = (latent.new_full((rows,), value) for value in when)
        law = latent_step(model, masked, latent, t, s, label, kind)
        latent = law.draw(_normal(model, request, "latent", i, candidates))
    return latent


def _explaining(model: LatentFamily, request: Request, latents: Tensor, z: Tensor, known: Tensor) -> Tensor:
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


def _log_known(
    model: LatentFamily, request: Request, latent: Tensor, z: Tensor, known: Tensor, group: Tensor
) -> Tensor:
    """Float64[b], nats: sum over groups of log p(group's known tokens | groups before, latent)."""
    total = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    for g in range(_GROUPS):
        asked = known & (group == g)
        if not bool(asked.any()):
            continue
        state = torch.where(known & (group < g), z, model.mask_id)
        t = model.schedule.inverse((state == model.mask_id).double().mean(1))
        logits = model.predict(state.reshape(-1, *model.shape), t, latent, torch.zeros_like(t), request.label)[0](asked)
        total -= losses.masked_cross_entropy(logits, z, asked).double()
    return total
