"""GGM's behaviour: no leakage, rows alone and in a batch, both network paths, samplers, infilling, users' errors."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.core.categorical import Sharpening
from ggm_lightning.models.ggm import GGM
from ggm_lightning.networks.transformer import Transformer

B, N, V = 3, 5, 7


def transformer(**kwargs: object) -> Transformer:
    torch.manual_seed(0)
    network = Transformer(V, feature_dim=8, num_heads=2, num_layers=2, visited_bits=True, **kwargs)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


@pytest.fixture
def x() -> Tensor:
    return torch.randint(V, (B, N), generator=torch.Generator().manual_seed(1))


class Elementwise(nn.Module):
    """Equal rows give equal bits in any batch; depends on all that is shown."""

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
        classes = torch.arange(V, dtype=torch.float64)
        seen = (z * torch.tensor([1.0, 3.0, 5.0, 7.0, 11.0]) + visited).sum(1)[:, None, None].double()
        return torch.sin(z[..., None] * 1.7 + classes * 2.3 + seen) + t[:, None, None].double() * classes / V


class WholeLogits(nn.Module):
    def __init__(self, inner: Transformer) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
        return self.inner(z, t, label, visited)


def at(t: int, b: int = B) -> Tensor:
    return torch.full((b,), t)


# ------------------------------------------------------------------ leakage


@pytest.mark.parametrize("t", [1, 8, 20])
def test_the_own_token_changes_no_logit(x: Tensor, t: int) -> None:
    """On the network's real input path: the state that the model gets differs at the visited site alone."""
    model = GGM(transformer(), V, (N,), order="permuted")
    site = int(model.sweeps.order[(t - 1) % N])
    base = model.reverse_law(x, at(t), at(t - 1)).log_p
    for other in range(V):
        changed = x.clone()
        changed[:, site] = other
        assert torch.equal(model.reverse_law(changed, at(t), at(t - 1)).log_p, base)
        assert torch.equal(model.terms(x, changed, at(t)), model.terms(x, x, at(t)))
    elsewhere = x.clone()
    elsewhere[:, (site + 1) % N] = (x[:, (site + 1) % N] + 1) % V
    assert (model.reverse_law(elsewhere, at(t), at(t - 1)).log_p - base).abs().min(-1).values.max() > 1e-3


@pytest.mark.parametrize("loss", ["bce", "ce_xt", "ce_x0"])
@pytest.mark.parametrize("hide", ["own", "block"])
def test_training_hides_what_it_asks_for(x: Tensor, loss: str, hide: str) -> None:
    network = transformer()
    seen: list[tuple[Tensor, Tensor]] = []
    original = network.features
    network.features = lambda z, t, label, visited, sites: (
        seen.append((z, visited)),
        original(z, t, label, visited, sites),
    )[1]
    model = GGM(network, V, (N,), loss=loss, hide=hide, block_size=3)
    for step in range(30):
        model.loss(x, step=step)
    hidden = torch.stack([(z == V).sum(1) for z, _ in seen])
    assert not any(((z == V) & visited).any() for z, visited in seen)
    assert set(hidden.unique().tolist()) == ({1} if hide == "own" else {1, 2, 3})


def test_the_network_is_told_the_sweep_of_the_visit(x: Tensor) -> None:
    told: list[float] = []

    class Told(Elementwise):
        def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
            told.append(float(t[0]))
            assert int(visited[0].sum()) == int((z[0] == V).nonzero())  # raster: as many as lie before the hidden site
            return super().forward(z, t, label, visited)

    model = GGM(Told(), V, (N,), num_sweeps=2)
    model.sample(1, 1)
    assert told == [0.5] * N + [0.0] * N


def test_the_transformer_sees_the_visited_bits_and_is_the_old_one_without() -> None:
    z, t = torch.randint(V + 1, (B, N), generator=torch.Generator().manual_seed(4)), torch.full((B,), 0.25)
    network, none = transformer(), torch.zeros(B, N, dtype=torch.bool)
    assert (network(z, t, None, none) - network(z, t, None, ~none)).abs().max() > 1e-3
    plain = Transformer(V, feature_dim=8, num_heads=2, num_layers=2)
    names = set(network.state_dict()) - set(plain.state_dict())
    assert names == {"visited_table.weight"}


# ------------------------------------------------------------------ the loss


