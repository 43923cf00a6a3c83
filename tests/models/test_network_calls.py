"""Each family calls its networks as the table of docs/library.md and its own docstring say: recorded, not believed."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ggm_lightning
from ggm_lightning.models.autoregressive import AutoregressiveModel
from ggm_lightning.models.base import Family
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.diladd import DiLADD
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM
from ggm_lightning.models.markov import MarkovDiffusion
from ggm_lightning.models.md4 import MD4

PAGE = (Path(__file__).parents[2] / "docs" / "library.md").read_text(encoding="utf-8")
B, H, W, V, S, D = 2, 3, 5, 7, 11, 13
N = H * W
RING = [[0.3] * (V + 1)] * (V + 1)  # one state more than there are classes


def table() -> list[tuple[str, str, str, str]]:
    """(family, call, what is given, what comes back), a row for each family of a line."""
    section = PAGE.split("## How a network is called")[1].split("\n\n")[1]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()[2:]]
    return [(name, call.strip("`"), given, back) for names, call, given, back in cells for name in names.split(", ")]


ROWS = table()
IDS = [f"{family}, {call.split('(')[0]}" for family, call, _, _ in ROWS]


class Recorder(nn.Module):
    """Keeps what it was called with."""

    num_latents, latent_dim = S, D

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def forward(self, *given: Any, **named: Any) -> Any:
        self.calls.append((given, named))
        return self.answer(given[0])


def logits(z: Tensor) -> Tensor:
    return torch.zeros(*z.shape, V)


def latents(z: Tensor) -> Tensor:
    return torch.zeros(len(z), S, D)


def models(family: str) -> list[Family]:
    """All ways in which the family calls."""
    shape = (H, W)
    encoder = Recorder(latents)
    if family in ("FujiLDDM", "SeqLDDM", "DiLADD"):
        joint = Recorder(lambda z: (logits(z), latents(z)))
        if family == "FujiLDDM":
            return [FujiLDDM(joint, encoder, V, shape)]
        if family == "DiLADD":
            codes = MD4(Recorder(logits), V, (S,))
            return [DiLADD(joint, encoder, codes, V, shape, num_codes=V)]
        return [SeqLDDM(joint, encoder, Recorder(latents), V, shape)]
    if family == "Blackout":
        law = {"output": "distribution", "loss": "cross_entropy", "network_input": "counts"}
        return [
            *(
                Blackout(Recorder(lambda z: torch.ones(z.shape)), V, shape, output=output)
                for output in ("scaled", "deaths")
            ),
            Blackout(Recorder(logits), V, shape, **law),
        ]
    if family == "MarkovDiffusion":
        return [MarkovDiffusion(Recorder(logits), V, shape, RING, num_timesteps=5)]
    others = {"MD4": MD4, "GenMD4": GenMD4, "GGM": GGM, "AutoregressiveModel": AutoregressiveModel}
    return [others[family](Recorder(logits), V, shape)]


def recorded(family: str, part: str) -> list[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """The calls of each model's part in training, bound and sampling."""
    found = []
    for model in models(family):
        x = torch.randint(V, (B, H, W), generator=torch.Generator().manual_seed(1))
        label = torch.tensor([1, 0])
        model.loss(x, label, step=0)
        model.nelbo(x, label, num_samples=2)
        model.sample(B, 3, label)
        found.append(getattr(model, part).calls)
    return found


def test_every_family_stands_in_the_table() -> None:
    public = {name for name in ggm_lightning.__all__ if isinstance(getattr(ggm_lightning, name), type)}
    families = {name for name in public if issubclass(getattr(ggm_lightning, name), Family)}
    assert {family for family, *_ in ROWS} == families - {"Family"}
    assert len(families) >= 7
    assert len(ROWS) == 13


@pytest.mark.parametrize(("family", "call", "given", "back"), ROWS, ids=IDS)
def test_the_docstrings_say_the_same(family: str, call: str, given: str, back: str) -> None:
    kind = getattr(ggm_lightning, family)
    text = " ".join((kind.__doc__ + (kind.__mro__[1].__doc__ or "")).split())
    if family == "GenMD4":
        assert "as MD4's" in text
    assert call in text
    assert call.replace("=None", "=0") not in text  # control: not any call is found


