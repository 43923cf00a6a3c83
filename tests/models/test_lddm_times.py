"""Which times and levels LDDM's parts see in training: of the tokens, of the latent beside them, of the latent asked.

The stages differ in nothing but this, and in which loss is on; losses and bounds alone do not tell (core/gaussian.py).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ggm_lightning.core import gaussian, noise, times
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM
from ggm_lightning.models.lddm_base import LatentFamily
from ggm_lightning.models.lddm_stages import Recipe
from tests.models.small_lddm import D, N, S, V, small

B, STEP = 13, 2
ROW = torch.arange(B)
ZERO, ONE = torch.zeros(B).double(), torch.ones(B).double()
T = times.stratified(seed=0, step=STEP, row=ROW, total=B)
U = gaussian.independent_times(seed=0, step=STEP, row=ROW, total=B)
FIRST_STAGE = Recipe(stage1_steps=STEP + 1, p_r=0.9, stage1_latent="all_levels")
RELEASED = Recipe(stage1_steps=STEP + 1)


def drawn(family: type, **more: object) -> list[Tensor]:
    """(t of the tokens, of the latent they see, of the latent asked, factor) of training step STEP."""
    return list(small(family, **more).training_times(STEP, ROW, B))


def assert_times(found: list[Tensor], *expected: Tensor) -> None:
    for ours, exact in zip(found, expected, strict=True):
        assert torch.equal(ours, exact)


def strata(t: Tensor) -> list[int]:
    return (t * len(t)).long().sort().values.tolist()


def test_stage_one_as_released_is_clean_for_seq_and_at_all_levels_for_fuji() -> None:
    assert_times(drawn(SeqLDDM, recipe=RELEASED), T, ZERO, ZERO, ONE)
    assert_times(drawn(FujiLDDM, recipe=RELEASED)[:3], T, T, T)
    clean = Recipe(stage1_steps=STEP + 1, stage1_latent="clean")
    assert_times(drawn(FujiLDDM, recipe=clean)[:3], T, ZERO, ZERO)
    assert_times(drawn(FujiLDDM, recipe=Recipe(stage1_steps=STEP, stage1_latent="clean"))[:3], T, T, T)  # stage 2


def test_seq_in_stage_one_at_all_levels_shows_the_tokens_every_level_of_the_latent() -> None:
    """So that the encoder spreads its codes: one level in each stratum, independent of the tokens' time; the latent's
    own loss is off. Controls: stage 2, and an encoder that is fixed already, show the cleanest."""
    found = drawn(SeqLDDM, recipe=FIRST_STAGE)
    assert_times(found, T, U, ZERO, ONE)
    assert strata(found[1]) == strata(found[0]) == list(range(B))
    assert (found[1] - found[0]).abs().min() > 1e-3
    second = drawn(SeqLDDM, recipe=Recipe(stage1_steps=STEP))
    assert not second[1].any()


def test_seq_in_stage_two_shows_the_cleanest_and_asks_every_level() -> None:
    assert_times(drawn(SeqLDDM), T, ZERO, U, ONE)


def test_seq_with_the_bounds_weight_asks_where_the_bound_does() -> None:
    recipe = Recipe(latent_loss="elbo")
    asked, factor = small(SeqLDDM).clock.importance(U)
    assert_times(drawn(SeqLDDM, recipe=recipe), T, ZERO, asked, factor)
    assert (asked - U).abs().max() > 0.1  # ln(1 + SNR) is spread, not time
    assert not torch.equal(factor, ONE)


def test_fuji_has_one_clock_or_two() -> None:
    model = small(FujiLDDM)
    assert_times(drawn(FujiLDDM), T, T, T, model.clock.weight(T))
    assert_times(drawn(FujiLDDM, independent_clocks=True), T, U, U, model.clock.weight(U))


@pytest.mark.parametrize("independent", [False, True])
def test_levels_of_a_discrete_fuji_lie_on_its_grid(independent: bool) -> None:
    t, seen, asked, _ = drawn(FujiLDDM, independent_clocks=independent, num_timesteps=4)
    assert asked is seen
    for when, continuous in ((t, T), (seen, U if independent else T)):
        assert torch.equal(when, (torch.floor(continuous * 4) + 1) / 4)


def what_the_network_sees(model: LatentFamily) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, time of the tokens, latent, its time) of the joint network in training step STEP."""
    x = torch.randint(V, (B, N), generator=torch.Generator().manual_seed(1))
    seen: list[tuple[Tensor, ...]] = []
    streams = model.network.streams

    def watched(z: Tensor, t: Tensor, label: Tensor | None, latent: Tensor, latent_time: Tensor) -> object:
        seen.append((t, latent, latent_time))
        return streams(z, t, label, latent=latent, latent_time=latent_time)

    model.network.streams = watched
    with torch.no_grad():
        model.loss(x, step=STEP)
    (found,) = seen
    return x, *found