def test_the_first_prediction_is_calibrated(x: Tensor) -> None:
    """A zero head: p_t = pi, self-normalised; the loss is the entropy of the classes, the bound that of pi."""
    network = Transformer(V, feature_dim=8, num_heads=2, num_layers=1, visited_bits=True)
    model = GGM(network, V, (N,))
    x = torch.randint(V, (4000, N), generator=torch.Generator().manual_seed(2))
    keep = model.sweeps.keep
    entropy = -(keep * keep.log() + (1 - keep) * (1 - keep).log()).mean()
    assert float(model.loss(x).detach()) == pytest.approx(float(entropy), abs=0.02)
    law = model.reverse_law(x[:2], at(13, 2), at(12, 2))
    torch.testing.assert_close(law.log_p.exp(), torch.full((2, V), 1 / V, dtype=torch.float64), rtol=0, atol=1e-15)
    assert model._estimate(x[:64], None, 3, 0, None)[1].abs().max() < 1e-12
    assert float(model.nelbo(x, num_samples=20).mean()) == pytest.approx(N * math.log(V), rel=0.03)


def test_only_the_observed_logit_learns_from_bce(x: Tensor) -> None:
    network = transformer()
    model = GGM(network, V, (N,))
    rows = torch.zeros(1, dtype=torch.long)
    for step in range(5):
        network.zero_grad()
        model.loss(x[:1], step=step, row=rows, total=1).backward()
        assert (network.head.weight.grad.abs().sum(1) > 0).sum() == 1
    network.zero_grad()
    GGM(network, V, (N,), loss="ce_xt").loss(x[:1], step=0).backward()
    assert (network.head.weight.grad.abs().sum(1) > 0).all()


def test_bce_never_forms_all_logits(x: Tensor) -> None:
    network = transformer()
    model = GGM(network, V, (N,))
    model.loss(x)  # the first call looks at all logits once
    network.head.forward = None  # from now on the whole head must not be called
    model.loss(x).backward()


@pytest.mark.parametrize("loss", ["bce", "ce_xt", "ce_x0"])
@pytest.mark.parametrize("hide", ["own", "block"])
def test_both_network_paths_give_the_same_numbers(x: Tensor, loss: str, hide: str) -> None:
    network = transformer().double()
    options = {"loss": loss, "hide": hide, "block_size": 3, "noise_law": [0.1] * 6 + [0.4]}
    fast, slow = GGM(network, V, (N,), **options), GGM(WholeLogits(network), V, (N,), **options)
    for step in range(4):
        torch.testing.assert_close(fast.loss(x, step=step), slow.loss(x, step=step), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fast.terms(x, x, at(7)), slow.terms(x, x, at(7)), rtol=1e-10, atol=1e-10)
    assert torch.equal(fast.sample(2, 8, sampler="parallel").x, slow.sample(2, 8, sampler="parallel").x)


def test_two_halves_of_a_batch_are_the_batch() -> None:
    x = torch.randint(V, (6, N), generator=torch.Generator().manual_seed(1))
    model = GGM(transformer().double(), V, (N,), block_size=3, hide="block")
    row = torch.arange(6)
    for step in range(3):
        whole = model.loss(x, step=step)
        halves = [model.loss(x[part], step=step, row=row[part], total=6) for part in (slice(0, 3), slice(3, 6))]
        torch.testing.assert_close(torch.stack(halves).mean(), whole, rtol=1e-12, atol=1e-12)
    assert model.loss(x) != model.loss(x)


