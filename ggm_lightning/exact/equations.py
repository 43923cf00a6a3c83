"""The equations of a family's `terms`, `reverse_law`, `corrupt`, `prior_sample` and `nelbo`, by enumeration.

shown        what the network is given in terms(x, z_t, t) is a function of z_t and t
hidden       what GGM says of a site does not move with the site's own token
corrupt      corrupt(x, t) ~ q(z_t | x)
start        prior_sample ~ q(z_1)
terms        terms(x, z_t, t) = KL(q(z_s | z_t, x) || reverse_law(z_s | z_t)) / (t - s), s towards t
reverse_law  reverse_law(z_s_n | z_t) = sum over x of p(x | z_t) q(z_s_n | z_t, x)
bound        sum over x of exp(-bound(x)) <= 1, as -log p of every law has it
equal        what the family says of bound(x) + log p(x)
estimator, error    exact/estimates.py;  loss    exact/losses.py
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ggm_lightning.core import noise as core_noise
from ggm_lightning.core.categorical import PLAIN
from ggm_lightning.exact import estimates, glauber, losses
from ggm_lightning.exact import noise as noises
from ggm_lightning.exact.estimates import ERRORS
from ggm_lightning.exact.integral import STEPS, limit
from ggm_lightning.exact.noise import DeathNoise, SweepNoise
from ggm_lightning.exact.records import Check, no_nan, row
from ggm_lightning.exact.states import frequencies, standard_errors, total_variation
from ggm_lightning.exact.subject import Subject, bound, states_of
from ggm_lightning.models.autoregressive import AutoregressiveModel
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.lddm_base import LatentFamily
from ggm_lightning.models.markov import MarkovDiffusion

Checks = Iterator[Check]
_NEAR = 1e-3  # of a step so short that it stands for a rate
_EXACT = 1e-6  # sums of float64
_LIMIT = 1e-5  # of a rate: three steps, without the first two powers of their length


def shown(subject: Subject) -> Checks:
    """Rows of equal z_t and different x must give the network equal inputs."""
    if subject.noise is None or subject.own_times:
        return
    x, states = subject.x(), states_of(subject)
    worst, place = 0.0, ""
    for t, _ in subject.noise.pairs():
        q = noises.forward(subject.noise.reach(t), states, x.flatten(1))
        rows, zt = (q > 0).nonzero(as_tuple=True)
        given = _given(subject, x[rows], subject.shaped(states[zt]), t)
        if given is None or len(given) != len(rows):
            return
        first = torch.zeros(len(states), given.shape[1], dtype=torch.float64)
        first[zt.flip(0)] = given.flip(0)  # of each z_t, what its first row gave
        apart = no_nan(torch.where(given == first[zt], 0.0, (given - first[zt]).abs())).amax(1)
        if float(apart.max()) > worst:
            i = int(apart.argmax())
            worst, place = float(apart[i]), f"z_t = {row(states[zt[i]])}, t = {t:.4g}, x = {row(x[rows[i]])}"
    often = "terms hands x, or a part of it, to the network: it then learns to copy, and the bound means nothing"
    yield Check("shown", "the network's input in terms(x, z_t, t) is a function of (z_t, t)", worst, 0.0, place, often)


def _given(subject: Subject, x: Tensor, zt: Tensor, t: float) -> Tensor | None:
    """All that the network is called with in `terms`, side by side, Float64[b, k]; None where it is called more than
    once."""
    assert subject.noise is not None
    kept: list[Tensor] = []

    def keep(module: object, args: tuple[Any, ...], more: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *more.values()) if isinstance(value, Tensor)]
        kept.append(torch.cat([value.reshape(len(value), -1).double() for value in tensors], 1))

    hook = subject.model.network.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        subject.model.terms(x, zt, subject.noise.when(t, len(x)))
    finally:
        hook.remove()
    return kept[0] if len(kept) == 1 else None


def hidden(subject: Subject) -> Checks:
    """GGM's visited site: its own token is exchanged for every other."""
    if not isinstance(subject.noise, SweepNoise):
        return
    model, law, worst, place = subject.model, subject.law, 0.0, ""
    for t, s in subject.noise.pairs():
        when = [subject.noise.when(moment, len(law.x)) for moment in (t, s)]
        found = model.reverse_law(subject.shaped(law.x), *when, sampler="gated")
        site = int(found.site[0])
        log_p = found.log_p.exp().reshape(*[law.num_classes] * law.num_sites, -1).movedim(site, 0)
        apart = no_nan((log_p - log_p[0]).abs())
        if float(apart.max()) > worst:
            worst, place = float(apart.max()), f"site {site}, visit {round(t)} (sweep {round(s) // law.num_sites})"
    often = "the site that is asked about is not hidden from the network"
    yield Check("hidden", "p_t(x_i | the other sites) does not move with the own token", worst, _EXACT, place, often)


