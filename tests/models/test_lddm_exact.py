"""LDDM is exact: T1 to T4 and T6 of its specification, by enumeration and quadrature, through the public classes.

Figures quoted are those of independent numpy programs (shared with the specification).
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from ggm_lightning.core import gaussian
from ggm_lightning.core.schedules import Linear, Polynomial, Schedule
from ggm_lightning.exact.latent import NODES, WEIGHTS, levels
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.networks import Masked
from ggm_lightning.exact.states import product
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM
from ggm_lightning.models.md4 import MD4
from ggm_lightning.sampling.plans import GIVEN_LATENT
from tests.models.latent_bits import (
    ENCODERS,
    ENTROPY,
    EQUAL_BITS,
    OF_EQUAL_BITS,
    PAIRS,
    STATES,
    UNIT,
    Bent,
    LogSNR,
    P,
    enumerated,
    fuji,
    law_of_fuji,
    law_of_seq,
    seq,
)
from tests.models.latent_quadrature import half_intervals


def discrete_fuji(steps: int, eps: float = 0.0, seed: int = 0, code: Tensor = UNIT) -> FujiLDDM:
    return fuji(LogSNR(first=1 / steps if steps > 1 else 0.0), code, eps, seed, num_timesteps=steps)


def bound_of_fuji(model: FujiLDDM) -> Tensor:
    """Float64[4], nats: eq. (4)."""
    return model.prior_nats(PAIRS) + enumerated(model, "terms", levels(model.num_timesteps)).mean(0)


def bound_of_seq(model: SeqLDDM) -> Tensor:
    """Float64[4], nats: eq. (6)."""
    t = levels(model.num_timesteps)
    tokens = enumerated(model, "terms", t, latent_at=torch.zeros_like(t)).mean(0)
    return (
        model.prior_nats(PAIRS) + tokens + enumerated(model, "latent_terms", levels(model.num_latent_timesteps)).mean(0)
    )


# ------------------------------------------------------------------ T1: the bound


def tabulated_bound(model: FujiLDDM) -> Tensor:
    """Eq. (4) once more, level by level, from the network's tables and the levels' SNR alone."""
    steps, network = model.num_timesteps, model.network
    assert isinstance(network, Bent)
    out = []
    for x, code in zip(PAIRS, network.code, strict=True):
        last = 1 / (1 + math.exp(-float(network.schedule.log_snr(torch.ones(1)))))
        total = 0.5 * (last * float(code) ** 2 + (1 - last) - 1 - math.log(1 - last))
        for k, mask in itertools.product(range(1, steps + 1), itertools.product((False, True), repeat=2)):
            t = torch.full((len(NODES),), k / steps, dtype=torch.float64)
            snr = math.exp(float(network.schedule.log_snr(t[:1])))
            z = math.sqrt(snr / (1 + snr)) * code + NODES / math.sqrt(1 + snr)
            probability = math.prod(k / steps if m else 1 - k / steps for m in mask)
            xt = torch.where(torch.tensor(mask), 2, x).expand(len(NODES), 2)
            logits, z0 = network(xt, t, latent=z.reshape(-1, 1, 1), latent_time=t)
            log_mu = logits.log_softmax(-1)
            nats = -sum((log_mu[:, i, x[i]] for i in range(2) if mask[i]), torch.zeros(len(NODES))) / k
            if k > 1:
                drop = math.exp(float(network.schedule.log_snr(t[:1] - 1 / steps))) - snr
                nats = nats + 0.5 * drop * (code - z0[:, 0, 0]) ** 2
            total += probability * float((WEIGHTS * nats).sum())
        out.append(total)
    return torch.tensor(out, dtype=torch.float64)


def gap_of_fuji(steps: int, eps: float, seed: int) -> float:
    """The smallest of bound - (-log p(x)) over x, nats."""
    model = discrete_fuji(steps, eps, seed)
    law, bound = law_of_fuji(model), bound_of_fuji(model)
    assert float(law.sum()) == pytest.approx(1, abs=1e-9)
    # up to hundreds of nats where the denoiser is bent most, of which the cross-entropy is float32
    assert ((bound - tabulated_bound(model)).abs() < 1e-6 * bound.clamp(min=1)).all()
    return float((bound + law.log()).min())


def gap_of_seq(latent_steps: int, steps: int, eps: float, seed: int) -> float:
    model = seq(LogSNR(), UNIT, eps, seed, num_timesteps=steps, num_latent_timesteps=latent_steps)
    law, bound = law_of_seq(model), bound_of_seq(model)
    assert float(law.sum()) == pytest.approx(1, abs=1e-9)
    return float((bound + law.log()).min())


SOME, ALL_EPS = ((0.0, 0), (0.5, 0), (1.5, 1)), (0.0, 0.5, 1.5)


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_t1_fuji_bound_holds_for_any_denoiser_and_equals_the_tables(steps: int) -> None:
    assert min(gap_of_fuji(steps, *bent) for bent in SOME) > 0.2  # of the specification's 60 models: .36


@pytest.mark.slow
def test_t1_all_models(capsys: pytest.CaptureFixture[str]) -> None:
    """60 FUJI and 81 SEQ models, as many as the specification's, of which the bent ones are bent otherwise: the
    smallest gaps of unbent ones are the specification's."""
    of_fuji = [gap_of_fuji(*which) for which in itertools.product((2, 3, 5, 8), ALL_EPS, range(5))]
    of_seq = {which: gap_of_seq(*which) for which in itertools.product((1, 4, 9), (1, 2, 4), ALL_EPS, range(3))}
    smallest, unbent = min(of_seq.values()), min(gap for which, gap in of_seq.items() if which[2] == 0)
    with capsys.disabled():
        print(f"\nsmallest gap of {len(of_fuji)} FUJI models {min(of_fuji):.3f}, of {len(of_seq)} SEQ {smallest:.3f}")
    assert min(of_fuji) == pytest.approx(0.359, abs=1e-3)
    assert unbent == pytest.approx(0.710, abs=1e-3)
    assert smallest > 0


