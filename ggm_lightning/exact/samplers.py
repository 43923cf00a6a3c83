"""The laws of a family's samplers, drawn, beside what they are by enumeration and what they are of.

draws      the frequencies are those of the chain through `reverse_law`
law        they are p, or their distance from p falls with the steps
levels     after a step to s a site is masked with probability 1 - alpha(s)
known      known sites have their values, in x and in every state on the way there
infilling  the unknown sites have their exact conditional law, or come nearer to it than to ignoring what is known; of
           samplers that noise what is known (Blackout's, MarkovDiffusion's, GGM's) the law that follows from that
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ggm_lightning.core import death, gaussian, times
from ggm_lightning.exact import chains, glauber, latent
from ggm_lightning.exact import noise as noises
from ggm_lightning.exact.estimates import ERRORS
from ggm_lightning.exact.noise import SweepNoise
from ggm_lightning.exact.records import Check, row
from ggm_lightning.exact.states import Known, floor, frequencies, standard_errors, total_variation
from ggm_lightning.exact.subject import Subject
from ggm_lightning.models.autoregressive import AutoregressiveModel
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.lddm import FujiLDDM
from ggm_lightning.models.lddm_base import LatentFamily
from ggm_lightning.models.markov import MarkovDiffusion
from ggm_lightning.sampling import naming
from ggm_lightning.sampling.first_hitting import FirstHitting
from ggm_lightning.sampling.ordered import Ordered
from ggm_lightning.sampling.plan import Ancestral
from ggm_lightning.sampling.remasking import Remasking
from ggm_lightning.sampling.sampler import Sampler

COARSE, FINE = 4, 32
_FEW = 1_000  # rows of what is looked at once more, with other sites known
_FAR = 0.1  # total variation that a sampler of a latent family may keep from its steps of the latent
_NEARER = 0.5  # of the distance to ignoring what is known: how far infilling in FINE steps may be off
_BIRTHS = 0.4  # the same of Blackout's kernels, beside exact steps
_UNSEEN = "the unknown sites do not see the known ones"


@dataclass(frozen=True)
class Named:
    """One sampler of the model.

    Attributes:
        given: what `sample` takes: a name, or an object. name: of messages. kind: its class.
    """

    given: Any
    name: str
    kind: type[Sampler]


def all_of(subject: Subject, more: Any = ()) -> list[Named]:
    """The family's own, and `more`: objects, classes or paths of classes."""
    model = subject.model
    found = [Named(name, name, naming.class_of(naming.maker(model, name))) for name in model.samplers]
    if isinstance(model, GGM) and model.block_size < model.num_sites and not model.random_order:
        found = [named for named in found if named.name != "parallel"]  # it was trained for smaller blocks
    if isinstance(model, Blackout) and model.output != "distribution":
        found = [named for named in found if named.name != "posterior"]  # it needs the law of x_0
    for given in more:
        kind = type(given) if isinstance(given, Sampler) else naming.class_of(naming.maker(model, given))
        found.append(Named(given, kind.__name__, kind))
    return found


def checks(subject: Subject, named: Named, wanted: Any) -> Iterator[Check]:
    """Of one sampler. Raises ValueError where the model refuses it."""
    title = f"sampler {named.name}"
    if wanted("draws") or wanted("law"):
        yield from _laws(subject, named, title, wanted)
    if wanted("levels") and _keeps_levels(subject, named):
        yield _levels(subject, named, title)
    if isinstance(subject.model, FujiLDDM) and not subject.model.independent_clocks:
        return  # it refuses what is known
    if wanted("known") or wanted("infilling"):
        yield from _infilling(subject, named, title, wanted)


def _sampled(subject: Subject, named: Named, num_steps: int, **more: Any) -> Any:
    model = subject.model
    num_steps = num_steps if named.kind.takes_num_steps else 1
    if isinstance(model, GGM):
        num_steps = max(num_steps, model.sweeps.num_sweeps) if named.name != "parallel" else model.sweeps.num_sweeps
    return model.sample(subject.num_samples, num_steps, sampler=named.given, seed=subject.seed, **more)


