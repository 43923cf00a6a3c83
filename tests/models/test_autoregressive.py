"""The autoregressive model's behaviour: networks that leak, continuations, labels, rows alone, both network paths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.models.autoregressive import AutoregressiveModel
from ggm_lightning.models.md4 import MD4
from ggm_lightning.networks.transformer import Transformer
from ggm_lightning.sampling.left_to_right import LeftToRight
from ggm_lightning.sampling.plan import Ancestral

B, N, V, LABELS = 2, 5, 7, 3
X = torch.arange(B * N).reshape(B, N) % V


def transformer(filled: bool = True, **options: object) -> Transformer:
    torch.manual_seed(0)
    sizes = {"feature_dim": 8, "num_heads": 2, "num_layers": 2, "time_features": "none", "causal": True}
    network = Transformer(V, **{**sizes, **options})
    if filled:
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return network


def model_of(network: nn.Module, **options: object) -> AutoregressiveModel:
    return AutoregressiveModel(network, V, (N,), **options)


class Own(nn.Module):
    """A user's network: sin of a weighted sum over the tokens that `seen` Bool[n, n] allows, site by site."""

    def __init__(self, seen: Tensor) -> None:
        super().__init__()
        self.seen = seen.double()
        self.calls = 0

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        self.calls += 1
        weight = self.seen * torch.arange(1, N + 1)
        sums = (weight * z.flatten(1)[:, None, :]).sum(-1)  # elementwise: equal rows give equal bits in any batch
        return torch.sin(1.7 * sums[..., None] + torch.arange(V, dtype=torch.float64))


CAUSAL = torch.ones(N, N).tril().bool()


def use(model: AutoregressiveModel, which: str) -> object:
    if which == "training":
        return model.loss(X, step=0)
    return model.nelbo(X) if which == "a bound" else model.sample(B, 1)


# ------------------------------------------------------------------ a network that looks ahead


@pytest.mark.parametrize("which", ["training", "a bound", "sampling"])
@pytest.mark.parametrize(("site", "sees"), [(0, 1), (0, 4), (2, 3), (3, 4)])
def test_one_site_that_sees_one_behind_it_is_refused_at_the_first_call(which: str, site: int, sees: int) -> None:
    leaking = CAUSAL.clone()
    leaking[site, sees] = True
    with pytest.raises(ValueError, match=rf"^AutoregressiveModel: in {which}, network Own returned .*site {site}") as e:
        use(model_of(Own(leaking)), which)
    assert "causal: true" in str(e.value)
    assert "\n" not in str(e.value)
    use(model_of(Own(CAUSAL)), which)  # control


def test_a_network_of_this_package_is_refused_when_the_model_is_built() -> None:
    with pytest.raises(ValueError, match=r"network Transformer sees the very tokens .* set its causal: true$"):
        model_of(transformer(causal=False))


class Hides(nn.Module):
    """A bidirectional transformer of which nobody can tell from an attribute."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.inner = transformer(causal=False, **options)

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.inner.features(z, t) @ torch.ones(16, V)


def test_blocks_that_begin_as_the_identity_are_looked_at_until_they_move_something() -> None:
    """adaLN-zero: before the first step nothing shows that it leaks, after it a later call does."""
    model = model_of(Hides(filled=False, time_features="t"))
    for _ in range(3):
        model.loss(X, step=0)
    for block in model.network.inner.blocks:
        nn.init.normal_(block.modulation.dense.weight, std=0.3)
    with pytest.raises(ValueError, match="only tokens from site"):
        model.loss(X, step=0)  # the fourth call


def test_a_network_that_has_shown_to_be_causal_is_looked_at_no_more() -> None:
    network = Own(CAUSAL)
    model = model_of(network)
    model.loss(X, step=0)
    first = network.calls
    for step in range(1, 5):
        model.loss(X, step=step)
    assert first > 1
    assert network.calls == first + 4
    assert model.network_calls == 5  # those that look are not counted


def test_looking_changes_no_number() -> None:
    """Nor the mode of any module, nor torch's generator."""
    model = model_of(transformer(dropout=0.4))
    model.train()
    torch.manual_seed(3)
    first = model.loss(X, step=0)
    torch.manual_seed(3)
    assert torch.equal(model.loss(X, step=0), first)
    assert model.network.blocks[0].training