def test_t1_control_each_part_of_the_bound_is_needed() -> None:
    """Perturbed parts are told apart by the tables, and a bound with a part left out falls below -log p."""
    model = discrete_fuji(5)
    bound, nats = bound_of_fuji(model), -law_of_fuji(model).log()
    t = levels(5)
    tokens = bound - enumerated(model, "latent_terms", t).mean(0)
    assert float((P * (tokens - nats)).sum()) < -0.1
    shifted = discrete_fuji(5)
    shifted.clock = gaussian.LatentClock(shifted.latent_schedule, 0.0, 5, first_level=1)
    assert (bound_of_fuji(shifted) - tabulated_bound(model)).abs().min() > 1e-3


@pytest.mark.parametrize(("latent_steps", "steps"), [(1, 1), (4, 2), (9, 4)])
def test_t1_seq_bound_holds_for_any_denoiser(latent_steps: int, steps: int) -> None:
    assert min(gap_of_seq(latent_steps, steps, *bent) for bent in SOME) > 0.05


def test_t3_the_gap_closes() -> None:
    model = discrete_fuji(32)
    law = law_of_fuji(model)
    assert float((P * law.log()).sum()) == pytest.approx(-1.1062, abs=1e-4)
    assert float((P * bound_of_fuji(model)).sum()) == pytest.approx(1.184, abs=1e-3)
    assert float((P * (P / law).log()).sum()) == pytest.approx(0.0004, abs=1e-4)
    latent_first = seq(LogSNR(), num_timesteps=1, num_latent_timesteps=31)
    assert float((P * (P / law_of_seq(latent_first)).log()).sum()) == pytest.approx(0.0023, abs=1e-4)
    coarse = seq(LogSNR(), num_timesteps=1, num_latent_timesteps=3)
    assert float((P * (P / law_of_seq(coarse)).log()).sum()) == pytest.approx(0.41, abs=0.01)


