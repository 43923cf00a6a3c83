"""MD4's behaviour: rows alone and in a batch, both network paths, labels, infilling, precision, users' errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.core import schedules
from ggm_lightning.models.md4 import MD4
from ggm_lightning.networks.hollow import HollowTransformer
from ggm_lightning.networks.transformer import Transformer

B, N, V = 3, 5, 7


def transformer(**kwargs: object) -> Transformer:
    torch.manual_seed(0)
    network = Transformer(V, feature_dim=8, num_heads=2, num_layers=2, **kwargs)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


@pytest.fixture
def x() -> Tensor:
    return torch.randint(V, (B, N), generator=torch.Generator().manual_seed(1))


class Elementwise(nn.Module):
    """Logits computed site by site with elementwise operations only: equal rows give equal bits in any batch."""

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        classes = torch.arange(V, dtype=torch.float64)
        return torch.sin(z[..., None] * 1.7 + classes * 2.3) + t[:, None, None].double() * classes / V


def test_bounds_and_samples_of_a_row_do_not_depend_on_its_batch(x: Tensor) -> None:
    model = MD4(Elementwise(), V, (N,), schedule=schedules.Cosine())
    row = torch.tensor([4, 11, 2])
    bound = model.nelbo(x, num_samples=3, seed=5, row=row)
    drawn = model.sample(B, 6, seed=5, row=row, top_p=0.8, temperature=0.9).x
    for i in range(B):
        assert torch.equal(model.nelbo(x[i : i + 1], num_samples=3, seed=5, row=row[i : i + 1]), bound[i : i + 1])
        alone = model.sample(1, 6, seed=5, row=row[i : i + 1], top_p=0.8, temperature=0.9).x
        assert torch.equal(alone, drawn[i : i + 1])
    assert not torch.equal(model.nelbo(x, seed=6, row=row), bound)


def test_both_network_paths_give_the_same_numbers(x: Tensor) -> None:
    class WholeLogits(nn.Module):
        def __init__(self, inner: Transformer) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
            return self.inner(z, t, label)

    network = transformer().double()
    fast, slow = MD4(network, V, (N,)), MD4(WholeLogits(network), V, (N,))
    zt = torch.where(torch.rand(B, N) < 0.5, V, x)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(fast.terms(x, zt, t), slow.terms(x, zt, t), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fast.loss(x, step=3), slow.loss(x, step=3), rtol=1e-12, atol=1e-12)
    assert torch.equal(fast.sample(2, 4).x, slow.sample(2, 4).x)


def test_a_hollow_network_is_a_denoiser_like_any_other(x: Tensor) -> None:
    """It learns, bounds and samples; all of its logits, or those at some sites, are the same numbers."""

    class WholeLogits(nn.Module):
        def __init__(self, inner: HollowTransformer) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
            return self.inner(z, t, label)

    torch.manual_seed(0)
    network = HollowTransformer(V, feature_dim=8, num_heads=2, num_layers=1, num_merges=1, visited_bits=False).double()
    fast, whole = MD4(network, V, (N,)), MD4(WholeLogits(network), V, (N,))
    before = float(fast.nelbo(x, num_samples=16).mean())
    assert before == pytest.approx(N * math.log(V), rel=1e-2)  # it says nothing yet
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for step in range(40):
        optimizer.zero_grad()
        fast.loss(x, step=step).backward()
        optimizer.step()
    assert float(fast.nelbo(x, num_samples=16).mean()) < 0.7 * before  # of three rows it has learnt much
    assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())
    torch.testing.assert_close(fast.loss(x, step=3), whole.loss(x, step=3))
    torch.testing.assert_close(fast.nelbo(x, num_samples=2), whole.nelbo(x, num_samples=2))
    drawn = fast.sample(50, 9, seed=2).x
    assert torch.equal(drawn, whole.sample(50, 9, seed=2).x)
    taught = (x.T[None] == drawn[..., None]).any(-1).double().mean()
    assert taught > 0.6  # tokens that one of the three rows has at that site; by chance less than 3 / 7


def test_a_hollow_network_with_visited_bits_is_refused(x: Tensor) -> None:
    network = HollowTransformer(V, feature_dim=8, num_heads=2, num_layers=1, num_merges=1)
    with pytest.raises(ValueError, match="visited_bits is True and the bits were not given"):
        MD4(network, V, (N,)).loss(x)


def test_initial_loss_is_log2_v_up_to_the_number_of_masks() -> None:
    """A zero-initialised head predicts uniformly: bits/dim is (masks x weight / N) log2 V + eps log2 V, exactly."""
    network = Transformer(V, feature_dim=8, num_heads=2, num_layers=1)
    model = MD4(network, V, (N,))
    x = torch.zeros(4096, N, dtype=torch.long)
    assert float(model.nelbo(x, num_samples=16).mean()) == pytest.approx(N * math.log(V), rel=0.02)


def test_loss_ignores_clean_sites_constants_and_order(x: Tensor) -> None:
    logits = torch.randn(B, N, V, dtype=torch.float64)
    zt = torch.where(torch.tensor([True, False, True, False, True]), V, x)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)

    def nats(logits: Tensor, x: Tensor = x, zt: Tensor = zt) -> Tensor:
        class Fixed(nn.Module):
            def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
                return logits

        return MD4(Fixed(), V, (N,)).terms(x, zt, t)

    base = nats(logits)
    changed = logits.clone()
    changed[:, [1, 3]] += torch.randn(B, 2, V)
    torch.testing.assert_close(nats(changed), base)
    torch.testing.assert_close(nats(logits + torch.randn(B, N, 1)), base)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(nats(logits[:, order], x[:, order], zt[:, order]), base)
    assert torch.equal(nats(logits, zt=x), torch.zeros(B, dtype=torch.float64))


def test_corruption_masks_at_the_scheduled_rate() -> None:
    model = MD4(Elementwise(), V, (N,))
    b = 40_000
    u = torch.rand(b, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    zt = model.corrupt(torch.zeros(b, N, dtype=torch.long), torch.full((b,), 0.3, dtype=torch.float64), u)
    assert set(zt.unique().tolist()) == {0, V}
    expected = 0.3 * (1 - 2e-4) + 1e-4
    assert float((zt == V).double().mean()) == pytest.approx(expected, abs=4 * math.sqrt(expected * 0.7 / (b * N)))


def test_infilling_keeps_the_known_sites_and_the_trace_only_reveals() -> None:
    model = MD4(transformer(), V, (N,))
    values = torch.tensor([3, 0, 0, 6, 0])
    known = torch.tensor([True, False, False, True, False])
    drawn = model.sample(4, 7, clamp=(values, known), seed=2, trace=True)
    assert (drawn.x[:, known] == values[known]).all()
    assert ((drawn.x >= 0) & (drawn.x < V)).all()
    assert len(drawn.trace) == 8
    assert torch.equal(drawn.trace[-1], drawn.x)
    for before, after in zip(drawn.trace, drawn.trace[1:], strict=False):
        assert ((before == V) | (before == after)).all()
        assert (after[:, known] == values[known]).all()
    assert drawn.network_calls <= 8
    assert len(drawn.x.unique(dim=0)) > 1


def test_infilling_is_the_exact_conditional() -> None:
    from ggm_lightning.exact.law import JointLaw
    from ggm_lightning.exact.networks import Masked

    law = JointLaw.random(3, 3, seed=5)
    model = MD4(Masked(law), 3, (3,))
    known = torch.tensor([False, True, False])
    x = model.sample(20_000, 200, clamp=(torch.tensor([0, 2, 0]), known), seed=1).x
    table = law.p.reshape(3, 3, 3)[:, 2, :]
    expected = (table / table.sum()).flatten()
    counts = (x[:, 0] * 3 + x[:, 2]).bincount(minlength=9)
    # 200 steps are within .002 of exact; the sampling floor at 20,000 draws is .007
    assert 0.5 * float((counts / 20_000 - expected).abs().sum()) < 0.02
    wrong = law.p.reshape(3, 3, 3).sum(1).flatten()
    assert 0.5 * float((counts / 20_000 - wrong).abs().sum()) > 0.1


def test_leftover_masks_are_drawn_and_not_the_mode() -> None:
    class Fair(nn.Module):
        def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
            return torch.zeros(*z.shape, V)

    z = torch.full((4000, N), V)
    model = MD4(Fair(), V, (N,))
    u = torch.rand(4000, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = model.finish(z, None, lambda stream: u)
    share = x.flatten().bincount(minlength=V) / x.numel()
    assert (share - 1 / V).abs().max() < 4 * math.sqrt(1 / V / x.numel())
    assert MD4(Fair(), V, (N,), leftover="argmax").finish(z, None, None).unique().tolist() == [0]


def test_published_bound_leaves_out_the_prior(x: Tensor) -> None:
    ours, published = (MD4(Elementwise(), V, (N,), count_prior=flag).nelbo(x) for flag in (True, False))
    torch.testing.assert_close(ours - published, torch.full((B,), N * 1e-4 * math.log(V), dtype=torch.float64))


@pytest.mark.parametrize("num_timesteps", [None, 10])
def test_labels_and_the_null_class(x: Tensor, num_timesteps: int | None) -> None:
    network = transformer(num_labels=4)
    model = MD4(network, V, (N,), label_dropout=0.5, num_timesteps=num_timesteps)
    label = torch.tensor([0, 1, 3])
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    original = network.features
    network.features = lambda z, t, label: (seen.append(label), original(z, t, label))[1]
    for step in range(40):
        model.loss(x, label, step=step)
    stacked = torch.stack(seen)
    dropped = stacked == 4
    assert ((stacked == label) | dropped).all()
    assert 0.3 < float(dropped.double().mean()) < 0.7
    assert not torch.equal(model.nelbo(x, label), model.nelbo(x, None))
    torch.testing.assert_close(model.nelbo(x, None), model.nelbo(x, torch.full((B,), 4)))
    assert model.sample(B, 3, label=label).x.shape == (B, N)


def test_dropout_is_off_in_bounds_and_samples_and_modes_return(x: Tensor) -> None:
    model = MD4(transformer(dropout=0.5), V, (N,))
    model.train()
    model.network.blocks[0].eval()
    assert torch.equal(model.nelbo(x), model.nelbo(x))
    assert torch.equal(model.sample(2, 3).x, model.sample(2, 3).x)
    assert model.training
    assert model.network.training
    assert not model.network.blocks[0].training


def test_bf16_autocast_and_float32_losses_agree(x: Tensor) -> None:
    x = torch.randint(V, (64, N), generator=torch.Generator().manual_seed(1))
    model = MD4(transformer(), V, (N,))
    plain = model.loss(x, step=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model.loss(x, step=1)
    assert mixed.dtype == torch.float32
    assert float(mixed.detach()) == pytest.approx(float(plain.detach()), rel=0.01)
    mixed.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_loss_without_a_place_in_a_run_draws_new_noise_each_time(x: Tensor) -> None:
    model = MD4(Elementwise(), V, (N,))
    assert model.loss(x) != model.loss(x)
    assert model.loss(x, step=9) == model.loss(x, step=9)


def test_two_halves_of_a_batch_are_the_batch() -> None:
    x = torch.randint(V, (6, N), generator=torch.Generator().manual_seed(1))
    model = MD4(Elementwise(), V, (N,))
    whole = model.loss(x, step=2)
    row = torch.arange(6)
    halves = [model.loss(x[part], step=2, row=row[part], total=6) for part in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(torch.stack(halves).mean(), whole, rtol=1e-12, atol=1e-12)
    apart = [model.loss(x[part], step=2) for part in (slice(0, 3), slice(3, 6))]
    assert not torch.isclose(torch.stack(apart).mean(), whole, rtol=1e-6)


def test_users_errors() -> None:
    with pytest.raises(ValueError, match="vocabulary mismatch: the data has 11 classes, the network 7"):
        MD4(transformer(), 11, (N,))
    with pytest.raises(ValueError, match="choose draw or argmax"):
        MD4(Elementwise(), V, (N,), leftover="mode")
    with pytest.raises(ValueError, match="num_timesteps is 0"):
        MD4(Elementwise(), V, (N,), num_timesteps=0)
    with pytest.raises(ValueError, match="label_dropout"):
        MD4(transformer(), V, (N,), label_dropout=0.1)
    model = MD4(Elementwise(), V, (N,))
    known = torch.ones(N, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"known values lie in 9\.\.9"):
        model.sample(1, 2, clamp=(torch.full((N,), 9), known))
    with pytest.raises(ValueError, match="clamp: values have shape"):
        model.sample(1, 2, clamp=(torch.zeros(4, dtype=torch.long), known))
    with pytest.raises(ValueError, match="must be bool"):
        model.sample(1, 2, clamp=(torch.zeros(N, dtype=torch.long), known.long()))
