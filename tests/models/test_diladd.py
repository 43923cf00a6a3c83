"""Di-LADD's behaviour: its two stages, its loss, rows, priors of three families, users' errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.core import noise
from ggm_lightning.core.noise import StepNoise
from ggm_lightning.data.toy.synthetic import MarkovChain
from ggm_lightning.models.diladd import DiLADD
from ggm_lightning.models.lddm_stages import Recipe
from ggm_lightning.models.trained import Optimizer
from ggm_lightning.networks.latent_encoder import LatentEncoder
from ggm_lightning.sampling.request import Samples
from tests.models.small_diladd import TINY, D, K, N, S, V, prior, small
from tests.models.test_lddm_stages import FIRST_STAGE, LAST, equal, fitted, read

B = 11


@pytest.fixture
def x() -> Tensor:
    return torch.randint(V, (B, N), generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------ stages and loss


def has_gradient(part: nn.Module) -> bool:
    return any(p.grad is not None and float(p.grad.abs().max()) > 0 for p in part.parameters())


def test_stage_one_trains_encoder_and_codebook_and_stage_two_the_prior(x: Tensor) -> None:
    model = small(recipe=Recipe(stage1_steps=2), commitment=0.0).train()
    model.loss(x, step=0).backward()
    assert has_gradient(model.encoder)  # of the tokens' loss alone: it passes straight through the codes
    assert not has_gradient(model.prior)
    assert set(model._parts) == {"train/token_loss", "train/commitment"}
    before = model.codebook.vectors.clone()
    model.loss(x, step=1)
    moved = model.codebook.vectors.clone()
    assert (moved - before).abs().max() > 0.01
    model.freeze_encoder([x])
    model.zero_grad()
    fixed = model.codebook.vectors.clone()
    model.loss(x, step=2).backward()
    model.loss(x, step=3)
    assert all(p.grad is None for p in model.encoder.parameters())
    assert has_gradient(model.prior)
    assert has_gradient(model.network)
    assert torch.equal(model.codebook.vectors, fixed)
    assert set(model._parts) == {"train/token_loss", "train/latent_loss"}


def test_the_loss_of_each_stage_is_its_formula(x: Tensor) -> None:
    model = small(recipe=Recipe(stage1_steps=3, c_z=2.0)).double()
    row = torch.arange(B)

    def drawn(step: int) -> tuple[Tensor, Tensor]:
        t = model.training_times(step, row, B).tokens
        return t, model.corrupt(x, t, noise.uniform("mask", seed=0, step=step, row=row, num_sites=N))

    t, zt = drawn(2)
    share = 0.1 + 0.5 * noise.uniform("encoder's share", seed=0, step=2, row=row, num_sites=1)
    hidden = noise.uniform("encoder", seed=0, step=2, row=row, num_sites=N) < share
    assert 0.1 < float(hidden.double().mean()) < 0.6
    e = model.directions(x, hidden) * D**0.5
    latent = model.encode(x, hidden)
    token = model.token_terms(x, zt, t, latent).mean() / (N * math.log(2))
    expected = token + 0.25 * (e - latent).square().mean()
    torch.testing.assert_close(model.loss(x, step=2), expected, rtol=1e-6, atol=1e-6)
    model.freeze_encoder([x])
    t, zt = drawn(3)
    token = model.token_terms(x, zt, t, model.encode(x)).mean() / (N * math.log(2))
    other = StepNoise(noise.integer_seed("codes", seed=0, step=0), 3, row, B)
    of_codes = model.prior.training_loss(model.codes(x), None, other)
    torch.testing.assert_close(model.loss(x, step=3), token + 2 * S / N * of_codes, rtol=1e-6, atol=1e-6)
    assert float(of_codes) > 0.1


def test_freezing_fits_the_codebook_to_the_rows(x: Tensor) -> None:
    """All of them, whatever the parts; each code is the direction of those that have it. Control: before it is not."""
    model = small(recipe=Recipe(stage1_steps=3)).double()
    units = model.directions(x).flatten(0, 1)

    def gap() -> float:
        codes = model.codes(x).flatten()
        sums = torch.stack([units[codes == k].sum(0) for k in range(K)])
        return float((sums / sums.norm(dim=-1, keepdim=True) - model.codebook.vectors)[codes.unique()].abs().max())

    assert gap() > 0.1
    model.freeze_encoder(x.split(4))
    assert gap() < 1e-6
    assert len(model.codes(x).unique()) == K


@pytest.mark.slow
def test_a_fit_in_two_stages_resumes_bit_for_bit(tmp_path: Path) -> None:
    def made() -> DiLADD:
        recipe = Recipe(stage1_steps=FIRST_STAGE, statistics_rows=20)
        return small(recipe=recipe, optimizer=Optimizer(lr=1e-2, weight_decay=0.5))

    whole = tmp_path / "whole"
    losses = fitted(made(), whole, 2, FIRST_STAGE, 5, LAST, length=N)
    last = read(whole, LAST)
    for step in (2, FIRST_STAGE, 5):
        again = tmp_path / f"from{step}"
        assert fitted(made(), again, LAST, resume=step, length=N) == {k: v for k, v in losses.items() if k > step}
        for part in ("state_dict", "current_model_state", "optimizer_states"):
            assert equal(read(again, LAST)[part], last[part]), (step, part)
    early, late = (read(whole, step)["state_dict"]["codebook.vectors"] for step in (FIRST_STAGE, 5))
    assert not torch.equal(early, late)
    assert torch.equal(late, last["state_dict"]["codebook.vectors"])


# ------------------------------------------------------------------ rows, priors, samples


@pytest.mark.parametrize("kind", ["md4", "ar", "ggm"])
def test_codes_may_be_drawn_by_any_family(kind: str, x: Tensor) -> None:
    """Bounds of a row are those of its batch and the sum of both parts; so are samples, whose codes are the prior's
    own; a loss reaches the prior."""
    model = small(kind).double()
    row = torch.tensor([4, 11, 2])
    bound = model.nelbo(x[:3], num_samples=2, seed=5, row=row)
    tokens, codes = model.parts_of_bound
    seed = noise.integer_seed("codes", seed=5, step=0)
    assert torch.equal(codes, model.prior.nelbo(model.codes(x[:3]), None, 2, seed=seed, row=row))
    assert torch.equal(tokens + codes, bound)
    drawn = model.sample(3, 4, seed=5, row=row)
    assert (drawn.network_calls > 0, drawn.other_calls["prior"] > 0) == (True, True)
    for i in range(3):
        alone = model.nelbo(x[i : i + 1], num_samples=2, seed=5, row=row[i : i + 1])
        torch.testing.assert_close(alone, bound[i : i + 1], rtol=1e-12, atol=1e-12)
        assert torch.equal(model.sample(1, 4, seed=5, row=row[i : i + 1]).x, drawn.x[i : i + 1])
    assert not torch.equal(model.sample(3, 4, seed=6, row=row).x, drawn.x)
    model.train().loss(x, step=1).backward()
    assert has_gradient(model.prior)


def test_the_prior_has_steps_and_a_sampler_of_its_own() -> None:
    model = small()
    seen: list[tuple[int, object]] = []
    original = model.prior.sample

    def watched(count: int, steps: int, **more: object) -> object:
        seen.append((steps, more["sampler"]))
        return original(count, steps, **more)

    model.prior.sample = watched
    model.sample(2, 3)
    model.sample(2, 3, latent_steps=2, latent_sampler="first_hitting")
    assert seen == [(S, None), (2, "first_hitting")]
    with pytest.raises(ValueError, match="sampler 'ddim' is unknown to MD4"):
        model.sample(2, 3, latent_sampler="ddim")
    with pytest.raises(ValueError, match="latent_steps is 0; it must be at least 1"):
        model.sample(2, 3, latent_steps=0)


@pytest.mark.parametrize("of_prior", [3, 0])
def test_the_prior_is_told_the_label_that_the_tokens_are_told(of_prior: int, x: Tensor) -> None:
    """In the loss, the bound and samples; of none the null class; an unlabelled prior beside labels is told nothing.
    Control: other labels give other bounds of the codes, where the prior knows any."""
    model = small(labels=3, of_prior=of_prior, label_dropout=0.5, infill_latents=2).double()
    label = torch.arange(B) % 3
    told: list[Tensor | None] = []
    for name in ("training_loss", "nelbo", "sample"):
        original = getattr(model.prior, name)

        def watched(*given: object, original: Callable[..., object] = original, **more: object) -> object:
            told.append(more["label"] if "label" in more else given[1])  # type: ignore[arg-type]
            return original(*given, **more)

        setattr(model.prior, name, watched)
    for some in (label, None):
        told.clear()
        model.nelbo(x, some, seed=2)
        model.sample(B, 1, label=some, latent_steps=1, clamp=(x[0], torch.arange(N) < 2))
        model.label_dropout = 0.0
        model.loss(x, some, step=1)
        model.label_dropout = 0.5
        expected = torch.full((B,), 3) if some is None else label
        assert len(told) == 2 + model.infill_latents
        for given in told:
            assert given is None if of_prior == 0 else torch.equal(given, expected)
    told.clear()
    model.loss(x, label, step=1)
    dropped = noise.uniform("label", seed=0, step=1, row=torch.arange(B), num_sites=1)[:, 0] < 0.5
    assert 0 < int(dropped.sum()) < B
    assert told == [None] if of_prior == 0 else torch.equal(told[0], torch.where(dropped, 3, label))
    codes = []
    for some in (label, (label + 1) % 3):
        model.nelbo(x, some, seed=2)
        codes.append(model.parts_of_bound[1])
    assert torch.equal(*codes) == (of_prior == 0)


def codes_drawn(model: DiLADD) -> list[Tensor]:
    """Fills with what the prior draws from now on."""
    found: list[Tensor] = []
    original = model.prior.sample

    def watched(*given: object, **more: object) -> Samples:
        drawn = original(*given, **more)
        found.append(drawn.x)
        return drawn

    model.prior.sample = watched
    return found


def test_codes_are_sharpened_and_guided_as_the_tokens_are() -> None:
    """They are those of prior.sample with the same options. Control: at the defaults those of prior.sample without."""
    model = small(labels=3, label_dropout=0.5)
    label = torch.arange(B) % 3
    found = codes_drawn(model)
    seed = noise.integer_seed("codes", seed=1, step=0)
    for options in (
        {},
        {"temperature": 0.05},
        {"top_p": 0.3, "nucleus": "inside"},
        {"top_k": 2},
        {"guidance": 3.0},
    ):
        model.sample(B, 1, label=label, seed=1, **options)
        expected = model.prior.sample(B, S, label=label, seed=seed, **options).x
        assert torch.equal(found[-2], expected)
        assert torch.equal(found[-2], found[0]) == (not options)


def test_an_unlabelled_prior_is_not_guided_and_one_that_cannot_be_sharpened_says_so() -> None:
    model = small(labels=3, of_prior=0, label_dropout=0.5)
    label, found = torch.arange(B) % 3, codes_drawn(model)
    guided, plain = (model.sample(B, 2, label=label, seed=1, guidance=weight).x for weight in (9.0, 1.0))
    assert torch.equal(*found)
    assert not torch.equal(guided, plain)
    levels = small("blackout")
    with pytest.raises(ValueError, match=r"temperature 0.5 and top_p 1.0 are for sampler posterior"):
        levels.sample(2, 2, temperature=0.5)
    assert (levels.network_calls, levels.prior.network_calls) == (0, 0)
    levels.sample(2, 2, temperature=0.5, latent_sampler="posterior")  # control


def test_a_row_with_nothing_known_is_as_without_a_clamp() -> None:
    model = small(infill_latents=3)
    values, known = torch.arange(N) % V, torch.zeros(3, N, dtype=torch.bool)
    known[0, ::2] = True
    drawn = model.sample(3, 4, clamp=(values, known), seed=3).x
    assert torch.equal(drawn[1:], model.sample(3, 4, seed=3).x[1:])
    assert torch.equal(drawn[0, ::2], values[::2])
    assert int(drawn.max()) < V


def test_validations_say_how_many_codes_are_in_use() -> None:
    from lightning.pytorch import Trainer

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    data = MarkovChain(num_symbols=V, length=N, num_train=10, num_val=60, eval_batch_size=30)
    trainer = Trainer(accelerator="cpu", enable_model_summary=False, **quiet)
    model = small()
    metrics = trainer.validate(model, datamodule=data, verbose=False)[0]
    rows = data.rows("val")[list(range(60))]["x"]
    used = torch.bincount(model.codes(rows).flatten(), minlength=K)
    assert metrics["val/codes_used"] == pytest.approx(float((used > 0).double().mean()))
    assert 1 < metrics["val/code_perplexity"] <= K
    assert metrics["val/bpd_tokens"] + metrics["val/bpd_latent"] == pytest.approx(metrics["val/bpd"], abs=1e-5)
    assert 0 < metrics["val/oracle_accuracy"] < 1


# ------------------------------------------------------------------ users' errors


def test_wrong_arguments_are_refused_in_one_line() -> None:
    for options, words in (
        ({"num_codes": 6}, r"the prior is for 5 classes in shape \[3\], the codes are 6 in \[3\]; give the prior"),
        ({"encoder_hides": (0.6, 0.1)}, r"encoder_hides is \[0.6, 0.1\]; give two shares"),
        ({"commitment": -1.0}, "commitment is -1.0; it must be at least 0"),
        ({"decay": 1.5}, "decay is 1.5"),
        ({"labels": 2, "of_prior": 3}, r"network has num_labels 3, the tokens' network 2; give both num_labels: 2, or"),
        ({"of_prior": 3}, r"network has num_labels 3, the tokens' network 0; give both num_labels: 3, or the prior's"),
    ):
        with pytest.raises(ValueError, match=words):
            small(**options)
    measured = LatentEncoder(V, chunk=N // S, num_latents=S, latent_dim=D, **TINY)
    with pytest.raises(ValueError, match=r"normalise is coordinate, but codes know directions; set it to none"):
        DiLADD(small().network, measured, prior(), V, (N,), num_codes=K)
    with (
        pytest.raises(ValueError, match=r"brings latents computed before, but DiLADD has codes"),
        small()._latents_of({"x": torch.zeros(1), "latent": torch.zeros(1)}),
    ):
        pass