def test_bf16_autocast_and_float32_losses_agree() -> None:
    x = torch.randint(V, (64, N), generator=torch.Generator().manual_seed(1))
    for loss in ("bce", "ce_xt", "ce_x0"):
        model = GGM(transformer(), V, (N,), loss=loss)
        plain = model.loss(x, step=1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model.loss(x, step=1)
        assert mixed.dtype == torch.float32
        assert float(mixed.detach()) == pytest.approx(float(plain.detach()), rel=0.02)
        mixed.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_labels_and_the_null_class(x: Tensor) -> None:
    network = transformer(num_labels=4)
    model = GGM(network, V, (N,), label_dropout=0.5)
    label = torch.tensor([0, 1, 3])
    assert model.loss(x, label).isfinite()
    assert not torch.equal(model.nelbo(x, label), model.nelbo(x, None))
    torch.testing.assert_close(model.nelbo(x, None), model.nelbo(x, torch.full((B,), 4)))
    assert model.sample(B, 1, label=label).x.shape == (B, N)


# ------------------------------------------------------------------ samples


@pytest.mark.parametrize("sampler", ["heat_bath", "gated", "parallel"])
def test_bounds_and_samples_of_a_row_do_not_depend_on_its_batch(x: Tensor, sampler: str) -> None:
    model = GGM(Elementwise(), V, (N,), order="permuted", block_size=N)
    row = torch.tensor([4, 11, 2])
    bound = model.nelbo(x, num_samples=3, seed=5, row=row)
    options = {"num_steps": 8, "seed": 5, "sampler": sampler, "top_p": 0.8, "temperature": 0.9}
    drawn = model.sample(B, row=row, **options).x
    for i in range(B):
        assert torch.equal(model.nelbo(x[i : i + 1], num_samples=3, seed=5, row=row[i : i + 1]), bound[i : i + 1])
        assert torch.equal(model.sample(1, row=row[i : i + 1], **options).x, drawn[i : i + 1])
    assert not torch.equal(model.nelbo(x, num_samples=3, seed=6, row=row), bound)
    assert not torch.equal(model.sample(B, row=row, **{**options, "seed": 6}).x, drawn)


def test_network_calls() -> None:
    model = GGM(Elementwise(), V, (N,), num_sweeps=3, block_size=N)
    assert model.sample(2, 1).network_calls == 15
    assert model.sample(2, 1, sampler="gated").network_calls == 15
    assert model.sample(2, 3, sampler="parallel").network_calls == 15  # one whole sweep at a time, each site by itself
    block = GGM(Elementwise(), V, (N,), num_sweeps=3, block_size=N, hide="block")
    assert [block.sample(2, steps, sampler="parallel").network_calls for steps in (3, 6, 9, 15, 99)] == [
        3,
        6,
        9,
        15,
        15,
    ]


def test_progress_counts_network_calls(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    known = torch.tensor([True, False, False, True, False])
    model = GGM(Elementwise(), V, (N,))
    model.sample(2, 1, clamp=(torch.zeros(N).long(), known), progress=True)
    assert capsys.readouterr().err == ""  # a log is not filled with bars of short chains
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    model.sample(2, 1, clamp=(torch.zeros(N).long(), known), progress=True)
    assert "/24 " in capsys.readouterr().err  # 3 free sites, 4 sweeps and 4 rounds of one


def test_a_low_temperature_draws_the_mode_in_the_end() -> None:
    model = GGM(Elementwise(), V, (N,))
    z = torch.randint(V, (B, N), generator=torch.Generator().manual_seed(3))
    law = model.reverse_law(z, at(2), at(1), sharpening=Sharpening(1e-5))
    assert law.log_p.exp().max(-1).values.min() > 1 - 1e-12
    assert torch.equal(law.log_p.argmax(-1), model.reverse_law(z, at(2), at(1)).log_p.argmax(-1))
    noisy = model.reverse_law(z, at(20), at(19), sharpening=Sharpening(1e-5)).log_p.exp()
    assert noisy.min() > (1 - model.sweeps.survival[3]) / V - 1e-12  # the floor of sweep 3 stays


@pytest.mark.parametrize("shape", [(N,), (1, N)])
def test_infilling_keeps_the_known_sites_and_skips_them(shape: tuple[int, ...]) -> None:
    class Reshaped(Elementwise):
        def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
            assert z.shape[1:] == shape
            return super().forward(z.flatten(1), t, label, visited)

    model = GGM(Reshaped(), V, shape, num_sweeps=2, redenoise=3)
    values = torch.tensor([3, 0, 0, 6, 0]).reshape(shape)
    known = torch.tensor([True, False, False, True, False]).reshape(shape)
    drawn = model.sample(4, 1, clamp=(values, known), seed=2, trace=True)
    assert drawn.x.shape == (4, *shape)
    assert drawn.network_calls == (2 + 3) * 3
    assert torch.equal(drawn.trace[-1], drawn.x)
    for state in drawn.trace:
        assert (state[:, known] == values[known]).all()
        assert ((state >= 0) & (state < V)).all()
    assert len(drawn.x.unique(dim=0)) > 1
    model.redenoise = 0
    assert model.sample(4, 1, clamp=(values, known), seed=2).network_calls == 2 * 3
    rowwise = torch.stack([known, ~known, known, known])
    drawn = model.sample(4, 1, clamp=(values.expand(4, *shape), rowwise), seed=2)
    assert (drawn.x[rowwise] == values.expand(4, *shape)[rowwise]).all()
    assert drawn.network_calls == 2 * 5


def test_a_hidden_block_shows_what_is_known() -> None:
    shown: list[Tensor] = []

    class Shown(Elementwise):
        def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
            shown.append(z)
            return super().forward(z, t, label, visited)

    model = GGM(Shown(), V, (N,), num_sweeps=1, block_size=N, hide="block", redenoise=0)
    known = torch.tensor([True, False, False, True, False])
    model.sample(1, 1, clamp=(torch.full((N,), 3), known), sampler="parallel")
    assert [z.tolist() for z in shown] == [[[3, V, V, 3, V]]]


def test_long_traces_are_thinned() -> None:
    model = GGM(Elementwise(), V, (N,), num_sweeps=60)
    drawn = model.sample(2, 1, trace=True)
    assert len(drawn.trace) == 1 + 150
    assert torch.equal(drawn.trace[-1], drawn.x)


def test_dropout_is_off_in_bounds_and_samples_and_modes_return(x: Tensor) -> None:
    model = GGM(transformer(dropout=0.5), V, (N,))
    model.train()
    assert torch.equal(model.nelbo(x), model.nelbo(x))
    assert torch.equal(model.sample(2, 3).x, model.sample(2, 3).x)
    assert model.training
    assert model.network.training


# ------------------------------------------------------------------ the unigram law


def test_unigram_law_is_measured_kept_and_used(tmp_path: object) -> None:
    from lightning.pytorch import Trainer

    from ggm_lightning.data.toy.synthetic import MarkovChain

    def model() -> GGM:
        network = Transformer(5, feature_dim=8, num_heads=2, num_layers=1, visited_bits=True)
        return GGM(network, 5, (12,), noise_law="unigram")

    data = MarkovChain(num_symbols=5, length=12, num_train=2000, num_val=64)
    fitted = model()
    torch.testing.assert_close(fitted.log_pi.exp(), torch.full((5,), 0.2, dtype=torch.float64))
    trainer = Trainer(max_steps=2, val_check_interval=1, default_root_dir=tmp_path, logger=False, accelerator="cpu",
                      enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                      use_distributed_sampler=False)  # fmt: skip
    trainer.fit(fitted, datamodule=data)
    assert (fitted.log_pi.exp() - data.stationary).abs().max() < 0.01
    assert {"train/bce", "val/nelbo", "val/calibration", "val/calibration_rms"} <= set(trainer.callback_metrics)
    other = model()
    other.load_state_dict(fitted.state_dict())
    assert torch.equal(other.log_pi, fitted.log_pi)
    assert torch.equal(other.bfloat16().log_pi, fitted.log_pi)


# ------------------------------------------------------------------ users' errors


def test_parallel_heat_bath_is_refused_with_the_reason() -> None:
    model = GGM(Elementwise(), V, (N,), block_size=N)
    with pytest.raises(
        ValueError, match=r"parallel_heat_bath' is refused: .* never reach the model's law .* use 'parallel'"
    ):
        model.sample(1, 4, sampler="parallel_heat_bath")
    with pytest.raises(ValueError, match="5 sites at once are drawn by sampler 'parallel' only"):
        model.reverse_law(torch.zeros(1, N).long(), at(5, 1), at(0, 1))


def test_users_errors() -> None:
    with pytest.raises(ValueError, match="loss is 'mse'; choose bce, ce_xt or ce_x0"):
        GGM(Elementwise(), V, (N,), loss="mse")
    with pytest.raises(ValueError, match="hide is 'none'; choose own or block"):
        GGM(Elementwise(), V, (N,), hide="none")
    with pytest.raises(ValueError, match="block_size is 6; a block has between 1 and 5 sites"):
        GGM(Elementwise(), V, (N,), block_size=6)
    with pytest.raises(ValueError, match="redenoise is -1"):
        GGM(Elementwise(), V, (N,), redenoise=-1)
    with pytest.raises(ValueError, match="Transformer was built without the visited bits; set its visited_bits: true"):
        GGM(Transformer(V, feature_dim=8, num_heads=2, num_layers=1), V, (N,))
    with pytest.raises(ValueError, match=r"that of Linear takes .*visited is Bool"):
        GGM(nn.Linear(1, 1), V, (N,))
    model = GGM(Elementwise(), V, (N,), block_size=2)
    with pytest.raises(ValueError, match="sampler 'ancestral' is unknown to GGM; choose heat_bath or gated or"):
        model.sample(1, 4, sampler="ancestral")
    with pytest.raises(ValueError, match="grid 'cosine' is unknown to GGM; its process has its own times"):
        model.sample(1, 4, grid="cosine")
    with pytest.raises(ValueError, match="num_steps is 3; sampler 'parallel' needs one for each of the 4 sweeps"):
        model.sample(1, 3, sampler="parallel")
    with pytest.raises(
        ValueError, match="blocks of 5 sites, but the model was trained with block_size 2; give at least 12"
    ):
        model.sample(1, 4, sampler="parallel")
    with pytest.raises(ValueError, match="stay in one sweep of 5"):
        model.reverse_law(torch.zeros(1, N).long(), at(6, 1), at(4, 1), sampler="parallel")
    with pytest.raises(ValueError, match=r"known values lie in 9\.\.9"):
        model.sample(1, 2, clamp=(torch.full((N,), 9), torch.ones(N, dtype=torch.bool)))
    with pytest.raises(ValueError, match="row has shape"):
        model.sample(2, 2, row=torch.arange(3))
    with pytest.raises(ValueError, match="visited_bits is False and the bits were given"):
        Transformer(V, feature_dim=8, num_heads=2, num_layers=1)(
            torch.zeros(1, N).long(), torch.zeros(1), None, torch.zeros(1, N).bool()
        )
    with pytest.raises(ValueError, match="visited_bits is True and the bits were not given"):
        transformer()(torch.zeros(1, N).long(), torch.zeros(1))