@pytest.mark.parametrize("steps", [None, 6])
@pytest.mark.parametrize("family", [fuji, seq])
def test_nelbo_is_an_unbiased_estimate_of_the_enumerated_bound(family, steps: int | None) -> None:
    """4,000 rows of each x, three times each: within 4 standard errors."""
    more = {"num_latent_timesteps": steps} if family is seq else {}
    model = family(LogSNR(high=3.0, low=-5.0), num_timesteps=steps, **more)
    drawn = model.nelbo(PAIRS.repeat(4000, 1), num_samples=3).reshape(4000, 4)
    discrete = bound_of_seq if family is seq else bound_of_fuji
    exact = discrete(model) if steps else model.prior_nats(PAIRS) + integral(model)
    stderr = drawn.std(0) / math.sqrt(4000)
    assert stderr.max() < 0.1
    assert ((drawn.mean(0) - exact).abs() < 4 * stderr).all()


# ------------------------------------------------------------------ T2: token + latent = H(x)


class Clock(Schedule):
    """w(t) and its slope from two functions."""

    def __init__(self, w, slope) -> None:
        self.w, self.slope = w, slope

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - self.w(t)

    def masked_fraction(self, t: Tensor) -> Tensor:
        return self.w(t)

    def dalpha(self, t: Tensor) -> Tensor:
        return -self.slope(t)


class LatentClock(LogSNR):
    """ln SNR = high at t = 0 to -high at t = 1, along a function of t."""

    def __init__(self, path, slope, high: float = 14.0) -> None:
        super().__init__(high, -high)
        self.path, self.path_slope, self.size = path, slope, high

    def log_snr(self, t: Tensor) -> Tensor:
        return self.size * (1 - 2 * self.path(t))

    def dalpha(self, t: Tensor) -> Tensor:
        return -2 * self.size * self.path_slope(t) * self.alpha(t) * self.masked_fraction(t)

    inverse = Schedule.inverse


one = torch.ones_like
FIRST, SECOND = (lambda t: (2 * t).clamp(max=1)), (lambda t: (2 * t - 1).clamp(min=0))
FIRST_SLOPE, SECOND_SLOPE = (lambda t: 2 * (t < 0.5).double()), (lambda t: 2 * (t > 0.5).double())
CLOCKS = {
    "joint": (Linear(0.0), LatentClock(lambda t: t, one)),
    "tokens lead": (Polynomial(4.0, 0.0), LatentClock(lambda t: t, one)),
    "latent leads": (Linear(0.0), LatentClock(lambda t: t**4, lambda t: 4 * t**3)),
    "latent first": (Clock(FIRST, FIRST_SLOPE), LatentClock(SECOND, SECOND_SLOPE)),
    "tokens first": (Clock(SECOND, SECOND_SLOPE), LatentClock(FIRST, FIRST_SLOPE)),
}


def integral(model: FujiLDDM | SeqLDDM, nodes: int = 40) -> Tensor:
    """Float64[4], nats: token and latent term, less the prior."""
    t, w = half_intervals(nodes)
    nats = enumerated(model, "terms", t, torch.zeros_like(t) if isinstance(model, SeqLDDM) else None)
    if isinstance(model, SeqLDDM):
        nats = nats + enumerated(model, "latent_terms", t)
    return (w[:, None] * nats).sum(0)


T2 = [
    pytest.param(encoder, clock, marks=[] if encoder == "injective" or clock == "joint" else [pytest.mark.slow])
    for encoder in ENCODERS
    for clock in CLOCKS
]


