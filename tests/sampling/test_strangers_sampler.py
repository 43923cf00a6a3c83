"""A sampler from outside, as docs/extend/sampler.md shows it: extracted, run by path with every family that masks."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ggm_lightning.core.schedules import Linear
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.networks import Masked
from ggm_lightning.models.base import Family
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.lddm import FujiLDDM
from ggm_lightning.models.markov import MarkovDiffusion
from ggm_lightning.models.md4 import MD4
from ggm_lightning.sampling.sampler import Sampler
from tests.sampling.test_first_hitting import worst
from tests.sampling.test_rows_sent import Code, Counted, Joint, N, V

PAGE = (Path(__file__).parents[2] / "docs" / "extend" / "sampler.md").read_text(encoding="utf-8")
B, STEPS = 7, 3  # of two sites each, and of the last one
VALUES = torch.arange(B * N).reshape(B, N) % V
KNOWN = torch.tensor([[i < k for i in range(N)] for k in (0, 5, 1, 4, 2, 3, 5)])

FAMILIES: dict[str, Callable[[], Family]] = {
    "md4": lambda: MD4(Counted(), V, (N,), Linear(0.0)),
    "fuji": lambda: FujiLDDM(Joint(), Code(), V, (N,), independent_clocks=True, infill_latents=3),
    "markov": lambda: MarkovDiffusion(Counted(), V, (N,), "absorbing", t_end=40.0),
}


@pytest.fixture
def surest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Path of the class, in a file of a folder that is no part of the package."""
    blocks = re.findall(r"```python\n(# surest.py\n.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 1
    assert 20 <= len(blocks[0].splitlines()) <= 70
    (tmp_path / "surest.py").write_text(blocks[0], encoding="utf-8")
    monkeypatch.delitem(sys.modules, "surest", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return "surest.Surest"


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_rows_and_trace(name: str, surest: str) -> None:
    model = FAMILIES[name]()
    drawn = model.sample(B, 1, sampler=surest, k=2, seed=3, trace=True)
    of_latent = 32 if name == "fuji" else 0  # whose joint network denoises the latent, too
    assert drawn.network_calls == of_latent + STEPS
    assert drawn.rows == drawn.network_calls * B
    assert len(drawn.trace) == STEPS + 1
    for before, after in pairwise(drawn.trace):
        assert ((before == V) | (before == after)).all()
    assert [int((state == V).sum(1).max()) for state in drawn.trace] == [5, 3, 1, 0]
    assert torch.equal(drawn.trace[-1], drawn.x)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_alone_is_the_row_in_a_batch_and_what_is_known_stays(name: str, surest: str) -> None:
    drawn = FAMILIES[name]().sample(B, 1, sampler=surest, k=2, seed=3, clamp=(VALUES, KNOWN))
    assert torch.equal(drawn.x[KNOWN], VALUES[KNOWN])
    assert int(drawn.x.max()) < V
    for i in range(B):
        one = slice(i, i + 1)
        alone = FAMILIES[name]().sample(
            1, 1, sampler=surest, k=2, seed=3, clamp=(VALUES[one], KNOWN[one]), row=torch.tensor([i])
        )
        assert torch.equal(alone.x[0], drawn.x[i])
    other = FAMILIES[name]().sample(B, 1, sampler=surest, k=2, seed=4, clamp=(VALUES, KNOWN))
    assert not torch.equal(other.x, drawn.x)
    if name != "fuji":  # which weighs its latents by what is known
        assert drawn.rows == int(((~KNOWN).sum(1) / 2).ceil().sum())


def test_its_law_is_what_it_says(surest: str) -> None:
    """k = 1 with an exact network: p itself. Control: three sites at once, each drawn by itself."""
    law = JointLaw.random(3, 2, seed=3)
    model = MD4(Masked(law), 2, (3,), Linear(0.0))

    def frequencies(k: int) -> Tensor:
        x = model.sample(40_000, 1, sampler=surest, k=k, seed=1).x
        return torch.bincount((x * torch.tensor([4, 2, 1])).sum(1), minlength=8) / len(x)

    assert worst(frequencies(1), law.p) < 4.5
    assert worst(frequencies(3), law.p) > 45


def test_object_class_and_path_are_the_same(surest: str) -> None:
    import surest as module  # type: ignore[import-not-found]

    model = FAMILIES["md4"]()
    by_path = model.sample(B, 1, sampler=surest, k=2).x
    assert torch.equal(model.sample(B, 1, sampler=module.Surest(k=2)).x, by_path)
    assert torch.equal(model.sample(B, 1, sampler=module.Surest, k=2).x, by_path)
    assert not torch.equal(model.sample(B, 1, sampler=module.Surest()).x, by_path)


def test_the_latents_options_go_to_the_denoiser(surest: str) -> None:
    drawn = [FAMILIES["fuji"]().sample(B, 1, sampler=surest, latent_steps=steps).network_calls for steps in (2, 7)]
    assert drawn == [2 + N, 7 + N]


@pytest.mark.parametrize(
    ("build", "options", "said"),
    [
        (FAMILIES["md4"], {"eta": 0.02}, "eta is 0.02, but MD4's 'Surest' has no eta; take sampler remasking"),
        (FAMILIES["md4"], {"latent_steps": 3}, "MD4's 'Surest' has no steps of a latent; leave it out"),
        (FAMILIES["md4"], {"k": 0}, "Surest: k is 0; it must be at least 1"),
        (
            lambda: GGM(Counted(), V, (N,)),
            {},
            "sampler 'Surest' reveals masked sites, but GGM has no mask .* heat_bath",
        ),
        (lambda: GenMD4(Counted(), V, (N,)), {}, "GenMD4 has no mask with one schedule for all classes; it has only"),
        (lambda: MarkovDiffusion(Counted(), V, (N,)), {}, "but MarkovDiffusion has no mask"),
        (lambda: FujiLDDM(Joint(), Code(), V, (N,)), {}, "sampler 'Surest' is refused: .* independent_clocks: true"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    build: Callable[[], Family], options: dict[str, object], said: str, surest: str
) -> None:
    model = build()
    with pytest.raises(ValueError, match=said) as caught:
        model.sample(B, 1, sampler=surest, **options)
    assert "\n" not in str(caught.value)
    assert model.network_calls == 0


def test_an_object_takes_no_options_of_its_constructor(surest: str) -> None:
    import surest as module  # type: ignore[import-not-found]

    with pytest.raises(ValueError, match="k is 2, but MD4's 'Surest' has no k"):
        FAMILIES["md4"]().sample(B, 1, sampler=module.Surest(), k=2)
    with pytest.raises(ValueError, match=r"sampler Pinned: missing a required argument: 'k'"):
        FAMILIES["md4"]().sample(B, 1, sampler=Pinned)


class Pinned(Sampler):
    def __init__(self, k: int) -> None:
        self.k = k

    def move(self, run: object) -> None:
        raise NotImplementedError
