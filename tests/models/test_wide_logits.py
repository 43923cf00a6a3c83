"""Logits that are far apart, or -inf: bounds, losses and gradients as the formulas say, in decimals of 60 digits.

A class 760 nats below the others has a probability that float64 writes as 0. Where the data have such a class a bound
is large, not infinite; where its logit is -inf the bound is infinite, not NaN, and the other rows keep their gradients.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from decimal import Decimal, localcontext

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.core import births, glauber
from ggm_lightning.core.births import BirthLaw
from ggm_lightning.core.markov import Step
from ggm_lightning.models.autoregressive import AutoregressiveModel
from ggm_lightning.models.base import Family
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.lddm import FujiLDDM
from ggm_lightning.models.lddm_stages import Recipe
from ggm_lightning.models.markov import MarkovDiffusion
from ggm_lightning.models.md4 import MD4

B, N, V = 4, 3, 5
INF = math.inf
READINGS = ("prior", "posterior")
PROCESSES = ("uniform", "absorbing", "gaussian", "death")
DEATH = [[float(a == b - 1) for b in range(V)] for a in range(V)]  # triangular: most classes lead to few states


class Table(nn.Module):
    """Free logits for every row and site, whatever the state: a row's gradient is its own."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, **inputs: Tensor) -> Tensor:
        return self.logits.repeat(-(-len(z) // len(self.logits)), 1, 1)[: len(z)]


class Joint(Table):
    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(z, t), 0 * inputs["latent"]


class Encoder(nn.Module):
    num_latents, latent_dim = 2, 3

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        return torch.zeros(len(x), 2, 3)


def markov_of(process: str, reading: str) -> Callable[[Tensor], Family]:
    rates = DEATH if process == "death" else process
    options = {"process": rates, "t_end": 3.0, "num_timesteps": 8, "parametrisation": reading}
    return lambda logits: MarkovDiffusion(Table(logits), V, (N,), **options)


def blackout_of(bound: str, reading: str) -> Callable[[Tensor], Family]:
    options = {"output": "distribution", "loss": "cross_entropy", "num_timesteps": 20}
    return lambda logits: Blackout(Table(logits), V, (N,), bound=bound, parametrisation=reading, **options)


FAMILIES: dict[str, Callable[[Tensor], Family]] = {
    "md4": lambda logits: MD4(Table(logits), V, (N,)),
    "genmd4": lambda logits: GenMD4(Table(logits), V, (N,)),
    "ar": lambda logits: AutoregressiveModel(Table(logits), V, (N,)),
    "ggm ce_x0": lambda logits: GGM(Table(logits), V, (N,), loss="ce_x0"),
    "ggm blocks": lambda logits: GGM(Table(logits), V, (N,), loss="ce_x0", block_size=3, hide="block"),
    "fuji": lambda logits: FujiLDDM(Joint(logits), Encoder(), V, (N,), recipe=Recipe(stage1_steps=0)),
    **{f"markov {process} prior": markov_of(process, "prior") for process in PROCESSES},
    **{f"markov {process} posterior": markov_of(process, "posterior") for process in ("uniform", "absorbing")},
    **{f"blackout {bound} prior": blackout_of(bound, "prior") for bound in ("continuous", "poisson", "capped")},
    **{f"blackout posterior {r}": blackout_of("posterior", r) for r in READINGS},
}
# every visit of GGM may make a token of any class: a law p_t with a class of probability 0 is wrong of all data
OF_THE_NOISY_TOKEN: dict[str, Callable[[Tensor], Family]] = {
    "ggm bce": lambda logits: GGM(Table(logits), V, (N,), loss="bce"),
    "ggm ce_xt": lambda logits: GGM(Table(logits), V, (N,), loss="ce_xt"),
}
WITH_LAST = torch.tensor([[0, 1, 2], [1, 1, 0], [2, 0, 1], [V - 1, V - 1, V - 1]])
WITHOUT = WITH_LAST.clamp(max=V - 2)


def logits_with(last: float) -> Tensor:
    logits = torch.randn(B, N, V, generator=torch.Generator().manual_seed(0))
    logits[..., -1] += last
    return logits


def losses_of(model: Family, x: Tensor, steps: int = 24) -> tuple[Tensor, Tensor]:
    """Losses, and the gradients of the table, added up."""
    values = []
    for step in range(steps):
        loss = model.loss(x, step=step)
        loss.backward()
        values.append(loss.detach())
    return torch.stack(values), model.network.logits.grad


@pytest.mark.parametrize("name", [*FAMILIES, *OF_THE_NOISY_TOKEN])
def test_a_gap_of_760_nats_is_finite(name: str) -> None:
    model = (FAMILIES | OF_THE_NOISY_TOKEN)[name](logits_with(-760.0))
    values, gradient = losses_of(model, WITH_LAST)
    assert bool(torch.isfinite(values).all())
    assert bool(torch.isfinite(gradient).all())
    nats = model.nelbo(WITH_LAST, num_samples=20)
    assert bool(torch.isfinite(nats).all())
    assert float(nats[-1]) > 100  # and it is paid for


@pytest.mark.parametrize("name", FAMILIES)
def test_a_class_of_logit_minus_inf_that_occurs_is_infinite_and_never_nan(name: str) -> None:
    model = FAMILIES[name](logits_with(-INF))
    values, gradient = losses_of(model, WITH_LAST)
    assert not bool(torch.isnan(values).any())
    assert bool((values == INF).any())
    assert bool(torch.isfinite(gradient[:-1]).all())
    nats = model.nelbo(WITH_LAST, num_samples=20)
    assert bool(torch.isfinite(nats[:-1]).all())
    assert float(nats[-1]) == INF
    others = [p.grad for p in model.parameters() if p.grad is not None]
    assert not any(bool(torch.isnan(part[:-1]).any()) for part in others)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_class_of_logit_minus_inf_that_does_not_occur_costs_nothing(name: str) -> None:
    """Control of the test above, and the exact denoiser's case: the same numbers as with a class of no weight."""
    results = []
    for last in (-INF, -80.0):
        model = FAMILIES[name](logits_with(last))
        values, gradient = losses_of(model, WITHOUT)
        assert bool(torch.isfinite(values).all())
        assert bool(torch.isfinite(gradient).all())
        results.append((values, gradient, model.nelbo(WITHOUT, num_samples=5)))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OF_THE_NOISY_TOKEN)
def test_a_noisy_token_may_be_of_any_class(name: str) -> None:
    model = OF_THE_NOISY_TOKEN[name](logits_with(-INF))
    values, gradient = losses_of(model, WITHOUT)
    assert not bool(torch.isnan(values).any())
    assert bool(torch.isfinite(gradient).all())
    assert bool((model.nelbo(WITHOUT, num_samples=20) == INF).all())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", [MD4, GenMD4])
def test_a_head_with_a_bias_of_minus_inf(family: type[Family], fused: bool) -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.hidden, self.head = nn.Parameter(torch.randn(B, N, 7)), nn.Linear(7, V)
            with torch.no_grad():
                self.head.bias[-1] = -INF

        def features(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
            return self.hidden.repeat(len(z) // B, 1, 1)

    for x, infinite in ((WITH_LAST, True), (WITHOUT, False)):
        model = family(Head(), V, (N,))
        model.fused = fused
        values = torch.stack([model.loss(x, step=i) for i in range(12)])
        values.sum().backward()
        assert not bool(torch.isnan(values).any())
        assert bool((values == INF).any()) == infinite
        assert not any(bool(torch.isnan(p.grad).any()) for p in model.parameters())
        assert bool(torch.isfinite(model.network.hidden.grad[:-1]).all())


# the same in decimals


def normalised(logs: list[Decimal | None]) -> list[Decimal]:
    """The law of these logarithms, None for 0."""
    p = [Decimal(0) if x is None else x.exp() for x in logs]
    return [x / sum(p) for x in p]


def decimal_divergence(q: list[Decimal], p: list[Decimal]) -> Decimal:
    return sum((a * (a / b).ln() for a, b in zip(q, p, strict=True) if a), Decimal(0))


def decimals(x: Tensor) -> list:
    return [decimals(row) for row in x] if x.dim() else Decimal(float(x))


def markov_step(logits: list[Decimal], reading: str, x0: int, xt: int, matrices: list[Tensor]) -> Decimal:
    """KL(P(x_s | x_t, x_0) || sum over o of p(o | x_t) P(x_s | x_t, o)) of one site, eq. (4) term by term."""
    before, at, between = (decimals(matrix) for matrix in matrices)
    states, classes = range(len(before)), range(len(logits))
    reach = [at[xt][o] for o in classes]
    weight = [x + reach[o].ln() if reading == "prior" and reach[o] else x for o, x in enumerate(logits)]
    posterior = normalised([weight[o] if reach[o] else None for o in classes])
    bridges = {o: [between[xt][s] * before[s][o] / reach[o] for s in states] for o in classes if reach[o]}
    model = [sum(posterior[o] * bridges[o][s] for o in bridges) for s in states]
    return decimal_divergence(bridges[x0], model)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("process", PROCESSES)
def test_markov_terms_and_gradients_in_decimals(process: str, reading: str) -> None:
    logits = torch.tensor([0.3, -760.0, -1.1, -2200.0, 0.7], dtype=torch.float64)
    rates = DEATH if process == "death" else process
    options = {"process": rates, "t_end": 3.0, "num_timesteps": 4, "parametrisation": reading}
    network = Table(logits.expand(1, 1, V))
    model = MarkovDiffusion(network, V, (1,), **options)
    pairs = {"absorbing": ((1, 1), (3, V), (0, V)), "death": ((3, 1), (4, 3), (1, 1))}
    for k, (x0, xt) in itertools.product((1, 3), pairs.get(process, ((1, 2), (3, 3), (4, 0)))):
        network.logits.grad = None
        t = torch.tensor([k / 4], dtype=torch.float64)
        nats = model.terms(torch.tensor([[x0]]), torch.tensor([[xt]]), t)
        nats.sum().backward()
        expected, slopes = in_decimals(decimals(logits), reading, x0, xt, model.grid.step(torch.tensor([k])))
        assert float(nats.detach()) == pytest.approx(4 * expected, rel=1e-10, abs=1e-10)
        assert network.logits.grad[0, 0].tolist() == pytest.approx([4 * slope for slope in slopes], abs=1e-9)


def in_decimals(logits: list[Decimal], reading: str, x0: int, xt: int, step: Step) -> tuple[float, list[float]]:
    """markov_step, and its slopes in the logits by finite differences."""
    matrices = [part[0].exp() for part in (step.before, step.at, step.between)]
    with localcontext() as context:
        context.prec = 60
        h, nats = Decimal("1e-20"), markov_step(logits, reading, x0, xt, matrices)
        moved = [[x + h * (i == v) for i, x in enumerate(logits)] for v in range(len(logits))]
        slopes = [(markov_step(other, reading, x0, xt, matrices) - nats) / h for other in moved]
        return float(nats), [float(slope) for slope in slopes]


def test_ggm_step_in_decimals() -> None:
    """The mean divergence over the own token, from the kernel's definition."""
    log_p = torch.log_softmax(torch.tensor([0.3, -760.0, -1.1, -2200.0, 0.7], dtype=torch.float64), 0)
    pi = torch.tensor([0.3, 0.1, 0.2, 0.25, 0.15], dtype=torch.float64)
    for a, keep, x0 in ((0.7, 0.3, 0), (0.01, 0.9, 1), (1.0, 0.6, 1), (1.0, 0.6, 3)):
        values = [torch.tensor([c], dtype=torch.float64) for c in (a, keep)]
        nats = glauber.step_nats(log_p[None], torch.tensor([x0]), pi.log(), *values)
        with localcontext() as context:
            context.prec = 60
            survive, stay, law = Decimal(a), Decimal(keep), normalised(decimals(log_p))
            noise = decimals(pi)
            m = [survive * (v == x0) + (1 - survive) * noise[v] for v in range(V)]
            expected = Decimal(0)
            for own in range(V):
                channel = [stay * (v == own) + (1 - stay) * noise[own] for v in range(V)]
                joint = [x * c for x, c in zip(m, channel, strict=True)]
                kernel = [x * c for x, c in zip(law, channel, strict=True)]
                posterior, kernel = ([x / sum(part) for x in part] for part in (joint, kernel))
                expected += sum(joint) * decimal_divergence(posterior, kernel)
        assert float(nats) == pytest.approx(float(expected), rel=1e-12)
    with_numbers = (pi * (pi.log() - log_p.exp().log())).sum()  # control: through the probabilities themselves
    assert float(with_numbers) == INF


def test_posterior_births_in_decimals() -> None:
    log_p = torch.log_softmax(torch.tensor([-INF, 0.3, -760.0, -2200.0, -INF], dtype=torch.float64), 0)
    xt, pi = 1, torch.tensor([0.3], dtype=torch.float64)
    law = BirthLaw(torch.tensor([[xt]]), torch.ones(1, 1).double(), pi, V - 1, "posterior", log_p[None, None])
    for deaths in (0, 1, 2):
        nats = births.kernel_divergence(law, torch.tensor([[deaths]]), torch.zeros(1, 1).double())
        with localcontext() as context:
            context.prec = 60
            p = Decimal(float(pi))
            table = [[Decimal(math.comb(m, n)) * p**n * (1 - p) ** max(m - n, 0) for n in range(V)] for m in range(V)]
            weight = [x.exp() if x > Decimal("-inf") else Decimal(0) for x in decimals(log_p)]
            model = [sum(weight[xt + m] * table[m][n] for m in range(V - xt)) for n in range(V)]
            assert float(nats) == pytest.approx(float(decimal_divergence(table[deaths], model)), rel=1e-12)
    assert float(births.kernel_divergence(law, torch.tensor([[3]]), torch.zeros(1, 1).double())) == INF


@pytest.mark.parametrize("n", [1, 3])
def test_a_single_class_costs_nothing(n: int) -> None:
    zeros = torch.zeros(1, n, 1)
    models = {
        "md4": MD4(Table(zeros), 1, (n,)),
        "genmd4": GenMD4(Table(zeros), 1, (n,)),
        "ar": AutoregressiveModel(Table(zeros), 1, (n,)),
        "ggm": GGM(Table(zeros), 1, (n,)),
        "fuji": FujiLDDM(Joint(zeros), Encoder(), 1, (n,), recipe=Recipe(stage1_steps=0)),
        **{process: MarkovDiffusion(Table(zeros), 1, (n,), process=process) for process in markov_names()},
    }
    x = torch.zeros(2, n, dtype=torch.int64)
    for name, model in models.items():
        assert bool(torch.isfinite(model.loss(x))), name
        assert model.nelbo(x, num_samples=3).tolist() == pytest.approx([0.0, 0.0], abs=1e-7), (
            name
        )  # FUJI's latent: 2e-8
        assert int(model.sample(2, 4).x.sum()) == 0, name
    with pytest.raises(ValueError, match="num_classes is 1") as caught:
        Blackout(Table(zeros), 1, (n,))
    assert "\n" not in str(caught.value)


def markov_names() -> tuple[str, ...]:
    return ("uniform", "absorbing", "gaussian")


def test_one_site_alone_has_the_right_bound() -> None:
    """n = 1, equal logits: ln V of every x, in every family; MD4's and GenMD4's within the floor of their schedules."""
    zeros = torch.zeros(1, 1, V)
    x = torch.arange(V)[:, None]
    models = [MD4(Table(zeros), V, (1,)), GenMD4(Table(zeros), V, (1,)), GGM(Table(zeros), V, (1,), loss="ce_x0")]
    models += [MarkovDiffusion(Table(zeros), V, (1,), process=process) for process in markov_names()]
    models += [AutoregressiveModel(Table(zeros), V, (1,))]
    models += [blackout_1(bound) for bound in ("continuous", "poisson", "capped", "posterior")]
    for model in models:
        nats = model.nelbo(x.repeat(49, 1), num_samples=64).reshape(49, V).mean(1)
        stderr = float(nats.std()) / 7
        assert stderr < 0.07
        slack = 0.02 if isinstance(model, Blackout) else 2e-3  # a chain of 1,000 steps of births
        assert abs(float(nats.mean()) - math.log(V)) < 4 * stderr + slack


def blackout_1(bound: str) -> Blackout:
    options = {"output": "distribution", "loss": "cross_entropy"}
    return Blackout(Table(torch.zeros(1, 1, V)), V, (1,), bound=bound, **options)
