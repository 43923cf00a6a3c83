"""The autoregressive model is exact: -log p, the sampler's law and that of continuations, by enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.core import categorical, noise
from ggm_lightning.core.categorical import Sharpening
from ggm_lightning.models import contract
from ggm_lightning.models.autoregressive import AutoregressiveModel
from ggm_lightning.networks.transformer import Transformer

N, V = 4, 3


class CausalLaw(nn.Module):
    """A law on {0..V-1}^n as a table of shape (V,) * n; as a network it says log P(x_i = v | x_1 .. x_{i-1}), reading
    these from z = (begin, x_1, .., x_{n-1})."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table / table.sum()
        self.x = torch.tensor(list(itertools.product(range(table.shape[0]), repeat=table.dim())))

    @property
    def log_p(self) -> Tensor:
        return self.table.flatten().log()

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        n, v = self.table.dim(), self.table.shape[0]
        before = z.clamp(max=v - 1)[:, 1:]  # what is not drawn yet stands behind every site that is asked about
        logits = []
        for i in range(n):
            joint = self.table.sum(tuple(range(i + 1, n))) if i + 1 < n else self.table
            row = joint[tuple(before[:, :i].T)] if i else joint.expand(len(z), v)
            logits.append((row / row.sum(-1, keepdim=True)).log())
        return torch.stack(logits, 1)


def random_law(n: int = N, v: int = V, seed: int = 0) -> CausalLaw:
    flat = np.random.RandomState(seed).dirichlet(0.5 * np.ones(v**n))
    return CausalLaw(torch.from_numpy(flat.reshape((v,) * n)))


def model_of(network: nn.Module, n: int = N, v: int = V) -> AutoregressiveModel:
    return AutoregressiveModel(network, v, (n,))


def transformer(v: int = V, **options: object) -> Transformer:
    """In float64, every parameter filled."""
    torch.manual_seed(0)
    sizes = {"feature_dim": 6, "num_heads": 2, "num_layers": 2, "time_features": "none", "causal": True}
    network = Transformer(v, **{**sizes, **options}).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    return network