@pytest.mark.parametrize(("encoder", "clock"), T2)
def test_t2_token_term_plus_latent_term_is_the_entropy(encoder: str, clock: str) -> None:
    schedule, latent_schedule = CLOCKS[clock]
    model = fuji(latent_schedule, ENCODERS[encoder], schedule=schedule)
    nodes = 120 if clock.startswith("latent") else 40
    assert float((P * integral(model, nodes)).sum()) == pytest.approx(1.10589, abs=1e-5)
    assert pytest.approx(1.10589, abs=1e-5) == ENTROPY


@pytest.mark.parametrize("encoder", ENCODERS)
def test_t2_seq(encoder: str) -> None:
    model = seq(LogSNR(14.0, -14.0), ENCODERS[encoder])
    assert float((P * integral(model)).sum()) == pytest.approx(1.10589, abs=1e-5)
    bent = seq(LogSNR(14.0, -14.0), ENCODERS[encoder], eps=0.3)
    assert float((P * integral(bent)).sum()) > 1.10589 + 1e-3  # control: only optimal denoisers reach it


# ------------------------------------------------------------------ T6: a constant latent is MD4


def test_t6_a_constant_latent_is_md4_step_by_step() -> None:
    expected = {1: 0.2754, 2: 0.0826, 4: 0.0246, 8: 0.0070, 16: 0.0019, 32: 0.0005}
    md4 = MD4(Masked(JointLaw(P.reshape(2, 2))), 2, (2,), schedule=Linear(0.0))
    model = fuji(gaussian.Sqrt(), ENCODERS["constant"])
    latent = torch.randn(9, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for steps, kl in expected.items():
        law = torch.zeros(9, dtype=torch.float64)
        law[-1] = 1
        for k in range(steps, 0, -1):
            when = torch.tensor([[k / steps], [(k - 1) / steps]], dtype=torch.float64).expand(2, 9)
            ours = model.joint_law(STATES, when[0], when[1], latent=latent).tokens.probs()
            theirs = md4.reverse_law(STATES, when[0], when[1]).probs()
            assert (ours - theirs).abs().max() < 1e-9
            law = law @ product(ours, STATES)
        x = law[PAIRS[:, 0] * 3 + PAIRS[:, 1]]
        assert float((P * (P / x).log()).sum()) == pytest.approx(kl, abs=5e-5)
    mean, std = model.encode(PAIRS), 0.3
    assert (model.token_terms(PAIRS, torch.full((4, 2), 2), torch.full((4,), 0.3).double(), mean + std)
            - md4.terms(PAIRS, torch.full((4, 2), 2), torch.full((4,), 0.3).double())).abs().max() < 1e-9  # fmt: skip


def test_t6_samples_are_md4s_bit_for_bit() -> None:
    md4 = MD4(Masked(JointLaw(P.reshape(2, 2))), 2, (2,), schedule=Linear(0.0))
    theirs = {name: md4.sample(500, 7, grid="uniform", sampler=name, seed=3).x for name in GIVEN_LATENT}
    expected = md4.sample(500, 7, grid="uniform", seed=3).x
    assert not any(torch.equal(x, expected) for name, x in theirs.items() if name != "blocks")
    for model in (fuji(gaussian.Sqrt(), ENCODERS["constant"]), seq(gaussian.Sqrt(), ENCODERS["constant"])):
        for sampler in model.samplers:
            drawn = model.sample(500, 7, grid="uniform", seed=3, sampler=sampler).x
            assert torch.equal(drawn, theirs.get(sampler, expected))
    useful = fuji(gaussian.Sqrt(), UNIT).sample(500, 7, seed=3).x
    assert not torch.equal(useful, expected)


# ------------------------------------------------------------------ T4: correlated bits

COUNT = 400_000  # standard error .0008 at .5, .0004 at .06


def invalid(model: FujiLDDM | SeqLDDM, num_steps: int, sampler: str = "ddim", count: int = COUNT, **options) -> float:
    x = model.sample(count, num_steps, sampler=sampler, **options).x
    return float((x[:, 0] != x[:, 1]).double().mean())


def bits(family, schedule: Schedule | None = None, code: Tensor = OF_EQUAL_BITS, **more):
    return family(gaussian.Sqrt() if schedule is None else schedule, code, law=EQUAL_BITS, **more)


def test_t4_one_step_is_blind() -> None:
    """Without a latent, and with FUJI's at one step, half of the pairs are wrong."""
    assert invalid(bits(fuji, code=torch.zeros(4).double()), 1) == pytest.approx(0.5, abs=0.002)
    assert invalid(bits(fuji), 1) == pytest.approx(0.5, abs=0.003)
    assert invalid(bits(fuji, code=torch.zeros(4).double()), 4, count=100_000) == pytest.approx(0.125, abs=0.004)


def test_t4_fuji_with_the_default_schedule() -> None:
    assert invalid(bits(fuji), 4) == pytest.approx(0.0625, abs=0.002)
    assert invalid(bits(fuji), 4, "ddpm") == pytest.approx(0.0625, abs=0.002)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [(Linear(), 0.079), (gaussian.SquaredCosine(), 0.081), (Polynomial(2.0), 0.060)],
    ids=["linear", "cosine", "power"],
)
def test_t4_other_schedules(schedule: Schedule, expected: float) -> None:
    assert invalid(bits(fuji, schedule), 4, count=100_000) == pytest.approx(expected, abs=0.0035)