def _laws(subject: Subject, named: Named, title: str, wanted: Any) -> Iterator[Check]:
    law, count = subject.law, subject.num_samples
    coarse = frequencies(_sampled(subject, named, COARSE).x, law.num_classes)
    chain = chain_of(subject, named, COARSE)
    if chain is not None and _is_whole(chain) and wanted("draws"):
        off, state = standard_errors(coarse, chain, count)
        place = f"x = {row(law.x[state])}: {coarse[state]:.4f} of the draws, {chain[state]:.4f} by enumeration"
        equation = f"{COARSE} steps draw from reverse_law, standard errors"
        yield Check(f"{title}: draws", equation, off, ERRORS, place, "values or sites are drawn from another law")
    if not wanted("law") or _has_a_floor(subject, named):
        return
    if _is_exact(subject, named):
        off, state = standard_errors(coarse, law.p, count)
        place = f"x = {row(law.x[state])}: {coarse[state]:.4f} of the draws, p {law.p[state]:.4f}"
        yield Check(f"{title}: law", "x ~ p, standard errors", off, ERRORS, place, "a sampler that is called exact")
        return
    fine = frequencies(_sampled(subject, named, FINE).x, law.num_classes)
    near, far = total_variation(fine, law.p), total_variation(coarse, law.p)
    state = int((fine - law.p).abs().argmax())
    place = f"x = {row(law.x[state])}: {fine[state]:.4f} of the draws, p {law.p[state]:.4f}; {COARSE} steps {far:.3f}"
    allowed = 3 * floor(law.p, count) + (_FAR if isinstance(subject.model, LatentFamily) else 0.6 * far)
    often = "an error that more steps do not take away"
    yield Check(f"{title}: law", f"x ~ p in {FINE} steps, total variation", near, allowed, place, often)


def chain_of(subject: Subject, named: Named, num_steps: int, known: Known | None = None) -> Tensor | None:
    """The sampler's law by enumeration through `reverse_law`, Float64[V^n]; None where that is not done."""
    model, name = subject.model, named.name
    if isinstance(model, GGM):
        return _of_sweeps(subject, name, known)
    if isinstance(model, Blackout):
        return chains.deaths(model, name, num_steps, known)
    if isinstance(model, LatentFamily):
        return _with_latent(model, name, num_steps, known)
    if name != "ancestral" or isinstance(model, AutoregressiveModel):
        return None
    if isinstance(model, MarkovDiffusion):
        return chains.markov(model, num_steps, known=known)
    if isinstance(model, GenMD4) or (model.mask_id is not None and model.schedule is not None):
        return chains.masked(model, num_steps, known=known)
    return None


def _with_latent(model: LatentFamily, name: str, num_steps: int, known: Known | None) -> Tensor | None:
    """FUJI's ddim moves its latent without noise beside the tokens: its values depend on the whole path."""
    if name == "first_hitting":
        return latent.law_one_by_one(model, "ddim", known).detach()
    if isinstance(model, FujiLDDM) and name == "ddpm":
        return latent.law_of_ddpm(model, num_steps, known=known).detach()
    kind = name.removeprefix("seq_")
    if kind not in gaussian.STEPS or (isinstance(model, FujiLDDM) and kind == name):
        return None
    return latent.law_of_latent_first(model, kind, num_steps, known=known).detach()


def _of_sweeps(subject: Subject, name: str, known: Known | None) -> Tensor | None:
    model = subject.model
    size = model.num_sites if name == "parallel" else 1
    if not model.random_order:
        return chains.sweeps(model, name, size, known).detach()
    if known is not None or name == "parallel" or model.corrector_steps:
        return None
    return glauber.reverse_over_orders(model, glauber.noise_law(model), name, size).detach()


def _is_exact(subject: Subject, named: Named) -> bool:
    """x ~ p at any number of steps, with an exact network."""
    model = subject.model
    if isinstance(model, AutoregressiveModel):
        return True
    if isinstance(model, LatentFamily):
        return False
    if isinstance(model, GGM):
        return named.name in ("heat_bath", "gated")
    if issubclass(named.kind, Ordered):
        return subject.law.num_sites <= COARSE and isinstance(named.given, str)
    return issubclass(named.kind, FirstHitting)


def _has_a_floor(subject: Subject, named: Named) -> bool:
    """Known and documented; GGM's parallel falls with its sweeps, which are the model's."""
    return (isinstance(subject.model, Blackout) and named.name == "rounded") or (
        isinstance(subject.model, GGM) and named.name == "parallel"
    )


# ------------------------------------------------------------------ how many are masked


def _keeps_levels(subject: Subject, named: Named) -> bool:
    """Whether its states have the law of the noise at the times of its grid, site by site."""
    model = subject.model
    loops = getattr(named.given, "rule", "") == "loop"
    return model.mask_id is not None and model.schedule is not None and issubclass(
        named.kind, Ancestral | Remasking
    ) and not loops and not isinstance(model, LatentFamily)  # fmt: skip


