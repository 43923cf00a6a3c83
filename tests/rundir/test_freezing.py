"""`--freeze`: which parameters a pattern means."""

from __future__ import annotations

import pytest

from ggm_lightning import GenMD4
from ggm_lightning.networks.transformer import Transformer
from ggm_lightning.rundir.freezing import freeze


def model() -> GenMD4:
    return GenMD4(
        network=Transformer(7, feature_dim=4, num_heads=2, num_layers=2), num_classes=7, shape=(5,), exponent_lr=0.1
    )


@pytest.mark.parametrize("pattern", ["network.blocks.1", "network.blocks.1.*"])
def test_a_pattern_means_all_below_it(pattern: str) -> None:
    some = model()
    frozen = freeze(some, [pattern])
    assert frozen == [name for name, _ in some.named_parameters() if name.startswith("network.blocks.1.")]
    assert frozen == [name for name, p in some.named_parameters() if not p.requires_grad]
    trained = {id(p) for group in some.parameter_groups() for p in group["params"]}
    assert trained == {id(p) for p in some.parameters() if p.requires_grad}


def test_frozen_exponents_are_not_the_optimisers() -> None:
    some = model()
    freeze(some, ["raw_exponents"])
    assert [len(group["params"]) for group in some.parameter_groups()] == [len(list(some.parameters())) - 1, 0]
    assert freeze(model(), []) == []


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("network.blokcs", "--freeze network.blokcs: no parameter has such a name; did you mean network.blocks"),
        ("attention", "did you mean network.blocks.0.attention or network.blocks.1.attention?"),
        ("zzz", "names begin with network.blocks, network.condition"),
        ("*", "--freeze *: all 23 parameters, so that nothing would be trained"),
    ],
)
def test_a_pattern_that_cannot_be_meant(pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^--freeze") as error:
        freeze(model(), [pattern])
    assert said in str(error.value)