# ------------------------------------------------------------------ training and -log p


def test_loss_and_bound_draw_nothing_and_rows_do_not_mix() -> None:
    model = model_of(Own(CAUSAL))
    whole = model.nelbo(X, num_samples=3, seed=5, row=torch.tensor([4, 11]))
    assert torch.equal(whole, model.nelbo(X))
    assert torch.equal(torch.cat([model.nelbo(X[:1]), model.nelbo(X[1:])]), whole)
    assert torch.equal(model.loss(X, step=1), model.loss(X, step=2))
    halves = [model.loss(part, step=0, row=torch.tensor([r]), total=2) for r, part in enumerate(X.split(1))]
    torch.testing.assert_close(torch.stack(halves).mean(), model.loss(X, step=0), rtol=1e-12, atol=1e-12)
    assert not torch.equal(model.nelbo(X.flip(0)), whole)


def test_labels_and_the_null_class() -> None:
    network = transformer(num_labels=LABELS)
    model = model_of(network, label_dropout=0.5)
    label = torch.tensor([0, 2])
    assert not torch.equal(model.nelbo(X, label), model.nelbo(X))
    assert torch.equal(model.nelbo(X, torch.full((B,), LABELS)), model.nelbo(X))
    drawn = [model.sample(64, 1, label=torch.full((64,), c), seed=1).x for c in range(LABELS)]
    assert not torch.equal(drawn[0], drawn[1])
    slow = model_of(NoCache(network), label_dropout=0.5)
    assert torch.equal(slow.sample(64, 1, label=torch.full((64,), 1), seed=1).x, drawn[1])