@pytest.mark.parametrize(("exponent", "expected"), [(2.0, {4: 0.036, 8: 0.0105}), (3.0, {4: 0.032, 8: 0.0069})])
def test_t4_a_leading_latent_is_better(exponent: float, expected: dict[int, float]) -> None:
    model = fuji(gaussian.Sqrt(), OF_EQUAL_BITS, law=EQUAL_BITS, schedule=gaussian.LatentLeads(exponent))
    for num_steps, share in expected.items():
        tolerance = 4 * math.sqrt(share / 100_000) + 5e-4
        assert invalid(model, num_steps, count=100_000) == pytest.approx(share, abs=tolerance)


@pytest.mark.parametrize("sampler", ["ddim", pytest.param("ddpm", marks=pytest.mark.slow)])
def test_t4_seq_needs_one_token_step(sampler: str) -> None:
    model = bits(seq)
    x = model.sample(COUNT, 1, sampler=sampler, latent_steps=8).x
    assert float((x[:, 0] != x[:, 1]).double().mean()) < 0.001
    assert float(x[:, 0].double().mean()) == pytest.approx(0.5, abs=0.004)


def test_t4_fuji_with_independent_clocks_can_be_sampled_latent_first() -> None:
    model = bits(fuji, independent_clocks=True)
    drawn = model.sample(20_000, 1, sampler="seq_ddim", latent_steps=8)
    assert float((drawn.x[:, 0] != drawn.x[:, 1]).double().mean()) < 0.001
    assert drawn.network_calls == 9


@pytest.mark.parametrize(
    ("rho", "expected"), [(1.0, 0.225), pytest.param(4.0, 0.0343, marks=pytest.mark.slow), (9.0, 0.0021)]
)
def test_t4_the_decoder_must_see_enough_signal(rho: float, expected: float) -> None:
    """SEQ with the latent at SNR rho: E 2r(1-r) of the pairs are wrong in one token step."""
    model = SeqLDDM(
        Bent(EQUAL_BITS, OF_EQUAL_BITS, gaussian.Sqrt()),
        bits(seq).encoder,
        bits(seq).latent_network,
        2,
        (2,),
        max_snr=rho,
    )
    tolerance = 4 * math.sqrt(expected / 100_000) + 5e-4
    assert invalid(model, 1, "ddpm", 100_000, latent_steps=48) == pytest.approx(
        expected, abs=tolerance + 0.03 * expected
    )
