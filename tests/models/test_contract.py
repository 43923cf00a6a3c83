"""What a network returns is checked at its first call in training, in a bound and in sampling, on both paths."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.models.autoregressive import AutoregressiveModel
from ggm_lightning.models.base import Family
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM
from ggm_lightning.models.markov import MarkovDiffusion
from ggm_lightning.models.md4 import MD4

B, N, V, S, D = 2, 5, 7, 3, 11
H, W = 3, 4  # of pictures
USES = ("training", "a bound", "sampling")


class Says(nn.Module):
    """Equal logits, or what `change` makes of them; with `fast` by features and a head."""

    def __init__(self, change: Callable[[Tensor], object] = lambda logits: logits, fast: bool = False) -> None:
        super().__init__()
        self.change = change
        self.weight = nn.Parameter(torch.zeros(()))
        if fast:
            self.head = nn.Linear(V, V)
            nn.init.eye_(self.head.weight)
            self.features = self.forward

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
        return self.change(torch.zeros(len(z), *z.shape[1:], V) + self.weight)


def rows(*shape: int, b: int = B, v: int = V) -> Tensor:
    return torch.randint(v, (b, *(shape or (N,))), generator=torch.Generator().manual_seed(1))


def use(model: Family, which: str) -> object:
    if which == "training":
        return model.loss(rows(*model.shape), step=0)
    return model.nelbo(rows(*model.shape)) if which == "a bound" else model.sample(B, 3)


def spoilt(value: float) -> Callable[[Tensor], Tensor]:
    """One row of logits of the first example, all sites of it: each family asks about others."""

    def change(logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[0, ..., slice(None) if value == -math.inf else 2] = value
        return logits

    return change


TOKENS: dict[str, Callable[..., Family]] = {
    "md4": lambda net, **more: MD4(net, V, (N,), **more),
    "genmd4": lambda net: GenMD4(net, V, (N,)),
    "ggm": lambda net: GGM(net, V, (N,)),
    "ggm, law of x_0": lambda net: GGM(net, V, (N,), loss="ce_x0"),
    "ar": lambda net: AutoregressiveModel(net, V, (N,)),
    "markov": lambda net: MarkovDiffusion(net, V, (N,), num_timesteps=5),
}


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("which", USES)
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(("value", "said"), [(math.nan, "NaN"), (math.inf, r"\+inf"), (-math.inf, "nothing but -inf")])
def test_logits_that_are_no_law(name: str, which: str, fast: bool, value: float, said: str) -> None:
    if fast and value != math.nan:
        said = "NaN"  # the head multiplies infinity by 0
    with pytest.raises(ValueError, match=rf"^\w+: in {which}, network Says returned .*{said} in \d+ of \d+ rows"):
        use(TOKENS[name](Says(spoilt(value), fast)), which)
    use(TOKENS[name](Says(fast=fast)), which)  # control


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("which", USES)
def test_impossible_classes_are_allowed(name: str, which: str) -> None:
    def without_first(logits: Tensor) -> Tensor:
        return torch.cat([torch.full_like(logits[..., :1], -math.inf), logits[..., 1:]], -1)

    use(TOKENS[name](Says(without_first)), which)


SHAPES: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "classes before sites": (lambda logits: logits.transpose(1, 2), "{b}, 7, 5.*the classes come last: transpose"),
    "mask among the classes": (lambda logits: torch.zeros(len(logits), N, V + 1), "{b}, 5, 8.*the mask is no class"),
    "sites first": (lambda logits: logits.transpose(0, 1), "5, {b}, 7.*the rows come first"),
    "one site more": (
        lambda logits: torch.zeros(len(logits), N + 1, V),
        "{b}, 6, 7.*the model's shape is .5,., 5 sites",
    ),
    "one site alone": (lambda logits: logits[:, 0], "{b}, 7.*one logit for each class at each"),
    "whole numbers": (lambda logits: logits.long(), "int64.*floating-point"),
    "a pair": (lambda logits: (logits, logits), "a tuple.*return the tensor itself"),
}


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("which", USES)
@pytest.mark.parametrize("wrong", SHAPES)
def test_shapes_and_types(name: str, which: str, wrong: str) -> None:
    change, said = SHAPES[wrong]
    b = 2 * B if (name, which) == ("genmd4", "training") else B  # two corrupted states of each example
    with pytest.raises(ValueError, match=f"network Says returned .*{said.format(b=b)}") as caught:
        use(TOKENS[name](Says(change)), which)
    assert which in str(caught.value)
    assert f"wanted: logits of shape ({b}, 5, 7)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_conv1d_no_longer_trains_on_scrambled_logits() -> None:
    """Conv1d's layout [b, V, n] was reshaped to [b, n, V] in silence."""

    class Conv(nn.Module):
        def __init__(self, turned: bool) -> None:
            super().__init__()
            self.table, self.layer, self.turned = nn.Embedding(V + 1, D), nn.Conv1d(D, V, 3, padding=1), turned

        def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
            logits = self.layer(self.table(z).transpose(1, 2))
            return logits.transpose(1, 2) if self.turned else logits

    with pytest.raises(ValueError, match=r"MD4: in training, network Conv returned shape \(2, 7, 5\), float32; wanted"):
        MD4(Conv(turned=False), V, (N,)).loss(rows())
    MD4(Conv(turned=True), V, (N,)).loss(rows())


