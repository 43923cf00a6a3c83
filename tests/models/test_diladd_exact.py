"""Di-LADD on two bits: the bound is the sum of its enumerated parts and lies above -log p; the sampler's law is the
model's; a single code is the token family alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.core.schedules import Linear
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.networks import Masked
from ggm_lightning.exact.states import product
from ggm_lightning.models.diladd import DiLADD
from ggm_lightning.models.md4 import MD4
from tests.models.latent_bits import ENTROPY, JOINT, PAIRS, STATES, P

MASKS = torch.tensor(list(itertools.product((False, True), repeat=2)))
CODE_OF = {
    "injective": torch.tensor([0, 1, 2, 3]),
    "the first bit": torch.tensor([0, 0, 1, 1]),
    "whether they agree": torch.tensor([1, 0, 0, 1]),
    "constant": torch.tensor([0, 0, 0, 0]),
}
T = 3  # steps of both families


def angle(code: Tensor, count: int) -> Tensor:
    """Directions of `count` codes, Float64[*b, 2]."""
    turn = 2 * torch.pi * code.double() / count
    return torch.stack([turn.cos(), turn.sin()], -1)


class Encoder(nn.Module):
    """The direction of the pair's code, three times as long; S = 1."""

    num_latents, latent_dim, normalise = 1, 2, "none"

    def __init__(self, code_of: Tensor, count: int) -> None:
        super().__init__()
        self.code_of, self.count = code_of, count

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        row = (x.flatten(1) * torch.tensor([2, 1])).sum(-1)
        return 3 * angle(self.code_of[row], self.count)[:, None]


class Tokens(nn.Module):
    """p(x^i | x_t, c) under P, its logits bent by `bent` with coefficients that depend on state and code."""

    num_latents, latent_dim = 1, 2

    def __init__(self, code_of: Tensor, count: int, bent: float = 0.0) -> None:
        super().__init__()
        self.code_of, self.count, self.bent = code_of, count, bent

    def forward(
        self, z: Tensor, t: Tensor, label: Tensor | None = None, *, latent: Tensor, latent_time: Tensor
    ) -> tuple[Tensor, Tensor]:
        code = (latent[:, 0].double() @ angle(torch.arange(self.count), self.count).T).argmax(-1)
        clash = ((z[:, None] != 2) & (z[:, None] != PAIRS)).any(-1) | (code[:, None] != self.code_of)
        p = torch.where(clash, 1e-300, P)
        one = ((p / p.sum(-1, keepdim=True)) @ (PAIRS == 1).double()).clamp(1e-12, 1 - 1e-12)
        key = (z * torch.tensor([3, 1])).sum(-1) * self.count + code
        push = self.bent * torch.stack([torch.sin(1.0 + 2.3 * key), torch.cos(0.7 * key)], -1)
        return torch.stack([(1 - one).log(), one.log() + push], -1), latent


def model_of(name: str, bent: float = 0.0, steps: int | None = T) -> DiLADD:
    """With exact networks for bent = 0: P's own law of the codes, and of the tokens given them."""
    code_of, count = CODE_OF[name], int(CODE_OF[name].max()) + 1
    mass = torch.zeros(count).double().index_add(0, code_of, P)
    if bent:
        mass = (mass.log() + bent * torch.arange(count)).softmax(0)
    prior = MD4(Masked(JointLaw(mass)), count, (1,), schedule=Linear(0.0), num_timesteps=steps)
    networks = Tokens(code_of, count, bent), Encoder(code_of, count), prior
    model = DiLADD(*networks, 2, (2,), num_codes=count, schedule=Linear(0.0), num_timesteps=steps)
    model.codebook.vectors.copy_(angle(torch.arange(count), count))
    return model


