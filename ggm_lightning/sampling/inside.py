"""Plans that hold another one: which that may be, and how it is named.

model.sample(8, 64, sampler="blocks", stride=16, inside="ordered", inside_options={"k": 2})
model.sample(8, 64, sampler=Blocks(stride=16, inside=Ordered(k=2)))
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ggm_lightning.core.arguments import shown
from ggm_lightning.sampling.contract import Denoises
from ggm_lightning.sampling.first_hitting import FirstHitting
from ggm_lightning.sampling.ordered import Ordered
from ggm_lightning.sampling.plan import Ancestral, Plan, Sites
from ggm_lightning.sampling.remasking import Remasking
from ggm_lightning.sampling.sampler import Run

PLANS: Mapping[str, type[Plan]] = MappingProxyType(
    {"ancestral": Ancestral, "first_hitting": FirstHitting, "remasking": Remasking, "ordered": Ordered}
)


class Outer(Plan):
    """A plan that holds another one. It moves by that one's `move`, and so chooses no sites itself.

    Args:
        inside: a name of PLANS, or a plan that holds no other.
        inside_options: of that plan, where it is named.
    """

    def __init__(self, inside: str | Plan, inside_options: Mapping[str, Any] | None) -> None:
        self.inside = named(inside, dict(inside_options or {}))
        self.takes_num_steps = self.inside.takes_num_steps

    def check(self, model: Denoises) -> None:
        super().check(model)
        self.inside.check(model)

    def choose(self, run: Run) -> Sites:
        return self.inside.choose(run)


def named(inside: str | Plan, options: dict[str, Any]) -> Plan:
    """The plan that is meant. Raises ValueError in one line."""
    if isinstance(inside, Plan):
        if isinstance(inside, Outer):
            raise ValueError(f"inside is '{inside.name}', which holds a plan itself; give one that does not")
        if options:
            raise ValueError(
                f"inside_options are {options}, but inside is a plan already; give them to its constructor"
            )
        return inside
    if inside not in PLANS:
        raise ValueError(f"inside is {shown(inside)}; choose {' or '.join(PLANS)}, or give a plan")
    make = PLANS[inside]
    known = list(inspect.signature(make).parameters)
    for name in options:
        if name not in known:
            said = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"inside_options: '{inside}' has no option '{name}'; {said}")
    made = make(**options)
    made.name = inside
    return made