def _levels(subject: Subject, named: Named, title: str) -> Check:
    """Of every state on the way."""
    model, count = subject.model, subject.num_samples
    states = _sampled(subject, named, 8, trace=True, grid="uniform").trace
    worst, place = 0.0, ""
    for s, z in zip(times.sampling_grid(8, "uniform")[1:-1], states[1:-1], strict=True):
        wanted = float(model.schedule.masked_fraction(torch.tensor(s, dtype=torch.float64)))
        found = float((z == model.mask_id).double().mean())
        off = abs(found - wanted) / max(1e-9, (wanted * (1 - wanted) / z[0].numel() / count) ** 0.5)
        if off > worst:
            worst, place = off, f"s = {s:.3g}: {found:.4f} of the sites are masked, 1 - alpha(s) is {wanted:.4f}"
    equation = "after a step to s a site is masked with probability 1 - alpha(s), standard errors"
    often = "what is hidden again is not made up for: reveal with (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)"
    return Check(f"{title}: levels", equation, worst, ERRORS, place, often)


# ------------------------------------------------------------------ infilling


def _known(subject: Subject) -> Known:
    """The first site, with the value that says most of the others."""
    law, n = subject.law, subject.law.num_sites
    mask = torch.arange(n) == 0
    best, chosen = -1.0, 0
    for value in range(law.num_classes):
        known = torch.full((n,), value), mask
        if float(law.p[law.x[:, 0] == value].sum()) < 0.02:
            continue
        apart = total_variation(law.given(known), _ignorant(subject, known))
        if apart > best:
            best, chosen = apart, value
    return torch.full((n,), chosen), mask


def _other_known(subject: Subject) -> list[Known]:
    """The last site, and all sites but the last or, of families that only go on from beginnings, that alone: with the
    values of the likeliest row."""
    n = subject.law.num_sites
    values = subject.law.x[int(subject.law.p.argmax())]
    last = torch.arange(n) == n - 1
    sets = [~last] if subject.model.fills_beginnings_only else [last, ~last]
    return [(values, mask) for mask in sets if bool(mask.any())]


def _ignorant(subject: Subject, known: Known) -> Tensor:
    """The law of the unknown sites as if nothing were known, beside the known values."""
    law = subject.law
    filled = torch.where(known[1], known[0], law.x)
    return torch.zeros_like(law.p).index_add(0, law.index(filled), law.p)


def _infilling(subject: Subject, named: Named, title: str, wanted: Any) -> Iterator[Check]:
    law, model, known = subject.law, subject.model, _known(subject)
    clamp = known[0].reshape(model.shape), known[1].reshape(model.shape)
    drawn = _sampled(subject, named, FINE, clamp=clamp, trace=True)
    if wanted("known"):
        yield _kept(subject, named, drawn, known, title)
    if not wanted("infilling"):
        return
    found = frequencies(drawn.x, law.num_classes)
    chain = chain_of(subject, named, FINE, known)
    if chain is not None and _is_whole(chain):
        off, place = _off(subject, found, chain, known, "by enumeration")
        equation = "infilling draws from reverse_law, standard errors"
        often = "known sites are taken for noise, or noised otherwise than the others"
        yield Check(f"{title}: infilling draws", equation, off, ERRORS, place, often)
    if _has_a_floor(subject, named):
        return
    if isinstance(subject.noise, SweepNoise) and named.name in ("heat_bath", "gated"):
        yield _swept_infilling(subject, named, found, known, title)
    elif _noises_known(subject, named):
        yield from _noisy_infilling(subject, named, found, known, title)
    elif _is_exact(subject, named) and not isinstance(model, GGM):
        off, place = _off(subject, found, law.given(known), known, "p(x | known)")
        yield Check(f"{title}: infilling", "x ~ p(x | known), standard errors", off, ERRORS, place, _UNSEEN)
    else:
        target = law.given(known)
        away = total_variation(_ignorant(subject, known), target)
        apart = max(_NEARER * away, _FAR if isinstance(model, LatentFamily) else 0.0)
        allowed = 3 * floor(target, subject.num_samples) + apart
        place = f"site 0 = {int(known[0][0])}; {away:.3f} if what is known is ignored"
        near = total_variation(found, target)
        yield Check(f"{title}: infilling", "x ~ p(x | known), total variation", near, allowed, place, _UNSEEN)


