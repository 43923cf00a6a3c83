"""What each sampler of a trained model fills in at a few free sites of one row, beside the model's own conditional law.

The other sites are known. The model's own law of the free ones, given them, is a product of what its network says:

    a mask             p(a | known) p(b | a, known) ..., the mean over the orders of the free sites
    left to right      the same, in the one order there is
    GGM                the law that its heat bath keeps: each free site in turn, given all others, at the first sweep

For other families there is no such product; their samplers are compared with the first of them in many steps.

A trained network is no exact one: what it says of a state moves with the time that it is told, and the orders of the
chain rule do not agree. So `ancestral`, `first_hitting` and GGM's `heat_bath` and `gated` are judged by their own law,
enumerated with the times that they use, which holds for every network; others only by what that cannot explain.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ggm_lightning.exact.filled_chains import Chains, of_visits
from ggm_lightning.exact.states import all_states, frequencies, product, total_variation
from ggm_lightning.models.autoregressive import AutoregressiveModel
from ggm_lightning.models.base import Family
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.lddm_base import LatentFamily
from ggm_lightning.sampling import naming

MOST = 4_096  # values of the free sites together: each is a row that the network is asked about
_FINER = 8  # of the run that stands in for a conditional law
_REPEATS = 20  # sets of exact draws, for floor and error


@dataclass(frozen=True)
class Filled:
    """One sampler's law of the free sites, beside the reference.

    Attributes:
        sampler: its name. distance: total variation between its draws and the reference.
        floor: that of as many exact draws, in the mean. error: its standard deviation.
        said: why there is no number.
        own: the distance from the sampler's own law, where that is enumerated.
        moves: how much of the distance may come of a network that says other things at other times and in other orders.
    """

    sampler: str
    distance: float = float("nan")
    floor: float = float("nan")
    error: float = float("nan")
    said: str = ""
    own: float | None = None
    moves: float = 0.0

    @property
    def verdict(self) -> str:
        """In words."""
        if self.said:
            return self.said
        allowed = self.floor + 3 * self.error
        if self.own is not None and self.own > allowed:
            return f"an error of the sampler: {self.own:.4f} from its own law"
        if self.distance <= allowed:
            return "as exact draws"
        if self.own is not None:
            return f"no error: {self.own:.4f} from its own law, at its steps and times"
        if self.distance <= allowed + self.moves:
            return f"not judged: the network's answer moves with t and the order of sites by up to {self.moves:.4f}"
        return "an error of the sampler"


def number_of_sites(num_classes: int, num_sites: int, num_samples: int) -> int:
    """Three or two, where so many draws tell something of all their values, else one; 0 where one has too many."""
    fitting = [count for count in (3, 2) if num_classes**count <= num_samples / 10 and count < num_sites]
    if fitting:
        return fitting[0]
    return 1 if num_classes <= MOST else 0


def reference(model: Family, row: Tensor, sites: list[int], label: Tensor | None = None) -> Tensor | None:
    """The model's own law of the free sites, Float64[V^k] in the order of `all_states`; None where it has none."""
    states = all_states(model.num_classes, len(sites)).to(model.device)
    labels = None if label is None else label.expand(len(states))
    with model.evaluating("sampling"):
        if isinstance(model, AutoregressiveModel):
            return _from_bound(model, row, sites, states, labels)
        if isinstance(model, GGM):
            return None if model.random_order else _kept_by_heat_bath(model, row, sites, states, labels)
        if not _masks(model):
            return None
        return Chains(model, row, sites, label).orders().mean(0)


def _masks(model: Family) -> bool:
    """Whether it has a mask and one schedule, and nothing beside its tokens."""
    return model.mask_id is not None and model.schedule is not None and not isinstance(model, LatentFamily)


def _rows(row: Tensor, sites: list[int], states: Tensor) -> Tensor:
    """The row with every value of the free sites, Int64[m, n]."""
    rows = row.flatten().expand(len(states), -1).clone()
    rows[:, sites] = states
    return rows


def _from_bound(model: Family, row: Tensor, sites: list[int], states: Tensor, labels: Tensor | None) -> Tensor:
    """Of a model whose nelbo is -log p: p(x) / sum over the free sites."""
    rows = _rows(row, sites, states).reshape(-1, *model.shape)
    return (-model.nelbo(rows, labels)).softmax(0).cpu()


