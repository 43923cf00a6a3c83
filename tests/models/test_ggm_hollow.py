"""GGM with order: random: what leaks is refused, few logits are formed, users' errors are named."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.models import ggm_hollow, ggm_options
from ggm_lightning.models.ggm import GGM
from ggm_lightning.networks.hollow import HollowTransformer
from ggm_lightning.networks.transformer import Transformer
from tests.models.hollow_models import B, Elementwise, N, V, model, network


@pytest.fixture
def x() -> Tensor:
    return torch.randint(V, (B, N), generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------ leaks


def refused(leaking: GGM, x: Tensor) -> list[str]:
    """What is said where it trains, bounds and samples for the first time."""
    said = []
    for use in (leaking.loss, leaking.nelbo, lambda x: leaking.sample(len(x), 9)):
        with pytest.raises(ValueError, match="order random needs a hollow network") as caught:
            use(x)
        said.append(str(caught.value))
    return said


def test_a_transformer_is_refused_at_the_first_call_of_each_kind(x: Tensor) -> None:
    """Fresh from its constructor, too, where its blocks do nothing and its head says 0."""
    plain = Transformer(V, feature_dim=8, num_heads=2, num_layers=2, visited_bits=True)
    said = refused(GGM(plain, V, (N,), order="random"), x)
    assert all("Transformer returned at site" in line and "HollowTransformer" in line for line in said)
    assert all("\n" not in line for line in said)


@pytest.mark.parametrize("leak", [1.0, 0.01])
def test_a_network_that_leaks_a_little_is_refused(leak: float, x: Tensor) -> None:
    refused(GGM(Elementwise(leak), V, (N,), order="random"), x)


def test_a_leak_in_the_bits_alone_is_refused(x: Tensor) -> None:
    class OwnBit(Elementwise):
        def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
            return super().forward(z, t, label, visited) + 0.1 * visited[..., None]

    refused(GGM(OwnBit(), V, (N,), order="random"), x)


def test_a_leak_in_the_token_alone_is_refused(x: Tensor) -> None:
    class OwnToken(Elementwise):
        def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
            return super().forward(z, t, label, visited) + 0.1 * z[..., None]

    refused(GGM(OwnToken(), V, (N,), order="random"), x)


def test_a_hollow_network_is_looked_at_once_for_each_use(x: Tensor) -> None:
    inner = Elementwise()
    hollow = GGM(inner, V, (N,), order="random")
    for use in (hollow.loss, hollow.nelbo, lambda x: hollow.sample(len(x), 1)):
        use(x)
        inner.asked.clear()
        hollow.network_calls = 0
        use(x)
        assert len(inner.asked) == hollow.network_calls > 0


def test_a_network_that_says_nothing_yet_is_looked_at_again(x: Tensor) -> None:
    """A head of zeros shows no leak: the second call, after it has learnt, does."""
    silent = Elementwise(leak=1.0, scale=0.0)
    late = GGM(silent, V, (N,), order="random")
    late.nelbo(x)
    silent.scale = 1.0
    with pytest.raises(ValueError, match="hollow network"):
        late.nelbo(x)


def test_a_leaking_network_would_have_a_bound_below_the_truth(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why it is refused: o = the own token, for which uniform data costs less than log V per site."""

    class Copying(nn.Module):
        def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
            return 4.0 * nn.functional.one_hot(z, V).double()

    monkeypatch.setattr(ggm_hollow, "check_network", lambda *arguments: None)
    rows = torch.randint(V, (400, N), generator=torch.Generator().manual_seed(2))
    copying = GGM(Copying(), V, (N,), order="random", loss="ce_x0")
    assert float(copying.nelbo(rows, num_samples=8).mean()) < 0.9 * N * math.log(V)
    honest = GGM(Elementwise(scale=0.0), V, (N,), order="random", loss="ce_x0")
    assert float(honest.nelbo(rows, num_samples=8).mean()) == pytest.approx(N * math.log(V), rel=0.02)


# ------------------------------------------------------------------ losses


@pytest.mark.parametrize("loss", ggm_options.ALL_SITES_LOSSES)
def test_every_loss_learns_and_hides_nothing(loss: str, x: Tensor) -> None:
    asked = model(loss=loss)
    seen: list[Tensor] = []
    inner = asked.network.features
    asked.network.features = lambda z, *rest, **more: (seen.append(z), inner(z, *rest, **more))[1]
    value = asked.loss(x, step=0)
    value.backward()
    assert value.isfinite()
    assert all(parameter.grad.abs().max() > 0 for parameter in asked.parameters())
    assert not any((z == V).any() for z in seen)
    assert asked.loss_name == f"train/{loss}"


