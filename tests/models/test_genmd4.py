"""GenMD4 as it is used: fast path, optimiser groups, infilling, reproducible rows, refused arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.core.categorical import Sharpening
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.trained import Optimizer

B, N, V, D = 4, 5, 7, 11


class Tiny(nn.Module):
    """Looks at state and time; with `features` and `head` for the fast path."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(V + 1, D), nn.Linear(D, D), nn.Linear(D, V)

    def features(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        h = self.embed(z)
        return torch.tanh(self.mix(h + h.mean(1, keepdim=True)) + t[:, None, None])

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.head(self.features(z, t, label))


class Plain(nn.Module):
    """The same network without the fast path."""

    def __init__(self, tiny: Tiny) -> None:
        super().__init__()
        self.tiny = tiny

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.tiny(z, t, label)


@pytest.fixture
def model() -> GenMD4:
    torch.manual_seed(0)
    model = GenMD4(Tiny(), V, (N,), eval_samples=2)
    model.raw_exponents.data += torch.linspace(-1, 1, V)
    return model


@pytest.fixture
def x() -> Tensor:
    return torch.randint(V, (B, N), generator=torch.Generator().manual_seed(1))


def test_both_paths_give_the_same_numbers(model: GenMD4, x: Tensor) -> None:
    plain = GenMD4(Plain(model.network), V, (N,))
    plain.raw_exponents = model.raw_exponents
    assert torch.allclose(model.nelbo(x, num_samples=3), plain.nelbo(x, num_samples=3), rtol=1e-6)
    assert torch.allclose(model.loss(x, step=3), plain.loss(x, step=3), rtol=1e-6)
    assert torch.equal(model.sample(3, 4).x, plain.sample(3, 4).x)


def test_every_parameter_learns(model: GenMD4, x: Tensor) -> None:
    model.loss(x).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


def test_a_row_alone_is_the_row_in_a_batch(model: GenMD4, x: Tensor) -> None:
    whole = model.nelbo(x, num_samples=3, seed=5)
    for i in range(B):
        alone = model.nelbo(x[i : i + 1], num_samples=3, seed=5, row=torch.tensor([i]))
        assert torch.allclose(alone[0], whole[i], rtol=1e-6)
    drawn = model.sample(B, 6, seed=2).x
    assert torch.equal(model.sample(1, 6, seed=2, row=torch.tensor([3])).x[0], drawn[3])


def test_infilling_keeps_what_is_known_and_leaves_no_mask(model: GenMD4, x: Tensor) -> None:
    known = torch.tensor([True, False, True, False, False])
    drawn = model.sample(B, 3, clamp=(x, known.expand(B, N)), trace=True)
    assert torch.equal(drawn.x[:, known], x[:, known])
    assert int(drawn.x.max()) < V
    assert len(drawn.trace) == 4
    assert (drawn.trace[0][:, ~known] == V).all()
    for earlier, later in zip(drawn.trace, drawn.trace[1:], strict=False):
        stays = earlier != V
        assert torch.equal(earlier[stays], later[stays])


def test_temperature_and_nucleus_reach_the_law(model: GenMD4) -> None:
    z = torch.full((1, N), V)
    t, s = torch.tensor([0.8], dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)
    law = model.reverse_law(z, t, s).probs()
    assert torch.allclose(law.sum(-1), torch.ones(1, N, dtype=torch.float64))
    cold = model.reverse_law(z, t, s, sharpening=Sharpening(0.05)).probs()
    assert (cold[..., :V].max(-1).values / cold[..., :V].sum(-1) > 0.9).all()
    nucleus = model.reverse_law(z, t, s, sharpening=Sharpening(top_p=0.1)).probs()
    assert ((nucleus[..., :V] > 0).sum(-1) == 1).all()


def test_the_exponents_have_an_optimiser_group_of_their_own(model: GenMD4) -> None:
    model.optimizer = Optimizer(lr=0.5, weight_decay=0.25)
    network, exponents = model.parameter_groups()
    assert exponents == {"params": [model.raw_exponents], "lr": 0.5, "weight_decay": 0.0}
    assert len(network["params"]) == len(list(model.network.parameters()))
    assert not any(p is model.raw_exponents for p in network["params"])
    model.exponent_lr = 0.125
    assert model.parameter_groups()[1]["lr"] == 0.125
    published = GenMD4(Tiny(), V, (N,), published_optimizer=True)
    (group,) = published.parameter_groups()
    assert any(p is published.raw_exponents for p in group["params"])
    assert group.keys() == {"params"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initial_exponent": 0.0}, "initial_exponent is 0.0; it must be positive"),
        ({"first_time": 1.0}, "first_time is 1.0; it must lie inside"),
        ({"exponent_lr": -1.0}, "exponent_lr is -1.0"),
        ({"exponent_lr": 0.1, "published_optimizer": True}, "leave out one of both"),
    ],
)
def test_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenMD4(Tiny(), V, (N,), **arguments)


def test_the_start_is_md4s_linear_schedule() -> None:
    model = GenMD4(Tiny(), V, (N,))
    assert torch.allclose(model.exponents(), torch.ones(V, dtype=torch.float64), rtol=1e-6)
    assert torch.allclose(
        GenMD4(Tiny(), V, (N,), initial_exponent=2.5).exponents(), torch.full((V,), 2.5, dtype=torch.float64), rtol=1e-6
    )
