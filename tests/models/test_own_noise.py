"""No random number serves two purposes: every sample of a bound, every step and every stream has noise of its own.

Noise is f(seed, stream, step, row, site) (core/noise.py), so reuse is a call with coordinates that were used before. It
biases nothing that a mean over rows would show: estimates keep their expectation and lose their independence.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from ggm_lightning.core import noise
from ggm_lightning.models.base import Family
from ggm_lightning.models.markov import MarkovDiffusion
from ggm_lightning.models.md4 import MD4
from ggm_lightning.networks.hollow import HollowTransformer
from tests.models.every_family import FAMILIES, N, V, small

B, SAMPLES = 3, 5


class Used:
    """The coordinates (stream, seed, step) of every draw that is made, and what came of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count: Counter[tuple[str, int, int]] = Counter()
        self.values: list[Tensor] = []
        original = noise.uniform

        def uniform(stream: str, *, seed: int, step: int, row: Tensor, num_sites: int) -> Tensor:
            self.count[stream, seed, step] += 1
            u = original(stream, seed=seed, step=step, row=row, num_sites=num_sites)
            self.values.append(u.flatten())
            return u

        monkeypatch.setattr(noise, "uniform", uniform)

    def twice(self) -> list[tuple[str, int, int]]:
        return [where for where, times in self.count.items() if times > 1]

    def collisions(self) -> int:
        """Equal numbers among all that were drawn; of 52 random bits none are."""
        values = torch.cat(self.values)
        return len(values) - len(values.unique())


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Used:
    return Used(monkeypatch)


@pytest.fixture
def x() -> Tensor:
    return torch.randint(V, (B, N), generator=torch.Generator().manual_seed(1))


# an autoregressive model corrupts nothing, and can only go on from a known beginning
CORRUPTING = [name for name in FAMILIES if name != "ar"]


def corruptions(model: Family, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The uniforms of every corrupted state, Float64[b, n] each."""
    found: list[Tensor] = []
    # the bound of a finite Markov process takes its transitions from a table, and no time
    name = "_drawn" if isinstance(model, MarkovDiffusion) else "corrupt"
    original = getattr(model, name)

    def corrupt(x: Tensor, t: Tensor, u: object) -> Tensor:
        # GGM asks for two streams, of which one decides where there is noise
        found.append(u if isinstance(u, Tensor) else u("keep"))
        return original(x, t, u)

    monkeypatch.setattr(model, name, corrupt)
    return found


@pytest.mark.parametrize("name", [name for name in CORRUPTING if name != "ggm, all sites"])  # by no method
def test_each_sample_of_a_bound_has_noise_of_its_own(name: str, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The corrupting uniforms of all samples, rows and sites are different numbers, and as many as there should be."""
    model = small(name)
    found = corruptions(model, monkeypatch)
    model.nelbo(x, num_samples=SAMPLES)
    # LDDM corrupts once more beside its latent, Blackout once at its first time
    expected = {"fuji": 2 * SAMPLES, "seq": 2 * SAMPLES, "seq, stage 1": 2 * SAMPLES, "blackout": SAMPLES + 1}
    assert len(found) == expected.get(name, SAMPLES)
    u = torch.stack(found)
    assert len(u.unique()) == u.numel()
    shared = u[:1].expand_as(u)  # control: one noise for all samples
    assert len(shared.unique()) == u.numel() // len(u)


@pytest.mark.parametrize("name", CORRUPTING)
def test_a_bound_draws_nothing_twice(name: str, x: Tensor, used: Used) -> None:
    small(name).nelbo(x, num_samples=SAMPLES)
    assert used.twice() == []
    assert used.collisions() == 0


def test_an_exact_likelihood_draws_nothing(x: Tensor, used: Used) -> None:
    small("ar").nelbo(x, num_samples=SAMPLES)
    assert not used.count


@pytest.mark.parametrize("name", FAMILIES)
def test_training_draws_nothing_twice_within_a_step_or_in_the_next(name: str, x: Tensor, used: Used) -> None:
    model = small(name)
    model.label_dropout = 0.1
    for step in (3, 4):
        model.loss(x, step=step)
    assert used.twice() == []
    assert used.collisions() == 0


SAMPLERS = [(name, sampler) for name in FAMILIES if name != "seq, stage 1" for sampler in small(name).samplers]


def hollow() -> MD4:
    """The network that sampler corrected needs."""
    torch.manual_seed(0)
    network = HollowTransformer(V, 8, 2, 1, 1, num_labels=3, visited_bits=False)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return MD4(network, V, (N,))


@pytest.mark.filterwarnings("ignore:sampler 'rounded' is biased")
@pytest.mark.parametrize(("name", "sampler"), SAMPLERS)
@pytest.mark.parametrize("clamped", [False, True], ids=["free", "clamped"])
def test_a_sampler_draws_nothing_twice(name: str, sampler: str, clamped: bool, x: Tensor, used: Used) -> None:
    model = small(name) if sampler != "corrected" else hollow()
    known = torch.arange(N) < 2 if model.fills_beginnings_only else torch.arange(N) % 2 == 0
    clamp = (x, known.expand(B, N)) if clamped else None
    label = torch.arange(B) % 3
    model.sample(B, 9, label=label, sampler=sampler, clamp=clamp, seed=8)
    assert len(used.count) >= 2
    assert used.twice() == []
    assert used.collisions() == 0


def test_reuse_is_seen(x: Tensor, used: Used) -> None:
    """Control: the same step twice."""
    model = small("md4")
    model.label_dropout = 0.1
    model.loss(x, step=3)
    model.loss(x, step=3)
    assert len(used.twice()) == 3  # labels, time and mask
    assert used.collisions() == B + 1 + B * N
