"""Blackout as a family: what it promises whatever the network, what it refuses, training under bf16-mixed."""

from __future__ import annotations

import lightning
import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.core.categorical import Sharpening
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.trained import Optimizer
from ggm_lightning.networks.ncsnpp import NCSNpp

SHAPE, V = (1, 3, 5), 7


class Net(nn.Module):
    """A small convolution; remembers the precision it worked in."""

    def __init__(self, bias: float = 0.0, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.bias, self.drop = bias, nn.Dropout(dropout)

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        raw = self.drop(self.conv(z)) + self.bias
        self.dtype = raw.dtype
        return raw


class Logits(nn.Module):
    """The package's other kind: takes counts and t in [0, 1], returns logits Float[b, n, V]."""

    num_classes = V

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(V, V)

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        assert z.dtype == torch.int64
        assert bool(((t >= 0) & (t <= 1)).all())
        return self.table(z.flatten(1))


def model_of(**kwargs: object) -> Blackout:
    return Blackout(kwargs.pop("network", None) or Net(), V, SHAPE, **kwargs)


def distribution(**kwargs: object) -> Blackout:
    given = {"output": "distribution", "loss": "cross_entropy", "time_input": "unit", "network_input": "counts"}
    return model_of(network=Logits(), **given, **kwargs)


def images(b: int = 4) -> Tensor:
    return torch.randint(0, V, (b, *SHAPE), generator=torch.Generator().manual_seed(3))


SAMPLERS = ["capped", "poisson", "stochastic", "rounded"]


@pytest.mark.filterwarnings("ignore:sampler 'rounded'")
@pytest.mark.parametrize("sampler", [*SAMPLERS, "posterior"])
def test_a_row_drawn_alone_is_the_row_in_a_batch(sampler: str) -> None:
    model = distribution() if sampler == "posterior" else model_of()
    together = model.sample(5, 7, sampler=sampler, seed=4)
    assert together.network_calls == 7
    assert together.x.shape == (5, *SHAPE)
    assert together.x.dtype == torch.int64
    assert 0 <= int(together.x.min()) <= int(together.x.max()) < V
    for r in range(5):
        alone = model.sample(1, 7, sampler=sampler, seed=4, row=torch.tensor([r])).x
        assert torch.equal(alone[0], together.x[r])
    assert not torch.equal(model.sample(5, 7, sampler=sampler, seed=5).x, together.x)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 37, 300])
def test_any_number_of_steps_and_the_trace_only_grows(num_steps: int) -> None:
    drawn = model_of().sample(3, num_steps, trace=True)
    states = torch.stack(drawn.trace)
    assert len(states) <= 258
    assert int(states[0].sum()) == 0
    assert bool((states.diff(dim=0) >= 0).all())
    assert torch.equal(states[-1], drawn.x)
    assert drawn.network_calls == num_steps


def test_known_pixels_are_born_on_their_way_and_kept_at_the_end() -> None:
    values, mask = images(1)[0], torch.zeros(SHAPE, dtype=torch.bool)
    mask[..., :2] = True
    drawn = model_of().sample(3, 20, clamp=(values, mask), trace=True)
    assert torch.equal(drawn.x[:, mask], values[mask].expand(3, -1))
    states = torch.stack(drawn.trace)[:, :, mask]
    assert bool((states.diff(dim=0) >= 0).all())
    assert 0 < int(states[10].sum()) < int(states[-1].sum())  # neither absent nor there all along
    free = model_of().sample(3, 20)
    assert not torch.equal(free.x[:, mask], drawn.x[:, mask])


@pytest.mark.parametrize("bound", ["continuous", "poisson", "capped", "posterior"])
def test_bounds_are_per_row_and_reproducible(bound: str) -> None:
    model = distribution(bound=bound) if bound == "posterior" else model_of(bound=bound, output="scaled")
    x = images()
    nats = model.nelbo(x, num_samples=3, seed=1)
    assert nats.dtype == torch.float64
    assert nats.shape == (4,)
    assert bool(torch.isfinite(nats).all())
    alone = model.nelbo(x[2:3], num_samples=3, seed=1, row=torch.tensor([2]))
    assert float(alone) == pytest.approx(float(nats[2]), rel=1e-6)
    assert not torch.equal(model.nelbo(x, num_samples=3, seed=2), nats)


@pytest.mark.parametrize("loss", ["instantaneous", "finite_time", "likelihood"])
@pytest.mark.parametrize("output", ["softplus", "scaled"])
def test_raw_outputs_of_minus_200_give_finite_loss_and_gradient(loss: str, output: str) -> None:
    model = model_of(network=Net(bias=-200.0), loss=loss, output=output)
    value = model.loss(images(8))
    value.backward()
    assert bool(torch.isfinite(value.detach()))
    gradient = model.network.conv.weight.grad
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.abs().max()) > 0  # and there is a way back
    assert bool(torch.isfinite(model.nelbo(images(8))).all())


def test_loss_at_the_start_is_the_published_sanity_value() -> None:
    """raw = 0: E loss = .99252 (ln 2 - ln ln 2 E m-average): spec's .688 + .1823 mean(x_0) for t_end 15."""
    model = model_of()
    nn.init.zeros_(model.network.conv.weight)
    nn.init.zeros_(model.network.conv.bias)
    x = images(500)
    expected = 0.688 + 0.1823 * float(x.double().mean())
    values = [float(model.loss(x, step=i).detach()) for i in range(20)]
    assert sum(values) / 20 == pytest.approx(expected, rel=0.01)


