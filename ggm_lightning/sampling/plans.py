"""The plans of this package by their short names: docs/samplers.md says what each does and which law it has."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ggm_lightning.sampling.blocks import Blocks
from ggm_lightning.sampling.corrected import Corrected
from ggm_lightning.sampling.inside import PLANS
from ggm_lightning.sampling.plan import Plan

# the first is the default
OF_MASKED: Mapping[str, type[Plan]] = MappingProxyType({**PLANS, "blocks": Blocks, "corrected": Corrected})
# of families with a latent beside their tokens: they draw it by a plan of their own, and their networks are not hollow
GIVEN_LATENT: Mapping[str, type[Plan]] = MappingProxyType(
    {name: plan for name, plan in OF_MASKED.items() if name not in ("ancestral", "corrected")}
)