def _off(subject: Subject, found: Tensor, expected: Tensor, known: Known, of_what: str) -> tuple[float, str]:
    """(deviation of frequencies in standard errors, the state at which it is)."""
    off, state = standard_errors(found, expected, subject.num_samples)
    numbers = f"{found[state]:.4f} of the draws, {expected[state]:.4f} {of_what}"
    return off, f"site 0 = {int(known[0][0])}, x = {row(subject.law.x[state])}: {numbers}"


def _is_whole(law: Tensor) -> bool:
    """False where steps that draw sites by themselves, under a law with zeros, reach states that cannot be: the exact
    network says nothing of them, the enumeration loses their mass, and there is nothing to compare."""
    return abs(float(law.sum()) - 1) < 1e-6


def _noises_known(subject: Subject, named: Named) -> bool:
    """Whether the other sites see what is known only as noisy as the time says: an error that more steps leave."""
    model = subject.model
    return isinstance(model, Blackout) or (isinstance(model, MarkovDiffusion) and named.name == "ancestral")


def _noisy_infilling(subject: Subject, named: Named, found: Tensor, known: Known, title: str) -> Iterator[Check]:
    """Against the law that follows by Bayes' rule alone, without the model: Blackout's kernels of births come near."""
    model, noise = subject.model, subject.noise
    assert noise is not None
    if isinstance(model, Blackout):
        path = [*death.observation_times(FINE, model.t_end).flip(0).tolist(), 0.0]
    else:
        path = times.sampling_grid(FINE, model.grids[0])
    expected = chains.of_clean(*noises.with_noised(subject.law, noise, known, path), subject.law.num_classes, known)
    if not _is_whole(expected):
        return
    away = total_variation(_ignorant(subject, known), expected)
    approximate = isinstance(model, Blackout) and named.name != "posterior"
    allowed = 3 * floor(expected, subject.num_samples)
    if approximate:
        allowed += _BIRTHS * away + _off_with_nothing_known(subject, named)
    place = f"site 0 = {int(known[0][0])}; {away:.3f} if what is known is ignored"
    equation = "x ~ the law given z_t with the known sites noised, total variation"
    yield Check(f"{title}: infilling", equation, total_variation(found, expected), allowed, place, _UNSEEN)


def _swept_infilling(subject: Subject, named: Named, found: Tensor, known: Known, title: str) -> Check:
    """GGM's against the law that follows by Bayes' rule; how far that is from p(x | known) is no fault, and told."""
    assert isinstance(subject.noise, SweepNoise)
    expected = chains.exact_visits(subject.law, subject.noise, named.name, known)
    off, place = _off(subject, found, expected, known, "by Bayes' rule")
    apart = total_variation(expected, subject.law.given(known))
    equation = f"x ~ the law with known tokens as noisy as t says ({apart:.2g} from p(x | known)), standard errors"
    return Check(f"{title}: infilling", equation, off, ERRORS, place, _UNSEEN)


def _off_with_nothing_known(subject: Subject, named: Named) -> float:
    """Total variation of what the kernel draws in FINE steps from p: infilling is off by as much."""
    chain = chain_of(subject, named, FINE)
    return 0.0 if chain is None else total_variation(chain, subject.law.p)


def _kept(subject: Subject, named: Named, drawn: Any, known: Known, title: str) -> Check:
    """At the end; where the noise masks, all the way. Few rows and steps for the other sets of known sites."""
    worst, place = _changed(subject, drawn, known)
    few, shape = replace(subject, num_samples=min(subject.num_samples, _FEW)), subject.model.shape
    for other in _other_known(subject):
        clamp = other[0].reshape(shape), other[1].reshape(shape)
        found = _changed(subject, _sampled(few, named, COARSE, clamp=clamp, trace=True), other)
        worst, place = max((worst, place), found)
    often = "known sites are drawn anew: put them back with run.put, or leave them out of reveal and hide"
    return Check(f"{title}: known", "known sites keep their values, share of rows", worst, 0.0, place, often)


def _changed(subject: Subject, drawn: Any, known: Known) -> tuple[float, str]:
    """(largest share of rows whose known sites have other values, where)."""
    model, (values, mask) = subject.model, known
    states = [drawn.x]
    if model.mask_id is not None and not isinstance(model, MarkovDiffusion | LatentFamily):
        states = [*drawn.trace, drawn.x]
    sites = ", ".join(map(str, torch.nonzero(mask)[:, 0].tolist()))
    worst, place = 0.0, ""
    for step, z in enumerate(states):
        changed = float((z.flatten(1)[:, mask] != values[mask]).any(1).double().mean())
        if changed > worst:
            when = "the end" if step == len(states) - 1 else f"step {step}"
            worst, place = changed, f"{when}, known sites {sites}"
    return worst, place