@pytest.mark.parametrize(("family", "call", "given", "back"), ROWS, ids=IDS)
def test_the_calls_are_those_of_the_table(family: str, call: str, given: str, back: str) -> None:
    tree = ast.parse(call, mode="eval").body
    assert isinstance(tree, ast.Call)
    part = tree.func.id  # type: ignore[attr-defined]
    optional = ("label", "hidden")  # which come by position, too
    keywords = {word.arg for word in tree.keywords if word.arg not in optional}
    positional = len(tree.args) + sum(word.arg in optional for word in tree.keywords)
    for calls in recorded(family, part):
        assert len(calls) >= 2
        # encode(x) in a bound names no hidden sites: None comes by position all the same
        assert {len(args) for args, _ in calls} == {positional}
        assert {frozenset(named) for _, named in calls} == {frozenset(keywords)}
        for args, named in calls:
            check_inputs(family, part, args, named)


def check_inputs(family: str, part: str, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Shapes, types and ranges, as the table's third column has them."""
    if part == "latent_network":
        latent, latent_time, label = args
        check_latent(latent, latent_time)
        assert label.dtype == torch.int64
        return
    z = args[0]
    assert z.shape[1:] == (H, W)
    if part == "encoder":
        assert z.dtype == torch.int64
        assert int(z.max()) < V
        assert args[1] is None or (args[1].dtype == torch.bool and args[1].shape == (len(z), N))
        return
    t, label = args[1:]
    assert t.shape == (len(z),)
    assert t.is_floating_point()
    assert label.shape == (len(z),)
    if z.dtype == torch.int64:
        assert int(z.min()) >= 0
        assert int(z.max()) <= (V - 1 if family == "Blackout" else V)
    else:
        assert family == "Blackout"
        assert float(z.abs().max()) < V
    if family != "Blackout":
        assert 0 <= float(t.min()) <= float(t.max()) <= 1
    if family == "AutoregressiveModel":
        assert not t.any()
        assert bool((z.flatten(1)[:, 0] == V).all() or len(z) == 2)  # those that look whether it is causal: two rows
    if family == "GGM":
        assert named["visited"].dtype == torch.bool
        assert named["visited"].shape == (len(z), N)
        assert bool(((z == V).flatten(1).sum(1) == 1).all())  # the hidden site
    if "latent" in named:
        check_latent(named["latent"], named["latent_time"])


def check_latent(latent: Tensor, when: Tensor) -> None:
    assert latent.shape[1:] == (S, D)
    assert latent.is_floating_point()
    assert when.shape == (len(latent),)
    assert 0 <= float(when.min()) <= float(when.max()) <= 1 + 1e-6


def test_the_table_describes_the_two_inputs_of_blackout() -> None:
    kinds = {calls[0][0][0].dtype for calls in recorded("Blackout", "network")}
    assert kinds == {torch.float32, torch.int64}


# ------------------------------------------------------------------ a class of one's own that cannot be called so


class Short(nn.Module):
    num_latents, latent_dim = S, D

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return logits(z)


class NoBits(Short):
    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return logits(z)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: MD4(Short(), V, (N,)), r"network\.forward\(z, t, label\), but that of Short takes \(z: "),
        (lambda: GGM(NoBits(), V, (N,)), r"label, visited=\.\.\.\).*visited is Bool\[b, n\]"),
        (lambda: FujiLDDM(NoBits(), Recorder(latents), V, (N,)), r"latent=\.\.\., latent_time=\.\.\.\).*NoBits"),
        (lambda: SeqLDDM(Recorder(logits), nn.Identity(), Short(), V, (N,)), "num_latents"),
        (lambda: SeqLDDM(Recorder(logits), Recorder(latents), Short(), V, (N,)), r"latent_network\.forward"),
    ],
)
def test_a_call_that_is_not_taken_is_refused_when_the_model_is_built(build: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        build()
    assert "\n" not in str(caught.value)
    assert not re.search(r"\byaml\b", str(caught.value))


def test_a_compiled_network_is_called_by_its_own_name() -> None:
    class Wrong(NoBits):
        def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
            return logits(z).transpose(1, 2) + math.pi

    x = torch.randint(V, (B, N), generator=torch.Generator().manual_seed(1))
    model = MD4(torch.compile(Wrong(), backend="eager"), V, (N,))
    with pytest.raises(ValueError, match="in training, network Wrong returned shape"):
        model.loss(x, step=0)
    right = MD4(torch.compile(NoBits(), backend="eager"), V, (N,))
    assert torch.equal(right.loss(x, step=0), MD4(NoBits(), V, (N,)).loss(x, step=0))
    assert torch.equal(right.loss(x, step=1), MD4(NoBits(), V, (N,)).loss(x, step=1))
