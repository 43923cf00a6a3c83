"""GGM told each site's survival level: what it is told, leaks, rows alone, numbers of sweeps, users' errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.core.noise import StepNoise
from ggm_lightning.models import ggm_levels
from ggm_lightning.models.ggm import GGM
from ggm_lightning.networks.transformer import Transformer
from tests.models.hollow_models import B, N, V, network


class Told(nn.Module):
    """Equal rows give equal bits in any batch; hollow up to `leak` of the own level. Keeps what it is asked."""

    levels = True

    def __init__(self, leak: float = 0.0) -> None:
        super().__init__()
        self.leak = leak
        self.asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, levels: Tensor | None = None) -> Tensor:
        self.asked.append((z, t, levels))
        tokens, classes = (z * torch.tensor([1, 3, 5, 7, 11])).double(), torch.arange(V, dtype=torch.float64)
        level = (levels * 64).round() * torch.tensor([1, 2, 4, 8, 16])  # whole numbers: sums in any order are the same
        seen = (tokens + level).sum(1, keepdim=True) - tokens - (1 - self.leak) * level
        return torch.sin(seen[..., None] + classes * 2.3)


def told(leak: float = 0.0, **options: object) -> GGM:
    return GGM(Told(leak), V, (N,), **{"order": "random", "levels": True, "num_sweeps": 4, **options})


def model(**options: object) -> GGM:
    return GGM(network(levels=True), V, (N,), **{"order": "random", "levels": True, "num_sweeps": 3, **options})


@pytest.fixture
def x() -> Tensor:
    return torch.randint(V, (B, N), generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------ what the network is told


def test_a_leak_of_the_level_alone_is_refused(x: Tensor) -> None:
    leaking = told(leak=0.01)
    for use in (leaking.loss, leaking.nelbo, lambda x: leaking.sample(len(x), 9)):
        with pytest.raises(ValueError, match="order random needs a hollow network, and what Told returned at site"):
            use(x)
    told().loss(x)  # control


def test_known_tokens_are_told_as_clean_in_infilling(x: Tensor) -> None:
    """And the others at the level that they have: visited ones one sweep further."""
    asked = told(num_sweeps=2, redenoise=1)
    asked.sample(B, 1)
    asked.network.asked.clear()
    known = torch.tensor([True, False, False, False, True])
    drawn = asked.sample(B, 1, clamp=(x, known.expand(B, N)))
    assert drawn.network_calls == len(asked.network.asked) == (2 + 1) * 3
    a = asked.sweeps.survival
    for i, (_, t, levels) in enumerate(asked.network.asked):
        r = (1, 0, 0)[i // 3]
        assert torch.equal(t, (1 - a[r]).float().expand(B))
        assert (levels[:, known] == 1).all()
        assert torch.equal((levels == a[r + 1]).sum(1), torch.full((B,), 3 - i % 3))
        assert ((levels == a[r + 1]) | (levels == a[r]) | known).all()


def test_training_has_known_tokens_in_its_share_of_rows() -> None:
    """Of 2,000 rows; a known token is the data's own, and all numbers of known tokens are equally likely."""
    rows = torch.arange(2000)[:, None] % V + torch.zeros(N, dtype=torch.int64)
    asked = told(num_sweeps=1, last_survival=1e-3)
    asked.loss(rows)
    asked.network.asked.clear()
    asked.loss(rows, step=3)
    z, t, levels = asked.network.asked[0]
    drawn = ggm_levels.known_sites(asked, StepNoise(0, 3, torch.arange(2000), 2000))
    assert not t.any()  # a_0 = 1: with one sweep a site is at level 1 or at level a_1
    assert torch.equal(levels[drawn], torch.ones(int(drawn.sum())).double())
    assert (z[levels == 1] == rows[levels == 1]).all()
    assert abs(float(drawn.any(1).double().mean()) - 0.25 * N / (N + 1)) < 4 * (0.2 * 0.8 / 2000) ** 0.5
    counts = drawn.sum(1).bincount(minlength=N + 1)[1:]
    assert (counts - 2000 * 0.25 / (N + 1)).abs().max() < 4.5 * 9  # standard deviation 9
    none = told(known_rows=0.0)
    assert ggm_levels.known_sites(none, StepNoise(0, 3, torch.arange(2000), 2000)) is None


def test_the_corrector_is_told_that_everything_is_clean(x: Tensor) -> None:
    asked = told(corrector_steps=2)
    asked.sample(B, 4, sampler="parallel")
    assert all((levels == 1).all() and not t.any() for _, t, levels in asked.network.asked[-2:])


# ------------------------------------------------------------------ numbers of sweeps


def test_a_step_of_training_has_one_of_its_sweeps() -> None:
    """From the step alone; all of them come up."""
    many = told(train_sweeps=[1, 2, 5])
    found = [ggm_levels.sweeps_of_step(many, StepNoise(0, step, torch.arange(2), 2)) for step in range(60)]
    assert {1, 2, 5} == set(found)
    assert min(found.count(each) for each in (1, 2, 5)) > 8  # of 20, standard deviation 3.7
    others = [ggm_levels.sweeps_of_step(many, StepNoise(0, step, torch.arange(7, 8), 9)) for step in range(60)]
    assert others == found
    assert told().train_sweeps == (4,)