@pytest.mark.parametrize("loss", ggm_options.ALL_SITES_LOSSES)
def test_losses_with_and_without_a_head_are_the_same(loss: str, x: Tensor) -> None:
    """Few logits out of the head, or all of them from a network that returns nothing else."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
            return self.inner(z, t, label, visited)

    for noise_draws in (3, V):
        few = model(loss=loss, noise_draws=noise_draws)
        whole = GGM(Whole(), V, (N,), order="random", num_sweeps=3, loss=loss, noise_draws=noise_draws)
        losses = [each.loss(x, step=4) for each in (few, whole)]
        torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)


def test_drawn_classes_form_no_row_of_logits(x: Tensor) -> None:
    for loss, noise_draws in (("bce", 3), ("bce_sampled", 1)):
        few = model(loss=loss, noise_draws=noise_draws)
        few.loss(x)  # the first call looks at all logits once
        few.network.head.forward = None  # from now on the whole head must not be called
        few.loss(x).backward()
        assert few.network.head.weight.grad.abs().max() > 0
    summed = model(loss="bce", noise_draws=V)
    summed.loss(x)
    summed.network.head.forward = None
    with pytest.raises(TypeError):  # control
        summed.loss(x)


def test_drawn_classes_are_shared_by_a_step_and_unbiased_over_steps(x: Tensor) -> None:
    """3 of 7 classes, 40 steps of the same rows: within four standard errors of the sum over all."""
    few, summed = model(noise_draws=3), model()
    with torch.no_grad():
        few.loss(x), summed.loss(x)
        found = [(few.loss(x, step=step), summed.loss(x, step=step)) for step in range(40)]
    difference = torch.tensor([float(a - b) for a, b in found])
    stderr = float(difference.std()) / 40**0.5
    assert 0 < stderr < 2e-2
    assert abs(float(difference.mean())) < 4 * stderr
    row, total = torch.arange(B), 2 * B
    with torch.no_grad():
        halves = [few.loss(x, step=9, row=part, total=total) for part in (row, row + B)]
        both = few.loss(torch.cat([x, x]), step=9, row=torch.arange(total), total=total)
    torch.testing.assert_close(sum(halves) / 2, both, rtol=1e-6, atol=1e-6)


def test_the_first_prediction_is_calibrated() -> None:
    fresh = HollowTransformer(V, feature_dim=8, num_heads=2, num_layers=1, num_merges=1)
    untrained = GGM(fresh, V, (N,), order="random")
    rows = torch.randint(V, (400, N), generator=torch.Generator().manual_seed(2))
    keep = untrained.sweeps.keep
    entropy = float(-(keep * keep.log() + (1 - keep) * (1 - keep).log()).mean())
    assert float(untrained.loss(rows).detach()) == pytest.approx(entropy, abs=1e-3)  # r is stratified: no noise left
    assert float(untrained.nelbo(rows, num_samples=20).mean()) == pytest.approx(N * math.log(V), rel=0.02)
    assert untrained._estimate(rows[:8], None, 3, 0, None)[1].abs().max() < 1e-12


# ------------------------------------------------------------------ bound and corruption


def test_the_bound_has_n_terms_a_call(x: Tensor) -> None:
    bounded = model()
    bounded.nelbo(x)
    bounded.network_calls = 0
    bounded.nelbo(x, num_samples=6)
    assert bounded.network_calls == 6


def test_chunks_of_a_bound_are_the_whole(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = model().nelbo(x, num_samples=2)
    monkeypatch.setattr(ggm_hollow, "_CHUNK_ENTRIES", 2 * B * V)
    torch.testing.assert_close(model().nelbo(x, num_samples=2), whole, rtol=0, atol=1e-12)


def test_the_state_of_a_time_has_its_share_of_visits(x: Tensor) -> None:
    """corrupt(t = r n + k): k sites of a row at level r + 1; in law, each site equally often."""
    rows = x[:1].expand(4000, N)
    hollow = model(num_sweeps=1, last_survival=0.001)
    generator = torch.Generator().manual_seed(0)
    changed = hollow.corrupt(
        rows, torch.full((4000,), 2), lambda stream: torch.rand(4000, N, dtype=torch.float64, generator=generator)
    )
    rate = (changed != rows).double().mean(0)
    expected = 2 / N * 0.999 * (1 - 1 / V)
    assert (rate - expected).abs().max() < 5 * (0.25 / 4000) ** 0.5
    assert (changed != rows).sum(1).max() == 2


# ------------------------------------------------------------------ users' errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "ce_xt"}, "loss is 'ce_xt', which no site may learn with order: random"),
        ({"loss": "mse"}, "loss is 'mse'; with order: random choose bce, bce_sampled, ce_x0, bound$"),
        ({"block_size": 2}, "block_size is 2 and hide 'own' with order: random"),
        ({"hide": "block"}, "block_size is 1 and hide 'block' with order: random"),
        ({"noise_draws": 0}, "noise_draws is 0; it must be at least 1 class"),
        ({"corrector_steps": -1}, "corrector_steps is -1; it must be at least 0 calls"),
        ({"order": "raster", "corrector_steps": 2}, "corrector_steps is 2.*order: random"),
        ({"order": "raster", "loss": "bce_sampled"}, "loss is 'bce_sampled', which needs order: random"),
        ({"order": "raster", "loss": "bound"}, "loss is 'bound', which needs order: random"),
        ({"order": "shuffled"}, "order 'shuffled' is unknown; choose raster or permuted or random"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**options)


def test_what_is_missing_is_named(x: Tensor) -> None:
    t = torch.full((B,), 4)
    with pytest.raises(ValueError, match=r"terms: with order: random give visited, Bool\[b, n\]"):
        model().terms(x, x, t)
    with pytest.raises(ValueError, match=r"reverse_law: with order: random give order, Int64\[b, n\]"):
        model().reverse_law(x, t, t - 1)
    with pytest.raises(ValueError, match="num_steps is 2; sampler 'parallel' needs one for each of the 3 sweeps"):
        model().sample(B, 2, sampler="parallel")
    with pytest.raises(ValueError, match="built without the visited bits"):
        GGM(network(visited_bits=False), V, (N,), order="random")
