"""Every sampler of every family: a network that breaks one row, from its second call on, ends the run in one line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.core import watch
from ggm_lightning.core.schedules import Linear
from ggm_lightning.models.autoregressive import AutoregressiveModel
from ggm_lightning.models.base import Family
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM
from ggm_lightning.models.markov import MarkovDiffusion
from ggm_lightning.models.md4 import MD4

B, N, V, S, D = 3, 5, 7, 2, 11
ROW = 1  # of the batch: the one that breaks
NUMBERS = torch.tensor([13, 17, 19])  # of the rows
ROWS = {"row": NUMBERS, "label": torch.arange(B)}


class Breaks(nn.Module):
    """Well behaved until its call number `sound` is over; then one row is spoilt. Rows that need no call are not sent,
    and a row may have many candidates: which it is, is told by its label."""

    num_latents, latent_dim = S, D

    def __init__(self, value: float, sound: int = 1, width: int | None = V, latent: bool = False) -> None:
        super().__init__()
        self.value, self.sound, self.width, self.latent = value, sound, width, latent
        self.calls = 0

    def spoilt(self, answer: Tensor, label: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > self.sound:
            answer[torch.nonzero(label == ROW)[:1, 0]] = self.value  # of candidates the first
        return answer

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, **more: Tensor) -> Tensor:
        return self.spoilt(torch.ones(*z.shape, self.width) if self.width else torch.ones(z.shape), label)


class Joint(Breaks):
    """`latent`: it is z_0 that breaks."""

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, **more: Tensor) -> tuple[Tensor, Tensor]:
        logits, z0 = torch.zeros(*z.shape, V), torch.zeros(len(z), S, D)
        return (logits, self.spoilt(z0, label)) if self.latent else (self.spoilt(logits, label), z0)


class OfLatent(Breaks):
    def forward(self, latent: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.spoilt(torch.zeros_like(latent), label)


class Code(nn.Module):
    num_latents, latent_dim = S, D

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        return torch.zeros(len(x), S, D)


def counts(network: Breaks, **options: str) -> Blackout:
    return Blackout(network, V, (N,), num_timesteps=11, **options)


def law_of_counts(network: Breaks) -> Blackout:
    return counts(network, output="distribution", loss="cross_entropy", network_input="counts")


def fuji(network: Breaks) -> FujiLDDM:
    return FujiLDDM(Joint(network.value, network.sound), Code(), V, (N,), independent_clocks=True)


def seq(network: Breaks) -> SeqLDDM:
    return SeqLDDM(Joint(network.value, network.sound), Code(), OfLatent(0.0), V, (N,))


# name -> (family with such a network, num_steps, sampler)
SAMPLERS: dict[str, tuple[Callable[[Breaks], Family], int, str]] = {
    "md4 ancestral": (lambda net: MD4(net, V, (N,)), 5, "ancestral"),
    "md4 first_hitting": (lambda net: MD4(net, V, (N,)), 5, "first_hitting"),
    "genmd4": (lambda net: GenMD4(net, V, (N,)), 5, "ancestral"),
    "ar": (lambda net: AutoregressiveModel(net, V, (N,)), 5, "ancestral"),
    "ggm heat_bath": (lambda net: GGM(net, V, (N,)), 5, "heat_bath"),
    "ggm gated": (lambda net: GGM(net, V, (N,)), 5, "gated"),
    "ggm parallel": (lambda net: GGM(net, V, (N,), block_size=5, hide="block"), 8, "parallel"),
    "ggm parallel, own": (lambda net: GGM(net, V, (N,), block_size=5), 8, "parallel"),
    "fuji ddim": (fuji, 5, "ddim"),
    "fuji ddpm": (fuji, 5, "ddpm"),
    "fuji seq_ddpm": (fuji, 5, "seq_ddpm"),
    "fuji first_hitting": (fuji, 5, "first_hitting"),
    "seq ddim": (seq, 5, "ddim"),
    "seq first_hitting": (seq, 5, "first_hitting"),
    "blackout posterior": (law_of_counts, 5, "posterior"),
    "blackout law, capped": (law_of_counts, 5, "capped"),
    "markov uniform": (lambda net: MarkovDiffusion(net, V, (N,), num_timesteps=5), 5, "ancestral"),
    "markov absorbing": (lambda net: MarkovDiffusion(net, V, (N,), "absorbing", num_timesteps=5), 5, "ancestral"),
    "markov first_hitting": (lambda net: MarkovDiffusion(net, V, (N,), "absorbing"), 5, "first_hitting"),
    "markov gaussian": (lambda net: MarkovDiffusion(net, V, (N,), "gaussian", num_timesteps=5), 5, "ancestral"),
}
SHARPER = {"temperature": 0.7, "top_p": 0.8}
WHERE = re.compile(r"^(step|latent step) \d+, row 17, (site|latent) \d: the network's logits are")


def sharpened(name: str) -> dict[str, float]:
    return {} if name == "blackout law, capped" else SHARPER  # which has no law of x_0 to sharpen


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sharp", [False, True])
def test_one_broken_row_is_never_a_sample(name: str, value: float, sharp: bool) -> None:
    make, steps, sampler = SAMPLERS[name]
    options = sharpened(name) if sharp else {}
    with pytest.raises(ValueError, match=WHERE) as caught:
        make(Breaks(value)).sample(B, steps, sampler=sampler, **ROWS, **options)
    kind = {math.inf: r"\+inf", -math.inf: "all -inf"}.get(value, "NaN")
    assert re.search(f"logits are {kind}", str(caught.value))
    assert "\n" not in str(caught.value)
    drawn = make(Breaks(value, sound=10**6)).sample(B, steps, sampler=sampler, **ROWS, **options)
    assert drawn.x.min() >= 0
    assert drawn.x.max() < V  # control: the same network while it is sound


@pytest.mark.parametrize("name", SAMPLERS)
def test_nor_where_the_host_looks_later(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: legal ids go on into the network until the host looks, and the sample is not given out."""
    begun = watch.Watch.__init__

    def later(self: watch.Watch, row: Tensor) -> None:
        begun(self, row)
        self.at_once = False

    monkeypatch.setattr(watch.Watch, "__init__", later)
    make, steps, sampler = SAMPLERS[name]
    with pytest.raises(ValueError, match=WHERE):
        make(Breaks(math.nan)).sample(B, steps, sampler=sampler, **ROWS)