class NoCache(nn.Module):
    """Features and a head, all sites read in every call."""

    num_labels = LABELS

    def __init__(self, inner: Transformer) -> None:
        super().__init__()
        self.inner, self.head = inner, inner.head

    def features(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.inner.features(z, t, label)


# ------------------------------------------------------------------ samples


@pytest.mark.parametrize("cached", [False, True])
def test_a_sample_is_a_function_of_seed_and_row(cached: bool) -> None:
    model = model_of(transformer().double() if cached else Own(CAUSAL))
    row = torch.tensor([4, 11, 2])
    options = {"seed": 5, "top_p": 0.8, "temperature": 0.9}
    drawn = model.sample(3, 1, row=row, **options).x
    for i in range(3):
        assert torch.equal(model.sample(1, 1, row=row[i : i + 1], **options).x[0], drawn[i])
    assert not torch.equal(model.sample(3, 1, row=row + 1, **options).x, drawn)
    assert torch.equal(model.sample(3, 97, row=row, **options).x, drawn)  # num_steps says nothing


def test_trace_and_calls() -> None:
    model = model_of(transformer())
    known = torch.arange(N) < 2
    drawn = model.sample(3, 1, clamp=(X[:1].expand(3, N), known.expand(3, N)), trace=True)
    assert drawn.network_calls == N - 2
    assert len(drawn.trace) == N - 1
    for step, state in enumerate(drawn.trace):
        assert (state[:, : 2 + step] == drawn.x[:, : 2 + step]).all()
        assert (state[:, 2 + step :] == V).all()
    complete = model.sample(3, 1, clamp=(X[:1].expand(3, N), torch.ones(N, dtype=torch.bool)))
    assert torch.equal(complete.x, X[:1].expand(3, N))
    assert complete.network_calls == 0


@pytest.mark.parametrize("cached", [False, True])
def test_only_rows_that_need_it_are_sent_and_none_changes_the_draw_of_another(cached: bool) -> None:
    """Beginnings of every length, two rows of them complete: beside each other and alone."""
    network = transformer().double() if cached else Own(CAUSAL)
    begun = torch.tensor([0, 5, 1, 4, 2, 3, 5])
    values = torch.arange(7 * N).reshape(7, N) % V
    clamp = values, torch.arange(N) < begun[:, None]
    model = model_of(network)
    drawn = model.sample(7, 1, clamp=clamp, seed=3)
    assert drawn.network_calls == N
    # what a cache holds is of the same rows from the first call on
    assert drawn.rows == (5 * N if cached else int((N - begun).sum()))
    assert model.rows_sent == drawn.rows  # those of calls that look are not counted
    for i in range(7):
        one = slice(i, i + 1)
        alone = model.sample(1, 1, clamp=(values[one], clamp[1][one]), seed=3, row=torch.tensor([i]))
        assert torch.equal(alone.x[0], drawn.x[i])
        assert alone.rows == alone.network_calls == N - int(begun[i])
    assert not torch.equal(model.sample(7, 1, clamp=clamp, seed=4).x, drawn.x)  # control


def test_the_sampler_is_refused_by_models_that_know_no_left_and_right() -> None:
    with pytest.raises(ValueError, match="'LeftToRight' is made for families that offer it, and MD4 does not") as e:
        MD4(transformer(), V, (N,)).sample(B, 1, sampler=LeftToRight())
    assert "\n" not in str(e.value)
    model = model_of(transformer())
    assert torch.equal(model.sample(B, 1, sampler=LeftToRight()).x, model.sample(B, 1).x)  # control


def test_plans_are_refused() -> None:
    model = model_of(transformer())
    assert model.mask_id is None
    with pytest.raises(ValueError, match="AutoregressiveModel has no mask: it has only ancestral, no plan"):
        model.denoiser(None)
    with pytest.raises(ValueError, match="AutoregressiveModel"):
        model.sample(B, 3, sampler=Ancestral())
    assert model.network_calls == 0


def test_pictures_are_drawn_row_by_row() -> None:
    model = AutoregressiveModel(transformer(), V, (1, 2, 3))
    known = torch.tensor([[[True, True, True], [True, False, False]]])
    values = torch.arange(6).reshape(1, 2, 3)
    drawn = model.sample(4, 1, clamp=(values, known))
    assert drawn.x.shape == (4, 1, 2, 3)
    assert (drawn.x[:, known] == values[known]).all()
    assert model.nelbo(drawn.x).shape == (4,)


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ([[1, 1, 0, 0, 0], [1, 0, 0, 1, 0]], "in row 1 site 3 is known but site 1 before it is not"),
        ([[0, 1, 1, 1, 1], [1, 0, 0, 0, 0]], "in row 0 site 1 is known but site 0 before it is not"),
    ],
)
def test_gaps_are_refused_before_the_network_is_called(known: list[list[int]], said: str) -> None:
    model = model_of(transformer())
    with pytest.raises(ValueError, match=f"^clamp: {said}; .* from left to right .* take MD4") as e:
        model.sample(B, 1, clamp=(X, torch.tensor(known).bool()))
    assert "\n" not in str(e.value)
    assert model.network_calls == 0


def test_users_errors() -> None:
    model = model_of(transformer())
    t = torch.tensor([2, 3])
    with pytest.raises(ValueError, match="one token at a time; give s = t - 1"):
        model.reverse_law(X, t, t - 2)
    with pytest.raises(ValueError, match=r"t counts the sites still to be drawn, 1\.\.5; 6 came"):
        model.terms(X, X, t + 3)
    cache = model.network.new_cache(N)
    model.reverse_law(X, torch.tensor([3, 3]), torch.tensor([2, 2]), cache=cache)
    with pytest.raises(ValueError, match="the cache has read 3 sites; ask about the next one"):
        model.reverse_law(X, torch.tensor([1, 1]), torch.tensor([0, 0]), cache=cache)
    with pytest.raises(ValueError, match="grid 'cosine' is unknown to AutoregressiveModel; its process has its own"):
        model.sample(1, 1, grid="cosine")