class Whole(nn.Module):
    """A network that has neither features nor a cache."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.inner(z, t.double(), label)


def index(x: Tensor, v: int = V) -> Tensor:
    """The place of each row in the table."""
    return (x.flatten(1) * v ** torch.arange(x[0].numel() - 1, -1, -1)).sum(-1)


# ------------------------------------------------------------------ -log p


@pytest.mark.parametrize(("n", "v"), [(1, 7), (2, 7), (5, 3)])
def test_nelbo_is_minus_log_p_of_every_x(n: int, v: int) -> None:
    law = random_law(n, v)
    nats = model_of(law, n, v).nelbo(law.x, num_samples=3, seed=8)
    assert (nats + law.log_p).abs().max() < 1e-12
    # control: x read from the end is another x
    assert n == 1 or (model_of(law, n, v).nelbo(law.x.flip(1)) + law.log_p).abs().max() > 0.1


@pytest.mark.parametrize("options", [{}, {"outside_embed": True}, {"num_labels": 2}, {"time_features": "t"}])
def test_any_causal_network_sums_to_one(options: dict[str, object]) -> None:
    model = model_of(transformer(**options))
    x = random_law().x
    label = torch.ones(len(x), dtype=torch.int64) if "num_labels" in options else None
    nats = model.nelbo(x, label)
    assert abs(float((-nats).exp().sum()) - 1) < 1e-12
    assert float(nats.std()) > 0.1


def test_control_a_network_that_leaks_does_not_sum_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    network = transformer(causal=False)
    del network.causal  # as a class of the user's own
    monkeypatch.setattr(contract, "look_ahead", lambda *given: None)
    assert abs(float((-model_of(network).nelbo(random_law().x)).exp().sum()) - 1) > 0.01


def test_terms_add_up_to_minus_log_p() -> None:
    law = random_law()
    model = model_of(law)
    total = torch.zeros(len(law.x), dtype=torch.float64)
    wrong = torch.zeros_like(total)
    for t in range(1, N + 1):
        zt = torch.where(torch.arange(N) < N - t, law.x, V)
        when = torch.full((len(law.x),), t)
        total += model.terms(law.x, zt, when) / N
        wrong += model.terms(law.x, zt.roll(1, 0), when) / N  # control: states of other rows
    assert (total + law.log_p).abs().max() < 1e-12
    assert (wrong + law.log_p).abs().max() > 0.1


def test_terms_of_rows_at_different_times() -> None:
    law = random_law()
    model = model_of(law)
    x = law.x[[5, 17, 60]]
    t = torch.tensor([1, 4, 2])
    zt = torch.where(torch.arange(N) < (N - t)[:, None], x, V)
    alone = [model.terms(x[i : i + 1], zt[i : i + 1], t[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(model.terms(x, zt, t), torch.cat(alone), rtol=0, atol=1e-12)


@pytest.mark.parametrize("fused", [False, True])
def test_the_loss_is_the_mean_in_bits_with_the_formulas_gradient(fused: bool) -> None:
    model = model_of(transformer())
    model.fused = fused
    x = random_law().x[::5]
    loss = model.loss(x, step=0)
    loss.backward()
    found = [p.grad.clone() for p in model.network.parameters()]
    assert float(loss.detach()) == pytest.approx(float(model.nelbo(x).mean()) / N / math.log(2), abs=1e-12)
    model.zero_grad()
    logits = model.network(torch.cat([torch.full((len(x), 1), V), x[:, :-1]], 1), torch.zeros(len(x)))
    by_hand = nn.functional.cross_entropy(logits.flatten(0, 1), x.flatten()) / math.log(2)
    by_hand.backward()
    expected = [p.grad for p in model.network.parameters()]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert max(float(g.abs().max()) for g in expected) > 1e-2


# ------------------------------------------------------------------ the sampler


@pytest.mark.parametrize("network", ["table", "transformer"])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (0.9, 0.6)])
def test_the_product_of_the_reverse_laws(network: str, temperature: float, top_p: float) -> None:
    law = random_law()
    model = model_of(law if network == "table" else transformer())
    total = torch.zeros(len(law.x), dtype=torch.float64)
    for t in range(N, 0, -1):
        zt = torch.where(torch.arange(N) < N - t, law.x, V)
        when = torch.full((len(law.x),), t)
        step = model.reverse_law(zt, when, when - 1, sharpening=Sharpening(temperature, top_p))
        total += step.log_probs().detach().gather(1, law.x[:, N - t, None])[:, 0]
    assert abs(float(total.exp().sum()) - 1) < 1e-12
    logits = model.network(model.moved(law.x), torch.zeros(len(law.x))).detach().flatten(0, 1)
    sharp = categorical.probabilities(logits, Sharpening(temperature, top_p)).reshape(len(law.x), N, V)
    expected = sharp.gather(2, law.x[..., None])[..., 0].prod(1)
    assert (total.exp() - expected).abs().max() < 1e-12
    plain = (-model.nelbo(law.x)).exp()
    assert ((expected - plain).abs().max() < 1e-12) == (temperature == top_p == 1)


def quarters(seed: int = 0) -> CausalLaw:
    """All conditional probabilities are 1/4 or 1/2, so that four uniforms a site tell everything."""
    rng = np.random.RandomState(seed)
    table = torch.ones((), dtype=torch.float64)
    for _ in range(N):
        rows = [rng.permutation([0.25, 0.25, 0.5]) for _ in range(table.numel())]
        table = table[..., None] * torch.from_numpy(np.stack(rows)).reshape(*table.shape, V)
    return CausalLaw(table)


def enumerated(monkeypatch: pytest.MonkeyPatch) -> int:
    """Row r draws with the r-th of all 4^n combinations of the uniforms 1/8, 3/8, 5/8, 7/8; returns 4^n."""
    u = (torch.tensor(list(itertools.product(range(4), repeat=N))) + 0.5) / 4

    def uniform(stream: str, *, seed: int, step: int, row: Tensor, num_sites: int) -> Tensor:
        assert (stream, num_sites) == ("value", 1)
        return u[row, step, None].double()

    monkeypatch.setattr(noise, "uniform", uniform)
    return len(u)


def test_every_combination_of_uniforms_gives_p_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    law = quarters()
    count = enumerated(monkeypatch)
    drawn = model_of(law).sample(count, 1)
    frequencies = index(drawn.x).bincount(minlength=V**N) / count
    assert (frequencies - law.table.flatten()).abs().max() < 1e-12
    assert drawn.network_calls == N
    single = [law.table.sum([a for a in range(N) if a != i]) for i in range(N)]
    independent = torch.einsum("a,b,c,d->abcd", *single).flatten()  # control
    assert (frequencies - independent).abs().max() > 0.01


def test_continuations_have_the_conditional_law_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    law = quarters()
    values, known = torch.tensor([1, 2, 0, 0]), torch.tensor([True, True, False, False])
    count = enumerated(monkeypatch)
    drawn = model_of(law).sample(count, 1, clamp=(values, known))
    assert (drawn.x[:, :2] == values[:2]).all()
    assert drawn.network_calls == N - 2
    frequencies = index(drawn.x[:, 2:]).bincount(minlength=V**2) / count
    given = law.table[1, 2].flatten()
    assert (frequencies - given / given.sum()).abs().max() < 1e-12
    ignored = law.table.sum((0, 1)).flatten()  # control: what is known is ignored
    assert (frequencies - ignored).abs().max() > 0.01


@pytest.mark.parametrize("cached", [False, True])
def test_drawn_samples_have_the_law_of_nelbo(cached: bool) -> None:
    """The drawing itself, by a transformer with and without its cache: 20,000 samples, chi-square."""
    n, count = 3, 20_000
    model = model_of(transformer() if cached else Whole(transformer()), n)
    x = random_law(n).x
    expected = count * (-model.nelbo(x)).exp()
    counts = index(model.sample(count, 1, seed=3).x).bincount(minlength=V**n)

    def distance(wanted: Tensor) -> float:
        """Standard errors above the mean of chi-square."""
        chi2 = float(((counts - wanted) ** 2 / wanted).sum())
        dof = len(wanted) - 1
        return (chi2 - dof) / math.sqrt(2 * dof)

    assert expected.min() > 5
    assert distance(expected) < 4.5
    assert distance(expected.flip(0)) > 45  # control


def test_a_cache_draws_the_same_samples() -> None:
    network = transformer(v=7)
    fast, slow = AutoregressiveModel(network, 7, (5,)), AutoregressiveModel(Whole(network), 7, (5,))
    values = torch.randint(7, (11, 5), generator=torch.Generator().manual_seed(2))
    known = torch.arange(5) < torch.arange(11)[:, None] % 6  # beginnings of every length, one row complete
    for clamp in (None, (values, known)):
        for options in ({}, {"temperature": 0.8, "top_p": 0.9}):
            a, b = (m.sample(11, 1, seed=5, clamp=clamp, trace=True, **options) for m in (fast, slow))
            assert torch.equal(a.x, b.x)
            assert a.network_calls == b.network_calls == 5
            assert all(torch.equal(s, r) for s, r in zip(a.trace, b.trace, strict=True))
    assert torch.equal(a.x[known], values[known])
    assert not torch.equal(fast.sample(11, 1, seed=6).x, fast.sample(11, 1, seed=5).x)
