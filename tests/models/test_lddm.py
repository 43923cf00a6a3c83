"""LDDM's behaviour: what the encoder sees, losses, samplers, infilling, metrics, users' errors."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from ggm_lightning.core import gaussian, noise
from ggm_lightning.core.schedules import Linear
from ggm_lightning.data.toy.synthetic import MarkovChain
from ggm_lightning.exact.latent import Code
from ggm_lightning.exact.networks import Equal
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM
from ggm_lightning.models.lddm_stages import Recipe, collapsed
from ggm_lightning.models.md4 import MD4
from ggm_lightning.networks.latent import JointDenoiser
from tests.models.latent_bits import UNIT, fuji, seq
from tests.models.small_lddm import SIZE, B, D, N, S, V, small


@pytest.fixture
def x() -> Tensor:
    return torch.randint(V, (B, N), generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------ what the encoder may see


def test_p_r_hides_only_masked_sites_and_only_in_stage_one() -> None:
    model = small(SeqLDDM, recipe=Recipe(stage1_steps=1, p_r=0.9))
    seen: list[Tensor] = []
    original = model.encoder.forward
    model.encoder.forward = lambda x, hidden=None: (seen.append(hidden), original(x, hidden))[1]
    x = torch.zeros(4000, N, dtype=torch.long)
    states: list[Tensor] = []
    streams = model.network.streams
    model.network.streams = lambda z, *args, **more: (states.append(z), streams(z, *args, **more))[1]
    model.loss(x, step=0)
    masked = states[0] == V
    assert not (seen[0] & ~masked).any()
    hides = (seen[0] == masked).all(1) & masked.any(1)
    share = float(hides.sum() / masked.any(1).sum())
    assert share == pytest.approx(0.45, abs=4 * (0.25 / 4000) ** 0.5)
    model.loss(x, step=1)
    assert not seen[1].any()


def test_latent_dropout_gives_zeros_and_no_latent_loss(x: Tensor) -> None:
    model = small(FujiLDDM, recipe=Recipe(p_cfg=1.0))
    model.loss(x, step=0)
    assert float(model._parts["train/latent_loss"]) == 0
    latents: list[Tensor] = []
    streams = model.network.streams
    model.network.streams = lambda *a, latent, **more: (latents.append(latent), streams(*a, latent=latent, **more))[1]
    model.loss(x, step=0)
    assert float(latents[0].abs().max()) == 0


@pytest.mark.parametrize("family", [FujiLDDM, SeqLDDM])
@pytest.mark.parametrize(("token_loss", "latent_loss"), [("elbo", "plain"), ("plain", "elbo"), ("elbo", "elbo")])
def test_the_loss_is_its_formula(family: type, token_loss: str, latent_loss: str) -> None:
    model = small(family, recipe=Recipe(token_loss=token_loss, latent_loss=latent_loss, p_cfg=0.0, c_z=2.0)).double()
    assert model.loss_name == ("train/bpd" if token_loss == latent_loss else "train/loss")
    x, row = torch.randint(V, (16, N), generator=torch.Generator().manual_seed(2)), torch.arange(16)
    total = model.loss(x, step=5).detach()
    t, seen, asked, factor = model.training_times(5, row, 16)
    zt = model.corrupt(x, t, noise.uniform("mask", seed=0, step=5, row=row, num_sites=N))
    z0, bits = model.encode(x), N * math.log(2)
    token = model.token_terms(x, zt, t, model.noised(z0, seen, "latent", 0, 5, row))
    token = token.mean() / bits if token_loss == "elbo" else (token * t).mean() / N  # the weight is 1/t
    noisy = model.noised(z0, asked, "latent" if family is FujiLDDM else "asked latent", 0, 5, row)
    error = model.latent_error(x, zt, asked, noisy)
    latent = (error * factor).mean() / bits if latent_loss == "elbo" else error.mean() / (S * D)
    torch.testing.assert_close(total, (token + 2 * latent).detach(), rtol=1e-5, atol=1e-6)
    assert float(latent) > 1e-3


class Silent(Code):
    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        raise AssertionError("the encoder has run")


def test_latents_that_the_data_brings_replace_the_encoder() -> None:
    model = seq(gaussian.Sqrt(), UNIT)
    x = torch.tensor([[0, 1], [1, 1], [0, 0]])
    batch = {"x": x, "latent": model.encode(x)}
    monitored = seq(gaussian.Sqrt(), UNIT)
    monitored.encoder = Silent(model.encoder.clean, UNIT)
    with monitored._latents_of(batch):
        assert torch.equal(monitored.nelbo(x, seed=2), model.nelbo(x, seed=2))
        assert torch.equal(monitored.loss(x, step=1), model.loss(x, step=1))
    with pytest.raises(AssertionError, match="has run"):
        monitored.nelbo(x)
    learning = seq(gaussian.Sqrt(), UNIT, recipe=Recipe(stage1_steps=2))
    with (
        pytest.raises(ValueError, match=r"set recipe\.stage1_steps and recipe.p_r_given to 0"),
        learning._latents_of(batch),
    ):
        learning.loss(x, step=0)


def test_what_a_recipe_leaves_open_is_what_was_released_for_its_encoder() -> None:
    """Trained here: nothing hidden, nothing dropped. Given: 15 % dropped. Foreign: 15 % dropped, up to 90 % hidden."""

    class Foreign(Code):
        foreign = True

    def settled(encoder: nn.Module, **recipe: object) -> tuple[float | None, ...]:
        found = Recipe(**recipe).of(encoder, "clean")
        return found.p_r, found.p_r_given, found.p_cfg, found.stage1_latent

    own, foreign = Code(torch.zeros(4, 2), UNIT), Foreign(torch.zeros(4, 2), UNIT)
    assert settled(own, stage1_steps=9) == (0.0, 0.0, 0.0, "clean")
    assert settled(own) == (0.0, 0.0, 0.15, "clean")
    assert settled(foreign) == (0.0, 0.9, 0.15, "clean")
    assert settled(foreign, p_r_given=0.0, p_cfg=0.3, stage1_latent="all_levels") == (0.0, 0.0, 0.3, "all_levels")
    assert small(FujiLDDM, recipe=Recipe(stage1_steps=2)).recipe.stage1_latent == "all_levels"
    assert small(SeqLDDM, recipe=Recipe(stage1_steps=2)).recipe.stage1_latent == "clean"


# ------------------------------------------------------------------ rows, paths, samplers


@pytest.mark.parametrize("family", [FujiLDDM, SeqLDDM])
def test_both_network_paths_give_the_same_numbers(family: type, x: Tensor) -> None:
    class Whole(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.num_latents, self.latent_dim = inner, S, D

        def forward(self, z, t, label=None, latent=None, latent_time=None):
            return self.inner(z, t, label, latent, latent_time)

    fast, slow = small(family).double(), small(family).double()
    slow.network = Whole(slow.network)
    torch.testing.assert_close(fast.loss(x, step=3), slow.loss(x, step=3), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fast.nelbo(x, seed=2), slow.nelbo(x, seed=2), rtol=1e-12, atol=1e-12)
    assert torch.equal(fast.sample(2, 4).x, slow.sample(2, 4).x)


@pytest.mark.parametrize("make", [fuji, seq])
def test_bounds_and_samples_of_a_row_do_not_depend_on_its_batch(make) -> None:
    model = make(gaussian.Sqrt(), UNIT)
    x, row = torch.tensor([[0, 0], [0, 1], [1, 1]]), torch.tensor([4, 11, 2])
    bound = model.nelbo(x, num_samples=3, seed=5, row=row)
    drawn = model.sample(3, 6, seed=5, row=row).x
    for i in range(3):
        alone = model.nelbo(x[i : i + 1], num_samples=3, seed=5, row=row[i : i + 1])
        torch.testing.assert_close(alone, bound[i : i + 1], rtol=1e-12, atol=1e-12)
        assert torch.equal(model.sample(1, 6, seed=5, row=row[i : i + 1]).x, drawn[i : i + 1])
    assert not torch.equal(model.nelbo(x, num_samples=3, seed=6, row=row), bound)


def test_network_calls_of_each_kind_are_counted() -> None:
    model = small(SeqLDDM)
    drawn = model.sample(2, 3, latent_steps=7, trace=True)
    assert (drawn.other_calls["latent_network"], drawn.network_calls) == (7, 3)
    assert len(drawn.trace) == 4
    for before, after in pairwise(drawn.trace):
        assert ((before == V) | (before == after)).all()
    joint = small(FujiLDDM).sample(2, 5)
    assert (joint.other_calls.total(), joint.network_calls) == (0, 5)


def test_temperature_and_top_p_act_on_tokens() -> None:
    model = small(SeqLDDM)
    cold = model.sample(64, 4, temperature=0.05).x
    assert len(cold.unique()) < len(model.sample(64, 4).x.unique())
    assert not torch.equal(model.sample(64, 4, top_p=0.5).x, model.sample(64, 4).x)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_floor_of_the_token_schedule_is_filled_with_the_latent(sampler: str) -> None:
    for family in (FujiLDDM, SeqLDDM):
        drawn = small(family, schedule=Linear(0.4)).sample(16, 3, sampler=sampler)
        assert int(drawn.x.max()) < V
        assert drawn.network_calls == 4


# ------------------------------------------------------------------ infilling


def conditional_share(model, sampler: str, known: Tensor, count: int = 20_000, steps: int = 64) -> float:
    """Share of ones at the second bit when the first is known to be 1."""
    latent = {} if isinstance(model, FujiLDDM) else {"latent_steps": 24}
    x = model.sample(count, steps, clamp=(torch.tensor([1, 0]), known), sampler=sampler, **latent).x
    assert (x[:, 0] == 1).all()
    return float(x[:, 1].double().mean())


KNOWN = torch.tensor([True, False])
EXACT = 0.40 / 0.50  # of P: p(11) / (p(10) + p(11))


def test_infilling_with_independent_clocks_is_the_exact_conditional() -> None:
    model = fuji(gaussian.Sqrt(), UNIT, independent_clocks=True)
    assert conditional_share(model, "ddpm", KNOWN) == pytest.approx(EXACT, abs=0.015)  # standard error .003


def test_infilling_latent_first_resamples_latents() -> None:
    model = seq(gaussian.Sqrt(), UNIT, infill_latents=16)
    drawn = model.sample(8, 2, clamp=(torch.tensor([1, 0]), KNOWN), latent_steps=5)
    assert drawn.other_calls["latent_network"] == 5
    assert 17 <= drawn.network_calls <= 18  # 16 candidates, then one or two steps that reveal something
    share = conditional_share(model, "ddpm", KNOWN, 10_000, 2)
    assert share == pytest.approx(EXACT, abs=0.03)
    blind = seq(gaussian.Sqrt(), UNIT, infill_latents=1)  # control: the first latent, whatever is known
    assert conditional_share(blind, "ddpm", KNOWN, 10_000, 2) < EXACT - 0.1


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "seq_ddim", "seq_ddpm"])
def test_what_is_known_stands_in_every_state(sampler: str) -> None:
    values, known = torch.arange(N) % V, torch.arange(N) % 2 == 0
    models = [small(FujiLDDM, independent_clocks=True, schedule=Linear(0.1), infill_latents=3)]
    models += [small(SeqLDDM, schedule=Linear(0.1), infill_latents=3)] if not sampler.startswith("seq_") else []
    for model in models:
        trace = model.sample(4, 5, clamp=(values, known), sampler=sampler, trace=True).trace
        assert len(trace) == 6
        for state in trace:
            assert (state[:, known] == values[known]).all()
        assert (trace[0][:, ~known] == V).all()
        assert int(trace[-1].max()) < V


def test_a_row_with_nothing_known_is_as_without_a_clamp() -> None:
    model = seq(gaussian.Sqrt(), UNIT)
    known = torch.tensor([[True, False], [False, False], [False, False]])
    options = {"latent_steps": 4, "sampler": "ddpm", "seed": 3}
    filled = model.sample(3, 3, clamp=(torch.tensor([1, 0]), known), **options).x
    assert torch.equal(filled[1:], model.sample(3, 3, **options).x[1:])


# ------------------------------------------------------------------ metrics


def validated(model) -> tuple[dict[str, float], list[str]]:
    """Metrics, and what was said about the latent."""
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    data = MarkovChain(num_symbols=2, length=2, num_train=10, num_val=600, eval_batch_size=300)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metrics = Trainer(accelerator="cpu", **quiet).validate(model, datamodule=data, verbose=False)[0]
    said = [str(warning.message) for warning in caught if "latent is of no use" in str(warning.message)]
    return {name: float(value) for name, value in metrics.items()}, said


def test_a_useful_latent_shows_and_a_constant_one_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SeqLDDM, "global_step", 9)
    useful, said = validated(seq(gaussian.Sqrt(), UNIT))
    assert useful["val/latent_mi"] > 0.3  # nats per example
    assert useful["val/latent_std"] > 0.5
    assert not said
    model = seq(gaussian.Sqrt(), torch.zeros(4).double(), recipe=Recipe(stage1_steps=4))
    constant, said = validated(model)
    assert constant["val/latent_mi"] == pytest.approx(0, abs=1e-9)
    assert constant["val/latent_std"] == 0
    assert len(said) == 1
    assert "train the encoder longer alone (recipe.stage1_steps)" in said[0]
    assert "\n" not in said[0]
    assert not validated(model)[1]
    assert "take another encoder" in collapsed(Recipe(), torch.tensor(0.0), torch.tensor(1.0))


# ------------------------------------------------------------------ users' errors


def test_wrong_arguments_are_refused_in_one_line() -> None:
    for recipe, words in (
        ({"p_cfg": 1.5}, "recipe.p_cfg is 1.5; it is a probability"),
        ({"stage1_steps": -1}, "recipe.stage1_steps is -1; it must be at least 0"),
        ({"token_loss": "mse"}, "recipe.token_loss is 'mse'; choose elbo or plain"),
        ({"stage1_latent": "noisy"}, "recipe.stage1_latent is 'noisy'; choose clean or all_levels, or null"),
    ):
        with pytest.raises(ValueError, match=words):
            Recipe(**recipe)
    with pytest.raises(ValueError, match="num_timesteps is 0"):
        small(FujiLDDM, num_timesteps=0)
    with pytest.raises(ValueError, match="max_snr is 0"):
        small(FujiLDDM, max_snr=0.0)
    with pytest.raises(
        ValueError, match="latent mismatch: the encoder gives 1 latents of 1 numbers, network takes 2 of 3"
    ):
        FujiLDDM(JointDenoiser(V, **SIZE), Code(torch.zeros(4, N), UNIT), V, (N,))
    with pytest.raises(ValueError, match="the encoder Equal does not say how large its latent is"):
        FujiLDDM(JointDenoiser(V, **SIZE), Equal(V), V, (N,))


def test_a_model_of_stage_one_is_sampled_with_a_warning(x: Tensor) -> None:
    for family in (FujiLDDM, SeqLDDM):
        model = small(family, recipe=Recipe(stage1_steps=7))
        with pytest.warns(UserWarning, match=r"model of stage 1.*sample it after step 7 \(recipe.stage1_steps\)"):
            model.sample(1, 2)
        model.freeze_encoder([x])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.sample(1, 2)


def test_samplers_say_what_they_need() -> None:
    model = small(FujiLDDM)
    with pytest.raises(
        ValueError, match=r"sampler 'seq_ddim' is refused: it needs a network .* independent_clocks: true"
    ):
        model.sample(1, 2, sampler="seq_ddim")
    with pytest.raises(ValueError, match=r"FujiLDDM was trained on one clock; .* independent_clocks: true"):
        model.sample(1, 2, clamp=(torch.zeros(N).long(), torch.ones(N).bool()))
    with pytest.raises(
        ValueError, match="latent_steps is 4, but FujiLDDM's 'ddim' has no steps of a latent; leave it out"
    ):
        model.sample(1, 2, latent_steps=4)
    with pytest.raises(ValueError, match="take sampler seq_ddim or seq_ddpm"):
        small(FujiLDDM, independent_clocks=True).sample(1, 2, latent_steps=4)
    with pytest.raises(ValueError, match="MD4's 'ancestral' has no steps of a latent; leave it out"):
        MD4(Equal(V), V, (N,)).sample(1, 2, latent_steps=4)
    with pytest.raises(ValueError, match="latent_steps is 0; it must be at least 1"):
        small(SeqLDDM).sample(1, 2, latent_steps=0)