@pytest.mark.parametrize("flat", [False, True])
def test_pictures_may_keep_their_axes(flat: bool) -> None:
    def change(logits: Tensor) -> Tensor:
        return logits.flatten(1, 2) if flat else logits

    found = MD4(Says(change), V, (H, W)).loss(rows(H, W), step=0)
    assert torch.equal(found, MD4(Says(), V, (H, W)).loss(rows(H, W), step=0))
    with pytest.raises(ValueError, match=r"\(2, 7, 3, 4\).*or \(2, 3, 4, 7\).*the classes come last: movedim"):
        MD4(Says(lambda logits: logits.movedim(-1, 1)), V, (H, W)).loss(rows(H, W), step=0)


def test_features_and_head() -> None:
    wrong = Says(lambda x: x.transpose(1, 2), fast=True)
    with pytest.raises(ValueError, match=r"features of shape \(2, 5, 7\).*the width comes last"):
        MD4(wrong, V, (N,)).loss(rows())
    more = Says(fast=True)
    more.head = nn.Linear(V, V + 1)
    with pytest.raises(ValueError, match=r"in training, .*whose head gives 8; wanted: a head of 7 classes"):
        MD4(more, V, (N,)).loss(rows())


class OneSite(Says):
    """Of GGM: logits at the hidden site alone."""

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
        everywhere = torch.sin(z[..., None] + torch.arange(V) + visited.sum(1)[:, None, None])
        return everywhere if self.change(0) else everywhere[z == V][:, None]


def test_ggm_takes_one_site_or_all() -> None:
    """The design's contract: logits at the hidden site, or at all."""
    one, all_of_them = (GGM(OneSite(lambda _, whole=whole: whole), V, (N,)) for whole in (False, True))
    assert torch.equal(one.loss(rows(), step=3), all_of_them.loss(rows(), step=3))
    assert torch.equal(one.nelbo(rows(), seed=2), all_of_them.nelbo(rows(), seed=2))
    assert torch.equal(one.sample(B, 1).x, all_of_them.sample(B, 1).x)


# ------------------------------------------------------------------ the other contracts


class Deaths(nn.Module):
    def __init__(self, value: float, shape: tuple[int, ...] = (B, N)) -> None:
        super().__init__()
        self.value, self.shape = value, shape

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.full(self.shape, self.value)


@pytest.mark.parametrize("which", USES)
@pytest.mark.parametrize(("value", "said"), [(-0.5, "10 negative"), (math.nan, "10 NaN"), (math.inf, "10 infinite")])
def test_expected_deaths(which: str, value: float, said: str) -> None:
    with pytest.raises(
        ValueError, match=rf"in {which}, network Deaths returned shape \(2, 5\), float32, of them {said}"
    ):
        use(Blackout(Deaths(value), V, (N,), output="deaths", num_timesteps=11), which)
    if value == -0.5:
        use(Blackout(Deaths(value), V, (N,), num_timesteps=11), which)  # control: softplus takes any number
    use(Blackout(Deaths(0.5), V, (N,), output="deaths", num_timesteps=11), which)


def test_expected_deaths_have_a_number_for_each_site() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 6\), float32; wanted: .* of shape \(2, 5\)"):
        use(Blackout(Deaths(0.5, (B, N + 1)), V, (N,)), "training")


class Encoder(nn.Module):
    num_latents, latent_dim = S, D

    def __init__(self, value: float = 0.0, s: int = S) -> None:
        super().__init__()
        self.value, self.s = value, s

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        return torch.full((len(x), self.s, D), self.value)


class Joint(Encoder):
    def forward(self, z: Tensor, t: Tensor, label: Tensor | None, latent: Tensor, latent_time: Tensor) -> object:
        z0 = torch.full((len(z), self.s, D), self.value)
        return torch.zeros(*z.shape, V), z0


class OfLatent(Encoder):
    def forward(self, latent: Tensor, latent_time: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.full((len(latent), self.s, D), self.value)


BAD = [({"value": math.nan}, "66 NaN"), ({"s": S + 1}, r"shape \(2, 4, 11\).*of shape \(2, 3, 11\)")]


@pytest.mark.parametrize(("bad", "said"), BAD)
def test_latents(bad: dict[str, float], said: str) -> None:
    for which in USES:
        with pytest.raises(ValueError, match=f"FujiLDDM: in {which}, network Joint returned .*{said}"):
            use(FujiLDDM(Joint(**bad), Encoder(), V, (N,)), which)
        with pytest.raises(ValueError, match=f"SeqLDDM: in {which}, latent_network OfLatent returned .*{said}"):
            use(SeqLDDM(Joint(), Encoder(), OfLatent(**bad), V, (N,)), which)
        use(SeqLDDM(Joint(**bad), Encoder(), OfLatent(), V, (N,)), which)  # control: that z_0 is not used
        use(FujiLDDM(Joint(), Encoder(), V, (N,)), which)
    for which in USES[:2]:
        with pytest.raises(ValueError, match=f"FujiLDDM: in {which}, encoder Encoder returned .*{said}"):
            use(FujiLDDM(Joint(), Encoder(**bad), V, (N,)), which)


def test_a_joint_network_returns_a_pair() -> None:
    class Alone(Joint):
        def forward(self, *inputs: object, **more: object) -> Tensor:
            return super().forward(*inputs, **more)[0]

    with pytest.raises(ValueError, match=r"network Alone returned shape \(2, 5, 7\).*wanted: a pair"):
        use(FujiLDDM(Alone(), Encoder(), V, (N,)), "training")


# ------------------------------------------------------------------ examples


@pytest.mark.parametrize(
    ("x", "said"),
    [(rows(6), r"shape \(2, 6\); give a tensor of whole numbers, shape \(b, 5\)"), (rows() + V - 1, "ids in 6")],
)
def test_examples(x: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MD4(Says(), V, (N,)).loss(x, step=0)
    MD4(Says(), V, (N,)).loss(rows(), step=0)  # control