def law(model: DiLADD) -> Tensor:
    """p(x) = sum_c p(c) p(x | c), Float64[4], by T steps of each family."""
    count, k = model.num_codes, model.num_timesteps
    steps = [(torch.tensor([i / k]).double(), torch.tensor([(i - 1) / k]).double()) for i in range(k, 0, -1)]
    codes = torch.zeros(count + 1).double()
    codes[-1] = 1.0
    tokens = torch.zeros(count, 9).double()
    tokens[:, -1] = 1.0
    for t, s in steps:
        moves = model.prior.reverse_law(torch.arange(count + 1)[:, None], t.expand(count + 1), s.expand(count + 1))
        codes = codes @ moves.probs()[:, 0]
        for c in range(count):
            latent = model.codebook.entries(torch.full((9, 1), c))
            of_tokens = model.reverse_law(STATES, t.expand(9), s.expand(9), denoiser=model.given(latent))
            tokens[c] = tokens[c] @ product(of_tokens.probs(), STATES)
    return (codes[:count] @ tokens)[PAIRS[:, 0] * 3 + PAIRS[:, 1]]


def tokens_given_codes(model: DiLADD) -> Tensor:
    """Float64[4], nats: E over masks of the tokens' terms, mean over the levels."""
    total = torch.zeros(4).double()
    for k in range(1, model.num_timesteps + 1):
        t = torch.full((4,), k / model.num_timesteps).double()
        for hidden in MASKS:
            probability = torch.where(hidden, t[0], 1 - t[0]).prod()
            if probability:
                total += probability * model.terms(PAIRS, torch.where(hidden, 2, PAIRS), t)
    return total / model.num_timesteps + model.prior_nats(PAIRS)


def of_codes(model: DiLADD) -> Tensor:
    codes, total = model.codes(PAIRS), torch.zeros(4).double()
    for k in range(1, model.num_timesteps + 1):
        t = torch.full((4,), k / model.num_timesteps).double()
        total += t * model.prior.terms(codes, torch.full((4, 1), model.num_codes), t)
    return total / model.num_timesteps


@pytest.mark.parametrize("bent", [0.0, 0.4, 1.5])
@pytest.mark.parametrize("name", CODE_OF)
def test_the_bound_is_above_minus_log_p_for_any_networks(name: str, bent: float) -> None:
    """Eq. (4). Control: neither part alone is."""
    model = model_of(name, bent)
    p, bound = law(model), tokens_given_codes(model) + of_codes(model)
    assert float(p.sum()) == pytest.approx(1, abs=1e-9)
    assert (bound > -p.log() - 1e-6).all()
    if name in ("the first bit", "whether they agree") and not bent:
        assert (tokens_given_codes(model) < -p.log() - 0.1).any()
        assert (of_codes(model) < -p.log() - 0.1).any()


@pytest.mark.parametrize("name", CODE_OF)
def test_exact_networks_reach_the_entropy_for_every_code(name: str) -> None:
    """In continuous time, by drawing: the bound is -log P(x) in the mean. Control: bent ones are above."""
    model = model_of(name, steps=None)
    bound = model.nelbo(PAIRS.repeat(500, 1), num_samples=4).reshape(500, 4)
    error = float((P * bound.std(0)).sum()) / 500**0.5
    assert float((P * bound.mean(0)).sum()) == pytest.approx(ENTROPY, abs=4 * error + 1e-6)
    bent = model_of(name, 1.0, steps=None).nelbo(PAIRS.repeat(500, 1), num_samples=4).reshape(500, 4)
    assert float((P * bent.mean(0)).sum()) > ENTROPY + 0.05


@pytest.mark.parametrize("name", CODE_OF)
def test_nelbo_is_an_unbiased_estimate_of_both_enumerated_parts(name: str) -> None:
    model = model_of(name, 0.4)
    drawn = model.nelbo(PAIRS.repeat(500, 1), num_samples=3)
    tokens, codes = (part.reshape(500, 4) for part in model.parts_of_bound)
    torch.testing.assert_close((tokens + codes).flatten(), drawn, rtol=0, atol=1e-12)
    for found, exact in ((tokens, tokens_given_codes(model)), (codes, of_codes(model))):
        error = found.std(0) / 500**0.5
        assert ((found.mean(0) - exact).abs() < 4 * error + 1e-6).all()