def _kept_by_heat_bath(model: GGM, row: Tensor, sites: list[int], states: Tensor, labels: Tensor | None) -> Tensor:
    """The stationary law of drawing one free site after the other by the model's own conditionals."""
    rows = _rows(row, sites, states).reshape(-1, *model.shape)
    round_of_all = torch.eye(len(states), dtype=torch.float64)
    for visit in reversed(range(model.num_sites)):
        site = int(model.sweeps.order[visit])
        if site not in sites:
            continue
        when = torch.full((len(rows),), visit, device=model.device)
        law = model.reverse_law(rows, when + 1, when, labels, sampler="heat_bath").probs()[:, sites].cpu()
        round_of_all = round_of_all @ product(law, states.cpu())
    return torch.linalg.matrix_power(round_of_all, 4096)[0]


def measured(
    model: Family,
    row: Tensor,
    sites: list[int],
    num_samples: int,
    num_steps: int,
    seed: int = 0,
    label: Tensor | None = None,
) -> tuple[list[Filled], bool]:
    """(each sampler of the family, whether the reference is the model's own law).

    Args:
        row: Int64[*shape], of the data. sites: the free ones; all others are known.
    """
    known = torch.ones(model.num_sites, dtype=torch.bool, device=model.device)
    known[sites] = False
    clamp = row, known.reshape(model.shape)
    labels = None if label is None else label.expand(num_samples)
    target, own = reference(model, row, sites, label), True

    def drawn(sampler: str, steps: int, own_seed: int) -> Tensor:
        x = model.sample(num_samples, steps, labels, clamp, sampler=sampler, seed=own_seed).x
        return frequencies(x.flatten(1)[:, sites].cpu(), model.num_classes)

    if target is None:
        own, first = False, next(iter(model.samplers))
        target = drawn(first, _FINER * num_steps, seed + 1)
    floor, error = _of_exact_draws(target, num_samples, both=not own)
    found = []
    laws = _laws(model, row, sites, num_steps, label)
    moves = _moves(model, row, sites, label, target, laws) if own else 0.0
    for sampler in model.samplers:
        try:
            frequency = drawn(sampler, num_steps, seed)
            one = Filled(sampler, total_variation(frequency, target), floor, error)
            law = laws.get(sampler)
            one = replace(one, moves=moves) if law is None else replace(one, own=total_variation(frequency, law))
            found.append(one)
        except ValueError as refused:
            found.append(Filled(sampler, said=textwrap.shorten(f"refused: {refused}", 96, placeholder=" ...")))
    return found, own


def _laws(model: Family, row: Tensor, sites: list[int], num_steps: int, label: Tensor | None) -> dict[str, Tensor]:
    """Of the samplers whose own law is enumerated."""
    if isinstance(model, GGM) and not model.random_order:
        kernels = [name for name in ("heat_bath", "gated") if name in model.samplers]
        return {name: of_visits(model, row, sites, name, label) for name in kernels}
    if not _masks(model):
        return {}
    chains = Chains(model, row, sites, label)
    kinds = {name: naming.class_of(naming.maker(model, name)) for name in model.samplers}
    found = {name: chains.law_of(kind, num_steps) for name, kind in kinds.items()}
    return {name: law for name, law in found.items() if law is not None}


def _moves(
    model: Family, row: Tensor, sites: list[int], label: Tensor | None, target: Tensor, laws: dict[str, Tensor]
) -> float:
    """Of GGM, whose network is told the sweep: how far right samplers are from the reference."""
    if _masks(model):
        return Chains(model, row, sites, label).moves()
    return max((total_variation(law, target) for law in laws.values()), default=0.0)


def _of_exact_draws(law: Tensor, num_samples: int, both: bool) -> tuple[float, float]:
    """(mean, standard deviation) of the total variation between a law and so many draws from it; `both`: between two
    sets of draws."""
    generator = torch.Generator().manual_seed(0)

    def draws() -> Tensor:
        x = torch.multinomial(law, num_samples, replacement=True, generator=generator)
        return x.bincount(minlength=len(law)).double() / num_samples

    found: list[Any] = [total_variation(draws(), draws() if both else law) for _ in range(_REPEATS)]
    values = torch.tensor(found, dtype=torch.float64)
    return float(values.mean()), float(values.std())