@pytest.mark.parametrize("loss", ["bce", "ce_x0"])
def test_micro_batches_and_a_resumed_run_have_the_same_loss(loss: str, x: Tensor) -> None:
    """A function of (seed, step, row): parts of a step are the whole, and a new model says the same."""
    options = {"loss": loss, "train_sweeps": [1, 2, 5], "known_rows": 0.5}
    both, again = torch.cat([x, x]), model(**options)
    with torch.no_grad():
        for step in (0, 7, 8):
            whole = model(**options).loss(both, step=step, row=torch.arange(2 * B), total=2 * B)
            rows = torch.arange(2 * B).split(B)
            parts = [again.loss(x, step=step, row=row, total=2 * B) for row in rows]
            torch.testing.assert_close(sum(parts) / 2, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", ["bce_sampled", "ce_x0"])
def test_a_loss_learns_and_the_fused_one_is_the_same(loss: str, x: Tensor) -> None:
    values = []
    for fused in (False, True):
        learning = model(loss=loss, train_sweeps=[2, 3], known_rows=0.5)
        learning.fused = fused
        values.append(learning.loss(x, step=1))
        values[-1].backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in learning.parameters())
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("sampler", "num_steps", "options", "calls"),
    [
        ("parallel", 8, {}, 8),
        ("parallel", 8, {"num_sweeps": 2}, 2 * 3),  # blocks of two sites
        ("parallel", 8, {"num_sweeps": 8}, 8),
        ("parallel", 3, {}, 3),  # fewer steps than the model's four sweeps
        ("parallel", 1, {}, 1),
        ("gated", 1, {}, 4 * N),
        ("heat_bath", 1, {"num_sweeps": 1}, N),
    ],
)
def test_samplers_go_through_the_sweeps_that_are_asked_for(
    sampler: str, num_steps: int, options: dict[str, int], calls: int
) -> None:
    asked = told()
    assert asked.sample(B, num_steps, sampler=sampler, **options).network_calls == calls
    assert asked.sweeps.num_sweeps == 4


@pytest.mark.parametrize(("num_steps", "num_sweeps"), [(3, 3), (8, 8), (40, 8)])
def test_steps_become_sweeps_up_to_the_most_of_training(num_steps: int, num_sweeps: int) -> None:
    asked = told(train_sweeps=[2, 8])
    asked.sample(B, num_steps, sampler="parallel")
    times = torch.cat([t for _, t, _ in asked.network.asked])
    assert len(times.unique()) == num_sweeps


def test_the_model_keeps_its_own_sweeps_whatever_happens(x: Tensor) -> None:
    asked = told()
    own = asked.sweeps
    with pytest.raises(ValueError, match="x is"), asked.at_sweeps(9):
        asked.nelbo(x[:, :2])
    assert asked.sweeps is own
    with asked.at_sweeps(2):
        two = asked.nelbo(x, num_samples=2)
    assert not torch.equal(two, asked.nelbo(x, num_samples=2))
    assert torch.equal(two, told(num_sweeps=2).nelbo(x, num_samples=2))


# ------------------------------------------------------------------ rows alone


def test_rows_alone_are_the_rows_in_a_batch(x: Tensor) -> None:
    """To the bit: bounds, and samples, free and clamped, at another number of sweeps than the model's."""
    hollow, row = told(redenoise=1), torch.tensor([7, 3, 11])
    known = torch.tensor([[True, False, False, False, True], [False] * 5, [True] * 5])
    options = {"sampler": "parallel", "num_sweeps": 2}
    nats = hollow.nelbo(x, num_samples=3, row=row)
    every = hollow.sample(B, 6, row=row, **options).x
    clamped = hollow.sample(B, 6, row=row, clamp=(x, known), **options).x
    for i in range(B):
        one = slice(i, i + 1)
        assert torch.equal(hollow.nelbo(x[one], num_samples=3, row=row[one]), nats[one])
        assert torch.equal(hollow.sample(1, 6, row=row[one], **options).x, every[one])
        clamp = (x[one], known[one])
        assert torch.equal(hollow.sample(1, 6, row=row[one], clamp=clamp, **options).x, clamped[one])
    assert torch.equal(clamped[known], x[known])
    assert not torch.equal(clamped[1], x[1])


# ------------------------------------------------------------------ users' errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "raster"}, "levels is true and order 'raster'; take order: random and a hollow network"),
        ({"train_sweeps": []}, r"train_sweeps is \[\]; give numbers of sweeps of at least 1"),
        ({"train_sweeps": [2, 0]}, r"train_sweeps is \[2, 0\]; give numbers of sweeps of at least 1"),
        ({"known_rows": 1.5}, "known_rows is 1.5; it is a share"),
        ({"levels": False}, "the network HollowTransformer was built for the sites' levels; set levels: true"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        model(**options)
    assert "\n" not in str(caught.value)


def test_networks_and_options_of_the_other_kind_are_refused(x: Tensor) -> None:
    with pytest.raises(ValueError, match="levels is true, but the network HollowTransformer was built without them"):
        GGM(network(), V, (N,), order="random", levels=True)
    plain = Transformer(V, feature_dim=8, num_heads=2, num_layers=1, visited_bits=True)
    with pytest.raises(ValueError, match=r"GGM calls network.features\(z, t, label, levels=...\), but that of Tran"):
        GGM(plain, V, (N,), order="random", levels=True)
    bits = GGM(network(), V, (N,), order="random", num_sweeps=3)
    for given in ({"train_sweeps": [2, 4]}, {"known_rows": 0.5}):
        with pytest.raises(ValueError, match="which needs levels: true in the model and the network"):
            GGM(network(), V, (N,), order="random", **given)
    told_so = "num_sweeps is 2, but the network was trained for 3 sweeps alone; leave num_sweeps out, or train with"
    with pytest.raises(ValueError, match=told_so):
        bits.sample(B, 6, sampler="parallel", num_sweeps=2)
    with pytest.raises(ValueError, match=told_so), bits.at_sweeps(2):
        bits.nelbo(x)
    with pytest.raises(ValueError, match="num_sweeps is 0"):
        told().sample(B, 6, sampler="parallel", num_sweeps=0)
    assert bits.sample(B, 6, sampler="parallel", num_sweeps=3).network_calls == 6