@pytest.mark.parametrize("name", ["injective", "whether they agree"])
def test_samples_have_the_models_law(name: str) -> None:
    """T code steps, T token steps, of bent networks: 20,000 draws. Control: P, from which they are bent."""
    model = model_of(name, 0.4)
    x = model.sample(20_000, T, grid="uniform", latent_steps=T, seed=3).x
    share = torch.bincount(x[:, 0] * 2 + x[:, 1], minlength=4) / len(x)
    p = law(model)
    assert (share - p).abs().max() < 4 * (0.25 / len(x)) ** 0.5
    assert (share - P).abs().max() > 0.03


def test_one_token_step_is_exact_where_the_code_says_all() -> None:
    """Codes in one step, tokens in one: the law is P. Control: codes that say less leave the error of one step."""
    for name, least, most in (("injective", 0.0, 0.012), ("the first bit", 0.0, 0.012), ("constant", 0.1, 1.0)):
        x = model_of(name).sample(20_000, 1, grid="uniform", latent_steps=1, seed=5).x
        share = torch.bincount(x[:, 0] * 2 + x[:, 1], minlength=4) / len(x)
        assert least <= float((share - P).abs().max()) < most


def test_a_single_code_is_the_token_family_alone() -> None:
    """Terms, bounds and samples of MD4, to 1e-9 and to the bit. Control: with useful codes they are others."""
    md4 = MD4(Masked(JOINT), 2, (2,), schedule=Linear(0.0))
    t, masked = torch.full((4,), 0.3).double(), torch.full((4, 2), 2)
    theirs = md4.nelbo(PAIRS, num_samples=5, seed=2)
    for name, same in (("constant", True), ("the first bit", False)):
        model = model_of(name, steps=None)
        gap = (model.terms(PAIRS, masked, t) - md4.terms(PAIRS, masked, t)).abs().max()
        gap = max(float(gap), float((model.nelbo(PAIRS, num_samples=5, seed=2) - theirs).abs().max()))
        drawn = model.sample(300, 4, grid="uniform", seed=7).x
        assert (gap < 1e-9) == same
        assert torch.equal(drawn, md4.sample(300, 4, grid="uniform", seed=7).x) == same


def test_infilling_sharpens_codes_and_keeps_several_at_the_mode() -> None:
    """The second bit given that the first is 1 is 1 with .8, at temperature .5 with .8^2 / (.8^2 + .2^2) = .941. The
    most probable code is that of 00: at temperature 0 candidates that were all this one could explain no 1."""
    drawn = {}
    for temperature in (1.0, 0.5, 0.0):
        known = (torch.tensor([1, 0]), torch.tensor([True, False]))
        options = {"latent_steps": 1, "seed": 4, "grid": "uniform", "temperature": temperature}
        drawn[temperature] = model_of("injective").sample(2000, 1, clamp=known, **options).x[:, 1].double().mean()
    assert float(drawn[0.5]) == pytest.approx(0.941, abs=0.022)  # standard error .0053
    assert float(drawn[1.0]) == pytest.approx(0.8, abs=0.03)
    assert float(drawn[0.0]) > 0.75


def test_infilling_resamples_codes() -> None:
    """The second bit given that the first is 1: P(11) / P(1.) = .8. Control: with one candidate P(they agree) = .85."""
    known = torch.tensor([True, False])
    shares = {}
    for count in (1, 16):
        model = model_of("whether they agree")
        model.infill_latents = count
        drawn = model.sample(3000, 2, clamp=(torch.tensor([1, 0]), known), latent_steps=1, seed=4)
        assert (drawn.x[:, 0] == 1).all()
        shares[count] = float(drawn.x[:, 1].double().mean())
    assert shares[16] == pytest.approx(0.8, abs=0.025)  # standard error .007
    assert shares[1] > 0.83
