"""A model with the exact denoiser of a law in the place of its network, and what the kit knows of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ggm_lightning.exact import glauber, latent
from ggm_lightning.exact import noise as noises
from ggm_lightning.exact.integral import over_time
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.networks import Causal, Deaths, HollowMasked, Reached, TimedMasked
from ggm_lightning.exact.noise import Noise
from ggm_lightning.models.autoregressive import AutoregressiveModel
from ggm_lightning.models.base import Family
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.diladd import DiLADD
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM
from ggm_lightning.models.lddm_base import LatentFamily
from ggm_lightning.models.markov import MarkovDiffusion

_WITH_LATENT = 2_000
OF_TWO_FAMILIES = (
    "DiLADD holds a family of its own for its codes and knows no exact network here; give that family, model.prior, "
    "and the family of its tokens, MD4"
)
_MOST = 1_000  # clean states: pairs of states are enumerated


@dataclass
class Subject:
    """What is proved.

    Attributes:
        model: a copy, with the exact network. law: of the data. noise: None where none is known.
        num_samples, seed: of what is drawn.
        own_times: whether `terms` takes other times than the noise's (numbers of sites, say): what depends on them is
            then estimated and not enumerated.
        apart: how far the integral over time in `bound` may be off, nats.
    """

    model: Any
    law: JointLaw
    noise: Noise | None
    num_samples: int
    seed: int
    own_times: bool = False
    apart: float = 0.0

    @property
    def name(self) -> str:
        return f"{type(self.model).__name__} ({self.law.num_classes} classes, {self.law.num_sites} sites)"

    def x(self) -> Tensor:
        """The states that can be, Int64[S, *shape]."""
        return self.shaped(self.law.x[self.law.p > 0])

    def shaped(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.model.shape)


def of(
    model: Family, law: JointLaw | None, noise: Noise | None, network: nn.Module | None, num_samples: int, seed: int
) -> Subject:
    """Raises ValueError where the model is not a family, too large, or of another size than the law; and where neither
    its noise nor a network is known."""
    if not isinstance(model, Family):
        raise ValueError(f"prove: a {type(model).__name__} came; give a model of a class derived from Family")
    if isinstance(model, DiLADD):
        raise ValueError(f"prove: {OF_TWO_FAMILIES}")
    n, V = model.num_sites, model.num_classes
    if V**n > _MOST:
        raise ValueError(
            f"prove: {V} classes at {n} sites are {float(V) ** n:.3g} states, all of which are enumerated; build the "
            "model with, say, num_classes=3, shape=(3,) (its network does not matter: an exact one takes its place)"
        )
    law = JointLaw.random(n, V) if law is None else law
    if (law.num_sites, law.num_classes) != (n, V):
        raise ValueError(
            f"prove: the law has {law.num_classes} classes at {law.num_sites} sites, the model {V} at {n}; give a law "
            "of the model's size"
        )
    exact = _copied(model, network or nn.Identity())
    exact.looked_at = set()
    noise = noises.of(exact) if noise is None else noise
    if network is None:
        network = _network(exact, law, noise)
    exact.network = network
    if isinstance(network, glauber.Hidden) and isinstance(exact, GGM):
        network.bind(exact)
    if isinstance(exact, LatentFamily):
        num_samples = min(num_samples, _WITH_LATENT)  # each row has a latent of its own, so that none are alike
    found = Subject(exact.eval(), law, noise, num_samples, seed)
    found.own_times = _has_own_times(found)
    return found


def _copied(model: Family, network: nn.Module) -> Family:
    """On the CPU, with another network; the model's own may be large, and is not copied."""
    as_they_are = [value for value in vars(model).values() if isinstance(value, MappingProxyType)]
    memo: dict[int, Any] = {id(value): value for value in as_they_are}
    return copy.deepcopy(model, memo | {id(model.network): network}).cpu()


def _network(model: Family, law: JointLaw, noise: Noise | None) -> nn.Module:
    """The exact one, by how the family asks."""
    if isinstance(model, GGM):
        if not model.random_order:
            return glauber.Hidden(law)
        return glauber.Levels(law) if "levels" in model.network_keywords else glauber.Hollow(law)
    if isinstance(model, LatentFamily):
        return _with_latent(model, law)
    if isinstance(model, AutoregressiveModel):
        return Causal(law)
    if isinstance(model, GenMD4):
        return TimedMasked(law, model.exponents().detach())
    if isinstance(model, Blackout):
        model.time_input = "logit"
        own = model.parametrisation == "posterior"
        return Deaths(law, model.output, own, counts=model.network_input == "counts")
    if isinstance(model, MarkovDiffusion) and model.mask_id is not None:
        return HollowMasked(law)
    if isinstance(model, MarkovDiffusion):
        process = model
        own = model.parametrisation == "posterior"
        return Reached(law, lambda t: process.process.transition(process.tau(t)), own)
    if isinstance(noise, noises.MaskNoise) or (noise is None and model.mask_id == law.num_classes):
        return HollowMasked(law)
    if noise is None:
        raise ValueError(
            f"prove: how {type(model).__name__} corrupts is not known; give noise=, an exact.Noise that says so, or "
            "network=, its exact network for the law"
        )
    return Reached(law, lambda t: torch.stack([noise.reach(float(when))[0] for when in t]))