def test_training_rows_are_a_function_of_their_numbers() -> None:
    model, x = model_of(loss="likelihood"), images(4)
    whole = model.loss(x, step=3, row=torch.arange(4), total=4)
    halves = [model.loss(x[i::2], step=3, row=torch.arange(4)[i::2], total=4) for i in (0, 1)]
    assert float(whole.detach()) == pytest.approx(float(sum(half.detach() for half in halves)) / 2, rel=1e-6)
    assert model.loss_name == "train/bpd"
    assert model_of().loss_name == "train/instantaneous"


def test_official_keeps_dropout_on_while_sampling_alone() -> None:
    for official in (False, True):
        model = model_of(network=Net(bias=1.0, dropout=0.5), official=official).eval()
        torch.manual_seed(0)
        first = model.sample(2, 5).x
        second = model.sample(2, 5).x
        assert torch.equal(first, second) != official
        assert not any(module.training for module in model.modules())
        assert torch.equal(model.nelbo(images()), model.nelbo(images()))
    model.train()
    model.sample(1, 2)
    assert all(module.training for module in model.modules())


class OneBatch(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": images(8)[i]}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_lowers_the_loss_with_head_and_state_in_float32(precision: str) -> None:
    model = model_of(output="scaled", loss="likelihood", optimizer=Optimizer(lr=0.05))
    x = images(8)
    before = float(model.nelbo(x, num_samples=40).mean())
    trainer = lightning.Trainer(
        accelerator="cpu",
        precision=precision,
        max_steps=60,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader(OneBatch(), batch_size=8)
    trainer.fit(model, loader)
    trainer.validate(model, loader, verbose=False)
    assert model.network.dtype == (torch.bfloat16 if precision == "bf16-mixed" else torch.float32)
    assert float(model.nelbo(x, num_samples=40).mean()) < 0.9 * before
    assert "val/bpd" in trainer.callback_metrics


@pytest.mark.parametrize("output", ["softplus", "scaled"])
def test_ncsnpp_under_autocast_answers_in_float32(output: str) -> None:
    """Head, state and loss: the counts, their expectation and the loss are never bf16, while the blocks are."""
    torch.manual_seed(0)
    network = NCSNpp(SHAPE, feature_dim=8, multipliers=(1,), num_blocks=1, attention_sizes=())
    inner: list[torch.dtype] = []
    network.down[0].blocks[0].conv1.register_forward_hook(lambda module, given, out: inner.append(out.dtype))
    model, x = model_of(network=network, output=output, loss="likelihood"), images(8)
    exact = model.loss(x, step=0)
    with torch.autocast("cpu", torch.bfloat16):
        t = torch.linspace(0.01, 9, 8).double()
        zt = model.corrupt(x, t, torch.rand(8, 15).double())
        raw = model.answer(zt, t, None)
        loss = model.loss(x, step=0)
    loss.backward()
    assert (zt.dtype, raw.dtype, loss.dtype) == (torch.int64, torch.float32, torch.float64)
    assert inner[-1] == torch.bfloat16
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=0.02)
    assert all(bool(torch.isfinite(p.grad).all()) for p in network.parameters())


def test_distribution_head_trains_and_never_forgets_the_dead() -> None:
    model = distribution()
    loss = model.loss(images())
    loss.backward()
    assert bool(torch.isfinite(model.network.table.weight.grad).all())
    zt = torch.full((2, *SHAPE), 4)
    t, s = torch.full((2,), 2.0).double(), torch.zeros(2).double()
    law = model.reverse_law(zt, t, s, sampler="posterior").probs().detach()
    assert float(law[..., :4].abs().max()) == 0
    assert (law.sum(-1) - 1).abs().max() < 1e-12
    sharp = model.reverse_law(zt, t, s, sharpening=Sharpening(0.1), sampler="posterior").probs()
    assert float(sharp.max()) > float(law.max())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: model_of(output="rate"), "output is 'rate'"),
        (lambda: model_of(loss="l1"), "loss is 'l1'"),
        (lambda: model_of(bound="rounded"), "bound is 'rounded'"),
        (lambda: model_of(bound="posterior"), "output: distribution"),
        (lambda: model_of(loss="cross_entropy"), "output: distribution"),
        (lambda: model_of(output="distribution"), "cross_entropy"),
        (lambda: model_of(num_timesteps=1), "num_timesteps is 1"),
        (lambda: model_of(t_end=0.0), "t_end is 0"),
        (lambda: model_of(data_mean=9.0), "data_mean is 9"),
        (lambda: model_of(time_input="step"), "time_input"),
        (lambda: model_of().sample(1, 0), "num_steps is 0"),
        (lambda: model_of().sample(1, 2, sampler="ancestral"), "unknown"),
        (lambda: model_of().sample(1, 2, sampler="posterior"), "capped"),
        (lambda: model_of().sample(1, 2, temperature=0.5), "temperature 0.5"),
        (lambda: model_of(network=Wrong()).loss(images()), "network Wrong returned shape"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


class Wrong(nn.Module):
    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.zeros(len(z), 2)
