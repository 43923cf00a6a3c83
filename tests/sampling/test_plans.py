"""What holds of every plan, bit for bit given equal logits: settings in which two plans are one, rows alone and in a
batch, and infilling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.core.schedules import Linear
from ggm_lightning.exact.networks import Equal
from ggm_lightning.models.base import Family
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.markov import MarkovDiffusion
from ggm_lightning.models.md4 import MD4
from ggm_lightning.networks.hollow import HollowTransformer
from ggm_lightning.sampling.blocks import Blocks
from ggm_lightning.sampling.corrected import Corrected
from ggm_lightning.sampling.inside import PLANS
from ggm_lightning.sampling.ordered import Ordered, prefix
from ggm_lightning.sampling.plans import OF_MASKED
from ggm_lightning.sampling.request import Samples
from tests.models.every_family import small
from tests.sampling.test_rows_sent import CLAMP, FLOOR, KNOWN, VALUES, B, Counted, N, V, fuji, seq

STEPS, SEED = 13, 3
LABEL = torch.arange(B) % 3


def md4() -> MD4:
    """Its network depends on the site before alone, and so is hollow; the same bits alone and in a batch."""
    return MD4(Counted(), V, (N,), FLOOR)


class Silent(nn.Module):
    """Takes labels, and does not say how many it knows."""

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.zeros(*z.shape, V)


def silent() -> MD4:
    return MD4(Silent(), V, (N,), FLOOR)


def markov() -> MarkovDiffusion:
    return MarkovDiffusion(Counted(), V, (N,), "absorbing", t_end=1.0)


def drawn(model: Family, sampler: str, num_steps: int = STEPS, **more: Any) -> Samples:
    return model.sample(B, num_steps, sampler=sampler, seed=SEED, **more)


def same(a: Samples, b: Samples) -> bool:
    """To the bit, and by as many calls and rows."""
    return torch.equal(a.x, b.x) and (a.network_calls, a.rows) == (b.network_calls, b.rows)


# ------------------------------------------------------------------ two plans that are one


@pytest.mark.parametrize("clamp", [None, CLAMP])
@pytest.mark.parametrize("rule", ["cap", "rescale", "rate", "forward_backward", "psi"])
def test_remasking_of_nothing_is_ancestral(rule: str, clamp: tuple[Tensor, Tensor] | None) -> None:
    ancestral = drawn(md4(), "ancestral", clamp=clamp)
    assert same(drawn(md4(), "remasking", rule=rule, eta=0.0, clamp=clamp), ancestral)
    assert not torch.equal(drawn(md4(), "remasking", rule=rule, eta=1.0, clamp=clamp).x, ancestral.x)


def test_gamma_0_is_one_at_a_time() -> None:
    one = drawn(md4(), "ordered", score="entropy", k=1)
    assert same(drawn(md4(), "ordered", score="entropy", gamma=0.0), one)
    assert not same(drawn(md4(), "ordered", score="entropy", gamma=1.5), one)


def test_sites_without_entropy_come_along() -> None:
    nats = torch.tensor([[0.0, 0.0, 0.3, 0.2, 0.9], [0.5, 0.0, 0.1, 0.0, 0.0]], dtype=torch.float64)
    assert prefix(nats, 0.0).tolist() == [[True, True, True, False, False], [True, True, False, False, False]]
    assert prefix(nats, 0.2).tolist() == [[True, True, True, True, False], [True] * 5]
    assert prefix(nats + 1, 0.0).sum(1).tolist() == [1, 1]


@pytest.mark.parametrize("clamp", [None, CLAMP])
@pytest.mark.parametrize("inside", PLANS)
def test_one_block_of_the_full_length_is_the_plan_alone(inside: str, clamp: tuple[Tensor, Tensor] | None) -> None:
    """With a floor, too, so that the end fills what is left. And no correction is the plan alone."""
    alone = drawn(md4(), inside, clamp=clamp)
    assert same(drawn(md4(), "blocks", inside=inside, clamp=clamp), alone)
    assert not torch.equal(drawn(md4(), "blocks", inside=inside, stride=2, clamp=clamp).x, alone.x)
    assert same(drawn(md4(), "corrected", corrections=0, inside=inside, clamp=clamp), alone)
    assert not torch.equal(drawn(md4(), "corrected", corrections=9, inside=inside, clamp=clamp).x, alone.x)


@pytest.mark.parametrize("sampler", [*PLANS, "blocks"])
def test_nothing_guides_and_nothing_is_cut_off(sampler: str) -> None:
    model = small("md4", label_dropout=0.1)
    plain = drawn(model, sampler, label=LABEL)
    for nothing in ({"guidance": 1}, {"top_p": 1, "nucleus": "inside"}, {"top_k": 7}, {"temperature": 1}):
        assert same(drawn(model, sampler, label=LABEL, **nothing), plain)
    guided = drawn(model, sampler, label=LABEL, guidance=2.5)
    assert not torch.equal(guided.x, plain.x)
    if sampler == "first_hitting":  # as many steps, whatever the values
        assert (guided.network_calls, guided.rows) == (plain.network_calls, 2 * plain.rows)


def test_the_two_nuclei_are_not_one() -> None:
    crossing, inside = (drawn(md4(), "ordered", 1, nucleus=nucleus, top_p=0.8).x for nucleus in ("crossing", "inside"))
    assert not torch.equal(crossing, inside)


# ------------------------------------------------------------------ rows alone, and what is known

OPTIONS: dict[str, dict[str, Any]] = {
    "remasking": {"rule": "cap", "eta": 0.4},
    "ordered": {"k": 2},
    "blocks": {"stride": 2, "inside": "first_hitting"},
    "corrected": {"inside": "first_hitting", "corrections": 3},
}
FAMILIES: dict[str, Callable[[], Family]] = {"md4": md4, "markov": markov, "fuji": fuji, "seq": seq}
CASES = [(family, sampler) for family, make in FAMILIES.items() for sampler in OF_MASKED if sampler in make().samplers]


@pytest.mark.parametrize(("family", "sampler"), CASES)
def test_a_row_alone_is_the_row_in_a_batch_and_what_is_known_stays(family: str, sampler: str) -> None:
    """Rows of which none to all sites are known, so that they take different numbers of steps."""
    options = OPTIONS.get(sampler, {})
    together = drawn(FAMILIES[family](), sampler, 4, clamp=(VALUES, KNOWN), **options).x
    assert torch.equal(together[KNOWN], VALUES[KNOWN])
    assert int(together.max()) < V
    for i in range(B):
        one = slice(i, i + 1)
        clamp, row = (VALUES[one], KNOWN[one]), torch.tensor([i])
        alone = FAMILIES[family]().sample(1, 4, sampler=sampler, seed=SEED, clamp=clamp, row=row, **options)
        assert torch.equal(alone.x[0], together[i]), i
    other = FAMILIES[family]().sample(B, 4, sampler=sampler, seed=SEED + 1, clamp=(VALUES, KNOWN), **options)
    assert not torch.equal(other.x, together)


INSIDE = [(outer, inside) for outer in ("blocks", "corrected") for inside in PLANS]


@pytest.mark.parametrize(("outer", "inside"), INSIDE)
def test_the_same_of_plans_in_plans(outer: str, inside: str) -> None:
    options = {"stride": 2} if outer == "blocks" else {"corrections": 3}
    options |= {"inside": inside, "inside_options": OPTIONS.get(inside, {})}
    together = drawn(md4(), outer, 4, clamp=(VALUES, KNOWN), **options).x
    for i in (0, 2, 5):
        clamp, row = (VALUES[i : i + 1], KNOWN[i : i + 1]), torch.tensor([i])
        alone = md4().sample(1, 4, sampler=outer, seed=SEED, clamp=clamp, row=row, **options)
        assert torch.equal(alone.x[0], together[i])


def test_the_mode_of_the_surest_sites_needs_no_noise() -> None:
    """Temperature 0 is one row, whatever the seed. Control: values are drawn."""
    model = small("md4", label_dropout=0.1)

    def rows(seed: int, temperature: float) -> Tensor:
        return model.sample(B, STEPS, sampler="ordered", seed=seed, temperature=temperature).x

    assert torch.equal(rows(3, 0), rows(9, 0))
    assert not torch.equal(rows(3, 0.5), rows(9, 0.5))


class SurerBehind(torch.nn.Module):
    """Of the last site it is the surest."""

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.arange(V).double().mul(torch.arange(1, N + 1)[:, None]).expand(len(z), N, V)


def test_the_order_is_that_of_the_law_before_temperature() -> None:
    of_run = MD4(SurerBehind(), V, (N,)).sample(B, N, sampler="ordered", temperature=0, trace=True)
    for step, state in enumerate(of_run.trace):
        assert torch.equal(state == V, (torch.arange(N) < N - step).expand(B, N))


def test_each_row_has_its_share_of_the_steps_by_the_sites_of_the_model() -> None:
    """5 sites in 2 steps are 3 a step, also where only 4 are unknown in the whole batch."""
    known = KNOWN | (torch.arange(N) == 0)
    of_run = drawn(md4(), "ordered", 2, clamp=(VALUES, known), trace=True)
    masked = [(state == V).sum(1) for state in of_run.trace]
    assert torch.equal(masked[1], (masked[0] - 3).clamp(min=0))


# ------------------------------------------------------------------ blocks


def test_windows_are_filled_from_left_to_right() -> None:
    of_run = drawn(md4(), "blocks", 2, stride=2, inside="ordered", inside_options={"k": 1}, trace=True)
    masked = [int((state == V).sum()) for state in of_run.trace]
    assert masked == [B * left for left in (5, 4, 3, 2, 1, 0)]
    assert not of_run.trace[2][:, :2].eq(V).any()
    assert not of_run.trace[4][:, :4].eq(V).any()


def test_a_text_longer_than_the_model() -> None:
    """Each window sees the n - stride sites before it: drawn again by hand, given these."""
    length, stride = 12, 3
    known = torch.arange(N) < 1
    clamp = torch.where(known, VALUES, 0), known.expand(B, N)
    options = {"inside": "ordered", "inside_options": {"k": 1}, "temperature": 0}
    model = md4()
    of_run = drawn(model, "blocks", stride=stride, length=length, clamp=clamp, trace=True, **options)
    assert of_run.x.shape == (B, length)
    assert torch.equal(of_run.x[:, 0], VALUES[:, 0])
    assert all(state.shape == (B, length) for state in of_run.trace)
    assert torch.equal(of_run.trace[-1], of_run.x)
    for last in (6, 9, 12):
        view = slice(last - N, last)
        shown = torch.arange(N) < N - stride
        again = md4().sample(
            B, STEPS, sampler="ordered", k=1, temperature=0, clamp=(of_run.x[:, view], shown.expand(B, N))
        )
        assert torch.equal(again.x, of_run.x[:, view])
    assert of_run.rows == B * (length - 1)


def test_windows_of_a_longer_text_have_noise_of_their_own() -> None:
    """By a network that says nothing, so that values are noise alone."""
    options = {"stride": N, "length": 3 * N, "inside": "first_hitting"}
    x = MD4(Equal(V), V, (N,), FLOOR).sample(64, 1, sampler="blocks", **options).x
    windows = x.split(N, 1)
    for i in range(3):
        agreeing = (windows[i] == windows[i - 1]).double().mean()
        assert abs(float(agreeing) - 1 / V) < 4.5 * (2 / 9 / x[:, :N].numel()) ** 0.5


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("build", "sampler", "options", "said"),
    [
        (md4, "remasking", {"rule": "half"}, "remasking: rule is 'half'; choose cap or rescale or loop or rate"),
        (md4, "remasking", {"rule": "cap", "eta": 1.5}, r"eta is 1.5; with rule cap it must be in \[0, 1\]"),
        (md4, "remasking", {"rule": "rate", "eta": -1.0}, "with rule rate it must be at least 0 and finite"),
        (md4, "remasking", {"rule": "loop", "t_on": 0.1, "t_off": 0.2}, "give 0 < t_off < t_on < 1"),
        (md4, "remasking", {"alpha_on": 1.0}, r"alpha_on is 1.0; it must lie inside \(0, 1\)"),
        (md4, "remasking", {"leftover": "keep"}, "leftover is 'keep'; choose draw or argmax"),
        (md4, "ordered", {"score": "drawn"}, "score 'drawn' is refused: .* biased whatever the network.* .40 .*2.38"),
        (md4, "ordered", {"score": "random"}, "score is 'random'; choose confidence or margin or entropy"),
        (md4, "ordered", {"biased": True}, "biased is set, but score 'confidence' is not biased"),
        (md4, "ordered", {"k": 0}, "ordered: k is 0; it must be at least 1"),
        (md4, "ordered", {"gamma": -0.1}, "gamma is -0.1; it must be at least 0 nats"),
        (md4, "ordered", {"k": 2, "gamma": 0.1}, "k is 2 and gamma 0.1; give one of both"),
        (md4, "blocks", {"stride": 6}, "stride is 6; the model has 5 sites, give at most as many"),
        (md4, "blocks", {"length": 3}, "length is 3; the model's own is 5"),
        (seq, "blocks", {"length": 9}, "length is 9, but SeqLDDM draws a latent of 5 sites"),
        (md4, "blocks", {"inside": "blocks"}, "inside is 'blocks'; choose ancestral or first_hitting"),
        (md4, "blocks", {"inside": Corrected()}, "inside is 'Corrected', which holds a plan itself"),
        (md4, "blocks", {"inside_options": {"k": 2}}, "'ancestral' has no option 'k'; it has none"),
        (md4, "blocks", {"inside": Ordered(), "inside_options": {"k": 2}}, "but inside is a plan already"),
        (md4, "corrected", {"corrections": -1}, "corrections is -1; it must be at least 0"),
        (lambda: MD4(Counted(), V, (1, N)), "blocks", {"length": 9}, r"rows of shape \(1, 5\) are no texts"),
        (lambda: GenMD4(Counted(), V, (N,)), "ordered", {}, "'ordered' is refused: each class is masked at times of"),
        (lambda: GGM(Counted(), V, (N,)), "remasking", {}, "sampler 'remasking' is unknown to GGM; choose heat_bath"),
        (md4, "ordered", {"top_k": 0}, "top_k is 0; it must be at least 1"),
        (md4, "ordered", {"nucleus": "outside"}, "nucleus is 'outside'; choose crossing or inside"),
        (md4, "ordered", {"temperature": -1.0}, "temperature is -1.0; it must be at least 0"),
        (md4, "ordered", {"guidance": -1}, "guidance is -1; it must be at least 0 and finite, 1 is none"),
        (md4, "ordered", {"guidance": 2}, "guidance is 2, but there is no label to guide by"),
        (silent, "ordered", {"guidance": 2, "label": LABEL}, "give it the attribute num_labels, or leave guidance out"),
        (fuji, "ddpm", {"guidance": 2}, "guidance is 2, but sampler 'ddpm' of FujiLDDM draws from laws of its own"),
        (lambda: small("md4"), "ordered", {"guidance": 2, "label": LABEL}, "the network was never asked without a"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    build: Callable[[], Family], sampler: str, options: dict[str, object], said: str
) -> None:
    model = build()
    with pytest.raises(ValueError, match=said) as caught:
        model.sample(B, STEPS, sampler=sampler, **options)
    assert "\n" not in str(caught.value)
    assert model.network_calls == 0


def test_a_network_that_leaks_is_not_corrected_with() -> None:
    model = small("md4", label_dropout=0.1)
    with pytest.raises(ValueError, match="needs a hollow network, and what Transformer returned at site"):
        drawn(model, "corrected")
    assert (model.network_calls, model.rows_sent) == (0, 0)
    torch.manual_seed(0)
    network = HollowTransformer(7, feature_dim=8, num_heads=2, num_layers=1, num_merges=1, visited_bits=False)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    hollow = MD4(network, 7, (N,), Linear(0.0))
    of_run = drawn(hollow, "corrected", corrections=4, inside="ordered", inside_options={"k": 1})
    assert (of_run.network_calls, of_run.rows) == (N + 4, B * (N + 4))


class Told(Counted):
    """Keeps the times and the states that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[Tensor, Tensor]] = []

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, **more: Tensor) -> Tensor:
        self.told.append((t, z))
        return super().forward(z, t)