def corrupt(subject: Subject) -> Checks:
    """Frequencies of every site's state, for every clean value."""
    noise, model = subject.noise, subject.model
    if noise is None or subject.own_times or not hasattr(model, "corrupt"):
        return
    x = subject.law.x.repeat(max(1, subject.num_samples // len(subject.law.x)), 1)
    worst, place = 0.0, ""
    for t, _ in noise.pairs():
        zt = noise.corrupted(model, subject.shaped(x), t, subject.seed).flatten(1)
        reach = noise.reach(t)
        for site, value in itertools.product(range(x.shape[1]), range(subject.law.num_classes)):
            drawn = zt[x[:, site] == value][:, site]
            found = drawn.bincount(minlength=noise.num_states).double() / len(drawn)
            off, state = standard_errors(found, reach[site, :, value], len(drawn))
            if off > worst:
                said = f"{found[state]:.4f} of the rows, not {reach[site, state, value]:.4f}"
                worst, place = off, f"t = {t:.4g}, site {site}, x = {value}, z_t = {state}: {said}"
    yield Check("corrupt", "corrupt(x, t) ~ q(z_t | x), standard errors", worst, ERRORS, place, "another schedule")


def start(subject: Subject) -> Checks:
    """prior_sample against q(z_1) in the mean over the law: what is left has to be paid by the bound."""
    noise, model, n = subject.noise, subject.model, subject.law.num_sites
    if noise is None:
        return
    states, count = states_of(subject), subject.num_samples
    q = subject.law.p @ noises.forward(noise.reach(noise.last()), states, subject.law.x)

    def uniform(stream: str) -> Tensor:
        return core_noise.uniform(stream, seed=subject.seed, step=0, row=torch.arange(count), num_sites=n)

    found = frequencies(model.prior_sample(count, uniform), noise.num_states)
    worst = int((found - q).abs().argmax())
    place = f"z_1 = {row(states[worst])}: {found[worst]:.4f} of the draws, q(z_1) is {q[worst]:.4f}"
    scatter = 0.5 * float(torch.sqrt(q * (1 - q).clamp(min=0) / count).sum())
    often = "the schedule does not end where sampling begins"
    tolerance = 0.05 + 2 * scatter
    yield Check("start", "prior_sample ~ q(z_1), total variation", total_variation(found, q), tolerance, place, often)


def _law_of(subject: Subject, zt: Tensor, t: float, s: float, for_terms: bool) -> Tensor:
    """The family's own reverse law at zt, Float64[b, n, states]; of families with several that of the bound."""
    model, noise = subject.model, subject.noise
    assert noise is not None
    more = {}
    if isinstance(model, GGM):
        more = {"sampler": "gated"}
    if isinstance(model, Blackout):
        kernel = "posterior" if model.output == "distribution" else "capped"
        more = {"sampler": model.bound if for_terms and model.bound != "continuous" else kernel}
    when = noise.when(t, len(zt)), noise.when(s, len(zt))
    found = model.reverse_law(subject.shaped(zt), *when, None, PLAIN, **more)
    return found.probs().detach().double().reshape(len(zt), zt.shape[1], -1)


def reverse_law(subject: Subject) -> Checks:
    """Against Bayes' rule, in units of the probability to move."""
    noise, law, model = subject.noise, subject.law, subject.model
    if noise is None:
        return
    rates = isinstance(model, Blackout) and model.output != "distribution"
    if rates and not getattr(noise, "continuous", True):
        return  # kernels of births are no exact steps; `terms` compares them with the bound
    states, worst, place = states_of(subject), 0.0, ""
    for t, s in noise.pairs() if rates else noise.steps():
        possible = states[law.p @ noises.forward(noise.reach(t), states, law.x) > 0]
        expected = noises.exact_reverse(noises.posterior(law, noise, t, possible), noises.bridge(noise, t, s), possible)
        found = _law_of(subject, possible, t, s, for_terms=False)
        stays = expected.gather(2, possible[..., None])
        apart = no_nan((found - expected).abs() / (1 - stays).max().clamp(min=1e-12))
        if float(apart.max()) > worst:
            b, n, v = (int(i) for i in torch.unravel_index(apart.argmax(), apart.shape))
            said = f"site {n}, value {v}: {float(found[b, n, v]):.4g} instead of {float(expected[b, n, v]):.4g}"
            worst, place = float(apart.max()), f"z_t = {row(possible[b])}, t = {t:.6g} to {s:.6g}, {said}"
    often = _often_of_reverse(model)
    tolerance = 10 * _NEAR if rates else 10 * _EXACT
    yield Check("reverse_law", "reverse_law = sum over x of p(x | z_t) q(z_s | z_t, x)", worst, tolerance, place, often)


def _often_of_reverse(model: object) -> str:
    if isinstance(model, GGM):
        return "log pi is missing in the softmax, or the survival of another sweep is taken"
    return "the probability to move between t and s, or another time than the network was told"


def terms(subject: Subject) -> Checks:
    """Row by row, of all x and z_t that can be."""
    noise, model, x = subject.noise, subject.model, subject.x()
    if noise is None or subject.own_times:
        return
    states, worst, place, ratios = states_of(subject), 0.0, "", []
    near = noise.pairs()[0][0] - noise.pairs()[0][1] < 1e-3 * noise.pairs()[0][0]
    for t, s in noise.pairs():
        q = noises.forward(noise.reach(t), states, x.flatten(1))
        rows, zt = (q > 0).nonzero(as_tuple=True)
        found = model.terms(x[rows], subject.shaped(states[zt]), noise.when(t, len(rows))).detach().double()
        expected = _divergence(subject, t, s, rows, zt)
        if near:
            expected = limit([_divergence(subject, t, t - step * (t - s), rows, zt) for step in STEPS])
        if isinstance(noise, SweepNoise):
            expected = _over_own_token(subject, noise, expected, t, s, rows, zt)
        apart = torch.where(found == expected, 0.0, (found - expected).abs() / (1 + expected.abs()))
        apart = no_nan(apart)
        ratios.append((found / expected)[(expected.abs() > 1e-3) & expected.isfinite()])
        if float(apart.max()) > worst:
            i = int(apart.argmax())
            said = f"{float(found[i]):.5g} instead of {float(expected[i]):.5g} nats"
            worst = float(apart[i])
            place = f"x = {row(x[rows[i]])}, z_t = {row(states[zt[i]])}, t = {t:.6g}: {said}"
    tolerance = _LIMIT if near else _EXACT
    equation = "terms = KL(q(z_s | z_t, x) || reverse_law(z_s | z_t)) / (t - s), relative"
    yield Check("terms", equation, worst, tolerance, place, factor(torch.cat(ratios), subject.law.num_sites))


def _divergence(subject: Subject, t: float, s: float, rows: Tensor, zt: Tensor) -> Tensor:
    """KL(q(z_s | z_t, x) || reverse_law(z_s | z_t)) per share of the step, Float64[k], of these x and states."""
    noise, states, x = subject.noise, states_of(subject), subject.x().flatten(1)
    assert noise is not None
    law = _law_of(subject, states, t, s, for_terms=True)
    truth = noises.bridge(noise, t, s)[torch.arange(states.shape[1]), states[zt], x[rows]]  # [k, n, z_s]
    if isinstance(noise, DeathNoise) and noise.continuous:
        # several births at a site in a short step h have a probability of h^2 and more, of which no rate is made: where
        # it is less than float64 tells from 0 beside 1, the kernel has 0, and the divergence would be infinite
        births = torch.arange(noise.num_states) - states[zt][..., None]
        truth = torch.where(births > 1, 0.0, truth)
    return noises.log_ratio(truth, law[zt]).sum((1, 2)) / noise.share(t, s)


def _over_own_token(
    subject: Subject, noise: SweepNoise, nats: Tensor, t: float, s: float, rows: Tensor, zt: Tensor
) -> Tensor:
    """GGM's terms have the visited site's own token summed out: the mean over it, given x and the other sites."""
    x, V, n = subject.x().flatten(1), subject.law.num_classes, subject.law.num_sites
    moved = (noise.step(s, t) - torch.eye(V, dtype=torch.float64)).abs().amax((1, 2))
    site = int(moved.argmax())
    weight = noise.reach(t)[site][:, x[:, site]].T  # [x, z_site]
    every = torch.zeros(len(x), V**n, dtype=torch.float64).index_put((rows, zt), nats)
    every = every.reshape(len(x), *[V] * n).movedim(1 + site, -1)
    mean = (every * weight.reshape(len(x), *[1] * (n - 1), V)).sum(-1, keepdim=True)
    return mean.expand_as(every).movedim(-1, 1 + site).reshape(len(x), -1)[rows, zt]


def factor(ratio: Tensor, num_sites: int, slack: float = 0.02) -> str:
    """What it looks like where all ratios of found to expected are one number."""
    if not len(ratio) or not bool(ratio.isfinite().all()):
        return ""
    middle, spread = float(ratio.median()), float(ratio.max() - ratio.min())
    if spread > slack * abs(middle) or abs(middle - 1) < 0.01:
        return ""
    known = {-1.0: "the sign", 1 / num_sites: "a factor n too little", float(num_sites): "a missing 1/n"}
    known |= {1 / math.log(2): "bits, not nats", math.log(2): "nats divided by log2 e"}
    named = [text for value, text in known.items() if abs(middle / value - 1) < 0.5 * slack]
    return f"all are {middle:.4g} times what they should be: {named[0] if named else 'a factor'}"


def of_bound(subject: Subject, wanted: Callable[[str], bool], equal: str | None) -> Checks:
    """bound, equal and each, and those of exact/estimates.py and exact/losses.py, which need the same sums."""
    nats = bound(subject)
    if nats is None:
        values, error = estimates.estimated(subject)
    else:
        values, error = nats, torch.zeros_like(nats)
    of_values = [
        *_bound_of(subject, values, error),
        *_equal(subject, values, None if nats is not None else error, equal),
    ]
    yield from (check for check in of_values if wanted(check.name))
    yield from estimates.checks(subject, nats, wanted)
    if wanted("loss"):
        yield from losses.checks(subject, values, error, nats is not None)


def _bound_of(subject: Subject, nats: Tensor, error: Tensor) -> Checks:
    mass = torch.exp(-nats)
    spread = float(((mass * error) ** 2).sum().sqrt())
    too_much = (mass * torch.exp(-0.5 * error**2)).sum() - 1 - ERRORS * spread
    p = subject.law.p[subject.law.p > 0]
    i = int((mass - p).argmax())
    place = f"x = {row(subject.x()[i])}: bound {float(nats[i]):.5g}, -log p {float(-p[i].log()):.5g} nats"
    slack = 0.02 + 10 * float((error / nats.abs()).max())
    often = (
        factor(nats / -p.log(), subject.law.num_sites, slack)
        or "a term or an end of the schedule is missing or negative"
    )
    equation = f"sum over x of exp(-bound(x)) <= 1{_of_integral(subject)}"
    yield Check("bound", equation, float(no_nan(too_much).clamp(min=0)), _EXACT + subject.apart, place, often)


def _of_integral(subject: Subject) -> str:
    """Said where halving the pieces of time does not help any more: an alpha of hundreds of corners, say."""
    return f" (the integral over t is known to {subject.apart:.1g} nats)" if subject.apart > _LIMIT else ""


# ------------------------------------------------------------------ what a family says of bound + log p


def _equal(subject: Subject, values: Tensor, error: Tensor | None, equal: str | None) -> Checks:
    """`equal`: each, mean, above or None (not said). error: of estimated values."""
    p = subject.law.p[subject.law.p > 0]
    gap = values + p.log()
    said, extra, allowed = _said(subject, equal)
    allowed += subject.apart
    if error is not None:
        allowed += ERRORS * float(((p * error) ** 2).sum().sqrt())
    mean = p @ gap - extra
    place = f"H = {subject.law.entropy:.5g}, mean of the bound {float(p @ values):.5g} nats"
    often = factor(values / -p.log(), subject.law.num_sites)
    tight = said != "above"
    off = no_nan(mean.abs() if tight else (-mean).clamp(min=0))
    name = "E bound - H = KL(q(z_1) || prior)" if extra else "E bound = H"
    equation = (f"{name}, nats" if tight else "E bound >= H, nats") + _of_integral(subject)
    yield Check("equal", equation, float(off), allowed, place, often)
    if said != "each":
        return
    off = gap.abs() if error is None else gap.abs() / error.clamp(min=1e-9)
    i = int(off.argmax())
    place = f"x = {row(subject.x()[i])}: bound {float(values[i]):.6g}, -log p {float(-p[i].log()):.6g} nats"
    unit, allowed = ("nats", 1e-5 + subject.apart) if error is None else ("standard errors", ERRORS)
    yield Check("each", f"bound(x) = -log p(x) for every x, {unit}", float(off[i]), allowed, place, often)


def _said(subject: Subject, equal: str | None) -> tuple[str, float, float]:
    """(each, mean or above; what the mean bound is above the entropy; tolerance), with the exact denoiser."""
    model, law, noise = subject.model, subject.law, subject.noise
    if equal is not None:
        return equal, 0.0, 1e-5
    if isinstance(model, AutoregressiveModel):
        return "each", 0.0, _EXACT
    if isinstance(model, GenMD4):
        return "mean", 0.0, 0.05  # first_time and eps
    if isinstance(model, GGM) and not model.random_order:
        last, start_law = glauber.forward_laws(model, law)[-1], glauber.noise_law(model)
        return "mean", float((last * (last / start_law).log()).sum()), _EXACT
    if isinstance(model, Blackout) and model.bound == "continuous":
        return "mean", 0.0, 2e-3  # midpoints in f
    if isinstance(model, LatentFamily) and _is_continuous(model):
        return "mean", 0.0, 1e-5  # for every encoder and clock: models/lddm.py
    chain = isinstance(model, GGM | Blackout | MarkovDiffusion | LatentFamily) or getattr(model, "num_timesteps", None)
    if noise is None or chain:
        return "above", 0.0, 1e-4
    ends = noise.masked(0.0) + 1 - noise.masked(1.0) if hasattr(noise, "masked") else 0.0
    if isinstance(ends, float) and ends < 1e-9:
        return "each", 0.0, _EXACT
    return "mean", 0.0, _EXACT + 2 * law.num_sites * float(ends) * math.log(law.num_classes)


def _is_continuous(model: LatentFamily) -> bool:
    """No levels of tokens or latent, and tokens whose schedule has no floor."""
    levels = model.num_timesteps, getattr(model, "num_latent_timesteps", None)
    return levels == (None, None) and not float(model.constant_nats)