@pytest.mark.parametrize("sampler", ["capped", "poisson", "stochastic"])
@pytest.mark.parametrize(("value", "said"), [(math.nan, "NaN"), (math.inf, "infinite"), (-1.0, "negative")])
def test_expected_deaths(sampler: str, value: float, said: str) -> None:
    model = counts(Breaks(value, width=None), output="deaths")
    with pytest.raises(ValueError, match=f"^step 1, row 17, site 0: the expected number of deaths is {said}"):
        model.sample(B, 5, sampler=sampler, **ROWS)
    assert counts(Breaks(value, 99, None), output="deaths").sample(B, 5, sampler=sampler, **ROWS).x.max() < V  # control


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_latents(value: float) -> None:
    said = "the denoised latent is NaN or infinite"
    joint = FujiLDDM(Joint(value, latent=True), Code(), V, (N,))
    with pytest.raises(ValueError, match=f"^step 1, row 17, latent 0: {said}"):
        joint.sample(B, 5, **ROWS)
    first = SeqLDDM(Joint(0.0), Code(), OfLatent(value), V, (N,))
    with pytest.raises(ValueError, match=f"^latent step 1, row 17, latent 0: {said}"):
        first.sample(B, 5, **ROWS, latent_steps=3)
    clamp = torch.zeros(N, dtype=torch.int64), torch.arange(N) < 2
    first = SeqLDDM(Joint(0.0), Code(), OfLatent(value), V, (N,), infill_latents=3)
    with pytest.raises(ValueError, match=f"^latent step 1, row 17, latent 0: {said}"):
        first.sample(B, 5, **ROWS, latent_steps=3, clamp=clamp)


@pytest.mark.parametrize("leftover", ["draw", "argmax"])
def test_what_is_filled_in_at_the_end(leftover: str) -> None:
    """A schedule that leaves four sites of ten masked, for a call of the network behind the last step."""
    model = MD4(Breaks(math.nan), V, (N,), Linear(0.4), leftover=leftover)
    with pytest.raises(ValueError, match=r"^step 1, row 17, site \d: the network's logits are NaN"):
        model.sample(B, 1, **ROWS, seed=1)


def test_a_sampler_that_ends_outside_the_classes() -> None:
    class Forgetful(MD4):
        def finish(self, z: Tensor, *rest: object, **more: object) -> Tensor:
            return torch.full_like(z, V)

    with pytest.raises(ValueError, match=r"^step 5, row 13, site 0: what was drawn is none of the classes"):
        Forgetful(Breaks(0.0), V, (N,)).sample(B, 5, **ROWS)


def test_many_classes() -> None:
    """Above 1,024 classes NaN was an index out of range."""
    model = MD4(Breaks(math.nan, width=1031), 1031, (N,))
    with pytest.raises(ValueError, match=WHERE):
        model.sample(B, 5, **ROWS)