def test_the_corrector_is_told_of_one_masked_site_and_the_order_of_as_many_as_there_are() -> None:
    """Both by a schedule of alpha = 1 - t."""
    network = Told()
    options = {"inside": "ordered", "inside_options": {"k": 1}}
    drawn(MD4(network, V, (N,), Linear(0.0)), "corrected", corrections=2, clamp=CLAMP, **options)
    masked = [(z == V).double().mean(1) for _, z in network.told[2:]]  # behind the look for leaks
    assert len(masked) == N + 2
    for (t, _), share in zip(network.told[2 : N + 2], masked, strict=False):
        assert torch.allclose(t.double(), share)
    for t, z in network.told[N + 2 :]:
        assert torch.allclose(t.double(), torch.full((B - 2,), 1 / N, dtype=torch.float64))
        assert not z.eq(V).any()


def test_a_plan_may_be_an_object() -> None:
    by_name = drawn(md4(), "blocks", stride=2, inside="ordered", inside_options={"k": 2})
    by_object = md4().sample(B, STEPS, sampler=Blocks(2, inside=Ordered(k=2)), seed=SEED)
    assert same(by_name, by_object)


def test_leftovers_take_their_mode() -> None:
    """Of a floor of .2 and a single step. Control: they are drawn."""
    mode = [drawn(md4(), "remasking", 1, eta=0.0, leftover="argmax").x for _ in range(2)]
    assert torch.equal(*mode)
    assert not torch.equal(mode[0], drawn(md4(), "remasking", 1, eta=0.0).x)