STAGES = [
    ("fuji", FujiLDDM, {"recipe": Recipe(p_cfg=0.0)}, T),
    ("fuji, two clocks", FujiLDDM, {"recipe": Recipe(p_cfg=0.0), "independent_clocks": True}, U),
    ("seq, stage 1", SeqLDDM, {"recipe": RELEASED}, ZERO),
    ("seq, stage 1 at all levels", SeqLDDM, {"recipe": FIRST_STAGE}, U),
    ("seq, stage 2", SeqLDDM, {"recipe": Recipe(p_cfg=0.0)}, ZERO),
]


@pytest.mark.parametrize(
    ("family", "options", "level"), [case[1:] for case in STAGES], ids=[case[0] for case in STAGES]
)
def test_the_network_sees_a_latent_of_that_level_and_is_told_so(family: type, options: dict, level: Tensor) -> None:
    """z_t = abar z_0 + sbar e at the schedule's time of `level`, to float32's rounding. Control: any other level."""
    model = small(family, **options)
    x, t, latent, latent_time = what_the_network_sees(model)
    when = model.clock.time(level)
    torch.testing.assert_close(t, T.float())
    torch.testing.assert_close(latent_time, when.float())
    u = noise.uniform("encoder", seed=0, step=STEP, row=ROW, num_sites=2)
    recipe = model.recipe
    hides = u[:, 0] < u[:, 1] * (recipe.p_r if recipe.stage1_steps else recipe.p_r_given)
    mask = model.corrupt(x, T, noise.uniform("mask", seed=0, step=STEP, row=ROW, num_sites=N)) == V
    z0 = model.encode(x, hides[:, None] & mask).detach().double()
    e = noise.normal("latent", seed=0, step=STEP, row=ROW, num_sites=S * D).reshape(B, S, D)
    signal = model.latent_schedule.alpha(when)[:, None, None]
    torch.testing.assert_close(latent, (signal.sqrt() * z0 + (1 - signal).sqrt() * e).float(), rtol=1e-5, atol=1e-6)
    for other in (T, U, ZERO, ONE):
        if not torch.equal(other, level):
            signal = model.latent_schedule.alpha(model.clock.time(other))[:, None, None]
            wrong = signal.sqrt() * z0 + (1 - signal).sqrt() * e
            assert (latent - wrong).abs().max() > 0.1


@pytest.mark.parametrize("share", [0.0, 0.15, 1.0])
@pytest.mark.parametrize("family", [FujiLDDM, SeqLDDM])
def test_exactly_the_rows_below_p_cfg_see_no_latent_and_learn_none(family: type, share: float) -> None:
    """The latent loss is the mean of the other rows' errors (zeros count as rows). Control: of these rows' errors."""
    u = noise.uniform("latent dropout", seed=0, step=STEP, row=ROW, num_sites=1)[:, 0]
    hidden = u < share
    assert hidden.any() == (share > 0)
    model = small(family, recipe=Recipe(p_cfg=share))
    x, _, latent, _ = what_the_network_sees(model)
    assert torch.equal(latent.flatten(1).abs().amax(1) == 0, hidden)
    loss = float(model._parts["train/latent_loss"])
    asked = model.training_times(STEP, ROW, B)[2]
    stream = "latent" if family is FujiLDDM else "asked latent"
    noisy = model.noised(model.encode(x).detach(), asked, stream, 0, STEP, ROW)
    zt = model.corrupt(x, T, noise.uniform("mask", seed=0, step=STEP, row=ROW, num_sites=N))
    error = model.latent_error(x, zt, asked, noisy).detach() / (S * D)
    assert loss == pytest.approx(float((error * ~hidden).mean()), rel=1e-5, abs=1e-9)
    assert loss != pytest.approx(float((error * hidden).mean()), rel=0.1)
