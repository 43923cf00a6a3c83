"""Samplers that ask more of a model than the contract says fit the families that offer them, and no others."""

from __future__ import annotations

import pytest
import torch

from ggm_lightning.sampling.births import Births
from ggm_lightning.sampling.latent import AfterLatent, Together
from ggm_lightning.sampling.left_to_right import LeftToRight
from ggm_lightning.sampling.random_order import RandomOrder
from ggm_lightning.sampling.reverse import Bridged
from ggm_lightning.sampling.sampler import Sampler
from ggm_lightning.sampling.sweeping import Sweeping
from tests.models.every_family import FAMILIES, N, small

LABEL = torch.tensor([0, 1])

# each sampler, and the families that offer it; Blackout's and MarkovDiffusion's models look much alike
SAMPLERS: dict[str, tuple[Sampler, set[str]]] = {
    "births": (Births("capped"), {"blackout"}),
    "bridged": (Bridged(), {"markov"}),
    "sweeping": (Sweeping("gated"), {"ggm", "ggm, whole blocks"}),
    "random order": (RandomOrder("gated"), {"ggm, all sites"}),
    "together": (Together("ddpm"), {"fuji"}),
    "after latent": (AfterLatent("ddpm"), {"fuji", "seq", "seq, stage 1"}),
    "left to right": (LeftToRight(), {"ar"}),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_fits_where_it_is_offered(name: str, family: str) -> None:
    sampler, owners = SAMPLERS[name]
    model = small(family)
    if family in owners:
        assert model.sample(2, 18, label=LABEL, sampler=sampler).x.shape == (2, *model.shape)
        return
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is looked at below
        model.sample(2, 18, label=LABEL, sampler=sampler)
    assert "\n" not in str(error.value)
    assert model.network_calls == 0 or "order is given" in str(error.value)
    assert "offer" in str(error.value) or "order is given" in str(error.value)


def test_a_sampler_derived_from_an_offered_one_fits() -> None:
    class Mine(Births):
        """Of one's own."""

    assert small("blackout").sample(2, 4, label=LABEL, sampler=Mine("capped")).x.shape == (2, N)