def _with_latent(model: LatentFamily, law: JointLaw) -> nn.Module:
    """A latent of one number that tells all states apart."""
    code, schedule = latent.linear_code(law), model.latent_schedule
    model.encoder, model.latent_shape, model.is_fixed = latent.Code(law.x, code), (1, 1), True
    if model.latent_network is not None:
        model.latent_network = latent.Latent(law, code, schedule)
    return latent.Joint(law, code, schedule)


# ------------------------------------------------------------------ the bound


def constants(subject: Subject) -> Tensor | None:
    """What `nelbo` adds to the mean of `terms`, Float64[S], nats; None where that is not seen."""
    model, x = subject.model, subject.x()
    if isinstance(model, GenMD4):
        return model.reconstruction(x).detach() + model.prior_nats
    if isinstance(model, Blackout):
        return model.prior(x) + _last_step(subject)
    if isinstance(model, GGM):
        last = model.sweeps.survival_at(torch.tensor([model.sweeps.num_steps]))[0]
        q = glauber.law_at(model, x.flatten(1), last)
        return (q * (q.log() - glauber.noise_law(model).log())).sum(1)
    return _seen(subject, x)


def _last_step(subject: Subject) -> Tensor:
    """Blackout's reconstruction, enumerated."""
    model, noise = subject.model, subject.noise
    assert noise is not None
    t = float(model.grid[1])
    states = subject.law.x
    q = noises.forward(noise.reach(t), states, subject.x().flatten(1))
    rows, zt = (q > 0).nonzero(as_tuple=True)
    nats = model.reconstruction(subject.x()[rows], subject.shaped(states[zt])).detach()
    return torch.zeros(len(q), dtype=torch.float64).index_add(0, rows, q[rows, zt] * nats)


def _seen(subject: Subject, x: Tensor) -> Tensor | None:
    """nelbo less the mean of the `terms` that it called: one draw is enough, as both are of the same states."""
    nats, called = _terms_of_nelbo(subject, x)
    if len(called) != 1 or called[0][1].shape != nats.shape:
        return None
    return (nats - called[0][1].double()).detach()


def _terms_of_nelbo(subject: Subject, x: Tensor) -> tuple[Tensor, list[tuple[Any, Tensor]]]:
    """(nelbo, (times, terms) of each call of `terms` in it)."""
    model, called = subject.model, []
    terms = model.terms

    def recorded(x: Tensor, zt: Tensor, t: Any, *args: Any, **more: Any) -> Tensor:
        called.append((t, terms(x, zt, t, *args, **more)))
        return called[-1][1]

    model.terms = recorded
    try:
        nats = model.nelbo(x, num_samples=1, seed=subject.seed)
    finally:
        del model.terms
    return nats, called


def _has_own_times(subject: Subject) -> bool:
    """By what `nelbo` hands to `terms`."""
    if subject.noise is None or not hasattr(subject.model, "terms"):
        return True
    with subject.model.evaluating():
        _, called = _terms_of_nelbo(subject, subject.x())
    expected = subject.noise.when(subject.noise.last(), 1)
    return any(t.is_floating_point() != expected.is_floating_point() or float(t.max()) > expected for t, _ in called)


def bound(subject: Subject) -> Tensor | None:
    """The mean of `nelbo` for every x that can be, Float64[S], nats, all states and times enumerated; None where it can
    only be estimated."""
    model, law = subject.model, subject.law
    possible = law.p > 0
    if isinstance(model, AutoregressiveModel):
        return model.nelbo(subject.x())
    if isinstance(model, FujiLDDM | SeqLDDM):
        nats, subject.apart = latent.bound(model, law)
        return nats[possible].detach()
    if isinstance(model, GGM) and model.random_order:
        return glauber.bound_over_orders(model, law)[possible]
    added = None if subject.noise is None or subject.own_times else constants(subject)
    return None if added is None else added + mean_of_terms(subject)


def mean_of_terms(subject: Subject) -> Tensor:
    """E terms(x, z_t, t), in the mean over the times: their weighted sum, or the integral, Float64[S]."""
    noise = subject.noise
    assert noise is not None
    nodes = noise.nodes()
    if nodes is None:
        total, subject.apart = over_time(lambda t: _terms_at(subject, t), noise.edges())
        return total
    total = torch.zeros(len(subject.x()), dtype=torch.float64)
    for t, weight in zip(*nodes, strict=True):
        total += weight * _terms_at(subject, float(t))
    return total


def _terms_at(subject: Subject, t: float) -> Tensor:
    """E over z_t of terms(x, z_t, t), Float64[S]."""
    model, noise, x, states = subject.model, subject.noise, subject.x(), states_of(subject)
    assert noise is not None
    q = noises.forward(noise.reach(t), states, x.flatten(1))
    rows, zt = (q > 0).nonzero(as_tuple=True)
    nats = model.terms(x[rows], subject.shaped(states[zt]), noise.when(t, len(rows))).detach().double()
    return torch.zeros(len(x), dtype=torch.float64).index_add(0, rows, q[rows, zt] * nats)


def states_of(subject: Subject) -> Tensor:
    """All noisy states, Int64[m, n]."""
    from ggm_lightning.exact.states import all_states

    assert subject.noise is not None
    return all_states(subject.noise.num_states, subject.law.num_sites)
